"""What the tabs share: status messages, the choice of a model, theme and CSS."""

import html
import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

# Set before Gradio is imported: otherwise it asks the network for its newest version.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr

from ...blocks.errors import BifronsError
from .jobs import Job, Jobs, Stopped, Waiting
from .models import LoadedModel

_LOG = logging.getLogger(__name__)
Update = dict[Any, Any]

PAGE_JS = """() => {
  const describe = () => {
    for (const [id, status] of [["found", "find-status"], ["checked", "check-report"]]) {
      const image = document.querySelector(`#${id} img`), text = document.getElementById(status);
      const words = text && text.innerText.trim();
      if (image && words && image.alt !== words) image.alt = words;
    }
    for (const image of document.querySelectorAll('#chat img[src][alt=""]')) {
      const name = decodeURIComponent(image.src.split("/").pop()).replace(/\\.\\w+$/, "");
      image.alt = name.startsWith("shown-") ? "the picture with boxes" : name;
    }
    for (const title of document.querySelectorAll("#chat .thought-group > .title[role]")) {
      const arrow = title.querySelector("button");
      title.removeAttribute("role");
      title.removeAttribute("tabindex");
      arrow.setAttribute("aria-label", "show or hide the thought");
      arrow.addEventListener("keydown", event => event.stopPropagation());
    }
  };
  const changes = {childList: true, subtree: true, characterData: true};
  new MutationObserver(describe).observe(document.body, changes);
}"""
"""Gives alternative texts where Gradio leaves them empty: to a picture with boxes the status beside it, to
those of the conversation the name of their file, which for painted ones is the prompt. The title of a
thought is a button with a button in it, of which the inner one stays."""


def follow_on_phone(elem_id: str) -> dict[str, Any]:
    """Arguments of an event that scrolls to where the work is shown on a phone, below the form.

    Add it before the handlers that work: the browser calls them in turn, each after the one before has ended.
    """
    scroll = f'document.getElementById("{elem_id}").scrollIntoView({{behavior: "smooth", block: "start"}})'
    script = f"""() => {{
      if (window.innerWidth <= 640) [0, 800].forEach(wait => setTimeout(() => {scroll}, wait)); }}"""
    return {"fn": None, "js": script, "api_visibility": "private"}


_FLAT = {
    "block_background_fill": "transparent",
    "block_border_width": "0px",
    "block_shadow": "none",
    "block_title_background_fill": "none",
    "block_title_text_color": "*body_text_color",
    "block_label_background_fill": "none",
    "block_label_text_color": "*body_text_color",
    "input_border_width": "1px",
}
"""Blocks and labels without boxes, in light and dark."""
_COLORS = {
    "block_padding": "0px",
    "block_title_padding": "0px",
    "body_text_color_subdued": "*neutral_600",
    "body_text_color_subdued_dark": "*neutral_300",
    "block_info_text_color": "*neutral_600",
    "block_info_text_color_dark": "*neutral_300",
    "border_color_primary": "*neutral_300",
    "border_color_primary_dark": "*neutral_600",
    "input_background_fill": "white",
    "input_border_color": "*neutral_400",
    "input_border_color_dark": "*neutral_500",
    "input_placeholder_color": "*neutral_500",
    "input_placeholder_color_dark": "*neutral_300",
    "input_shadow": "none",
    "button_primary_background_fill": "*primary_600",
    "button_primary_background_fill_hover": "*primary_700",
    "button_primary_shadow": "none",
    "button_secondary_background_fill": "white",
    "button_secondary_background_fill_hover": "*neutral_100",
    "button_secondary_border_color": "*neutral_300",
    "button_secondary_border_color_dark": "*neutral_600",
    "button_secondary_shadow": "none",
    "button_border_width": "1px",
    "layout_gap": "16px",
    "form_gap_width": "0px",
    "link_text_color": "*primary_700",
}
"""With a contrast of 4.5 to 1 and more."""


def theme() -> gr.themes.Base:
    """Gradio's soft theme, flat, with system fonts, so that nothing is fetched."""
    return gr.themes.Soft(
        primary_hue="indigo",
        neutral_hue="slate",
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
        font_mono=["ui-monospace", "Menlo", "Consolas", "monospace"],
    ).set(**_FLAT, **{f"{name}_dark": value for name, value in _FLAT.items()}, **_COLORS)


def status_html(text: str, fraction: float | None = None, warning: str | None = None) -> str:
    """A status message as HTML, with a progress bar where `fraction` (0 to 1) is given, and a warning."""
    bar = "" if fraction is None else f'<div class="bf-bar"><div style="width:{fraction:.1%}"></div></div>'
    note = "" if warning is None else f'<div class="bf-status bf-note">{html.escape(warning)}</div>'
    return f'<div class="bf-status" role="status">{html.escape(text)}{bar}{note}</div>'


def error_html(text: str) -> str:
    """An error message as HTML."""
    words = text[:1].upper() + text[1:]
    return f'<div class="bf-status bf-error" role="alert">{html.escape(words)}</div>'


def error_status(error: BaseException) -> str:
    """An exception as HTML: a `BifronsError` in its own words; anything else is logged and named by its
    type."""
    if isinstance(error, BifronsError):
        return error_html(str(error))
    _LOG.error("a job of the page failed", exc_info=error)
    kind = type(error).__name__
    return error_html(f"Bifrons failed ({kind}), which is no fault of yours. The server's log tells more.")


def seconds(count: float) -> str:
    """A duration for people: `8 s`, `3 min`."""
    if count < 90:
        return f"{max(1, round(count))} s"
    return f"{round(count / 60)} min"


def queue_status(waiting: Waiting) -> str:
    """The status of a job that waits for its model, as HTML."""
    others = "one other job" if waiting.ahead == 1 else f"{waiting.ahead} other jobs"
    return status_html(f"Waiting for the model: {others} first.")


def follow(jobs: Jobs, visitor: str | None, tab: str, job: Job) -> Iterator[Any]:
    """Yield a registered job's updates until it ends. Raises what the job raises, `Stopped` included."""
    try:
        yield from job.updates()
    finally:
        jobs.remove(visitor, tab, job)


def choose_model(models: Sequence[LoadedModel]) -> gr.Dropdown:
    """A dropdown to choose the model (hidden where there is one) above a line that says what it is."""
    choice = gr.Dropdown(
        [loaded.name for loaded in models],
        value=models[0].name,
        label="Model",
        visible=len(models) > 1,
        filterable=False,
    )
    about = gr.Markdown(models[0].headline, elem_classes="bf-model")
    headlines = {loaded.name: loaded.headline for loaded in models}
    choice.change(lambda name: headlines.get(name, ""), choice, about, queue=False, api_visibility="private")
    return choice


__all__ = [
    "PAGE_JS",
    "Stopped",
    "Update",
    "choose_model",
    "error_html",
    "error_status",
    "follow",
    "follow_on_phone",
    "gr",
    "queue_status",
    "seconds",
    "status_html",
    "theme",
]
