"""DeepSeek-VL2: tiles through SigLIP and a downsampling projector into one decoder with experts.

N tiles, S tile side in pixels, G patches and H tokens along a tile's side, C tower width, D decoder width,
V vocabulary. Module names are those of the official checkpoints (keys.py says how experts are stacked).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..blocks.chat.text_generation import Prompt
from ..blocks.engine.graphed_module import run_graphed
from ..blocks.model.context import DecoderConfig
from ..blocks.model.decoder import Decoder
from ..blocks.model.layers import Linear, MlpProjector
from ..blocks.model.siglip import build_siglip
from .config import VL2Config
from .processor import ModelInputs

_TILES_AT_ONCE = 16  # bounds the tower's activations: about 0.2 GiB a GPU batch of so400m in bfloat16


class TileProjector(MlpProjector):
    """Squares of r x r patches become one token each, then go through the adaptor's linear layers."""

    def __init__(self, config: VL2Config) -> None:
        self_dim = config.vision.width * config.downsample**2
        super().__init__(self_dim, config.decoder.hidden_size, config.projector_depth)
        self.ratio = config.downsample

    def forward(self, x_NGGC: Tensor) -> Tensor:
        """Features on the grid of patches -> tokens `[N, H, H, D]`; a rest at right and bottom sees zeros."""
        rest = -x_NGGC.shape[1] % self.ratio
        padded = F.pad(x_NGGC, (0, 0, 0, rest, 0, rest))
        squares = rearrange(padded, "n (h dy) (w dx) c -> n h w (c dy dx)", dy=self.ratio, dx=self.ratio)
        return super().forward(squares)


class LanguageModel(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.model = Decoder(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)


class VL2Model(nn.Module):
    """All parts of a DeepSeek-VL2 checkpoint. Embeddings go in and logits come out; loops live elsewhere."""

    per_image_modules = ("vision", "projector")
    """Parts that work once a picture, not once a token: what may best rest away from the GPU."""

    def __init__(self, config: VL2Config) -> None:
        super().__init__()
        self.config = config
        self.vision = build_siglip(config.vision)
        self.projector = TileProjector(config)
        self.language = LanguageModel(config.decoder)
        # As the reference draws them for training; a checkpoint overwrites them.
        scale = config.decoder.hidden_size**-0.5
        self.image_newline = nn.Parameter(torch.randn(config.decoder.hidden_size) * scale)
        self.view_seperator = nn.Parameter(torch.randn(config.decoder.hidden_size) * scale)

    @property
    def decoder(self) -> Decoder:
        return self.language.model

    def embed_text(self, ids: Tensor) -> Tensor:
        """Text ids `[...]` -> embeddings `[..., D]`."""
        return self.decoder.embed_tokens(ids)

    def embed_tiles(self, pixels_N3SS: Tensor) -> Tensor:
        """Tiles in -1..1 -> their tokens `[N, H, H, D]`; on CUDA by a recording."""
        return run_graphed(self, self.decoder, (self.vision, self.projector), self._see, pixels_N3SS)

    def _see(self, pixels_N3SS: Tensor) -> Tensor:
        side = self.config.vision.image_size // self.config.vision.patch_size
        features = self.vision(pixels_N3SS).unflatten(1, (side, side))
        return self.projector(features)

    def embed_images(self, pixels_N3SS: Tensor, grids: Sequence[tuple[int, int]]) -> list[Tensor]:
        """All tiles of several pictures -> the token sequence `[T_i, D]` of each.

        `grids` holds (columns, rows) of local tiles per picture; its tiles are the global one, then the local
        ones row by row. The tower runs in bounded chunks.
        """
        tiles = torch.cat([self.embed_tiles(chunk) for chunk in pixels_N3SS.split(_TILES_AT_ONCE)])
        counts = [1 + columns * rows for columns, rows in grids]
        return [self.arrange(part, grid) for part, grid in zip(tiles.split(counts), grids, strict=True)]

    @torch.no_grad()
    def embed_prompt(self, inputs: ModelInputs) -> Prompt:
        """Text embeddings `[T, D]` with the images' tokens at the positions that the mask marks."""
        device, dtype = self.decoder.device, self.decoder.dtype
        x_TD = self.embed_text(inputs.ids.to(device))
        if inputs.grids:
            images = self.embed_images(inputs.pixels.to(device, dtype), inputs.grids)
            # On the host, so that nothing waits for the device.
            positions = inputs.image_mask.nonzero()[:, 0]
            x_TD = x_TD.index_copy(0, positions.to(device), torch.cat(images))
        return Prompt(inputs.ids, x_TD)

    def arrange(self, tiles_NHHD: Tensor, grid: tuple[int, int]) -> Tensor:
        """One picture's tiles as a sequence `[T, D]`: global rows, the separator, rows of the local mosaic;
        every row ends with a newline."""
        columns, rows = grid
        mosaic = rearrange(tiles_NHHD[1:], "(r c) h w d -> (r h) (c w) d", r=rows, c=columns)
        return torch.cat(
            (self._with_newlines(tiles_NHHD[0]), self.view_seperator[None], self._with_newlines(mosaic))
        )

    def _with_newlines(self, x_HWD: Tensor) -> Tensor:
        newline = self.image_newline.expand(x_HWD.shape[0], 1, -1)
        return torch.cat((x_HWD, newline), dim=1).flatten(0, 1)

    def text_logits(self, hidden: Tensor) -> Tensor:
        """Hidden states `[..., D]` -> logits over the vocabulary `[..., V]`."""
        return self.language.lm_head(hidden)
