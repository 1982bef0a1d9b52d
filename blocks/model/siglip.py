"""The SigLIP vision encoder (Zhai et al. 2023), built by timm.

B images, N patches, W encoder width, S image side and P patch side in pixels.
"""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..errors import ConfigError
from ..json_config import Section, shown

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer


@dataclass(frozen=True)
class SiglipConfig:
    """Architecture of the encoder. `gelu_tanh` selects the tanh approximation of GELU: so400m uses it, the
    large model does not."""

    image_size: int = 384
    patch_size: int = 16
    width: int = 1024
    layers: int = 24
    heads: int = 16
    mlp_ratio: float = 4.0
    gelu_tanh: bool = False

    @property
    def num_patches(self) -> int:
        """Number of patches of an image, N."""
        return (self.image_size // self.patch_size) ** 2


IMAGES_AT_ONCE = 16
"""Most images or tiles to encode at a time. It bounds activations: about 0.2 GiB for so400m in bfloat16."""

# By the `model_name` of official configs; sizes are those of timm's registry.
KNOWN_TOWERS = {
    "siglip_large_patch16_384": SiglipConfig(),
    "siglip_so400m_patch14_384": SiglipConfig(384, 14, 1152, 27, 16, 3.7362, gelu_tanh=True),
}


def read_siglip(section: Section, default_name: str | None, unnamed: SiglipConfig) -> SiglipConfig:
    """The encoder that the vision section of an official config describes.

    Sizes in the section override those of the known tower called `model_name` (by default, `default_name`).
    For an unknown name the section must state them, with the defaults in `unnamed`. Raises `ConfigError`.
    """
    model_name = section.get("model_name", default_name)
    base = KNOWN_TOWERS.get(model_name) if isinstance(model_name, str) else None
    if base is None and (section.get("width") is None or not isinstance(model_name, str | None)):
        raise ConfigError(
            f"{section.where}.model_name is {shown(model_name)}; accepted: {', '.join(KNOWN_TOWERS)}, or any "
            "name with width, layers, heads and patch_size stated"
        )
    base = base or unnamed
    return SiglipConfig(
        image_size=section.integer("image_size", base.image_size),
        patch_size=section.integer("patch_size", base.patch_size),
        width=section.integer("width", base.width),
        layers=section.integer("layers", base.layers),
        heads=section.integer("heads", base.heads),
        mlp_ratio=section.number("mlp_ratio", base.mlp_ratio),
        gelu_tanh=base.gelu_tanh,
    )


def check_siglip(config: SiglipConfig, where: str) -> None:
    """Raise a `ConfigError`, prefixed by `where`, for impossible sizes."""
    if not config.heads or config.width % config.heads:
        raise ConfigError(f"{where}: vision width {config.width} is no multiple of its {config.heads} heads")
    if not config.patch_size or config.image_size < config.patch_size:
        raise ConfigError(f"{where}: image_size {config.image_size} holds no patch of {config.patch_size}")


def embed_patches(pixels_B3SS: Tensor, weight_W3PP: Tensor, bias_W: Tensor | None) -> Tensor:
    """The convolution of patches of P x P pixels as a product of their rows, `[B, N, W]`: on CUDA the number
    of images decides how a convolution is computed, while products are batch-invariant."""
    patch = weight_W3PP.shape[-1]
    whole = pixels_B3SS.shape[-1] // patch * patch
    pixels = pixels_B3SS[..., :whole, :whole]
    rows = rearrange(pixels, "b c (h y) (w x) -> b (h w) (c y x)", y=patch, x=patch)
    return F.linear(rows, weight_W3PP.flatten(1), bias_W)


def build_siglip(config: SiglipConfig) -> "VisionTransformer":
    """An encoder from pixels `[B, 3, S, S]` in -1..1 to the features `[B, N, W]` after the final norm.

    timm is imported here because that takes seconds, and generating images does not need it.
    """
    from timm.layers import PatchEmbed
    from timm.models.vision_transformer import VisionTransformer

    class Patches(PatchEmbed):
        """Makes patch features contiguous: their memory layout affects the order of all later sums."""

        def forward(self, x: Tensor) -> Tensor:
            if x.is_cuda:
                return embed_patches(x, self.proj.weight, self.proj.bias)
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
