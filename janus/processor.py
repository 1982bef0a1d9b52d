"""Janus's processor: pictures to pixels, conversations and painting prompts to ids.

T tokens of a conversation, L tokens of a painting prompt, N pictures, S pixels of the model's square side.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..blocks.chat.image_io import open_image, resize_bicubic
from ..blocks.chat.messages import normalize_messages
from ..blocks.errors import ConfigError, PromptError
from ..blocks.json_config import Section
from ..tokenizers.text import PAD, TextTokenizer, read_settings
from .prompts import IMAGE_END, IMAGE_START, IMAGE_TAG, Template

__all__ = ["IMAGE_TAG", "JanusProcessor", "ModelInputs", "PixelRule"]


@dataclass(frozen=True)
class ModelInputs:
    """A conversation for the model.

    `ids` int64 [T]; `image_mask` bool [T], true where the pictures' embeddings go; `pixels` float32
    [N, 3, S, S], with N * num_image_tokens places in the mask, in order.
    """

    ids: Tensor
    image_mask: Tensor
    pixels: Tensor


@dataclass(frozen=True)
class PixelRule:
    """How a picture becomes S x S pixels. The defaults are those in all of the official Janus folders."""

    size: int
    min_size: int = 14
    background: tuple[int, int, int] = (127, 127, 127)
    rescale: float = 0.00392156862745098
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    @classmethod
    def from_settings(cls, settings: dict[str, Any], size: int, where: str) -> "PixelRule":
        """Read a preprocessor_config.json, official or transformers'. Raises ConfigError.

        `do_normalize` is taken as true whatever it says: an early file of Janus-1.3B had it false, and the
        model was trained with it.
        """
        section = Section(settings, where)
        stated = section.get("size")
        if stated is None or "image_size" in settings:
            stated = section.get("image_size", size)
        if isinstance(stated, dict):
            stated = stated.get("height")
        if stated != size:
            raise ConfigError(f"{where} says pictures are {stated!r} pixels wide, but the model takes {size}")
        background = _numbers(section, "background_color", cls.background)
        if any(value != int(value) or not 0 <= value <= 255 for value in background):
            raise ConfigError(f"{where}.background_color is {background}; accepted: three from 0 to 255")
        std = _numbers(section, "image_std", cls.std)
        if 0 in std:
            raise ConfigError(f"{where}.image_std has a zero")
        return cls(
            size=size,
            min_size=section.integer("min_size", cls.min_size),
            background=(int(background[0]), int(background[1]), int(background[2])),
            rescale=section.number("rescale_factor", cls.rescale),
            mean=_numbers(section, "image_mean", cls.mean),
            std=std,
        )

    def __call__(self, picture: Image.Image) -> Tensor:
        """Pixels float32 [3, S, S] of an RGB picture: the long side becomes S, then padding to a square."""
        width, height = picture.size
        longest = max(width, height)
        # Truncated, not rounded: transformers' port rounds here and differs by a row for some sizes.
        new_width = max(int(width / longest * self.size), self.min_size)
        new_height = max(int(height / longest * self.size), self.min_size)
        resized = resize_bicubic(picture, (new_width, new_height))
        canvas = Image.new("RGB", (self.size, self.size), self.background)
        canvas.paste(resized, ((self.size - new_width) // 2, (self.size - new_height) // 2))
        # The product is taken in float64 and rounded to float32 once, as transformers' `rescale` does.
        pixels = (np.asarray(canvas).astype(np.float64) * self.rescale).astype(np.float32)
        pixels = (pixels - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def _numbers(section: Section, name: str, default: tuple) -> tuple[float, float, float]:
    value = section.get(name, default)
    numbers = list(value) if isinstance(value, list | tuple) else []
    if len(numbers) != 3 or not all(type(n) in (int, float) for n in numbers):
        raise ConfigError(f"{section.where}.{name} is {value!r}; accepted: a list of three numbers")
    return (numbers[0], numbers[1], numbers[2])


class JanusProcessor:
    """What stands between people's texts and pictures and the Janus model. Make one with `from_folder`."""

    def __init__(
        self,
        tokenizer: TextTokenizer,
        pixel_rule: PixelRule,
        num_image_tokens: int,
        image_tag: str = IMAGE_TAG,
    ) -> None:
        self.tokenizer = tokenizer
        self.pixel_rule = pixel_rule
        self.num_image_tokens = num_image_tokens
        self.image_tag = image_tag
        self.template = Template.for_tokenizer(tokenizer)
        # Janus-1.3B's tokenizer.json lacks the tag; the official processor appends it, and so do we.
        self.image_id = tokenizer.add_special(image_tag)
        self.start_id = tokenizer.token_id(IMAGE_START)
        self.end_id = tokenizer.token_id(IMAGE_END)
        self.pad_id = tokenizer.token_id(PAD)

    @classmethod
    def from_folder(
        cls, folder: str | PathLike[str], tokenizer: TextTokenizer, image_size: int, num_image_tokens: int
    ) -> "JanusProcessor":
        """Read processor_config.json and preprocessor_config.json of a model folder, if they are there.

        `image_size` (pixels) and `num_image_tokens` are what the model's own config says. Raises ConfigError
        when a file contradicts them, is damaged, or the tokenizer lacks a token that Janus needs.
        """
        folder = Path(folder)
        processor, where = read_settings(folder / "processor_config.json"), "processor_config.json"
        section = Section(processor, where)
        section.expect("num_image_tokens", num_image_tokens)
        section.expect("add_special_token", False)
        tag = section.get("image_tag", IMAGE_TAG)
        if not isinstance(tag, str) or not tag:
            raise ConfigError(f"{where}.image_tag is {tag!r}; accepted: the name of a token")
        settings = read_settings(folder / "preprocessor_config.json")
        rule = PixelRule.from_settings(settings, image_size, "preprocessor_config.json")
        return cls(tokenizer, rule, num_image_tokens, tag)

    def preprocess(self, picture: Any) -> Tensor:
        """Pixels float32 [3, S, S], about -1..1, of whatever `open_image` takes. Raises PictureError."""
        return self.pixel_rule(open_image(picture))

    def chat_inputs(
        self, messages: Any, system: str | None = None, *, local_files: bool = True
    ) -> ModelInputs:
        """A conversation, in either form of `blocks.messages`, as the model reads it.

        Every picture tag becomes start, `num_image_tokens` tags, end. `system` None is the default system
        prompt; a system message replaces it. `local_files` as in `open_image`.
        Raises PromptError and PictureError.
        """
        turns = normalize_messages(messages, self.image_tag, local_files=local_files)
        ids = self.expand(self.tokenizer.encode(self.template.chat_prompt(turns, system)))
        pictures = [picture for turn in turns for picture in turn.images]
        mask = ids == self.image_id
        if int(mask.sum()) != len(pictures) * self.num_image_tokens:
            raise PromptError(f"the prompt holds the mark {self.image_tag} outside of the user's messages")
        size = self.pixel_rule.size
        pixels = [self.pixel_rule(picture) for picture in pictures]
        return ModelInputs(ids, mask, torch.stack(pixels) if pixels else torch.zeros(0, 3, size, size))

    def expand(self, ids: Sequence[int]) -> Tensor:
        """Ids with every picture tag as start, `num_image_tokens` tags, end; int64 [T]."""
        place = [self.start_id, *[self.image_id] * self.num_image_tokens, self.end_id]
        expanded: list[int] = []
        for token in ids:
            expanded += place if token == self.image_id else [token]
        return torch.tensor(expanded, dtype=torch.long)

    def generation_ids(self, prompt: str) -> tuple[Tensor, Tensor]:
        """Ids of a painting prompt and of its unconditional twin, both int64 [L].

        The twin keeps the first and the last id (BOS and the start of the picture) and has pads between.
        Raises PromptError for a prompt that is empty or not a str.
        """
        cond = torch.tensor(self.tokenizer.encode(self.template.generation_prompt(prompt)), dtype=torch.long)
        return cond, self._unconditional(cond)

    def negative_ids(self, text: str, cond: Tensor) -> Tensor:
        """Ids int64 [L'] to put in the place of `cond`'s unconditional twin for a negative prompt.

        A text gives its own painting prompt, of its own length; an empty one gives the twin.
        """
        if isinstance(text, str) and not text.strip():
            return self._unconditional(cond)
        return self.generation_ids(text)[0]

    def _unconditional(self, cond: Tensor) -> Tensor:
        uncond = cond.clone()
        uncond[1:-1] = self.pad_id
        return uncond
