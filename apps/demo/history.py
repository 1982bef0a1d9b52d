"""Pictures to click: a visitor's own in the browser's storage, and the painted examples of the first view."""

import base64
import html
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ...blocks.errors import BifronsError
from ...blocks.image_io import text_chunks
from .components import Update, gr

MAX_PICTURES = 40
"""Pictures of a visitor that are listed; the oldest leave."""
EXAMPLES = Path(__file__).parent / "examples"
"""Pictures that janus-nano painted, with their settings; see `docs/models.md`."""

_SIDE = 128
_MOST_IMAGE, _MOST_TEXT = 60_000, 4_000
_DATA_URL = re.compile(r"data:image/(?:webp|png);base64,[A-Za-z0-9+/]+={0,2}\Z")
_NUMBERS = {"seed": int, "guidance_scale": float, "temperature": float, "top_k": int, "top_p": float}
_TEXTS = ("prompt", "model", "negative_prompt")
_CLICK = """
element.addEventListener("click", event => {
  const button = event.target.closest("button[data-index]");
  if (button) trigger("click", {index: Number(button.dataset.index)});
});
"""


def thumbnail(picture: Image.Image) -> str:
    """A picture of at most 128 x 128 pixels as a `data:` URL."""
    small = picture.convert("RGB")
    small.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    small.save(stream, "WEBP", quality=85, method=4)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode()


def entry_of(picture: Image.Image, settings: dict[str, str]) -> dict[str, str]:
    """What is stored of a picture: its thumbnail and settings."""
    named = {name: settings[name] for name in (*_NUMBERS, *_TEXTS) if name in settings}
    return {"image": thumbnail(picture)} | named


def valid_entries(stored: Any) -> list[dict[str, str]]:
    """The entries of a browser's storage that can be shown; what else it holds is dropped."""
    listed = stored if isinstance(stored, list) else []
    return [entry for entry in listed[:MAX_PICTURES] if _is_valid(entry)]


def _is_valid(entry: Any) -> bool:
    if not isinstance(entry, dict) or not all(isinstance(value, str) for value in entry.values()):
        return False
    image = entry.get("image", "")
    if len(image) > _MOST_IMAGE or not _DATA_URL.match(image):
        return False
    if not {"prompt", "model", *_NUMBERS} <= entry.keys() <= {"image", *_NUMBERS, *_TEXTS}:
        return False
    try:
        _ = [convert(entry[name]) for name, convert in _NUMBERS.items()]
    except ValueError:
        return False
    return all(len(entry.get(name, "")) <= _MOST_TEXT for name in _TEXTS)


def strip_html(entries: Sequence[dict[str, str]], title: str, kind: str) -> str:
    """Buttons with pictures under a title, as HTML; empty without entries."""
    if not entries:
        return ""
    buttons = "".join(
        f'<button type="button" data-index="{index}" title="{html.escape(_words(entry))}">'
        f'<img src="{entry["image"]}" alt="{html.escape(entry["prompt"])}">'
        + (f"<span>{html.escape(entry['prompt'])}</span>" if kind == "examples" else "")
        + "</button>"
        for index, entry in enumerate(entries)
    )
    return f'<h2 class="bf-title">{html.escape(title)}</h2><div class="bf-{kind}">{buttons}</div>'


def _words(entry: dict[str, str]) -> str:
    return f"{entry['prompt']} · seed {entry['seed']} · {entry['model']}"


def example_files() -> list[Path]:
    """The files of the painted examples."""
    return sorted(EXAMPLES.glob("*.png"))


def load_examples(models: Sequence[str]) -> list[dict[str, str]]:
    """The painted examples of these models."""
    entries = []
    for path in example_files():
        with Image.open(path) as picture:
            settings = text_chunks(picture)
            if settings["model"] in models:
                entries.append(entry_of(picture, settings))
    return entries


class PictureStrip:
    """A row of pictures that fill the form when they are clicked."""

    def __init__(self, kind: str) -> None:
        self.view = gr.HTML("", js_on_load=_CLICK, elem_id=f"bf-{kind}", elem_classes="bf-flush")
        self.kind = kind

    @staticmethod
    def chosen(entries: Sequence[dict[str, str]], event: gr.EventData) -> dict[str, str]:
        """The entry that was clicked. Raises `BifronsError` if there is none."""
        index = getattr(event, "index", None)
        if not isinstance(index, int) or not 0 <= index < len(entries):
            raise BifronsError("this picture is no longer listed; reload the page")
        return entries[index]


class History(PictureStrip):
    """The pictures that a visitor has painted, newest first, in the storage of the browser."""

    def __init__(self) -> None:
        super().__init__("history")
        # The key only keeps Gradio from drawing a new one at each start, which would empty the list.
        self.state = gr.BrowserState([], storage_key="bifrons-pictures", secret="bifrons-pictures")

    def show(self, stored: Any) -> Update:
        """Show what the browser has stored."""
        return {self.view: strip_html(valid_entries(stored), "Your pictures", self.kind)}

    def add(self, stored: Any, pictures: Sequence[Image.Image]) -> Update:
        """Store and show new pictures, whose settings are in their `info`."""
        new = [entry_of(one, {str(name): str(value) for name, value in one.info.items()}) for one in pictures]
        entries = [*new, *valid_entries(stored)][:MAX_PICTURES]
        return {self.state: entries, **self.show(entries)}
