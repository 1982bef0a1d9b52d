"""Pictures to click: a visitor's own in the browser's storage, and the painted examples of the first view."""

import base64
import html
import io
import re
import secrets
import shutil
from collections import deque
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image

from ...blocks.errors import BifronsError
from ...blocks.image_io import open_image, text_chunks
from .components import Update, gr
from .image_job import save_painted
from .models import LoadedModel
from .suggestions import sentences

MAX_PICTURES = 40
"""Pictures of a visitor that are listed; the oldest leave."""
_MOST_FILES = 500
"""Painted pictures of all visitors that stay on the disk until the server ends; the oldest are deleted."""
EXAMPLES = Path(__file__).parent / "examples"
"""Pictures that janus-nano painted, with their settings; see `docs/models.md`."""

_SIDE = 192
_MOST_IMAGE, _MOST_TEXT = 60_000, 4_000
_DATA_URL = re.compile(r"data:image/(?:webp|png);base64,[A-Za-z0-9+/]+={0,2}\Z")
_NUMBERS = {"seed": int, "guidance_scale": float, "temperature": float, "top_k": int, "top_p": float}
_TEXTS = ("prompt", "model", "negative_prompt")
_NAME = re.compile(r"[0-9a-f]{32}\Z")
CLEAR = -1
"""The index of the button that empties the list."""
_CLEAR = f'<button type="button" class="bf-clear" data-index="{CLEAR}">Clear the list</button>'
_CLICK = """
element.addEventListener("click", event => {
  const button = event.target.closest("button[data-index]");
  if (!button) return;
  trigger("click", {index: Number(button.dataset.index)});
  const block = window.innerWidth <= 640 ? "start" : "nearest";
  const scroll = id => document.getElementById(id).scrollIntoView({behavior: "smooth", block});
  if (button.dataset.scroll) [0, 800].forEach(wait => setTimeout(scroll, wait, button.dataset.scroll));
});
"""


def thumbnail(picture: Image.Image) -> str:
    """A picture of at most 192 x 192 pixels as a `data:` URL."""
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
    if not {"prompt", "model", *_NUMBERS} <= entry.keys() <= {"image", "file", *_NUMBERS, *_TEXTS}:
        return False
    if "file" in entry and not _NAME.match(entry["file"]):
        return False
    try:
        _ = [convert(entry[name]) for name, convert in _NUMBERS.items()]
    except ValueError:
        return False
    return all(len(entry.get(name, "")) <= _MOST_TEXT for name in _TEXTS)


def strip_html(
    entries: Sequence[dict[str, str]],
    title: str,
    kind: str,
    captions: Sequence[str] = (),
    more: str = "",
    scroll: str = "",
) -> str:
    """Buttons with pictures, and captions if there are some, under a title, as HTML; empty without entries.
    `more` is HTML that follows the pictures; a click scrolls to the element `scroll`."""
    if not entries:
        return ""
    texts = [f"<span>{html.escape(caption)}</span>" for caption in captions] or [""] * len(entries)
    to = f' data-scroll="{scroll}"' if scroll else ""
    buttons = "".join(
        f'<button type="button" data-index="{index}"{to}{_title(entry)}>{_image(entry)}{text}</button>'
        for index, (entry, text) in enumerate(zip(entries, texts, strict=False))
    )
    return f'<h2 class="bf-title">{html.escape(title)}</h2><div class="bf-{kind}">{buttons}</div>{more}'


def _image(entry: dict[str, str]) -> str:
    if "image" not in entry:
        return ""
    return f'<img src="{entry["image"]}" alt="{html.escape(entry["prompt"])}">'


def _title(entry: dict[str, str]) -> str:
    if "seed" not in entry:
        return ""
    return f' title="{html.escape(entry["prompt"])} · seed {entry["seed"]} · {html.escape(entry["model"])}"'


