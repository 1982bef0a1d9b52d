"""A model with adapters beside its weights: a second tree of modules over the same tensors.

Layers of the decoder that an adapter changes are replaced by `LowRankLinear` and `LowRankExperts` over the
model's own, whatever kind of weights these have; other parameters that it changes are copies, merged. All
else is shared, so that a model with an adapter takes little more than the adapter's own memory, and the model
and several such trees run in one engine.

N tokens, E experts, K experts per token, O outputs, I inputs, R rank.
"""

from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoints.quantize import NOT_QUANTIZED, decoder_name
from ..conversion.adapter_change import Adapter, Change
from ..kernels.batch_invariant import linear
from ..kernels.quantized_linear import quantized_linear
from ..model.decoder import Decoder
from ..model.layers import Linear, MlpProjector
from ..model.moe import Experts
from ..model.quantized_weight import QuantizedWeight

RANK_MULTIPLE = 16
"""Ranks are padded to multiples of this with zeros, for the kernels' tiles."""
_HEADS = ("embed_text", "text_logits", "embed_codes", "image_logits")
_serial = count(1)

Strengths = Sequence[tuple[Change, float]]
"""The changes of one parameter, each with the strength of its adapter."""


class LowRankLinear(nn.Module):
    """`base(x) + b(a(x))`, for a base that is a linear layer with plain or quantized weights."""

    def __init__(self, base: nn.Module, a_RI: Tensor, b_OR: Tensor) -> None:
        super().__init__()
        self.base = base
        self.a, self.b = _linear(a_RI), _linear(b_OR)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.b(self.a(x))


class LowRankExperts(nn.Module):
    """Routed experts of which each adds its own products of low rank, `a` `[E, R, I]` and `b` `[E, O, R]`, to
    its gate and up, to its down, or to both."""

    def __init__(self, base: Experts, low_rank: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.base = base
        for leaf, (a, b) in low_rank.items():
            self.register_buffer(f"{leaf}_a", a, persistent=False)
            self.register_buffer(f"{leaf}_b", b, persistent=False)

    def forward(self, x_ND: Tensor, expert_ids_NK: Tensor, weights_NK: Tensor) -> Tensor:
        """See `Experts.forward`; expert after expert, on the tokens routed to it."""
        ids_P = expert_ids_NK.flatten()
        pairs_PD = x_ND.repeat_interleave(expert_ids_NK.shape[1], dim=0)
        out_PD = torch.zeros_like(pairs_PD)
        for expert in ids_P.unique().tolist():
            rows = (ids_P == expert).nonzero()[:, 0]
            gate, up = self._product(pairs_PD[rows], "gate_up", expert).chunk(2, dim=-1)
            out_PD = out_PD.index_copy(0, rows, self._product(F.silu(gate) * up, "down", expert))
        out_NKD = out_PD.view(*expert_ids_NK.shape, -1)
        return (out_NKD * weights_NK[..., None]).sum(1).to(x_ND.dtype)

    def _product(self, x: Tensor, leaf: str, expert: int) -> Tensor:
        weight = getattr(self.base, leaf)
        quantized = isinstance(weight, QuantizedWeight)
        out = quantized_linear(x, weight.tensors[expert]) if quantized else linear(x, weight[expert])
        a, b = (self._buffers.get(f"{leaf}_{side}") for side in "ab")
        return out if a is None or b is None else out + linear(linear(x, a[expert]), b[expert])


def weight_shape(module: nn.Module) -> tuple[int, ...]:
    """The shape of a layer's weight, as if it weren't quantized."""
    if not isinstance(module, QuantizedWeight):
        return tuple(module.get_parameter("weight").shape)
    *outer, packed = module.codes.shape
    return (*outer, packed * 2 if module.kind == "int4" else packed)


def parameter_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shapes of a model's parameters by name, as if none were quantized."""
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    for name, module in model.named_modules():
        if isinstance(module, QuantizedWeight):
            shape = weight_shape(module)
            shapes[name if len(shape) == 3 else f"{name}.weight"] = shape
    return shapes


@torch.no_grad()
def adapted(model: Any, adapters: Sequence[tuple[Adapter, float]]) -> Any:
    """The model with adapters, each with its strength; the model itself stays as it is."""
    changes: dict[str, list[tuple[Change, float]]] = {}
    for adapter, strength in adapters:
        for param, several in adapter.changes.items():
            changes.setdefault(param, []).extend((change, strength) for change in several)
    root, dtype = _clone(model), model.decoder.dtype
    paths = {"": root}
    _replace(model, paths, decoder_name(model))
    experts: dict[str, dict[str, Strengths]] = {}
    for param, several in sorted(changes.items()):  # biases before weights
        path, _, leaf = param.rpartition(".")
        module = paths.get(path) or model.get_submodule(path)
        if isinstance(module, Experts):
            experts.setdefault(path, {})[leaf] = several
        elif _takes_low_rank(model, path, leaf, several):
            _replace(model, paths, path, _low_rank(module, several, dtype))
        elif isinstance(module, QuantizedWeight):
            _replace(model, paths, path, _linear(_merged(module.decode(dtype), several)))
        else:
            _replace(model, paths, path)._parameters[leaf] = _merged(module.get_parameter(leaf), several)
    for path, leaves in experts.items():
        base = cast(Experts, model.get_submodule(path))
        _replace(model, paths, path, _changed_experts(base, leaves, dtype))
    _finish(model, root, changes)
    return root


def _finish(model: Any, root: Any, changes: Mapping[str, Strengths]) -> None:
    """Give a changed decoder its identity, and share the heads if none of their modules are changed."""
    layers = f"{decoder_name(model)}.layers."
    decoder: Decoder = root.decoder
    decoder.__dict__.pop("variants", None)
    decoder.scheduler, decoder.adapters = None, (*model.decoder.adapters, next(_serial))
    decoder.__dict__["base"] = model.decoder.base or model.decoder  # no submodule
    if all(param.startswith(layers) for param in changes):
        for name in _HEADS:
            if hasattr(model, name):
                root.__dict__[name] = getattr(model, name)


def _clone(module: nn.Module) -> Any:
    """Another module over the same parameters, buffers and submodules."""
    clone = object.__new__(type(module))
    clone.__dict__ = dict(module.__dict__)
    for name in ("_parameters", "_buffers", "_modules"):
        clone.__dict__[name] = dict(module.__dict__[name])
    return clone


def _replace(model: nn.Module, paths: dict[str, Any], path: str, new: nn.Module | None = None) -> Any:
    """Put a module, by default a clone of the model's, at a path of the tree whose clones are in `paths`."""
    if path in paths and new is None:
        return paths[path]
    parent, _, leaf = path.rpartition(".")
    holder = _replace(model, paths, parent) if path else None
    paths[path] = _clone(model.get_submodule(path)) if new is None else new
    assert holder is not None
    holder._parameters.pop(leaf, None)
    holder._modules[leaf] = paths[path]
    return paths[path]


def fits_graphs(model: Any, adapter: Adapter) -> bool:
    """Whether captured steps can run an adapter beside the weights: it changes the decoder's layers by
    products of low rank, and no experts."""
    decoder = decoder_name(model)
    for param, changes in adapter.changes.items():
        path, _, leaf = param.rpartition(".")
        if not param.startswith((f"{decoder}.layers.", f"{decoder}.norm.")):
            continue
        if "experts" in path.split(".")[-2:] or "shared_experts" in path:
            return False
        if not _takes_low_rank(model, path, leaf, [(change, 1.0) for change in changes]):
            return False
    return True


def _takes_low_rank(model: nn.Module, path: str, leaf: str, changes: Strengths) -> bool:
    """Whether a weight stays as it is, with low-rank products beside it."""
    names = path.split(".")
    above = (model.get_submodule(".".join(names[:depth])) for depth in range(len(names)))
    module = model.get_submodule(path)
    # Projectors are small, and latent attention reads a weight itself.
    if any(isinstance(one, MlpProjector) for one in above) or names[-1] in NOT_QUANTIZED:
        return False
    parts = any(change.factors is None or change.target.select or change.target.part for change, _ in changes)
    return leaf == "weight" and isinstance(module, QuantizedWeight | Linear) and not parts


def _low_rank(module: nn.Module, changes: Strengths, dtype: torch.dtype) -> LowRankLinear:
    pairs = [change.factors_of(strength) for change, strength in changes]
    a_RI, b_OR = torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs], dim=1)
    missing = -len(a_RI) % RANK_MULTIPLE
    a_RI, b_OR = F.pad(a_RI, (0, 0, 0, missing)), F.pad(b_OR, (0, missing))
    device = next(iter(module.state_dict().values())).device
    return LowRankLinear(module, a_RI.to(device, dtype), b_OR.to(device, dtype))


