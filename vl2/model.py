"""DeepSeek-VL2 (Wu et al. 2024): image tiles go through SigLIP and a downsampling projector into one decoder
with a mixture of experts.

N tiles, S tile side in pixels, G patches and H tokens along a tile's side, C vision width, D decoder width,
T positions, V vocabulary. Module names are the official checkpoints'; `weight_names.py` stacks experts.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..blocks.chat.inputs import normalized_pixels
from ..blocks.chat.text_generation import Prompt, embed_conversations
from ..blocks.graphs.graphed_module import run_graphed
from ..blocks.model.context import DecoderConfig
from ..blocks.model.decoder import Decoder
from ..blocks.model.layers import Linear, MlpProjector
from ..blocks.model.siglip import IMAGES_AT_ONCE, build_siglip
from .config import VL2Config
from .processor import ModelInputs


class TileProjector(MlpProjector):
    """Joins squares of r x r patches into one token each, then applies the MLP."""

    def __init__(self, config: VL2Config) -> None:
        input_dim = config.vision.width * config.downsample**2
        super().__init__(input_dim, config.decoder.hidden_size, config.projector_depth)
        self.ratio = config.downsample

    def forward(self, x_NGGC: Tensor) -> Tensor:
        """Features of a grid of patches -> tokens `[N, H, H, D]`; padded with zeros at right and bottom."""
        padding = -x_NGGC.shape[1] % self.ratio
        padded = F.pad(x_NGGC, (0, 0, 0, padding, 0, padding))
        squares = rearrange(padded, "n (h dy) (w dx) c -> n h w (c dy dx)", dy=self.ratio, dx=self.ratio)
        return super().forward(squares)


class LanguageModel(nn.Module):
    """The decoder and the text head."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.model = Decoder(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)


class VL2Model(nn.Module):
    """The modules of a DeepSeek-VL2 checkpoint, with the methods that generation calls."""

    per_image_modules = ("vision", "projector")
    """Modules that run once per image, not once per token, and so are offloaded first."""

    def __init__(self, config: VL2Config) -> None:
        super().__init__()
        self.config = config
        self.vision = build_siglip(config.vision)
        self.projector = TileProjector(config)
        self.language = LanguageModel(config.decoder)
        # Initialized as in the reference, for training; a checkpoint overwrites them.
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
        """Tiles in -1..1 -> their tokens `[N, H, H, D]`; on CUDA as a captured graph."""
        modules = (self.vision, self.projector)
        return run_graphed(self, self.decoder, modules, self._encode_vision, pixels_N3SS)

    def _encode_vision(self, pixels_N3SS: Tensor) -> Tensor:
        side = self.config.vision.image_size // self.config.vision.patch_size
        return self.projector(self.vision(pixels_N3SS).unflatten(1, (side, side)))

    def embed_images(self, pixels_N3SS: Tensor, grids: Sequence[tuple[int, int]]) -> list[Tensor]:
        """All tiles of several images -> the token sequence `[T_i, D]` of each image.

        `grids` holds (columns, rows) of local tiles per image. An image's tiles are the global one, then the
        local ones row by row. `IMAGES_AT_ONCE` tiles are encoded at a time.
        """
        tiles = torch.cat([self.embed_tiles(chunk) for chunk in pixels_N3SS.split(IMAGES_AT_ONCE)])
        counts = [1 + columns * rows for columns, rows in grids]
        return [self.arrange(part, grid) for part, grid in zip(tiles.split(counts), grids, strict=True)]

    def embed_prompts(self, inputs: Sequence[ModelInputs]) -> list[Prompt]:
        """Conversations, embedded: their text, with image embeddings at the image tokens."""
        return embed_conversations(self, inputs, self.image_embeddings)

    def image_embeddings(self, inputs: Sequence[ModelInputs]) -> Tensor:
        """Embeddings of all images of some conversations, in order, `[n, D]`."""
        pixels = normalized_pixels(inputs, self.decoder.device).to(self.decoder.dtype)
        return torch.cat(self.embed_images(pixels, [grid for one in inputs for grid in one.grids]))

    def arrange(self, tiles_NHHD: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tiles of an image, or of several `[..., N, H, H, D]`, as a sequence `[..., T, D]`: the global tile,
        a separator, the local tiles, joined into one mosaic. Rows of tokens end with a newline embedding.
        """
        columns, rows = grid
        whole, local = tiles_NHHD.split((1, columns * rows), dim=-4)
        mosaic = rearrange(local, "... (r c) h w d -> ... (r h) (c w) d", r=rows, c=columns)
        separator = self.view_seperator.expand(*mosaic.shape[:-3], 1, -1)
        return torch.cat(
            (self._with_newlines(whole.squeeze(-4)), separator, self._with_newlines(mosaic)), dim=-2
        )

    def _with_newlines(self, x_HWD: Tensor) -> Tensor:
        newline = self.image_newline.expand(*x_HWD.shape[:-2], 1, -1)
        return torch.cat((x_HWD, newline), dim=-2).flatten(-3, -2)

    def text_logits(self, hidden: Tensor) -> Tensor:
        """Hidden states `[..., D]` -> logits over the vocabulary `[..., V]`."""
        return self.language.lm_head(hidden)
