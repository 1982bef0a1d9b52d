"""The tab *Create*: pictures from a sentence, shown while they are painted."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from ...blocks.chat.image_io import text_chunks, write_png
from ...blocks.engine.sampling_params import check_integer
from ...blocks.errors import PromptError
from ...janus.image_generation import ImageGenerationOptions, image_seeds
from ..files import slug, write_new
from .components import Stopped, Update, choose_model, failure, follow, gr, in_line, seconds, told
from .jobs import Job, Jobs, Waiting
from .models import Served, by_name
from .painting import Painting, paint_all, painter

if TYPE_CHECKING:
    pass

TAB = "create"
MAX_PICTURES = 8
_SENTENCES = ["a photo of a red star and a blue circle", "three green hearts", "a photo of a yellow square"]


def remove_files(files: list[str]) -> None:
    """Forget a visitor's pictures; the page has its own copies of what it still shows."""
    for file in files:
        Path(file).unlink(missing_ok=True)


class CreateTab:
    """Components and handlers. Handlers return updates by component; `folder` takes the PNG files."""

    def __init__(self, models: Sequence[Served], jobs: Jobs, folder: Path) -> None:
        self.models = [served for served in models if served.paints]
        self.jobs, self.folder = jobs, folder
        self.scales = {served.name: painter(served).guidance_scale for served in self.models}
        with gr.Row():
            with gr.Column(scale=4, min_width=300):
                self._ask_what()
            with gr.Column(scale=5, min_width=300):
                self._show()
        self._connect()

    def _ask_what(self) -> None:
        self.model = choose_model(self.models)
        self.prompt = gr.Textbox(
            label="What to paint",
            lines=2,
            max_lines=6,
            placeholder=f"such as: {_SENTENCES[0]}",
            elem_id="prompt",
        )
        if any(served.note for served in self.models):
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
            self.go = gr.Button("Paint", variant="primary", elem_id="paint", min_width=130)
            self.halt = gr.Button(
                "Stop", variant="stop", interactive=False, elem_id="stop-painting", min_width=130
            )

    def _show(self) -> None:
        self.status = gr.HTML(
            told("Say what to paint, then press Paint."), elem_id="paint-status", elem_classes="bf-flush"
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
            self.go,
            self.halt,
            self.files,
            self.chosen,
            self.actions,
            self.details,
            self.download,
        ]
        gr.on(
            [self.go.click, self.prompt.submit],
            self.paint,
            settings,
            shown,
            show_progress="hidden",
            concurrency_id="jobs",
            api_visibility="private",
        )
        quick: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        self.model.change(lambda name: self.scales.get(name), self.model, self.guidance, **quick)
        self.halt.click(self.stop, None, [self.halt], **quick)
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
        """Updates until the pictures are there, the visitor stops it, or a mistake is told."""
        idle = {self.go: gr.update(interactive=True), self.halt: gr.update(interactive=False)}
        try:
            served = by_name(self.models, model)
            if not prompt.strip():
                raise PromptError("the sentence is empty; say what to paint")
            options = ImageGenerationOptions(guidance_scale=guidance, temperature=temperature)
            count = check_integer("number of pictures", count, 1, MAX_PICTURES)
            seeds = image_seeds(seed, 1, count)
            job = Job(served.line, lambda job: paint_all(job, served, prompt, seeds, options))
            self.jobs.add(request.session_hash, TAB, job)
            remove_files(before)
            yield self._starting(count)
            show = _Show(self)
            for update in follow(self.jobs, request.session_hash, TAB, job):
                yield show(update)
            yield idle | self._done(served, job.result)
        except Stopped:
            yield idle | {self.status: told("Stopped. What was painted until then stays on view.")}
        except Exception as error:
            yield idle | {self.status: failure(error)}

    def _starting(self, count: int) -> Update:
        return {
            self.status: told("Reading the sentence …", 0.0),
            self.gallery: gr.update(value=[], columns=_columns(count), selected_index=None),
            self.go: gr.update(interactive=False),
            self.halt: gr.update(interactive=True),
            self.files: [],
            self.actions: gr.update(visible=False),
            self.details: "",
        }

    def _done(self, served: Served, result: tuple[list[Image.Image], float]) -> Update:
        pictures, took = result
        files = [str(self._save(picture)) for picture in pictures]
        shown = [
            (file, f"seed {picture.info['seed']}") for file, picture in zip(files, pictures, strict=True)
        ]
        what = "a picture" if len(files) == 1 else f"{len(files)} pictures"
        return {
            self.status: told(f"{served.name} painted {what} in {seconds(took)}."),
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
        self.jobs.stop(request.session_hash, TAB)
        return {self.halt: gr.update(interactive=False)}

    def choose(self, files: list[str], event: gr.SelectData) -> Update:
        if event.index >= len(files):  # a preview of a picture that is still being painted
            return {self.chosen: 0}
        return {
            self.chosen: event.index,
            self.details: _details(files, event.index),
            self.download: files[event.index],
        }

    def use_seed(self, files: list[str], chosen: int) -> int | None:
        return int(_settings(files[chosen])["seed"]) if files else None


class _Show:
    """Updates of a painting job for the page; the gallery only where its pictures are new."""

    def __init__(self, tab: CreateTab) -> None:
        self.tab = tab
        self.seen: list[Image.Image] | None = None

    def __call__(self, update: Waiting | Painting) -> Update:
        if isinstance(update, Waiting):
            return {self.tab.status: in_line(update)}
        left = f", about {seconds(update.left)} left" if update.left else ""
        part = update.done / update.total
        shown: Update = {self.tab.status: told(f"Painting: {part:.0%}{left}", part)}
        if update.pictures and update.pictures is not self.seen:
            self.seen = update.pictures
            shown[self.tab.gallery] = gr.update(value=update.pictures)
        return shown


def _columns(count: int) -> int:
    return 1 if count == 1 else 2 if count <= 4 else 3


def _settings(file: str) -> dict[str, str]:
    with Image.open(file) as picture:
        return text_chunks(picture)


def _details(files: list[str], index: int) -> str:
    found = _settings(files[index])
    place = f"Picture {index + 1} of {len(files)}: " if len(files) > 1 else ""
    return (
        f"{place}seed {found['seed']} · guidance {found['guidance_scale']} · "
        f"temperature {found['temperature']} · {found['model']}"
    )
