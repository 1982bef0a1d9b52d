"""The optimizers of pretraining: AdamW, or Muon for the matrices of transformer blocks, AdamW for the rest.

`torch.optim.Muon` takes one matrix at a time, no stacks of them, and a learning rate that is known on the
host; this one takes all matrices of a shape at once, and steps can be captured as a CUDA graph.
"""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..blocks.errors import OptionError

KINDS = ("muon", "adamw")

# Quintic Newton-Schulz coefficients, five steps: Jordan et al. 2024, "Muon: An optimizer for hidden layers".
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_STEPS = 5


def orthogonalize(matrices: Tensor) -> Tensor:
    """Approximately orthogonalize each matrix of `[N, rows, columns]`, computed in bfloat16.

    Newton-Schulz iterations move all singular values close to 1.
    """
    a, b, c = _NEWTON_SCHULZ
    x = matrices.bfloat16()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    for _ in range(_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """SGD with Nesterov momentum, orthogonalized updates and decoupled weight decay.

    Matrices of the same shape are orthogonalized as a batch; a three-dimensional parameter is a stack of
    matrices (experts). Updates are scaled by 0.2 sqrt(max(rows, columns)) to the RMS of AdamW's, so that both
    optimizers share a learning rate (Liu et al. 2025, "Muon is Scalable for LLM Training", eq. 4).
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float | Tensor,
        momentum: float = 0.95,
        weight_decay: float = 0.1,
    ):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update all parameters that have a gradient; `closure` is not supported."""
        del closure
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for param in group["params"]:
                if param.grad is not None:
                    by_shape[param.shape].append(param)
            for shape, params in by_shape.items():
                self._step_shape(group, shape, params)

    def _step_shape(self, group: dict, shape: torch.Size, params: list[nn.Parameter]) -> None:
        updates = []
        for param in params:
            momentum = self.state[param].setdefault("momentum", torch.zeros_like(param))
            assert param.grad is not None
            momentum.lerp_(param.grad, 1 - group["momentum"])
            updates.append(param.grad.lerp(momentum, group["momentum"]))  # Nesterov momentum
        # `lr` may be a tensor, whose current value a captured step reads.
        scale = group["lr"] * 0.2 * max(shape[-2:]) ** 0.5
        targets: list[Tensor] = list(params)
        stacked = torch.stack(updates)
        steps = orthogonalize(stacked.flatten(0, -3)).view_as(stacked).mul_(scale)
        torch._foreach_mul_(targets, torch.as_tensor(1 - group["lr"] * group["weight_decay"]))
        torch._foreach_sub_(targets, list(steps))


def make_optimizers(
    module: nn.Module, kind: str, rate: Tensor, weight_decay: float, matrix_decay: float
) -> list[torch.optim.Optimizer]:
    """The optimizers of a module's parameters that have `requires_grad`: `kind` is `adamw`, or `muon`, whose
    matrices have a weight decay of their own. They read the learning rate from the tensor `rate`."""
    if kind not in KINDS:
        raise OptionError(f"optimizer is {kind!r}; accepted: {', '.join(KINDS)}")
    matrices, rest = split_parameters(module)
    if kind == "adamw":
        matrices, rest = [], [*matrices, *rest]
    is_cuda = rate.device.type == "cuda"
    adamw = torch.optim.AdamW(
        rest, rate, betas=(0.9, 0.95), weight_decay=weight_decay, capturable=is_cuda, fused=is_cuda
    )
    return [Muon(matrices, rate, weight_decay=matrix_decay), adamw] if matrices else [adamw]


def split_parameters(module: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The trained matrices of transformer blocks and of what joins image tokens to them, for Muon; and all
    other trained parameters: embeddings, heads, norms and routers."""
    matrices, rest = [], []
    for name, param in module.named_parameters():
        if param.requires_grad:
            in_block = any(part in f".{name}" for part in (".layers.", ".blocks.")) and ".gate." not in name
            (matrices if in_block and param.ndim in (2, 3) else rest).append(param)
    return matrices, rest
