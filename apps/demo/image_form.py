"""The form of the tab *Create*: what to paint, and with which settings."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...blocks.errors import OptionError, PromptError, check_integer
from ...blocks.image_prompts import image_seeds
from ...janus.image_generation import ImageGenerationOptions
from .components import Update, choose_model, gr
from .image_job import image_pipeline
from .models import LoadedModel, find_model
from .suggestions import sentences

MAX_PICTURES = 8
STYLES = {
    "as it is": "",
    "photograph": "a photograph, natural light, sharp focus",
    "watercolor": "a watercolor painting on textured paper, soft edges",
    "oil painting": "an oil painting, visible brush strokes, rich colors",
    "line drawing": "a black ink line drawing on white paper",
    "3D render": "a 3D render, studio light, soft shadows",
    "pixel art": "pixel art, few colors, clean edges",
    "poster": "a flat vector poster, bold shapes, strong contrast",
}
"""Words that are added to the sentence, for models without a vocabulary."""

Pictures = list[tuple[int, ImageGenerationOptions]]
"""The seed and the options of each picture to paint."""


@dataclass(frozen=True)
class ImageSettings:
    """What the form says. `seed=None` is a new random seed for every press of *Paint*."""

    model: str
    prompt: str
    count: int
    seed: int | None
    options: ImageGenerationOptions

    @property
    def pictures(self) -> Pictures:
        """The pictures to paint: consecutive seeds."""
        return [(seed, self.options) for seed in image_seeds(self.seed, 1, self.count)]


def read_number(text: str | None, name: str, empty: str) -> int | None:
    """The whole number of a text; None if it is empty, which means `empty`. Raises `OptionError`."""
    written = (text or "").strip()
    if not written:
        return None
    if not written.isdecimal() or len(written) > 20:
        accepted = f"a whole number, or nothing for {empty}"
        raise OptionError(f"the {name} is {written[:40]!r}; accepted: {accepted}")
    return int(written)


def read_seed(text: str | None) -> int | None:
    """The seed of a text; None, which is random, if it is empty. Raises `OptionError`."""
    return read_number(text, "seed", "a random one")


class ImageForm:
    """The components of the form."""

    def __init__(self, models: Sequence[LoadedModel]) -> None:
        self.models = models
        self.scales = {loaded.name: image_pipeline(loaded).guidance_scale for loaded in models}
        self.plain = {loaded.name for loaded in models if loaded.pipe.vocabulary is not None}
        self._add_sentence()
        with gr.Row(elem_classes="bf-bottom"):
            self.count = gr.Number(label="Pictures", value=4, precision=0, min_width=80, elem_id="count")
            self.seed = gr.Textbox(label="Seed", placeholder="random", min_width=80, elem_id="seed")
            self.dice = gr.Button("⚄ Random", size="md", min_width=110, scale=0, elem_id="random-seed")
        with gr.Row():
            self.run_button = gr.Button("Paint", variant="primary", elem_id="paint", min_width=130)
            self.stop_button = gr.Button(
                "Stop", variant="stop", interactive=False, elem_id="stop-painting", min_width=130
            )
        with gr.Accordion("More", open=False, elem_id="more"):
            self._add_more()
        self._connect()

    def _add_sentence(self) -> None:
        self.model = choose_model(self.models)
        self.prompt = gr.Textbox(
            label="What to paint",
            lines=1,
            max_lines=6,
            placeholder=f"such as: {sentences(self.models[0].pipe.vocabulary)[0]}",
            elem_id="prompt",
        )
        self.style = gr.Dropdown(
            list(STYLES),
            value="as it is",
            label="Style",
            filterable=False,
            visible=self.models[0].name not in self.plain,
            elem_id="style",
        )

    def _add_more(self) -> None:
        defaults = ImageGenerationOptions
        self.negative_prompt = gr.Textbox(
            label="Not to paint", info="the picture is guided away from it", elem_id="negative-prompt"
        )
        with gr.Row():
            self.guidance = gr.Slider(
                1,
                10,
                value=self.scales[self.models[0].name],
                step=0.1,
                label="Guidance",
                info="how closely to follow the sentence",
                min_width=130,
            )
            self.temperature = gr.Slider(
                0,
                2,
                value=defaults.temperature,
                step=0.05,
                label="Temperature",
                info="0 always takes the likeliest",
                min_width=130,
            )
        with gr.Row():
            self.top_k = gr.Number(
                label="Top-k", value=defaults.top_k, precision=0, info="0 is all", min_width=130
            )
            self.top_p = gr.Slider(
                0.05, 1, value=defaults.top_p, step=0.05, label="Top-p", info="1 is all", min_width=130
            )

    def _connect(self) -> None:
        quick: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        self.model.change(self._choose_model, self.model, [self.guidance, self.style], **quick)
        self.dice.click(lambda: "", None, self.seed, **quick)

    def _choose_model(self, name: str) -> tuple[Any, Any]:
        return self.scales.get(name), gr.update(visible=name not in self.plain, value="as it is")

    @property
    def triggers(self) -> list[Any]:
        """Events that paint: the button, and Enter in a text of the form."""
        return [
            self.run_button.click, self.prompt.submit, self.count.submit, self.seed.submit,
            self.negative_prompt.submit,
        ]  # fmt: skip

    @property
    def components(self) -> set[Any]:
        """All inputs; handlers get their values in a dict by component."""
        return {
            self.model, self.prompt, self.style, self.count, self.seed, self.negative_prompt, self.guidance,
            self.temperature, self.top_k, self.top_p,
        }  # fmt: skip

    def read(self, values: dict[Any, Any]) -> ImageSettings:
        """The settings of the form's values. Raises `PromptError` and `OptionError`."""
        loaded = find_model(self.models, values[self.model])
        prompt = (values[self.prompt] or "").strip()
        if not prompt:
            raise PromptError("the sentence is empty; say what to paint")
        style = values[self.style]
        if style not in STYLES:
            raise OptionError(f"style is {style!r}; accepted: {', '.join(STYLES)}")
        if loaded.name not in self.plain and STYLES[style]:
            prompt = f"{prompt}, {STYLES[style]}"
        options = ImageGenerationOptions(
            values[self.guidance],
            values[self.temperature],
            int(values[self.top_k] or 0),
            values[self.top_p],
            (values[self.negative_prompt] or "").strip() or None,
        )
        count = check_integer("number of pictures", values[self.count], 1, MAX_PICTURES)
        return ImageSettings(loaded.name, prompt, count, read_seed(values[self.seed]), options)

    def fill(self, settings: dict[str, str]) -> Update:
        """Updates that put a picture's stored settings into the form, its seed included."""
        updates = {
            self.prompt: settings["prompt"],
            self.style: "as it is",
            self.count: 1,
            self.seed: settings["seed"],
            self.guidance: float(settings["guidance_scale"]),
            self.temperature: float(settings["temperature"]),
            self.top_k: int(settings["top_k"]),
            self.top_p: float(settings["top_p"]),
            self.negative_prompt: settings.get("negative_prompt", ""),
        }
        known = any(loaded.name == settings["model"] for loaded in self.models)
        return updates | ({self.model: settings["model"]} if known else {})


def without_style(prompt: str) -> str:
    """A prompt without the words of a style that `ImageForm.read` added."""
    for words in filter(None, STYLES.values()):
        prompt = prompt.removesuffix(f", {words}")
    return prompt


def variations(settings: dict[str, str]) -> Pictures:
    """Four pictures near one that was painted: its seed, so the same noise, with the temperature and then the
    guidance a little lower and higher."""
    seed, temperature = int(settings["seed"]), float(settings["temperature"])
    scale, negative = float(settings["guidance_scale"]), settings.get("negative_prompt")
    near = [(scale, temperature * 0.85), (scale, temperature * 1.15 or 0.5)]
    near += [(max(1.1, scale * 0.75), temperature), (scale * 1.4, temperature)]
    top_k, top_p = int(settings["top_k"]), float(settings["top_p"])
    return [
        (seed, ImageGenerationOptions(round(guidance, 2), round(heat, 3), top_k, top_p, negative))
        for guidance, heat in near
    ]
