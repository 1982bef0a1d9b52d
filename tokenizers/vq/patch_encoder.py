"""The encoder of small image tokenizers: each code depends on its own pixels and a few around them alone."""

import torch.nn.functional as F
from torch import Tensor, nn

from .config import VQConfig

BLOCKS, BORDER = 3, 3
"""Residual blocks, and pixels around a code's own that it depends on."""


class PatchEncoder(nn.Module):
    """Pixels `[B, 3, H, W]` to latents `[B, Z, H / P, W / P]`, each from the square of P pixels of a code and
    its border. A part of a picture has the same codes beside any other parts, so that whoever paints needs to
    learn them once only."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        patch, width, hidden = config.downsampling, config.patch_width, 4 * config.patch_width
        self.conv_in = nn.Conv2d(3, hidden, patch + 2 * BORDER, stride=patch, padding=BORDER)
        self.proj_in = nn.Linear(hidden, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, width))
            for _ in range(BLOCKS)
        )
        self.proj_out = nn.Linear(width, config.z_channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BHWC = self.proj_in(F.silu(self.conv_in(x_BCHW)).permute(0, 2, 3, 1))
        for block in self.blocks:
            h_BHWC = h_BHWC + block(h_BHWC)
        return self.proj_out(h_BHWC).permute(0, 3, 1, 2)