def _changed_experts(base: Experts, leaves: Mapping[str, Strengths], dtype: torch.dtype) -> nn.Module:
    if any(change.factors is None for changes in leaves.values() for change, _ in changes):
        clone = _clone(base)
        for leaf in ("gate_up", "down"):
            weight = getattr(base, leaf)
            plain = weight.decode(dtype) if isinstance(weight, QuantizedWeight) else weight
            clone._modules.pop(leaf, None)
            clone._parameters[leaf] = _merged(plain, leaves.get(leaf, ()))
        return clone
    low_rank: dict[str, tuple[Tensor, Tensor]] = {}
    for leaf, changes in leaves.items():
        weight = getattr(base, leaf)
        codes = weight.codes if isinstance(weight, QuantizedWeight) else weight
        stacked = [_factors_of(changes, expert, *codes.shape[:2]) for expert in range(len(codes))]
        rank = max(len(a) for a, _ in stacked)
        a_ERI = torch.stack([F.pad(a, (0, 0, 0, rank - len(a))) for a, _ in stacked])
        b_EOR = torch.stack([F.pad(b, (0, rank - b.shape[1])) for _, b in stacked])
        low_rank[leaf] = a_ERI.to(codes.device, dtype), b_EOR.to(codes.device, dtype)
    return LowRankExperts(base, low_rank)


def _factors_of(changes: Strengths, expert: int, experts: int, outputs: int) -> tuple[Tensor, Tensor]:
    """The factors `[R, I]` and `[O, R]` of all changes of one expert."""
    pairs = [change.factors_of_expert(expert, experts, outputs, strength) for change, strength in changes]
    return torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs], dim=1)


def _linear(weight: Tensor) -> Linear:
    with torch.device("meta"):
        layer = Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer.eval()


def _merged(weight: Tensor, changes: Strengths) -> nn.Parameter:
    whole = weight.detach().to(torch.float32, copy=True)
    for change, strength in changes:
        change.apply(whole, strength)
    return nn.Parameter(whole.to(weight.dtype), requires_grad=False)
