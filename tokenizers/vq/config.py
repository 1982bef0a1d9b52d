"""The sizes of an image tokenizer."""

from dataclasses import dataclass
from math import prod


@dataclass(frozen=True)
class VQConfig:
    """The architecture; VQ-16's by default. Each entry of `ch_mult` after the first halves H and W. Norms of
    few channels a group make training hide a spot of large numbers in each picture, seen as a smudge (Karras
    et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN", sec. 2.1). With `patch_width` the
    encoder is a `PatchEncoder` of that width."""

    codebook_size: int = 16384
    code_dim: int = 8
    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    z_channels: int = 256
    num_res_blocks: int = 2
    norm_groups: int = 32
    patch_width: int = 0

    @property
    def downsampling(self) -> int:
        """Pixels along an image's side per code."""
        return 2 ** (len(self.ch_mult) - 1)

    def largest_map(self, grid: tuple[int, int]) -> int:
        """Numbers in the decoder's largest feature map for one image: at each resolution there is one with
        the channels of the coarser resolution before it."""
        last = len(self.ch_mult) - 1
        widths = [self.ch * self.ch_mult[min(level + 1, last)] for level in range(last + 1)]
        return max(width * prod(grid) << 2 * (last - level) for level, width in enumerate(widths))
