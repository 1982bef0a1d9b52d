"""The tab *Create*: images from a sentence, with previews while they are generated."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ...blocks.errors import PromptError, check_integer
from ...blocks.image_io import text_chunks, write_png
from ...janus.image_generation import ImageGenerationOptions, image_seeds
from ..files import slug, write_new
from .components import (
    Stopped,
    Update,
    choose_model,
    error_status,
    follow,
    gr,
    queue_status,
    seconds,
    status_html,
)
from .image_job import ImageProgress, generate_images, image_pipeline
from .jobs import Job, Jobs, Waiting
from .models import LoadedModel, find_model

TAB = "create"
MAX_PICTURES = 8
_SENTENCES = ["a photo of a red star and a blue circle", "three green hearts", "a photo of a yellow square"]


def remove_files(files: list[str]) -> None:
    """Delete a visitor's image files; Gradio has its own copies of what it still shows."""
    for file in files:
        Path(file).unlink(missing_ok=True)


class CreateTab:
    """Components and event handlers. Handlers return updates by component; PNG files go to `folder`."""

    def __init__(self, models: Sequence[LoadedModel], jobs: Jobs, folder: Path) -> None:
        self.models = [loaded for loaded in models if loaded.paints]
        self.jobs, self.folder = jobs, folder
        self.scales = {loaded.name: image_pipeline(loaded).guidance_scale for loaded in self.models}
        with gr.Row():
            with gr.Column(scale=4, min_width=300):
                self._add_inputs()
            with gr.Column(scale=5, min_width=300):
                self._add_outputs()
        self._connect()

    def _add_inputs(self) -> None:
        self.model = choose_model(self.models)
        self.prompt = gr.Textbox(
            label="What to paint",
            lines=2,
            max_lines=6,
            placeholder=f"such as: {_SENTENCES[0]}",
            elem_id="prompt",
        )
        if any(loaded.note for loaded in self.models):
            gr.Examples(_SENTENCES, self.prompt, label="Sentences that the embedded model knows")
        with gr.Row():
            self.count = gr.Slider(
                1, MAX_PICTURES, value=4, step=1, label="Pictures", min_width=130, elem_id="count"
            )
            self.seed = gr.Number(
                label="Seed", precision=0, value=None, placeholder="random", min_width=130, elem_id="seed"
            )
        with gr.Row():
            self.guidance = gr.Slider(
                1,
                10,
                value=self.scales[self.models[0].name],
                step=0.1,
                label="Guidance",
                min_width=130,
            )
            self.temperature = gr.Slider(
                0,
                2,
                value=ImageGenerationOptions.temperature,
                step=0.05,
                label="Temperature",
                min_width=130,
            )
        with gr.Row():
            self.run_button = gr.Button("Paint", variant="primary", elem_id="paint", min_width=130)
            self.stop_button = gr.Button(
                "Stop", variant="stop", interactive=False, elem_id="stop-painting", min_width=130
            )

    def _add_outputs(self) -> None:
        self.status = gr.HTML(
            status_html("Say what to paint, then press Paint."),
            elem_id="paint-status",
            elem_classes="bf-flush",
        )
        self.gallery = gr.Gallery(
            label="Pictures",
            show_label=False,
            format="png",
            columns=2,
            height="auto",
            object_fit="contain",
            interactive=False,
            buttons=["download", "fullscreen"],
            elem_id="gallery",
        )
        self.details = gr.Markdown("", elem_classes="bf-model", elem_id="details")
        with gr.Row(visible=False) as self.actions:
            self.download = gr.DownloadButton("Download PNG", size="sm", min_width=110, elem_id="download")
            self.reuse = gr.Button("Use this seed", size="sm", min_width=110, elem_id="use-seed")
            self.ask = gr.Button("Ask about this picture", size="sm", min_width=110, elem_id="ask-about")
        self.files = gr.State(list[str](), delete_callback=remove_files)
        self.chosen = gr.State(0)

    def _connect(self) -> None:
        settings = [
            self.model,
            self.prompt,
            self.count,
            self.seed,
            self.guidance,
            self.temperature,
            self.files,
        ]
        shown = [
            self.status,
            self.gallery,
            self.run_button,
            self.stop_button,
            self.files,
            self.chosen,
            self.actions,
            self.details,
            self.download,
        ]
        gr.on(
            [self.run_button.click, self.prompt.submit],
            self.paint,
            settings,
            shown,
            show_progress="hidden",
            concurrency_id="jobs",
            api_visibility="private",
        )
        quick: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        self.model.change(lambda name: self.scales.get(name), self.model, self.guidance, **quick)
        self.stop_button.click(self.stop, None, [self.stop_button], **quick)
        self.gallery.select(self.choose, [self.files], [self.chosen, self.details, self.download], **quick)
        self.reuse.click(self.use_seed, [self.files, self.chosen], [self.seed], **quick)

    def paint(
        self,
        model: str,
        prompt: str,
        count: int,
        seed: int | None,
        guidance: float,
        temperature: float,
        before: list[str],
        request: gr.Request,
    ) -> Iterator[Update]:
        """Handle *Paint*: yield updates until the images are there, the job is stopped, or an error is
        shown."""
        idle = {self.run_button: gr.update(interactive=True), self.stop_button: gr.update(interactive=False)}
        try:
            loaded = find_model(self.models, model)
            if not prompt.strip():
                raise PromptError("the sentence is empty; say what to paint")
            options = ImageGenerationOptions(guidance_scale=guidance, temperature=temperature)
            count = check_integer("number of pictures", count, 1, MAX_PICTURES)
            seeds = image_seeds(seed, 1, count)
            job = Job(loaded.queue, lambda job: generate_images(job, loaded, prompt, seeds, options))
            self.jobs.add(request.session_hash, TAB, job)
            remove_files(before)
            yield self._start_updates(count)
            show = _ProgressView(self)
            for update in follow(self.jobs, request.session_hash, TAB, job):
                yield show(update)
            yield idle | self._end_updates(loaded, job.result)
        except Stopped:
            yield idle | {self.status: status_html("Stopped. What was painted until then stays on view.")}
        except Exception as error:
            yield idle | {self.status: error_status(error)}

    def _start_updates(self, count: int) -> Update:
        return {
            self.status: status_html("Reading the sentence …", 0.0),
            self.gallery: gr.update(value=[], columns=_gallery_columns(count), selected_index=None),
            self.run_button: gr.update(interactive=False),
            self.stop_button: gr.update(interactive=True),
            self.files: [],
            self.actions: gr.update(visible=False),
            self.details: "",
        }

    def _end_updates(self, loaded: LoadedModel, result: tuple[list[Image.Image], float]) -> Update:
        pictures, took = result
        files = [str(self._save(picture)) for picture in pictures]
        shown = [
            (file, f"seed {picture.info['seed']}") for file, picture in zip(files, pictures, strict=True)
        ]
        what = "a picture" if len(files) == 1 else f"{len(files)} pictures"
        return {
            self.status: status_html(f"{loaded.name} painted {what} in {seconds(took)}."),
            self.gallery: gr.update(value=shown),
            self.files: files,
            self.chosen: 0,
            self.actions: gr.update(visible=True),
            self.details: _details(files, 0),
            self.download: files[0],
        }

    def _save(self, picture: Image.Image) -> Path:
        name = f"{slug(picture.info['prompt'])}-seed{picture.info['seed']}.png"
        return write_new(self.folder / name, lambda stream: write_png(picture, stream))

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
            self.details: _details(files, event.index),
            self.download: files[event.index],
        }

    def use_seed(self, files: list[str], chosen: int) -> int | None:
        """Handle *Use this seed*: the chosen image's seed."""
        return int(_settings(files[chosen])["seed"]) if files else None


