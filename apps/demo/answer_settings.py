"""How the answers of the tab *Ask* are generated: its settings, and what they are for each model."""

from typing import Any

from ...blocks.chat.text_generation import TextGenerationOptions
from .components import Update, gr
from .image_form import read_number
from .models import LoadedModel

MAX_TOKENS = 2048
MAX_TOKENS_WITH_THOUGHT, TOKENS_WITH_THOUGHT = 16384, 4096
"""Of an answer with the thought before it: the most, and the default."""


class AnswerSettings:
    """The components; `first` is the model that is chosen at the beginning."""

    def __init__(self, first: LoadedModel) -> None:
        narrow: dict[str, Any] = {"min_width": 130}
        most, usual = _tokens(first)
        self.temperature = gr.Slider(
            0, 2, first.pipe.temperature, step=0.05, label="Temperature", info="0 is the likeliest", **narrow
        )
        self.tokens = gr.Slider(1, most, usual, step=1, label="Longest answer", info="in tokens", **narrow)
        # Not `gr.Number`, which sends 0 where nothing was written.
        self.thinking = gr.Textbox(
            label="Longest thought",
            info="in tokens",
            placeholder="no limit",
            visible=first.thinks,
            elem_id="thinking",
            **narrow,
        )
        self.seed = gr.Textbox(
            label="Seed", info="of sampling", placeholder="random", elem_id="ask-seed", **narrow
        )

    @property
    def components(self) -> list[Any]:
        """What `AskTab.answer` gets the values of, in the order of its arguments."""
        return [self.temperature, self.tokens, self.thinking, self.seed]

    def for_model(self, loaded: LoadedModel) -> Update:
        """The settings of another model."""
        most, usual = _tokens(loaded)
        return {
            self.temperature: loaded.pipe.temperature,
            self.tokens: gr.update(maximum=most, value=usual),
            self.thinking: gr.update(value="", visible=loaded.thinks),
        }


def read_limit(text: str | None, loaded: LoadedModel) -> int | None:
    """The most tokens of a thought; None for no limit, and for a model that has none. Raises
    `OptionError`."""
    return read_number(text, "longest thought", "no limit") if loaded.thinks else None


def _tokens(loaded: LoadedModel) -> tuple[int, int]:
    """The most tokens of an answer, and the default: within half of the context."""
    most, usual = MAX_TOKENS, TextGenerationOptions.max_new_tokens
    if loaded.thinks:
        most, usual = MAX_TOKENS_WITH_THOUGHT, TOKENS_WITH_THOUGHT
    half = loaded.pipe.model.decoder.config.max_positions // 2
    return min(most, half), min(usual, half)
