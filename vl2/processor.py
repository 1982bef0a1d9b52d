"""`VL2Processor`: conversations with images to token ids and tiles."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from ..blocks.chat.inputs import ChatInputs
from ..blocks.chat.messages import is_unfinished, normalize_messages
from ..blocks.errors import ConfigError
from ..blocks.image_fit import Fit
from ..blocks.picture_settings import check_size, read_picture_settings
from ..tokenizers.text import TextTokenizer
from .config import VL2Config, parse_candidates
from .prompts import GROUNDING_TOKENS, IMAGE, SPECIAL, encode_turns
from .tiles import (
    MAX_CROPPED,
    PixelNormalization,
    Size,
    candidate_resolutions,
    cut_best_tiles,
    num_image_tokens,
    select_best_resolution,
)


@dataclass(frozen=True, eq=False)
class ModelInputs(ChatInputs):
    """A conversation as the model takes it. For each image: `grids` holds (columns, rows) of local tiles,
    then `num_image_tokens`."""

    grids: tuple[Size, ...]
    num_image_tokens: tuple[int, ...]

    @property
    def sizes(self) -> tuple[Size, ...]:
        """(width, height) of each image in pixels."""
        return tuple(image.size for image in self.images)


class VL2Processor:
    """Prepares texts and images for the model. Make one with `from_folder`."""

    def __init__(
        self,
        tokenizer: TextTokenizer,
        config: VL2Config,
        candidates: Sequence[Size] | None = None,
        normalization: PixelNormalization | None = None,
        image_token: str = IMAGE,
    ) -> None:
        self.tokenizer, self.image_token = tokenizer, image_token
        self.tile, self.side = config.vision.image_size, config.tile_side
        self.candidates = tuple(candidates or config.candidates)
        self.normalization = normalization or PixelNormalization()
        names = (image_token, *SPECIAL)
        ids = [tokenizer.add_special(name) for name in names]
        self.image_id = ids[0]
        tokenizer.allowed = frozenset(map(tokenizer.token_id, GROUNDING_TOKENS))
        if max(ids) >= config.decoder.vocab_size:
            name = names[ids.index(max(ids))]
            raise ConfigError(
                f"the token {name} has id {max(ids)}, beyond the {config.decoder.vocab_size} embeddings"
            )

    def allow_tiles(self, max_tiles: int) -> None:
        """Replace the folder's resolutions by all those with at most this many local tiles."""
        self.candidates = candidate_resolutions(max_tiles, self.tile)

    @classmethod
    def from_folder(
        cls, folder: str | PathLike[str], tokenizer: TextTokenizer, config: VL2Config
    ) -> "VL2Processor":
        """Read the settings of pictures in a model folder, if present.

        Raises ConfigError if it is damaged or contradicts the model's config.
        """
        section = read_picture_settings(Path(folder))
        section.expect("patch_size", config.vision.patch_size)
        section.expect("downsample_ratio", config.downsample)
        section.expect("normalize", True)
        section.expect("add_special_token", False)
        section.expect("rescale_factor", 1 / 255)
        check_size(section, config.vision.image_size)
        token = section.token("image_token", section.token("image_tag", IMAGE))
        stated = section.get("candidate_resolutions")
        candidates = None if stated is None else parse_candidates(section, config.vision.image_size)
        default = PixelNormalization()
        mean = section.three_numbers("image_mean", default.mean)
        std = section.three_numbers("image_std", default.std)
        normalization = PixelNormalization(mean, std)
        section.expect("background_color", list(normalization.background))
        return cls(tokenizer, config, candidates, normalization, token)

    def _candidates(self, num_images: int) -> tuple[Size, ...]:
        return ((self.tile, self.tile),) if num_images > MAX_CROPPED else self.candidates

    def best_resolution(self, size: Size, num_images: int = 1) -> Size:
        """The resolution (width, height) in pixels for an image of `size` in a conversation of `num_images`.

        With more than `MAX_CROPPED` images, each gets a single local tile.
        """
        return select_best_resolution(size, self._candidates(num_images))

    def fit(self, num_images: int) -> Fit:
        """What scales an image of a conversation of `num_images` to its `best_resolution` and cuts it."""
        candidates, background = self._candidates(num_images), self.normalization.background
        return partial(cut_best_tiles, candidates=candidates, tile=self.tile, background=background)

    def chat_inputs(self, messages: Any, *, local_files: bool = True, exif: str = "apply") -> ModelInputs:
        """The model's inputs for a conversation, in either form of `blocks.chat.messages`.

        `local_files` and `exif` are those of `open_image`. Raises PromptError and PictureError.
        """
        fit, token = self.fit, self.image_token
        turns = normalize_messages(messages, token, fit, local_files=local_files, exif=exif)
        images = tuple(image for turn in turns for image in turn.images)
        resolutions = [self.best_resolution(image.size, len(images)) for image in images]
        grids = tuple((width // self.tile, height // self.tile) for width, height in resolutions)
        counts = tuple(num_image_tokens(grid, self.side) for grid in grids)
        texts = encode_turns(self.tokenizer, turns, self.image_token)
        ids, mask = list(texts[0]), [False] * len(texts[0])
        for count, text in zip(counts, texts[1:], strict=True):
            ids += [self.image_id] * count + text
            mask += [True] * count + [False] * len(text)
        return ModelInputs(
            ids=torch.tensor(ids, dtype=torch.long),
            image_mask=torch.tensor(mask),
            images=images,
            table=self.normalization.table,
            side=self.tile,
            continues=is_unfinished(turns),
            grids=grids,
            num_image_tokens=counts,
        )
