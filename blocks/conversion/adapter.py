"""LoRA adapters in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`.

They are read without PEFT, into the change that each makes to a parameter. Names may be ours, which are the
official checkpoints', or those of transformers' models.

R rank, E experts; a weight has O outputs and I inputs.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoints.formats import list_safetensors
from ..checkpoints.key_mapping import KeyMap, ParameterSlice
from ..checkpoints.reader import TensorReader
from ..errors import CheckpointError
from ..json_config import Section, read_section

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_LORA = re.compile(r"(.*)\.lora_([AB])(?:\.weight)?")
EXPERTS = (".experts.gate_up", ".experts.down")
"""Endings of the names of stacked experts, whose rank the shapes don't tell."""
_NESTED = ".base_layer"  # one for each further parameter of a module, the first one innermost
_EXPECTED = {
    "peft_type": "LORA",
    "use_dora": False,
    "fan_in_fan_out": False,
    "bias": "none",
    "lora_bias": False,
}
"""Settings of PEFT, and their only accepted values: those whose result is one product added to a weight."""


@dataclass(frozen=True)
class Change:
    """What is done to a slice of a parameter: the product of the factors B `[O, R]` and A `[R, I]` times
    `scale` is added, or `whole` replaces it. For stacked experts, factors have `E R` for R."""

    target: ParameterSlice
    factors: tuple[Tensor, Tensor] | None = None
    scale: float = 1.0
    whole: Tensor | None = None

    def apply(self, weight: Tensor, strength: float) -> None:
        """Change `weight`, float32, in place; with `strength` 0 nothing changes, 1 is as it was trained."""
        part = weight[self.target.select] if self.target.select else weight
        if self.target.part is not None:
            index, count = self.target.part
            part = part.chunk(count)[index]
        if self.whole is not None:
            part.lerp_(self.whole.to(part).view_as(part), strength)
            return
        assert self.factors is not None
        b, a = (factor.to(part) for factor in self.factors)
        if part.ndim == 2:
            part += strength * self.scale * (b @ a)
            return
        # PEFT stacks the experts' A over the rows, and interleaves their B in the columns.
        experts = len(part)
        products = torch.einsum("ore,eri->eoi", b.unflatten(1, (-1, experts)), a.unflatten(0, (experts, -1)))
        part += strength * self.scale * products


@dataclass(frozen=True)
class Adapter:
    """An adapter: the changes of each parameter, by its name."""

    folder: Path
    base: str
    """The name of the model that it was trained on, as its maker knew it."""
    changes: Mapping[str, tuple[Change, ...]]

    def apply(self, name: str, weight: Tensor, strength: float) -> None:
        """Change a parameter, in float32, in place."""
        for change in self.changes.get(name, ()):
            change.apply(weight, strength)


def read_adapter(folder: Path, key_maps: Sequence[KeyMap], shapes: Mapping[str, tuple[int, ...]]) -> Adapter:
    """The adapter in a folder, for a model whose parameters have these `shapes`.

    `key_maps` are the spellings of names that are accepted; the first that knows all is taken. Raises
    `CheckpointError` if a file is damaged, if a name is not the model's or a shape doesn't fit, and for
    variants of LoRA other than a product added to a weight.
    """
    if not (folder / CONFIG).is_file():
        raise CheckpointError(
            f"{folder} is no adapter: it has no {CONFIG}; accepted: a folder in PEFT's format, as "
            "`bifrons train` writes it"
        )
    config = read_section(folder / CONFIG)
    for name, accepted in _EXPECTED.items():
        config.expect(name, accepted)
    entries = {entry.name.removeprefix(_PREFIX): entry for entry in list_safetensors(folder / WEIGHTS)}
    changes: dict[str, list[Change]] = {}
    with TensorReader() as reader:
        tensors = {name: reader.read(entry) for name, entry in entries.items()}
    targets = _pick_targets(tensors, key_maps, config, shapes, folder)
    for module in dict.fromkeys(match[1] for name in tensors if (match := _LORA.fullmatch(name))):
        pair = [tensors.get(f"{module}.lora_{side}.weight") for side in "BA"]
        change = _low_rank(module, pair, targets[module], config, folder)
        changes.setdefault(change.target.param, []).append(change)
    for name, tensor in tensors.items():
        if not _LORA.fullmatch(name):
            changes.setdefault(targets[name].param, []).append(Change(targets[name], whole=tensor))
    for param, several in changes.items():
        for change in several:
            _check_shape(change, shapes[param], folder)
    by_name = {param: tuple(several) for param, several in changes.items()}
    return Adapter(folder, config.get("base_model_name_or_path", ""), by_name)


