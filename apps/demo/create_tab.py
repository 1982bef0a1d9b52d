"""The tab *Create*: images from a sentence, with previews while they are generated."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from ...blocks.image_io import text_chunks
from .checking import PictureCheck
from .components import (
    Stopped,
    Update,
    error_status,
    follow,
    follow_on_phone,
    gr,
    queue_status,
    seconds,
    status_html,
)
from .gallery import caption, details, gallery_class, gallery_columns, open_painted, stored_settings
from .history import CLEAR, History, PictureStrip, load_starters, strip_html, valid_entries
from .image_form import ImageForm, Pictures, variations
from .image_job import ImageProgress, generate_images, unknown_words
from .jobs import Job, Jobs, Waiting
from .models import LoadedModel, find_model

TAB = "create"
_AGAIN = 4
"""Pictures that *Again* paints."""

Values = dict[Any, Any]
"""What handlers get: the inputs' values by component."""


class CreateTab:
    """Components and event handlers. Handlers return updates by component; PNG files go to `folder`."""

    def __init__(self, models: Sequence[LoadedModel], jobs: Jobs, folder: Path) -> None:
        self.models = [loaded for loaded in models if loaded.paints]
        self.jobs, self.folder = jobs, folder
        self.examples = load_starters(self.models)
        with gr.Row(elem_classes="bf-columns"):
            with gr.Column(scale=4, min_width=300):
                self.form = ImageForm(self.models)
                self.run_button, self.stop_button = self.form.run_button, self.form.stop_button
            with gr.Column(scale=6, min_width=300, elem_classes="bf-work"):
                self._add_outputs(models)
        self.history = History(folder)
        self._connect()

    def _add_outputs(self, models: Sequence[LoadedModel]) -> None:
        self.status = gr.HTML(
            status_html("Say what to paint and press Enter, or click an example."),
            elem_id="paint-status",
            elem_classes="bf-flush",
        )
        self.starters = PictureStrip("examples")
        painted = "image" in self.examples[0]
        self.starters.view.value = strip_html(
            self.examples,
            "Painted by the embedded model" if painted else "Sentences to begin with",
            "examples" if painted else "tries",
            [entry["prompt"] for entry in self.examples],
        )
        self.gallery = gr.Gallery(
            label="Pictures",
            show_label=False,
            format="png",
            columns=2,
            height="auto",
            object_fit="contain",
            interactive=False,
            visible=False,
            buttons=["download", "fullscreen"],
            elem_id="gallery",
        )
        self.details = gr.Markdown("", elem_classes="bf-model", elem_id="details")
        with gr.Column(visible=False) as self.actions:
            with gr.Row(elem_classes="bf-left"):
                self.again = _small("Again", "again")
                self.vary = _small("Vary", "vary")
                self.reuse = _small("Use this seed", "use-seed")
                self.download = gr.DownloadButton("Download", size="sm", min_width=90, elem_id="download")
            with gr.Row(elem_classes="bf-left"):
                self.ask = _small("Ask about it", "ask-about")
                self.find = _small("Find in it", "find-in", any(loaded.locates for loaded in models))
                self.check = PictureCheck(models, self.jobs, self.folder)
            self.check.add_result()
        self.files = gr.State(list[str]())
        self.chosen = gr.State(0)

    def _connect(self) -> None:
        inputs = {*self.form.components, self.files, self.chosen, self.history.state}
        shown = [
            self.status, self.starters.view, self.gallery, self.run_button, self.stop_button, self.files,
            self.chosen, self.actions, self.details, self.download, self.history.state, self.history.view,
            *self.check.result,
        ]  # fmt: skip
        job: dict[str, Any] = {"show_progress": "hidden", "concurrency_id": "jobs"}
        job["api_visibility"] = "private"
        for triggers, handler in (
            (self.form.triggers, self.paint),
            ([self.again.click], self.paint_again),
            ([self.vary.click], self.paint_variations),
        ):
            gr.on(triggers, **follow_on_phone("paint-status"))
            gr.on(triggers, handler, inputs, shown, **job)
        quick: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        self.stop_button.click(self.stop, None, [self.stop_button], **quick)
        self.gallery.select(self.choose, [self.files], [self.chosen, self.details, self.download], **quick)
        self.reuse.click(self.use_seed, [self.files, self.chosen], [self.form.seed], **quick)
        self.check.button.click(self.check.run, [self.files, self.chosen], self.check.result, **job)
        filled = [*self.form.components, self.status]
        self.starters.view.click(self.use_example, None, filled, **quick)
        self.history.view.click(self.use_stored, [self.history.state], [*filled, *shown], **quick)

    def paint(self, values: Values, request: gr.Request) -> Iterator[Update]:
        """Handle *Paint*: yield updates until the images are there, the job is stopped, or an error is
        shown."""

        def wanted() -> tuple[LoadedModel, str, Pictures]:
            settings = self.form.read(values)
            return find_model(self.models, settings.model), settings.prompt, settings.pictures

        yield from self._run(wanted, values, request)

    def paint_again(self, values: Values, request: gr.Request) -> Iterator[Update]:
        """Handle *Again*: what the chosen picture was painted from, with new seeds."""

        def wanted() -> tuple[LoadedModel, str, Pictures]:
            stored = stored_settings(values[self.files][values[self.chosen]])
            fresh = {self.form.count: _AGAIN, self.form.seed: ""}
            again = self.form.read(values | self.form.fill(stored) | fresh)
            return find_model(self.models, stored["model"]), stored["prompt"], again.pictures

        yield from self._run(wanted, values, request)

    def paint_variations(self, values: Values, request: gr.Request) -> Iterator[Update]:
        """Handle *Vary*: pictures near the chosen one."""

        def wanted() -> tuple[LoadedModel, str, Pictures]:
            stored = stored_settings(values[self.files][values[self.chosen]])
            return find_model(self.models, stored["model"]), stored["prompt"], variations(stored)

        yield from self._run(wanted, values, request)

    def _run(
        self, wanted: Callable[[], tuple[LoadedModel, str, Pictures]], values: Values, request: gr.Request
    ) -> Iterator[Update]:
        idle = {self.run_button: gr.update(interactive=True), self.stop_button: gr.update(interactive=False)}
        try:
            loaded, prompt, pictures = wanted()
            job = Job(loaded.queue, lambda job: generate_images(job, loaded, prompt, pictures))
            self.jobs.add(request.session_hash, TAB, job)
            yield self._start_updates(len(pictures))
            show = _ProgressView(self, prompt)
            for update in follow(self.jobs, request.session_hash, TAB, job):
                yield show(update)
            painted, took = job.result
            yield idle | self._end_updates(loaded, painted, took, values[self.history.state])
        except Stopped:
            yield idle | {self.status: status_html("Stopped. What was painted until then stays on view.")}
        except Exception as error:
            yield idle | {self.status: error_status(error)}

    def _start_updates(self, count: int) -> Update:
        return self.check.hide() | {
            self.status: status_html("Reading the sentence …", 0.0),
            self.starters.view: gr.update(visible=False),
            self.gallery: gr.update(
                value=[], columns=gallery_columns(count), selected_index=None, visible=True
            ),
            self.run_button: gr.update(interactive=False),
            self.stop_button: gr.update(interactive=True),
            self.files: [],
            self.actions: gr.update(visible=False),
            self.details: "",
        }

    def _end_updates(
        self, loaded: LoadedModel, pictures: list[Image.Image], took: float, stored: Any
    ) -> Update:
        files = [self.history.files.add(picture) for picture in pictures]
        what = "a picture" if len(files) == 1 else f"{len(files)} pictures"
        painted = f"{loaded.name} painted {what} in {seconds(took)}."
        return (
            self.history.add(stored, pictures, files)
            | self._shown(pictures, files)
            | {self.status: status_html(painted, warning=unknown_words(loaded, pictures))}
        )

    def _shown(self, pictures: Sequence[Image.Image], files: list[str]) -> Update:
        """Updates that show finished pictures and what can be done with them."""
        captions = [caption(text_chunks(picture)) for picture in pictures]
        return self.check.hide() | {
            self.starters.view: gr.update(visible=False),
            self.gallery: gr.update(
                value=list(zip(files, captions, strict=True)),
                columns=gallery_columns(len(files)),
                selected_index=None,
                visible=True,
                elem_classes=gallery_class(pictures),
            ),
            self.files: files,
            self.chosen: 0,
            self.actions: gr.update(visible=True),
            self.details: details(files, 0),
            self.download: gr.update(value=files[0], interactive=True),
        }

    def stop(self, request: gr.Request) -> Update:
        """Handle *Stop*."""
        self.jobs.stop(request.session_hash, TAB)
        return {self.stop_button: gr.update(interactive=False)}

    def choose(self, files: list[str], event: gr.SelectData) -> Update:
        """Handle a click on an image of the gallery."""
        if event.index >= len(files):  # a preview of an unfinished image
            return {self.chosen: 0}
        return {
            self.chosen: event.index,
            self.details: details(files, event.index),
            self.download: files[event.index],
        }

    def use_seed(self, files: list[str], chosen: int) -> str:
        """Handle *Use this seed*: the chosen image's seed."""
        return stored_settings(files[chosen])["seed"] if files else ""

    def use_example(self, event: gr.EventData) -> Update:
        """Handle a click on a painted example."""
        return self._fill(partial(PictureStrip.chosen, self.examples, event))

    def use_stored(self, stored: Any, event: gr.EventData, request: gr.Request) -> Update:
        """Handle a click on a picture of the history, which is shown unless others are being painted, or on
        *Clear*."""
        if getattr(event, "index", None) == CLEAR:
            return self.history.clear()
        try:
            entry = PictureStrip.chosen(valid_entries(stored), event)
            filled = self._fill(lambda: entry)
            if self.jobs.has(request.session_hash, TAB):
                return filled
            file, whole = self.history.restore(entry)
            shown = self._shown([open_painted(file)], [file])
        except Exception as error:
            return {self.status: error_status(error)}
        if not whole:
            shown[self.download] = gr.update(value=None, interactive=False)
            says = "The server no longer has it: this is the small copy in your browser. Paint gives it anew."
            shown[self.status] = status_html(says)
        return filled | shown

    def _fill(self, pick: Callable[[], dict[str, str]]) -> Update:
        try:
            settings = pick()
        except Exception as error:
            return {self.status: error_status(error)}
        if "seed" not in settings:
            return {self.form.prompt: settings["prompt"], self.status: status_html("Now press Paint.")}
        says = "These are its settings: Paint gives this picture, Random another."
        return self.form.fill(settings) | {self.status: status_html(says)}


class _ProgressView:
    """Turns a job's updates into the page's; the gallery is updated only with new previews."""

    def __init__(self, tab: CreateTab, prompt: str) -> None:
        self.tab, self.words = tab, f"{prompt}, not finished"
        self.seen: list[Image.Image] | None = None

    def __call__(self, update: Waiting | ImageProgress) -> Update:
        if isinstance(update, Waiting):
            return {self.tab.status: queue_status(update)}
        left = f", about {seconds(update.left)} left" if update.left else ""
        part = update.done / update.total
        shown: Update = {self.tab.status: status_html(f"Painting: {part:.0%}{left}", part)}
        if update.pictures and update.pictures is not self.seen:
            self.seen = update.pictures
            shown[self.tab.gallery] = gr.update(
                value=[(picture, self.words) for picture in update.pictures],
                elem_classes=gallery_class(update.pictures),
            )
        return shown


def _small(text: str, name: str, visible: bool = True) -> gr.Button:
    return gr.Button(text, size="sm", min_width=90, elem_id=name, visible=visible)
