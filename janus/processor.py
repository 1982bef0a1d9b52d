"""`JanusProcessor`: images to pixels, conversations and image prompts to token ids.

L tokens of an image prompt, S pixels along a side of the model's input.
"""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..blocks.chat.inputs import ChatInputs
from ..blocks.chat.messages import is_unfinished, normalize_messages
from ..blocks.errors import PromptError
from ..blocks.image_fit import Fit, normalized
from ..blocks.image_io import open_image
from ..blocks.picture_settings import read_picture_settings
from ..tokenizers.text import PAD, TextTokenizer
from .image_transform import ImageTransform
from .prompts import IMAGE_END, IMAGE_START, IMAGE_TOKEN, Template


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
        section = read_picture_settings(Path(folder))
        section.expect("num_image_tokens", num_image_tokens)
        section.expect("add_special_token", False)
        token = section.token("image_tag", section.token("image_token", IMAGE_TOKEN))
        transform = ImageTransform.from_settings(section, image_size)
        return cls(tokenizer, transform, num_image_tokens, token)

    def preprocess(self, image: Any, exif: str = "apply") -> Tensor:
        """Pixels float32 [3, S, S], about -1..1, of anything that `open_image` reads. Raises PictureError."""
        fitted = self.transform.fit(open_image(image, exif=exif))
        return torch.from_numpy(normalized([fitted], self.transform.table, self.transform.size))[0]

    def fit(self, num_images: int) -> Fit:
        """What fits an image of a conversation: here it doesn't depend on the number of images."""
        return self.transform.fit

    def chat_inputs(
        self, messages: Any, system: str | None = None, *, local_files: bool = True, exif: str = "apply"
    ) -> ChatInputs:
        """The model's inputs for a conversation, in either form of `blocks.chat.messages`.

        Every image token becomes a start token, `num_image_tokens` image tokens and an end token. `system`
        None is the default system prompt; a system message replaces it. `local_files` and `exif`
        are those of `open_image`. Raises PromptError and PictureError.
        """
        fit, token = self.fit, self.image_token
        turns = normalize_messages(messages, token, fit, local_files=local_files, exif=exif)
        ids = self.expand(self.tokenizer.encode(self.template.chat_prompt(turns, system)))
        images = tuple(image for turn in turns for image in turn.images)
        mask = ids == self.image_id
        if int(mask.sum()) != len(images) * self.num_image_tokens:
            raise PromptError(f"the prompt holds the mark {self.image_token} outside of the user's messages")
        table, size = self.transform.table, self.transform.size
        return ChatInputs(ids, mask, images, table, size, is_unfinished(turns))

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
