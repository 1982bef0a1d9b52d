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
.gradio-container { width: 100% !important; max-width: 1120px !important; margin: 0 auto !important; }
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
.gradio-container .head .tab-like-container input[type=number] { width: 3.6rem; min-width: 0; }
/* It would offer to send the picture to a site of Gradio's makers. */
#chat button[title="Share"] { display: none; }
@media (max-width: 640px) {
  .gradio-container main { padding: 12px !important; }
  .bf-head h1 { font-size: 1.35rem; }
  .gradio-container button { min-height: 42px; }
}
"""


def theme() -> gr.themes.Base:
    """Gradio's soft theme with system fonts, so that nothing is fetched."""
    return gr.themes.Soft(
        primary_hue="indigo",
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
        font_mono=["ui-monospace", "Menlo", "Consolas", "monospace"],
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
