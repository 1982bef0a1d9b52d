"""Mixture of experts (DeepSeekMoE, Dai et al. 2024): a gate, routed experts, and shared experts for all.

B rows, T positions, N = B * T tokens, D model width, E experts, G groups of experts, K experts a token.
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..kernels import dispatch
from ..kernels.batch_invariant import linear, row_sums, sigmoid
from .feed_forward import FeedForward
from .moe_dispatch import Form, blocked, chosen_only, grouped, grouped_sorted, pick_form
from .quantized_linear import QuantizedWeight, Stack

_FEW_PAIRS = 256
"""Pairs of a token and an expert up to which kernels compute a whole layer where they can."""

SCORING = ("softmax", "sigmoid")
METHODS = ("greedy", "group_limited_greedy", "noaux_tc")


@dataclass(frozen=True)
class MoEConfig:
    """Experts of the layers `layer >= first_dense` with `layer % every == 0`; the other layers are dense.

    `method`: `greedy` takes the K best scores; `group_limited_greedy` (DeepSeek-V2, sec. 2.2.2) only from
    the `topk_group` groups with the best single score; `noaux_tc` (DeepSeek-V3, eq. 16) ranks by score plus
    a learned bias, groups by their two best, and weighs by the score alone. Weights are divided by their sum
    if `normalize`, and multiplied by `scale`.
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

    def serves(self, layer: int) -> bool:
        """Whether that layer of the decoder has experts."""
        return layer >= self.first_dense and layer % self.every == 0


def keep_best_groups(scores_NE: Tensor, groups: int, kept: int, best: int) -> Tensor:
    """Scores with those of all but the `kept` best groups set to 0 (as the reference does, not to -inf).

    A group's rank is the sum of its `best` best scores.
    """
    scores_NGE = scores_NE.unflatten(-1, (groups, -1))
    ranks_NG = scores_NGE.topk(best, dim=-1).values.sum(-1)
    chosen = ranks_NG.topk(kept, dim=-1).indices
    mask = torch.zeros_like(ranks_NG, dtype=torch.bool).scatter(-1, chosen, True)
    return scores_NGE.masked_fill(~mask[..., None], 0.0).flatten(-2)


class Gate(nn.Module):
    """Chooses K experts for each token, in float32 throughout, whatever the weights and the input are."""

    def __init__(self, config: MoEConfig, hidden_size: int) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.num_experts, hidden_size))
        if config.method == "noaux_tc":
            self.e_score_correction_bias = nn.Parameter(torch.zeros(config.num_experts))
        if not self.weight.is_meta:
            nn.init.kaiming_uniform_(self.weight, a=5**0.5)

    def scores(self, x_ND: Tensor) -> Tensor:
        """How well each expert suits each token, `[N, E]`."""
        with torch.autocast(x_ND.device.type, enabled=False):
            logits_NE = linear(x_ND.float(), self.weight.float())
        return logits_NE.softmax(-1) if self.config.scoring == "softmax" else sigmoid(logits_NE)

    def choose(self, scores_NE: Tensor) -> tuple[Tensor, Tensor]:
        """The experts of each token, int64 `[N, K]`, and their weights, float32 `[N, K]`."""
        config, ranks_NE = self.config, scores_NE
        if config.method == "noaux_tc":
            ranks_NE = scores_NE + self.e_score_correction_bias.float()
        if config.method != "greedy" and config.num_groups > 1:
            best = 2 if config.method == "noaux_tc" else 1
            ranks_NE = keep_best_groups(ranks_NE, config.num_groups, config.topk_group, best)
        chosen_NK = ranks_NE.topk(config.top_k, dim=-1).indices
        from_ranks = config.method == "group_limited_greedy"
        weights_NK = (ranks_NE if from_ranks else scores_NE).gather(-1, chosen_NK)
        if config.normalize and config.top_k > 1:
            weights_NK = weights_NK / (row_sums(weights_NK) + 1e-20)
        return chosen_NK, weights_NK * config.scale

    def forward(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        return self.choose(self.scores(x_ND))


class Experts(nn.Module):
    """SwiGLU feed-forwards as stacked tensors: gate over up `[E, 2I, D]`, and down `[E, D, I]`, as parameters
    or quantized.

    `form` says how parameters are computed with; None leaves it to `pick_form`.
    """

    form: Form | None = None
    gate_up: nn.Parameter | QuantizedWeight
    down: nn.Parameter | QuantizedWeight

    def __init__(self, count: int, hidden_size: int, width: int) -> None:
        super().__init__()
        self.gate_up = nn.Parameter(torch.empty(count, 2 * width, hidden_size))
        self.down = nn.Parameter(torch.empty(count, hidden_size, width))
        if not self.gate_up.is_meta:
            nn.init.uniform_(self.gate_up, -(hidden_size**-0.5), hidden_size**-0.5)
            nn.init.uniform_(self.down, -(width**-0.5), width**-0.5)

    def forward(self, x_ND: Tensor, chosen_NK: Tensor, weights_NK: Tensor) -> Tensor:
        """The weighted sum of the chosen experts' outputs, `[N, D]` in the dtype of `x`."""
        if isinstance(self.gate_up, QuantizedWeight) and isinstance(self.down, QuantizedWeight):
            stacks = Stack(self.gate_up, x_ND.dtype), Stack(self.down, x_ND.dtype)
            form = chosen_only if x_ND.device.type == "cpu" else blocked
            out_NKD = form(x_ND, *stacks, chosen_NK)
        else:
            x, gate_up, down = self._operands(x_ND)
            form = self.form or pick_form(x, gate_up, chosen_NK.numel())
            if form is grouped and dispatch.serves(x, gate_up, down, weights_NK):
                from ..kernels.prefill_fused import weighted_sum  # needs Triton

                return weighted_sum(*grouped_sorted(x, gate_up, down, chosen_NK), weights_NK)
            out_NKD = form(x, gate_up, down, chosen_NK)
        # Float32 by the weights' dtype: outputs in half precision are not written out wider before.
        return (out_NKD * weights_NK[..., None]).sum(1).to(x_ND.dtype)

    def _operands(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The input and the parameters in the dtype that products take."""
        gate_up, down = cast(Tensor, self.gate_up), cast(Tensor, self.down)
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            return x.to(dtype), gate_up.to(dtype), down.to(dtype)
        return x, gate_up, down


class MoE(nn.Module):
    """The feed-forward of a layer with experts; shared experts are one feed-forward of their summed width."""

    def __init__(self, config: MoEConfig, hidden_size: int) -> None:
        super().__init__()
        self.gate = Gate(config, hidden_size)
        self.experts = Experts(config.num_experts, hidden_size, config.expert_width)
        shared = config.num_shared * config.expert_width
        self.shared_experts = FeedForward(hidden_size, shared) if shared else None

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_ND = x_BTD.flatten(0, -2)
        if self._few(x_ND):
            from ..kernels.moe_decode import mixture  # needs Triton

            return mixture(self, x_ND).view_as(x_BTD)
        out_BTD = self.experts(x_ND, *self.gate(x_ND)).view_as(x_BTD)
        return out_BTD if self.shared_experts is None else out_BTD + self.shared_experts(x_BTD)

    def _few(self, x_ND: Tensor) -> bool:
        """Whether kernels for few tokens compute the layer."""
        if not dispatch.device_serves(x_ND.device) or len(x_ND) * self.gate.config.top_k > _FEW_PAIRS:
            return False
        free = self.experts.form in (None, blocked)  # whoever asks for `blocked` does not want to wait
        return free and dispatch.serves(x_ND, *self.parameters(), *self.buffers())