class _ProgressView:
    """Turns a job's updates into the page's; the gallery is updated only with new previews."""

    def __init__(self, tab: CreateTab) -> None:
        self.tab = tab
        self.seen: list[Image.Image] | None = None

    def __call__(self, update: Waiting | ImageProgress) -> Update:
        if isinstance(update, Waiting):
            return {self.tab.status: queue_status(update)}
        left = f", about {seconds(update.left)} left" if update.left else ""
        part = update.done / update.total
        shown: Update = {self.tab.status: status_html(f"Painting: {part:.0%}{left}", part)}
        if update.pictures and update.pictures is not self.seen:
            self.seen = update.pictures
            shown[self.tab.gallery] = gr.update(value=update.pictures)
        return shown


def _gallery_columns(count: int) -> int:
    return 1 if count == 1 else 2 if count <= 4 else 3


def _settings(file: str) -> dict[str, str]:
    with Image.open(file) as picture:
        return text_chunks(picture)


def _details(files: list[str], index: int) -> str:
    settings = _settings(files[index])
    place = f"Picture {index + 1} of {len(files)}: " if len(files) > 1 else ""
    return (
        f"{place}seed {settings['seed']} · guidance {settings['guidance_scale']} · "
        f"temperature {settings['temperature']} · {settings['model']}"
    )
