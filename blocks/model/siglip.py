"""The SigLIP vision tower (Zhai et al. 2023), as timm builds it.

B pictures, N patches, W tower width, S picture side in pixels.
"""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer


@dataclass(frozen=True)
class SiglipConfig:
    """Architecture of the tower. `gelu_tanh` is so400m's activation; the large model uses the exact GELU."""

    image_size: int = 384
    patch_size: int = 16
    width: int = 1024
    layers: int = 24
    heads: int = 16
    mlp_ratio: float = 4.0
    gelu_tanh: bool = False

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2


# By the `model_name` of official configs: widths and depths of the SigLIP paper's models (timm's registry).
KNOWN_TOWERS = {
    "siglip_large_patch16_384": SiglipConfig(),
    "siglip_so400m_patch14_384": SiglipConfig(384, 14, 1152, 27, 16, 3.7362, gelu_tanh=True),
}


def build_siglip(config: SiglipConfig) -> "VisionTransformer":
    """A tower that maps pixels `[B, 3, S, S]` (in -1..1) to features `[B, N, W]` after blocks and norm.

    timm is imported here, not at the top: it costs seconds that painting alone need not pay.
    """
    from timm.layers import PatchEmbed
    from timm.models.vision_transformer import VisionTransformer

    class Patches(PatchEmbed):
        """Patches with their channels side by side: all later sums keep the order that these lie in."""

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).contiguous()

    return VisionTransformer(
        img_size=config.image_size,
        patch_size=config.patch_size,
        embed_dim=config.width,
        depth=config.layers,
        num_heads=config.heads,
        mlp_ratio=config.mlp_ratio,
        embed_layer=Patches,
        class_token=False,
        global_pool="",
        num_classes=0,
        weight_init="skip",
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        act_layer=partial(nn.GELU, approximate="tanh" if config.gelu_tanh else "none"),
    )