@cache
def load_examples() -> list[dict[str, str]]:
    """The painted examples; `file` is the picture."""
    entries = []
    for path in sorted(EXAMPLES.glob("*.png")):
        with Image.open(path) as picture:
            entries.append(entry_of(picture, text_chunks(picture)) | {"file": str(path)})
    return entries


def load_starters(models: Sequence[LoadedModel]) -> list[dict[str, str]]:
    """What the first view offers: examples that these models have painted, otherwise sentences in words of
    the first."""
    names = {loaded.name for loaded in models}
    painted = [entry for entry in load_examples() if entry["model"] in names]
    return painted or [{"prompt": sentence} for sentence in sentences(models[0].pipe.vocabulary)]


class PictureStrip:
    """A row of pictures that fill a form when they are clicked."""

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


class Tries(PictureStrip):
    """The painted examples, each with a text to try on it, which `say` makes of what it was painted from."""

    def __init__(self, kind: str, say: Callable[[str], str]) -> None:
        super().__init__(kind)
        self.texts = [say(entry["prompt"]) for entry in load_examples()]
        self.view.value = strip_html(load_examples(), "Try one", "tries", self.texts)

    def read(self, event: gr.EventData) -> tuple[str, str]:
        """The file and the text that were clicked. Raises `BifronsError` if there are none."""
        file = self.chosen(load_examples(), event)["file"]
        return file, self.texts[getattr(event, "index", 0)]


class PaintedFiles:
    """Painted pictures as PNG files with their settings, each in a folder whose name can't be guessed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "painted"
        self._added: deque[Path] = deque()

    def add(self, picture: Image.Image) -> str:
        """The path of a new file; the oldest beyond `_MOST_FILES` is deleted."""
        folder = self.folder / secrets.token_hex(16)
        folder.mkdir(parents=True)
        self._added.append(folder)
        while len(self._added) > _MOST_FILES:
            shutil.rmtree(self._added.popleft(), ignore_errors=True)
        return str(save_painted(picture, folder))

    def find(self, name: str) -> str | None:
        """The path of the file in the folder of this name, if it is still there."""
        return next(map(str, (self.folder / name).glob("*.png")), None)


class History(PictureStrip):
    """The pictures that a visitor has painted, newest first: their settings and small copies in the storage
    of the browser, their `files` on the server."""

    def __init__(self, folder: Path) -> None:
        super().__init__("history")
        self.files = PaintedFiles(folder)
        # The key only keeps Gradio from drawing a new one at each start, which would empty the list.
        self.state = gr.BrowserState([], storage_key="bifrons-pictures", secret="bifrons-pictures")

    def show(self, stored: Any) -> Update:
        """Show what the browser has stored."""
        entries = valid_entries(stored)
        shown = strip_html(entries, "Your pictures", self.kind, more=_CLEAR, scroll="paint-status")
        return {self.view: shown}

    def clear(self) -> Update:
        """Forget all pictures."""
        return {self.state: [], **self.show([])}

    def add(self, stored: Any, pictures: Sequence[Image.Image], files: Sequence[str]) -> Update:
        """Store and show new pictures, whose settings are in their `info`."""
        new = [
            entry_of(picture, {str(name): str(value) for name, value in picture.info.items()})
            | {"file": Path(file).parent.name}
            for picture, file in zip(pictures, files, strict=True)
        ]
        entries = [*new, *valid_entries(stored)][:MAX_PICTURES]
        return {self.state: entries, **self.show(entries)}

    def restore(self, entry: dict[str, str]) -> tuple[str, bool]:
        """The file of a valid entry, and whether it is the painted picture: if that has been deleted, it is
        made from the small copy."""
        if "file" in entry and (file := self.files.find(entry["file"])):
            return file, True
        copy = open_image(entry["image"])
        copy.info = {name: entry[name] for name in (*_NUMBERS, *_TEXTS) if name in entry}
        return self.files.add(copy), False
