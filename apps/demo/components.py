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

CSS = """
.gradio-container { width: 100% !important; max-width: 1180px !important; margin: 0 auto !important; }
.bf-head h1 { margin: .2rem 0 0; font-size: 1.7rem; }
.bf-head p { color: var(--body-text-color-subdued); margin: 0; }
.bf-model p { font-size: .9rem; color: var(--body-text-color-subdued); margin: 0; }
.bf-status { font-size: .92rem; line-height: 1.45; padding: .55rem .8rem; border-radius: 8px;
  background: var(--block-background-fill); border: 1px solid var(--border-color-primary);
  overflow-wrap: anywhere; }
.bf-status.bf-error { background: #fdecea; color: #7a1710; border-left: 4px solid #c5281c; }
.dark .bf-status.bf-error { background: #40120e; color: #ffd9d5; }
.bf-bar { height: 6px; border-radius: 3px; margin-top: .45rem; background: var(--border-color-primary); }
.bf-bar > div { height: 100%; border-radius: 3px; background: var(--primary-500); transition: width .3s; }
.bf-flush, .bf-flush .html-container { padding: 0 !important; }
#gallery .grid-wrap { max-height: none !important; overflow: visible; }
/* Small pictures at whole multiples of their size. */
#gallery.bf-crisp .grid-container { grid-template-columns: repeat(auto-fit, 258px) !important;
  grid-auto-rows: 258px; justify-content: center; }
#gallery.bf-crisp img { image-rendering: pixelated; }
#gallery.bf-crisp .grid-container img { width: 256px !important; min-width: 256px; height: 256px !important; }
#gallery.bf-crisp .preview img { width: 512px; height: 512px; max-width: none; object-fit: contain; }
.bf-title { font-size: 1rem; font-weight: 600; margin: .3rem 0 .5rem; }
.bf-examples, .bf-history { display: flex; flex-wrap: wrap; gap: 10px; }
.bf-examples button, .bf-history button { padding: 0; border: 1px solid var(--border-color-primary);
  border-radius: 8px; overflow: hidden; background: var(--block-background-fill); cursor: pointer;
  min-height: 0; }
.bf-examples button { width: 256px; text-align: left; display: flex; flex-direction: column;
  justify-content: flex-start; }
.bf-examples img { width: 256px; height: 256px; image-rendering: pixelated; display: block; }
.bf-examples span { display: block; padding: .4rem .6rem; font-size: .85rem; color: var(--body-text-color); }
.bf-history { flex-wrap: nowrap; overflow-x: auto; padding: 4px; }
.bf-history button { flex: none; }
.bf-history img { width: 64px; height: 64px; object-fit: cover; display: block; }
.gradio-container button:focus-visible, .gradio-container input:focus-visible,
.gradio-container textarea:focus-visible { outline: 3px solid var(--primary-600); outline-offset: 2px; }
.bf-check { list-style: none; padding: 0; margin: 0 0 .3rem; }
.bf-right span { color: #0a6b34; font-weight: 700; }
.bf-wrong span { color: #b3241a; font-weight: 700; }
.dark .bf-right span { color: #6ee7a0; }
.dark .bf-wrong span { color: #ffb0a8; }
.bf-seed { align-items: flex-end; }
#gallery, #gallery .grid-wrap { min-height: 0 !important; height: auto !important; }
.gradio-container { --body-text-color-subdued: #4b5563; --block-info-text-color: #4b5563;
  --input-placeholder-color: #5f6673; --block-label-text-color: #3730a3; --block-title-text-color: #3730a3; }
.dark .gradio-container, .gradio-container.dark { --body-text-color-subdued: #c3c8d2;
  --block-info-text-color: #c3c8d2; --input-placeholder-color: #aab1bd; --block-label-text-color: #e0e7ff;
  --block-title-text-color: #e0e7ff; }
.gradio-container .head .tab-like-container input[type=number] { width: 3.6rem; min-width: 0; }
/* It would offer to send the picture to a site of Gradio's makers. */
#chat button[title="Share"] { display: none; }
@media (max-width: 640px) {
  .gradio-container main { padding: 12px !important; }
  .bf-head h1 { font-size: 1.35rem; }
  .gradio-container button { min-height: 42px; }
  #gallery.bf-crisp .grid-container { grid-template-columns: repeat(auto-fit, 130px) !important;
    grid-auto-rows: 130px; }
  #gallery.bf-crisp .grid-container img { width: 128px !important; min-width: 128px;
    height: 128px !important; }
  #gallery.bf-crisp .preview img { width: 256px; height: 256px; }
  #gallery.bf-crisp .caption-label { display: none; }
  .bf-examples button { width: 128px; }
  .bf-examples img { width: 128px; height: 128px; }
}
"""


FOLLOW_ON_PHONE = """() => { if (window.innerWidth <= 640)
  document.getElementById("paint-status").scrollIntoView({behavior: "smooth", block: "start"}); }"""
"""JavaScript that shows the work where it would be below the form."""


def theme() -> gr.themes.Base:
    """Gradio's soft theme with system fonts, so that nothing is fetched."""
    return gr.themes.Soft(
        primary_hue="indigo",
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
        font_mono=["ui-monospace", "Menlo", "Consolas", "monospace"],
    ).set(
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        link_text_color="*primary_700",
    )


def status_html(text: str, fraction: float | None = None) -> str:
    """A status message as HTML, with a progress bar where `fraction` (0 to 1) is given."""
    bar = "" if fraction is None else f'<div class="bf-bar"><div style="width:{fraction:.1%}"></div></div>'
    return f'<div class="bf-status" role="status">{html.escape(text)}{bar}</div>'


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
    "CSS",
    "FOLLOW_ON_PHONE",
    "Stopped",
    "Update",
    "choose_model",
    "error_html",
    "error_status",
    "follow",
    "gr",
    "queue_status",
    "seconds",
    "status_html",
    "theme",
]