def _pick_targets(
    names: Iterable[str],
    key_maps: Sequence[KeyMap],
    config: Section,
    shapes: Mapping[str, tuple[int, ...]],
    folder: Path,
) -> dict[str, ParameterSlice]:
    """What each module with factors, and each whole tensor, changes; by the first key map that knows all."""
    keys = dict.fromkeys(match[1] if (match := _LORA.fullmatch(name)) else name for name in names)
    unknown: list[str] = []
    for key_map in key_maps:
        found = {key: _target(key, key_map, config, shapes) for key in keys}
        missing = [key for key, target in found.items() if target is None]
        if not missing:
            return {key: target for key, target in found.items() if target is not None}
        unknown = unknown if unknown and len(unknown) <= len(missing) else missing
    raise CheckpointError(
        f"{folder} belongs to another model: this one has no {unknown[0]} (and {len(unknown) - 1} others of "
        "its modules); accepted: an adapter of this family and size"
    )


def _target(
    key: str, key_map: KeyMap, config: Section, shapes: Mapping[str, tuple[int, ...]]
) -> ParameterSlice | None:
    module = key.removesuffix(_NESTED)
    while module != (shorter := module.removesuffix(_NESTED)):
        module = shorter
    for name in (f"{key}.weight", key):
        try:
            target = key_map(name)
        except KeyError:
            continue
        if isinstance(target, ParameterSlice) and target.param in shapes:
            return target
    stacked = [name for name in config.get("target_parameters", []) if isinstance(name, str)]
    owners = [name.rpartition(".") for name in stacked]
    leaves = [leaf for owner, _, leaf in owners if f".{module}".endswith(f".{owner}")]
    depth = (len(key) - len(module)) // len(_NESTED)
    if depth < len(leaves):
        param = f"{module}.{leaves[-1 - depth]}"
        return ParameterSlice(param) if param in shapes else None
    return None


def _low_rank(
    module: str, pair: Sequence[Tensor | None], target: ParameterSlice, config: Section, folder: Path
) -> Change:
    b, a = pair
    if b is None or a is None or b.ndim != 2 or a.ndim != 2 or b.shape[1] != a.shape[0]:
        raise CheckpointError(f"{folder / WEIGHTS} is damaged: {module} has no two factors that fit")
    alphas, alpha = config.section("alpha_pattern").values, config.number("lora_alpha", 8)
    for name, value in alphas.items():
        if f".{module}".endswith(f".{name}") and isinstance(value, int | float):
            alpha = float(value)
    rank = config.integer("r", 8) if target.param.endswith(EXPERTS) else a.shape[0]
    scale = alpha / (math.sqrt(rank) if config.flag("use_rslora", False) else rank)
    return Change(target, (b, a), scale)


def _check_shape(change: Change, shape: tuple[int, ...], folder: Path) -> None:
    """Raise `CheckpointError` unless the change has the shape of its slice."""
    shape = shape[len(change.target.select) :]
    if change.target.part is not None:
        shape = (shape[0] // change.target.part[1], *shape[1:])
    if change.whole is not None:
        fits = math.prod(shape) == change.whole.numel()
        found = list(change.whole.shape)
    else:
        assert change.factors is not None
        b, a = change.factors
        found = [b.shape[0], a.shape[1]]
        fits = tuple(found) == tuple(shape[-2:]) and (len(shape) == 2 or a.shape[0] % shape[0] == 0)
    if not fits:
        raise CheckpointError(
            f"{folder} belongs to another size of the model: {change.target.param} is {list(shape)}, the "
            f"adapter's change {found}"
        )
