"""`JanusProcessor`: images to pixels, conversations and image prompts to token ids.

T tokens of a conversation, L tokens of an image prompt, N images, S pixels along a side of the model's input.
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

from ..blocks.chat.image_io import normalize_pixels, open_image, resize_bicubic
from ..blocks.chat.messages import normalize_messages
from ..blocks.errors import ConfigError, PromptError
from ..blocks.json_config import Section
from ..tokenizers.text import PAD, TextTokenizer, read_settings
from .prompts import IMAGE_END, IMAGE_START, IMAGE_TOKEN, Template


@dataclass(frozen=True)
class ModelInputs:
    """A conversation as the model takes it.

    `ids` int64 [T]; `image_mask` bool [T], true at image tokens; `pixels` float32 [N, 3, S, S]. The mask has
    `num_image_tokens` positions per image, in order.
    """

    ids: Tensor
    image_mask: Tensor
    pixels: Tensor


@dataclass(frozen=True)
class ImageTransform:
    """Resizes, pads and normalizes an image to S x S pixels. Defaults are those of all official folders."""

    size: int
    min_size: int = 14
    background: tuple[int, int, int] = (127, 127, 127)
    rescale: float = 0.00392156862745098
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    @classmethod
    def from_settings(cls, settings: dict[str, Any], size: int, where: str) -> "ImageTransform":
        """Read the content of a preprocessor_config.json, official or transformers'. Raises ConfigError.

        `do_normalize` is ignored and taken as true: an early file of Janus-1.3B has it false, but the model
        was trained with it.
        """
        section = Section(settings, where)
        stated = section.get("size")
        if stated is None or "image_size" in settings:
            stated = section.get("image_size", size)
        if isinstance(stated, dict):
            stated = stated.get("height")
        if stated != size:
            raise ConfigError(f"{where} says pictures are {stated!r} pixels wide, but the model takes {size}")
        red, green, blue = background = section.three_numbers("background_color", cls.background)
        if any(value != int(value) or not 0 <= value <= 255 for value in background):
            raise ConfigError(f"{where}.background_color is {background}; accepted: three from 0 to 255")
        std = section.three_numbers("image_std", cls.std)
        if 0 in std:
            raise ConfigError(f"{where}.image_std has a zero")
        return cls(
            size=size,
            min_size=section.integer("min_size", cls.min_size),
            background=(int(red), int(green), int(blue)),
            rescale=section.number("rescale_factor", cls.rescale),
            mean=section.three_numbers("image_mean", cls.mean),
            std=std,
        )

    def __call__(self, image: Image.Image) -> Tensor:
        """Pixels float32 [3, S, S] of an RGB image, scaled to a long side of S and padded to a square."""
        width, height = image.size
        longest = max(width, height)
        # Truncated, not rounded: transformers' port rounds and differs by a row for some sizes.
        new_width = max(int(width / longest * self.size), self.min_size)
        new_height = max(int(height / longest * self.size), self.min_size)
        resized = resize_bicubic(image, (new_width, new_height))
        canvas = Image.new("RGB", (self.size, self.size), self.background)
        canvas.paste(resized, ((self.size - new_width) // 2, (self.size - new_height) // 2))
        # The product is taken in float64 and rounded to float32 once, as transformers' `rescale` does.
        pixels = (np.asarray(canvas).astype(np.float64) * self.rescale).astype(np.float32)
        return normalize_pixels(pixels, self.mean, self.std)


class JanusProcessor:
    """Prepares texts and images for the Janus model. Make one with `from_folder`."""

    def __init__(
        self,
        tokenizer: TextTokenizer,
        transform: ImageTransform,
        num_image_tokens: int,
        image_token: str = IMAGE_TOKEN,
    ) -> None:
        self.tokenizer = tokenizer
        self.transform = transform
        self.num_image_tokens = num_image_tokens
        self.image_token = image_token
        self.template = Template.for_tokenizer(tokenizer)
        # Janus-1.3B's tokenizer.json lacks the image token; the official processor appends it too.
        self.image_id = tokenizer.add_special(image_token)
        self.start_id = tokenizer.token_id(IMAGE_START)
        self.end_id = tokenizer.token_id(IMAGE_END)
        self.pad_id = tokenizer.token_id(PAD)

    @classmethod
    def from_folder(
        cls, folder: str | PathLike[str], tokenizer: TextTokenizer, image_size: int, num_image_tokens: int
    ) -> "JanusProcessor":
        """Read processor_config.json and preprocessor_config.json of a model folder, if present.

        `image_size` (pixels) and `num_image_tokens` are those of the model's config. Raises ConfigError if a
        file contradicts them or is damaged, or if the tokenizer lacks a token that Janus needs.
        """
        folder = Path(folder)
        section = Section(read_settings(folder / "processor_config.json"), "processor_config.json")
        section.expect("num_image_tokens", num_image_tokens)
        section.expect("add_special_token", False)
        token = section.get("image_tag", IMAGE_TOKEN)
        if not isinstance(token, str) or not token:
            raise ConfigError(f"{section.where}.image_tag is {token!r}; accepted: the name of a token")
        settings = read_settings(folder / "preprocessor_config.json")
        transform = ImageTransform.from_settings(settings, image_size, "preprocessor_config.json")
        return cls(tokenizer, transform, num_image_tokens, token)

    def preprocess(self, image: Any) -> Tensor:
        """Pixels float32 [3, S, S], about -1..1, of anything that `open_image` reads. Raises PictureError."""
        return self.transform(open_image(image))

    def chat_inputs(
        self, messages: Any, system: str | None = None, *, local_files: bool = True
    ) -> ModelInputs:
        """The model's inputs for a conversation, in either form of `blocks.chat.messages`.

        Every image token becomes a start token, `num_image_tokens` image tokens and an end token. `system`
        None is the default system prompt; a system message replaces it. `local_files` is that of
        `open_image`. Raises PromptError and PictureError.
        """
        turns = normalize_messages(messages, self.image_token, local_files=local_files)
        ids = self.expand(self.tokenizer.encode(self.template.chat_prompt(turns, system)))
        images = [image for turn in turns for image in turn.images]
        mask = ids == self.image_id
        if int(mask.sum()) != len(images) * self.num_image_tokens:
            raise PromptError(f"the prompt holds the mark {self.image_token} outside of the user's messages")
        size = self.transform.size
        pixels = [self.transform(image) for image in images]
        return ModelInputs(ids, mask, torch.stack(pixels) if pixels else torch.zeros(0, 3, size, size))

    def expand(self, ids: Sequence[int]) -> Tensor:
        """Ids with each image token expanded to start, `num_image_tokens` image tokens, end; int64 [T]."""
        image = [self.start_id, *[self.image_id] * self.num_image_tokens, self.end_id]
        expanded: list[int] = []
        for token in ids:
            expanded += image if token == self.image_id else [token]
        return torch.tensor(expanded, dtype=torch.long)

    def generation_ids(self, prompt: str, negative_prompt: str | None = None) -> tuple[Tensor, Tensor]:
        """Conditional and unconditional ids of an image prompt, int64 [L] each.

        Without a negative prompt, or with an empty one, the unconditional ids are the prompt's with padding
        between the first (BOS) and the last (start of the image). A negative prompt has its own ids and
        length. Raises PromptError for a prompt that is empty or not a str.
        """
        cond = self._image_prompt(prompt)
        if negative_prompt is not None and negative_prompt.strip():
            return cond, self._image_prompt(negative_prompt)
        uncond = cond.clone()
        uncond[1:-1] = self.pad_id
        return cond, uncond

    def _image_prompt(self, prompt: str) -> Tensor:
        return torch.tensor(self.tokenizer.encode(self.template.generation_prompt(prompt)), dtype=torch.long)
