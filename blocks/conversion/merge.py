"""Merges adapters into the tensors that a conversion writes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from ..checkpoints.key_mapping import KeyMap, ParameterSlice
from ..errors import CheckpointError
from .adapter_change import Adapter, Change
from .writer import TensorSpec

Merge = Callable[[Iterable[TensorSpec]], list[TensorSpec]]


def merge_adapters(
    specs: Iterable[TensorSpec],
    adapters: Sequence[tuple[Adapter, float]],
    key_map: KeyMap,
    shapes: Mapping[str, tuple[int, ...]],
) -> list[TensorSpec]:
    """The tensors to write, with adapters, each with its strength, merged in.

    Names are those of parameters, which have these `shapes`, or of files, which `key_map` knows. Raises
    `CheckpointError` where an adapter changes what is not written.
    """
    changes: dict[str, list[tuple[Change, float]]] = {}
    for adapter, strength in adapters:
        for param, several in adapter.changes.items():
            changes.setdefault(param, []).extend((change, strength) for change in several)
    merged, written = [], set[str]()
    for name, make, shape, dtype in specs:
        target = _target(name, key_map, shapes)
        if target is None or target.param not in changes:
            merged.append((name, make, shape, dtype))
            continue
        written.add(target.param)
        work = partial(_merged, make, target, shapes[target.param], changes[target.param])
        merged.append((name, work, shape, dtype))
    if left := changes.keys() - written:
        raise CheckpointError(
            f"the adapter changes {sorted(left)[0]}, which is stored in another form (quantized); accepted: "
            "the folder of plain weights, which `--quantize` quantizes after the merge"
        )
    return merged


def _target(name: str, key_map: KeyMap, shapes: Mapping[str, tuple[int, ...]]) -> ParameterSlice | None:
    if name in shapes:
        return ParameterSlice(name)
    try:
        target = key_map(name)
    except KeyError:
        return None
    return target if isinstance(target, ParameterSlice) else None


def _merged(
    make: Callable[[], Tensor],
    target: ParameterSlice,
    shape: tuple[int, ...],
    changes: Sequence[tuple[Change, float]],
) -> Tensor:
    """A tensor with the changes of its slice of a parameter of this shape."""
    stored = make()
    if not target.select and target.part is None:
        whole = stored.to(torch.float32, copy=True).view(shape)
        for change, strength in changes:
            change.apply(whole, strength)
        return whole.view(stored.shape).to(stored.dtype)
    region = torch.zeros(shape[len(target.select) :])
    index, parts = target.part or (0, 1)
    region.chunk(parts)[index].copy_(stored)
    for change, strength in changes:
        _apply_to_region(change, region, target.select, shape, strength)
    return region.chunk(parts)[index].to(stored.dtype, copy=True)


def _apply_to_region(
    change: Change, region: Tensor, select: tuple[int, ...], shape: tuple[int, ...], strength: float
) -> None:
    """Apply what a change of a whole stack, or of a part of it, does to `stack[select]`."""
    if change.target.select not in ((), select):
        return
    if not select:
        change.apply(region, strength)
    elif change.factors is not None:
        a, b = change.factors_of_expert(select[0], shape[0], shape[1], strength)
        region += b @ a
    else:
        assert change.whole is not None
        whole = change.whole if change.target.select else change.whole.view(shape)[select]
        index, parts = change.target.part or (0, 1)
        part = region.chunk(parts)[index]
        part.lerp_(whole.to(part).view_as(part), strength)
