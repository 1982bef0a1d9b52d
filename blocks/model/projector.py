"""The two-layer adaptor between a tower's features and the language model's width."""

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError
from ..kernels.batch_invariant import Linear


class MlpProjector(nn.Module):
    """`mlp_gelu` of the official configs: `depth` linear layers with exact GELU between them.

    Layers sit at even indices, as in the checkpoints (`layers.0`, `layers.2`, ...).
    """

    def __init__(self, input_dim: int, n_embed: int, depth: int = 2) -> None:
        super().__init__()
        if depth < 1:
            raise ConfigError(f"projector depth is {depth}; accepted: 1 or more")
        layers: list[nn.Module] = [Linear(input_dim, n_embed)]
        for _ in range(depth - 1):
            layers += [nn.GELU(), Linear(n_embed, n_embed)]
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x) if isinstance(layer, nn.Linear) else F.gelu(x)
        return x
