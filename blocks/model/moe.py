"""Mixture of experts (DeepSeekMoE, Dai et al. 2024): a router ("gate"), routed experts, and shared experts
that process every token.

B rows, T positions, N = B * T tokens, D model width, E experts, G groups of them, I their width, K per token.
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..kernels import dispatch
from ..kernels.batch_invariant import linear, row_sums, sigmoid
from ..kernels.codec import WeightTensors
from ..kernels.moe_dispatch import (
    dense_experts,
    loop_active_experts,
    padded_bmm,
    pick_implementation,
)
from .layers import FeedForward
from .quantized_weight import QuantizedWeight

SCORING = ("softmax", "sigmoid")
METHODS = ("greedy", "group_limited_greedy", "noaux_tc")


@dataclass(frozen=True)
class MoEConfig:
    """Sizes and routing of the layers with experts: those with `layer >= first_dense` and
    `layer % every == 0`. The others are dense.

    `method` is the routing: `greedy` takes the K best scores; `group_limited_greedy` (DeepSeek-V2, sec.
    2.2.2) takes them from the `topk_group` groups with the best single score; `noaux_tc` (DeepSeek-V3, eq.
    16) ranks experts by score plus a learned bias and groups by the sum of their two best, but weights the
    outputs by the score alone. The weights are divided by their sum if `normalize`, then multiplied by
    `scale`. Raises `ConfigError` for impossible settings.
    """

    num_experts: int
    top_k: int
    expert_width: int
    num_shared: int = 0
    first_dense: int = 0
    every: int = 1
    scoring: str = "softmax"
    method: str = "greedy"
    num_groups: int = 1
    topk_group: int = 1
    normalize: bool = False
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.scoring not in SCORING:
            raise ConfigError(f"scoring_func is {self.scoring!r}; accepted: {', '.join(SCORING)}")
        if self.method not in METHODS:
            raise ConfigError(f"topk_method is {self.method!r}; accepted: {', '.join(METHODS)}")
        if self.num_groups < 1 or self.num_experts % self.num_groups:
            raise ConfigError(f"n_group is {self.num_groups}; accepted: a divisor of {self.num_experts}")
        if not 1 <= self.topk_group <= self.num_groups:
            raise ConfigError(f"topk_group is {self.topk_group}; accepted: 1 to n_group, {self.num_groups}")
        if not 1 <= self.top_k <= self.num_experts:
            raise ConfigError(f"{self.top_k} experts per token; accepted: 1 to {self.num_experts}")
        if self.method == "noaux_tc" and self.num_experts // self.num_groups < 2:
            raise ConfigError("noaux_tc ranks a group by its two best experts; accepted: groups of 2 or more")
        if self.every < 1 or self.expert_width < 1:
            raise ConfigError("moe_layer_freq and moe_intermediate_size must be 1 or more")

    def has_experts(self, layer: int) -> bool:
        """Whether the decoder layer with this index is a mixture of experts."""
        return layer >= self.first_dense and layer % self.every == 0


def mask_groups(scores_NE: Tensor, groups: int, topk_group: int, best: int, value: float) -> Tensor:
    """Set the scores outside the `topk_group` best groups to `value`.

    A group's rank is the sum of its `best` best scores.
    """
    scores_NGE = scores_NE.unflatten(-1, (groups, -1))
    ranks_NG = scores_NGE.topk(best, dim=-1).values.sum(-1)
    selected = ranks_NG.topk(topk_group, dim=-1).indices
    mask = torch.zeros_like(ranks_NG, dtype=torch.bool).scatter(-1, selected, True)
    return scores_NGE.masked_fill(~mask[..., None], value).flatten(-2)


class Gate(nn.Module):
    """The router: selects K experts for each token, in float32 whatever the dtype of weights and input."""

    def __init__(self, config: MoEConfig, hidden_size: int) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.num_experts, hidden_size))
        if config.method == "noaux_tc":
            self.e_score_correction_bias = nn.Parameter(torch.zeros(config.num_experts))
        if not self.weight.is_meta:
            nn.init.kaiming_uniform_(self.weight, a=5**0.5)

    def scores(self, x_ND: Tensor) -> Tensor:
        """Affinity of each token to each expert, `[N, E]`."""
        with torch.autocast(x_ND.device.type, enabled=False):
            return self._scores_of(linear(x_ND.float(), self.weight.float()))

    def _scores_of(self, logits_NE: Tensor) -> Tensor:
        return logits_NE.softmax(-1) if self.config.scoring == "softmax" else sigmoid(logits_NE)

    def select_experts(self, scores_NE: Tensor) -> tuple[Tensor, Tensor]:
        """The experts of each token, int64 `[N, K]`, and their weights, float32 `[N, K]`."""
        config, ranks_NE = self.config, scores_NE
        if config.method == "noaux_tc":
            ranks_NE = scores_NE + self.e_score_correction_bias.float()
        if config.method != "greedy" and config.num_groups > 1:
            # As the references do: a biased score may be below 0, the others are not.
            best, value = (2, -torch.inf) if config.method == "noaux_tc" else (1, 0.0)
            ranks_NE = mask_groups(ranks_NE, config.num_groups, config.topk_group, best, value)
        expert_ids_NK = ranks_NE.topk(config.top_k, dim=-1).indices
        from_ranks = config.method == "group_limited_greedy"
        weights_NK = (ranks_NE if from_ranks else scores_NE).gather(-1, expert_ids_NK)
        if config.normalize and config.top_k > 1:
            weights_NK = weights_NK / (row_sums(weights_NK) + 1e-20)
        return expert_ids_NK, weights_NK * config.scale

    def forward(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Expert ids int64 `[N, K]`, and their weights float32 `[N, K]`."""
        return self.select_experts(self.scores(x_ND))

    def forward_kernels(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        """`forward` by kernels: a token's result has the same bits whatever other tokens there are."""
        from ..kernels import moe_router  # needs Triton

        config = self.config
        grouped = config.method != "greedy" and config.num_groups > 1
        groups = (config.num_groups, config.topk_group) if grouped else (1, 1)
        if groups[1] * (config.num_experts // groups[0]) < config.top_k:  # then others are taken, too
            return self.select_experts(self._scores_of(moe_router.router_logits(x_ND, self.weight)))
        return moe_router.select_experts(
            x_ND,
            self.weight,
            self.e_score_correction_bias if config.method == "noaux_tc" else None,
            top_k=config.top_k,
            softmax=config.scoring == "softmax",
            normalize=config.normalize and config.top_k > 1,
            scale=config.scale,
            groups=groups,
        )


class Experts(nn.Module):
    """Routed SwiGLU experts, stacked: `gate_up` `[E, 2I, D]` (gate first) and `down` `[E, D, I]`, as
    parameters or quantized. `dense`: plain parameters are used by `dense_experts`.
    """

    dense = False
    gate_up: nn.Parameter | QuantizedWeight
    down: nn.Parameter | QuantizedWeight

    def __init__(self, count: int, hidden_size: int, width: int) -> None:
        super().__init__()
        self.gate_up = nn.Parameter(torch.empty(count, 2 * width, hidden_size))
        self.down = nn.Parameter(torch.empty(count, hidden_size, width))
        if not self.gate_up.is_meta:
            nn.init.uniform_(self.gate_up, -(hidden_size**-0.5), hidden_size**-0.5)
            nn.init.uniform_(self.down, -(width**-0.5), width**-0.5)

    def forward(self, x_ND: Tensor, expert_ids_NK: Tensor, weights_NK: Tensor) -> Tensor:
        """The weighted sum of the selected experts' outputs, `[N, D]` in the dtype of `x`."""
        if isinstance(self.gate_up, QuantizedWeight) and isinstance(self.down, QuantizedWeight):
            quantized = loop_active_experts if x_ND.device.type == "cpu" else padded_bmm
            out_NKD = quantized(x_ND, self.gate_up.tensors, self.down.tensors, expert_ids_NK)
        else:
            x, gate_up, down = self._operands(x_ND)
            if self.dense:
                return dense_experts(x, gate_up, down, expert_ids_NK, weights_NK).to(x_ND.dtype)
            implementation = pick_implementation(x, gate_up, expert_ids_NK.numel())
            out_NKD = implementation(x, gate_up, down, expert_ids_NK)
        # The float32 weights promote the product, so the outputs are not converted to float32 beforehand.
        return (out_NKD * weights_NK[..., None]).sum(1).to(x_ND.dtype)

    def _operands(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The input and the parameters, cast to autocast's dtype where it is enabled."""
        gate_up, down = cast(Tensor, self.gate_up), cast(Tensor, self.down)
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            return x.to(dtype), gate_up.to(dtype), down.to(dtype)
        return x, gate_up, down


def _weight_tensors(weight: nn.Module | Tensor) -> WeightTensors:
    """The weight of a linear layer or of stacked experts, in the form that kernels take."""
    if isinstance(weight, QuantizedWeight):
        return weight.tensors
    return WeightTensors(weight if isinstance(weight, Tensor) else cast(Tensor, weight.weight))


class MoE(nn.Module):
    """The feed-forward of a layer with experts; shared experts are one feed-forward of their summed width."""

    def __init__(self, config: MoEConfig, hidden_size: int) -> None:
        super().__init__()
        self.gate = Gate(config, hidden_size)
        self.experts = Experts(config.num_experts, hidden_size, config.expert_width)
        shared = config.num_shared * config.expert_width
        self.shared_experts = FeedForward(hidden_size, shared) if shared else None

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Routed plus shared experts, `[B, T, D]`."""
        x_ND = x_BTD.flatten(0, -2)
        if self._can_use_kernels(x_ND):
            return self._forward_kernels(x_ND.contiguous()).view_as(x_BTD)
        out_BTD = self.experts(x_ND, *self.gate(x_ND)).view_as(x_BTD)
        return out_BTD if self.shared_experts is None else out_BTD + self.shared_experts(x_BTD)

    def _can_use_kernels(self, x_ND: Tensor) -> bool:
        """Whether kernels compute this layer."""
        if not isinstance(self.experts, Experts) or self.experts.dense:  # or PEFT's
            return False
        if not dispatch.device_has_kernels(x_ND.device):
            return False
        return dispatch.can_use_kernels(x_ND, *self.parameters(), *self.buffers())

    def _forward_kernels(self, x_ND: Tensor) -> Tensor:
        """`forward` by kernels, `[N, D]`."""
        from ..kernels.moe_decode import can_fuse_shared, fused_experts  # needs Triton

        routing = self.gate.forward_kernels(x_ND)
        gate_up, down = _weight_tensors(self.experts.gate_up), _weight_tensors(self.experts.down)
        mlp = self.shared_experts
        if mlp is None:
            return fused_experts(x_ND, gate_up, down, *routing)
        shared = (
            _weight_tensors(mlp.gate_proj),
            _weight_tensors(mlp.up_proj),
            _weight_tensors(mlp.down_proj),
        )
        if can_fuse_shared(shared, gate_up, down):
            return fused_experts(x_ND, gate_up, down, *routing, shared)
        return fused_experts(x_ND, gate_up, down, *routing) + mlp(x_ND)
