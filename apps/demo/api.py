"""The page's named endpoints, for `gradio_client` and other programs: generate, ask, locate."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ...blocks.chat.text_generation import TextGenerationOptions
from ...blocks.errors import BifronsError, PromptError, check_integer
from ...blocks.image_prompts import image_seeds
from ...janus.image_generation import ImageGenerationOptions
from .ask_tab import answer_job
from .components import Stopped, follow, gr
from .history import PaintedFiles
from .image_form import MAX_PICTURES, read_seed
from .image_job import generate_images, image_pipeline
from .jobs import Job, Jobs
from .locate_tab import locate_job, read_phrase
from .models import LoadedModel, find_model
from .pictures import read_pictures, read_upload


def add_endpoints(models: Sequence[LoadedModel], jobs: Jobs) -> None:
    """Add the endpoints that these models can serve to the page; nothing of it is visible."""
    endpoints = _Endpoints(models, jobs)
    with gr.Column(visible=False):
        if any(loaded.paints for loaded in models):
            endpoints.add_generate()
        endpoints.add_ask()
        if any(loaded.locates for loaded in models):
            endpoints.add_locate()


class _Endpoints:
    painted: PaintedFiles

    def __init__(self, models: Sequence[LoadedModel], jobs: Jobs) -> None:
        self.models, self.jobs = models, jobs

    def _add(self, name: str, function: Callable[..., Any], inputs: list[Any], output: Any) -> None:
        gr.Button().click(
            function, inputs, output, api_name=name, api_description=function.__doc__, concurrency_id="jobs"
        )

    def _able(self, ability: str, name: str | None) -> LoadedModel:
        able = [loaded for loaded in self.models if getattr(loaded, ability, True)]
        return find_model(able, name) if name else able[0]

    def _result(self, name: str, loaded: LoadedModel, work: Callable[[Job], Any], request: gr.Request) -> Any:
        """The result of a job in the model's queue. Raises what the job raises."""
        job = Job(loaded.queue, work)
        self.jobs.add(request.session_hash, f"api-{name}", job)
        for _ in follow(self.jobs, request.session_hash, f"api-{name}", job):
            pass
        return job.result

    def add_generate(self) -> None:
        def generate(
            prompt: str,
            negative_prompt: str,
            count: float,
            seed: str,
            guidance_scale: float,
            temperature: float,
            top_k: float,
            top_p: float,
            model: str,
            request: gr.Request,
        ) -> list[tuple[str, str]]:
            """Paint pictures from a sentence; returns PNG files with their settings inside. An empty seed is
            random, and a guidance_scale of 0 is the model's own."""

            def work() -> list[tuple[str, str]]:
                loaded = self._able("paints", model)
                scale = guidance_scale or image_pipeline(loaded).guidance_scale
                negative = negative_prompt.strip() or None
                options = ImageGenerationOptions(scale, temperature, int(top_k), top_p, negative)
                return self._generate(loaded, prompt, int(count), seed, options, request)

            return _in_words(work)

        defaults = ImageGenerationOptions
        inputs = [
            gr.Textbox(label="prompt"),
            gr.Textbox(label="negative_prompt", value=""),
            gr.Number(label="count", value=1, precision=0, minimum=1, maximum=MAX_PICTURES),
            gr.Textbox(label="seed", value=""),
            gr.Number(label="guidance_scale", value=0),
            gr.Number(label="temperature", value=defaults.temperature),
            gr.Number(label="top_k", value=defaults.top_k, precision=0),
            gr.Number(label="top_p", value=defaults.top_p),
            gr.Textbox(label="model", value=""),
        ]
        gallery = gr.Gallery(label="pictures", format="png")
        self.painted = PaintedFiles(Path(gallery.GRADIO_CACHE))  # where Gradio makes no copies
        self._add("generate", generate, inputs, gallery)

    def _generate(
        self,
        loaded: LoadedModel,
        prompt: str,
        count: int,
        seed: str,
        options: ImageGenerationOptions,
        request: gr.Request,
    ) -> list[tuple[str, str]]:
        if not prompt.strip():
            raise PromptError("the prompt is empty; say what to paint")
        check_integer("count", count, 1, MAX_PICTURES)
        wanted = [(one, options) for one in image_seeds(read_seed(seed), 1, count)]
        pictures, _ = self._result(
            "generate", loaded, lambda job: generate_images(job, loaded, prompt, wanted), request
        )
        return [(self.painted.add(picture), f"seed {picture.info['seed']}") for picture in pictures]

    def add_ask(self) -> None:
        def ask(
            pictures: list[str] | None,
            question: str,
            temperature: float,
            max_new_tokens: float,
            model: str,
            request: gr.Request,
        ) -> str:
            """Ask about pictures; returns the answer."""
            return _in_words(
                lambda: self._ask(pictures or [], question, temperature, int(max_new_tokens), model, request)
            )

        inputs = [
            gr.File(label="pictures", file_count="multiple", type="filepath"),
            gr.Textbox(label="question"),
            gr.Number(label="temperature", value=TextGenerationOptions.temperature),
            gr.Number(label="max_new_tokens", value=TextGenerationOptions.max_new_tokens, precision=0),
            gr.Textbox(label="model", value=""),
        ]
        self._add("ask", ask, inputs, gr.Textbox(label="answer"))

    def _ask(
        self, files: list[str], question: str, heat: float, tokens: int, model: str, request: gr.Request
    ) -> str:
        loaded = self._able("asks", model)
        if not question.strip():
            raise PromptError("the question is empty; write something about the pictures")
        options = TextGenerationOptions(tokens, heat, loaded.pipe.top_p)
        parts = [{"type": "image", "image": file} for file in files]
        content = [*parts, {"type": "text", "text": question.strip()}]
        messages, _ = read_pictures([{"role": "user", "content": content}], loaded)
        work = lambda job: answer_job(job, loaded, messages, options, None)  # noqa: E731
        return self._result("ask", loaded, work, request).strip()

    def add_locate(self) -> None:
        def locate(picture: str, phrase: str, model: str, request: gr.Request) -> list[dict[str, Any]]:
            """Find a phrase in a picture; returns boxes in pixels and as 0 to 999."""
            return _in_words(lambda: self._locate(picture, phrase, model, request))

        inputs = [
            gr.File(label="picture", type="filepath"),
            gr.Textbox(label="phrase"),
            gr.Textbox(label="model", value=""),
        ]
        self._add("locate", locate, inputs, gr.JSON(label="boxes"))

    def _locate(self, file: str, phrase: str, model: str, request: gr.Request) -> list[dict[str, Any]]:
        loaded = self._able("locates", model)
        phrase = read_phrase(phrase, loaded)
        picture = read_upload(file, loaded.pipe.processor.fit(1))
        work = lambda job: locate_job(job, loaded, picture, phrase)  # noqa: E731
        grounding, _ = self._result("locate", loaded, work, request)
        return [
            {"label": box.label, "box": list(box.pixels), "normalized": list(box.normalized)}
            for box in grounding.boxes
        ]


def _in_words(call: Callable[[], Any]) -> Any:
    """The result of a call; errors of ours become the ones that Gradio's clients show."""
    try:
        return call()
    except Stopped:
        raise gr.Error("the job was stopped") from None
    except BifronsError as error:
        raise gr.Error(str(error), print_exception=False) from error
