"""DeepSeek-VL2's processor: conversations with pictures to ids and tiles.

T tokens of a conversation, N tiles of all its pictures, S tile side in pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..blocks.chat.messages import normalize_messages
from ..blocks.errors import ConfigError
from ..blocks.json_config import Section
from ..tokenizers.text import TextTokenizer, read_settings
from .config import VL2Config, parse_candidates
from .prompts import IMAGE, SPECIAL, encode_turns
from .tiles import (
    MAX_CROPPED,
    PixelRule,
    Size,
    candidate_resolutions,
    cut_tiles,
    num_image_tokens,
    select_best_resolution,
)


@dataclass(frozen=True)
class ModelInputs:
    """A conversation for the model.

    `ids` int64 [T]; `image_mask` bool [T], true where pictures go; `pixels` float32 [N, 3, S, S]; `grids`
    (columns, rows) of local tiles of each picture; `num_image_tokens` of each; `sizes` (width, height) of
    each in pixels, as it came.
    """

    ids: Tensor
    image_mask: Tensor
    pixels: Tensor
    grids: tuple[Size, ...]
    num_image_tokens: tuple[int, ...]
    sizes: tuple[Size, ...]


class VL2Processor:
    """What stands between people's texts and pictures and the model. Make one with `from_folder`."""

    def __init__(
        self,
        tokenizer: TextTokenizer,
        config: VL2Config,
        candidates: Sequence[Size] | None = None,
        pixel_rule: PixelRule | None = None,
        image_token: str = IMAGE,
    ) -> None:
        self.tokenizer, self.image_token = tokenizer, image_token
        self.tile, self.side = config.vision.image_size, config.tile_side
        self.candidates = tuple(candidates or config.candidates)
        self.pixel_rule = pixel_rule or PixelRule()
        names = (image_token, *SPECIAL)
        ids = [tokenizer.add_special(name) for name in names]
        self.image_id = ids[0]
        if max(ids) >= config.decoder.vocab_size:
            name = names[ids.index(max(ids))]
            raise ConfigError(
                f"the token {name} has id {max(ids)}, beyond the {config.decoder.vocab_size} embeddings"
            )

    def allow_tiles(self, max_tiles: int) -> None:
        """Replace the folder's resolutions by all of at most so many local tiles."""
        self.candidates = candidate_resolutions(max_tiles, self.tile)

    @classmethod
    def from_folder(
        cls, folder: str | PathLike[str], tokenizer: TextTokenizer, config: VL2Config
    ) -> "VL2Processor":
        """Read processor_config.json of a model folder, if it is there.

        Raises ConfigError when it is damaged or contradicts the model's config.
        """
        path = Path(folder) / "processor_config.json"
        section = Section(read_settings(path), path.name)
        section.expect("patch_size", config.vision.patch_size)
        section.expect("downsample_ratio", config.downsample)
        section.expect("normalize", True)
        section.expect("add_special_token", False)
        token = section.get("image_token", IMAGE)
        if not isinstance(token, str) or not token:
            raise ConfigError(f"{path.name}.image_token is {token!r}; accepted: the name of a token")
        stated = section.get("candidate_resolutions")
        candidates = None if stated is None else parse_candidates(section, config.vision.image_size)
        mean, std = PixelRule.mean, PixelRule.std
        rule = PixelRule(_three(section, "image_mean", mean), _three(section, "image_std", std))
        if 0 in rule.std:
            raise ConfigError(f"{path.name}.image_std has a zero")
        return cls(tokenizer, config, candidates, rule, token)

    def best_resolution(self, size: Size, pictures: int = 1) -> Size:
        """(width, height) in pixels that a picture of `size` takes in a conversation with so many pictures.

        With more than two pictures each gets a single local tile.
        """
        if pictures > MAX_CROPPED:
            return self.tile, self.tile
        return select_best_resolution(size, self.candidates)

    def preprocess(self, picture: Image.Image, best: Size) -> Tensor:
        """Tiles float32 [N, 3, S, S], about -1..1, of an RGB picture at the resolution `best`."""
        return cut_tiles(picture, best, self.tile, self.pixel_rule)

    def chat_inputs(self, messages: Any, *, local_files: bool = True) -> ModelInputs:
        """A conversation, in either form of `blocks.messages`, as the model reads it.

        Raises PromptError and PictureError; `local_files` as in `open_image`.
        """
        turns = normalize_messages(messages, self.image_token, local_files=local_files)
        pictures = [picture for turn in turns for picture in turn.images]
        bests = [self.best_resolution(picture.size, len(pictures)) for picture in pictures]
        grids = tuple((width // self.tile, height // self.tile) for width, height in bests)
        counts = tuple(num_image_tokens(grid, self.side) for grid in grids)
        stretches = encode_turns(self.tokenizer, turns, self.image_token)
        ids, mask = list(stretches[0]), [False] * len(stretches[0])
        for count, stretch in zip(counts, stretches[1:], strict=True):
            ids += [self.image_id] * count + stretch
            mask += [True] * count + [False] * len(stretch)
        tiles = [self.preprocess(picture, best) for picture, best in zip(pictures, bests, strict=True)]
        return ModelInputs(
            ids=torch.tensor(ids, dtype=torch.long),
            image_mask=torch.tensor(mask),
            pixels=torch.cat(tiles) if tiles else torch.zeros(0, 3, self.tile, self.tile),
            grids=grids,
            num_image_tokens=counts,
            sizes=tuple(picture.size for picture in pictures),
        )


def _three(section: Section, name: str, default: tuple[float, float, float]) -> tuple[float, float, float]:
    value = section.get(name, default)
    numbers = list(value) if isinstance(value, list | tuple) else []
    if len(numbers) != 3 or not all(type(n) in (int, float) for n in numbers):
        raise ConfigError(f"{section.where}.{name} is {value!r}; accepted: a list of three numbers")
    return float(numbers[0]), float(numbers[1]), float(numbers[2])
