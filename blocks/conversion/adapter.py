"""LoRA adapters in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`.

They are read without PEFT, into the change that each makes to a parameter. Names may be ours, which are the
official checkpoints', or those of transformers' models, or of their language models alone.
"""

import hashlib
import math
import os
import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..checkpoints.formats import TensorEntry, list_bin, list_safetensors
from ..checkpoints.key_mapping import KeyMap, ParameterSlice
from ..checkpoints.reader import TensorReader
from ..errors import CheckpointError, ConfigError, shown
from ..json_config import Section, read_section
from ..vocabulary import read_taught
from .adapter_change import Adapter, Change

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
OLD_WEIGHTS = "adapter_model.bin"
_PREFIX = "base_model.model."
_LORA = re.compile(r"(.*)\.lora_([AB])(?:\.weight)?")
_MODULE_NAME = re.compile(r"\^?[\w.\\]{1,300}\$?")
_NESTED = ".base_layer"  # one for each further parameter of a module, the first one innermost
MAX_RANK = 4096
_EXPECTED = {
    "peft_type": "LORA",
    "bias": "none",
    **dict.fromkeys(("use_dora", "fan_in_fan_out", "lora_bias", "use_qalora"), False),
    **dict.fromkeys(("alora_invocation_tokens", "layer_replication", "trainable_token_indices"), None),
    **dict.fromkeys(("arrow_config", "kasa_config", "monteclora_config", "use_bdlora"), None),
}
"""Settings of PEFT, and their only accepted values: those whose result is one product added to a weight."""
_STARTS = (True, False, "gaussian", "eva", "orthogonal")
"""Accepted `init_lora_weights`: the others (PiSSA, OLoRA, CorDA, LoftQ) change the model's own weights."""


@dataclass(frozen=True)
class AdapterFiles:
    """The files of an adapter: its settings, and its tensors by their names without PEFT's prefix."""

    folder: Path
    config: Section
    entries: Mapping[str, TensorEntry]

    @property
    def base(self) -> str:
        """The name of the model that it was trained on, as its maker knew it; empty if it isn't stated."""
        name = self.config.get("base_model_name_or_path", "")
        return name if isinstance(name, str) else ""

    @property
    def modules(self) -> dict[str, dict[str, TensorEntry]]:
        """The factors `A` and `B` of each module that has them."""
        found: dict[str, dict[str, TensorEntry]] = {}
        for name, entry in self.entries.items():
            if match := _LORA.fullmatch(name):
                found.setdefault(match[1], {})[match[2]] = entry
        return found

    @property
    def whole(self) -> list[str]:
        """The tensors that replace the model's."""
        return [name for name in self.entries if not _LORA.fullmatch(name)]

    def only(self, keys: Container[str]) -> "AdapterFiles":
        """These files with the modules and whole tensors in `keys` alone."""
        owners = {name: match[1] if (match := _LORA.fullmatch(name)) else name for name in self.entries}
        left = {name: entry for name, entry in self.entries.items() if owners[name] in keys}
        return replace(self, entries=left)

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that tell these files from others."""
        digest = hashlib.sha256()
        for path in sorted({self.folder / CONFIG, *(entry.file for entry in self.entries.values())}):
            with path.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        return digest.hexdigest()[:16]


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter in PEFT's format."""
    return os.path.isfile(folder / CONFIG)


def open_adapter(folder: Path) -> AdapterFiles:
    """The files of the adapter in a folder; no weights are read.

    Raises `CheckpointError` if there is none or a file is damaged, and `ConfigError` for variants of LoRA
    other than a product added to a weight.
    """
    if not is_adapter(folder):
        raise CheckpointError(
            f"{folder} is no adapter: it has no {CONFIG}; accepted: a folder in PEFT's format, as `bifrons "
            "train` writes it"
        )
    config = read_section(folder / CONFIG)
    for name, accepted in _EXPECTED.items():
        config.expect(name, accepted)
    start = config.get("init_lora_weights", True)
    if start not in _STARTS:
        raise ConfigError(
            f"{folder / CONFIG}.init_lora_weights is {shown(start)}, which changes the model's own weights; "
            "accepted: an adapter that PEFT has converted to plain LoRA"
        )
    listed = list_bin(folder / OLD_WEIGHTS) if _is_old(folder) else list_safetensors(folder / WEIGHTS)
    for entry in listed:
        if not entry.dtype.is_floating_point:
            raise CheckpointError(f"{entry.file}: {shown(entry.name)} is of {entry.dtype}; accepted: floats")
    return AdapterFiles(folder, config, {entry.name.removeprefix(_PREFIX): entry for entry in listed})


def _is_old(folder: Path) -> bool:
    return not os.path.exists(folder / WEIGHTS) and os.path.isfile(folder / OLD_WEIGHTS)


def read_adapter(
    folder: Path,
    key_maps: Sequence[KeyMap],
    shapes: Mapping[str, tuple[int, ...]],
    missing: tuple[str, ...] = (),
) -> Adapter:
    """The adapter in a folder, for a model whose parameters have these `shapes`.

    `key_maps` are the spellings of names that are accepted; the first that knows all is taken. What it
    changes in parts that are not loaded, whose names begin with `missing`, is left out. Raises the
    errors of `open_adapter`, and `CheckpointError` if a name is not the model's or a shape doesn't fit,
    before any weights are read.
    """
    opened = open_adapter(folder)
    files, targets = _pick_targets(opened, key_maps, shapes, missing)
    scales = {
        module: _check_factors(files, module, pair, targets[module], shapes)
        for module, pair in files.modules.items()
    }
    for name in files.whole:
        _check_whole(files, name, targets[name], shapes)
    changes: dict[str, list[Change]] = {}
    with TensorReader() as reader:
        tensors = {name: reader.read(entry) for name, entry in files.entries.items()}
    for name, tensor in tensors.items():
        if not tensor.float().isfinite().all():
            raise CheckpointError(f"{folder} is damaged: {shown(name)} holds numbers that are not finite")
    for module, scale in scales.items():
        b, a = (tensors[_name_of(files, module, side)] for side in "BA")
        changes.setdefault(targets[module].param, []).append(Change(targets[module], (b, a), scale))
    for name in files.whole:
        changes.setdefault(targets[name].param, []).append(Change(targets[name], whole=tensors[name]))
    found = {param: tuple(several) for param, several in changes.items()}
    return Adapter(folder, opened.base, found, opened.fingerprint, read_taught(folder))


def _name_of(files: AdapterFiles, module: str, side: str) -> str:
    name = f"{module}.lora_{side}"
    return name if name in files.entries else f"{name}.weight"


def _pick_targets(
    files: AdapterFiles,
    key_maps: Sequence[KeyMap],
    shapes: Mapping[str, tuple[int, ...]],
    missing: tuple[str, ...],
) -> tuple[AdapterFiles, dict[str, ParameterSlice]]:
    """What each module with factors, and each whole tensor, changes, by the first key map that knows all; and
    the files without what is in `missing` parts."""
    keys = [*files.modules, *files.whole]
    unknown: list[str] = []
    for key_map in key_maps:
        found = {key: _target(key, key_map, files.config, shapes, missing) for key in keys}
        others = [key for key, target in found.items() if target is None]
        if not others:
            targets = {key: target for key, target in found.items() if target and target.param in shapes}
            return files.only(targets), targets
        unknown = unknown if unknown and len(unknown) <= len(others) else others
    trained = f" (it was trained on {shown(files.base)})" if files.base else ""
    more = f" and {len(unknown) - 1} more of its modules" if len(unknown) > 1 else ""
    raise CheckpointError(
        f"{files.folder} belongs to another model{trained}: this one has no {shown(unknown[0])}{more}; "
        "accepted: an adapter of this family and size"
    )


def _target(
    key: str,
    key_map: KeyMap,
    config: Section,
    shapes: Mapping[str, tuple[int, ...]],
    missing: tuple[str, ...],
) -> ParameterSlice | None:
    module = key
    while module.endswith(_NESTED):
        module = module.removesuffix(_NESTED)
    for name in (f"{key}.weight", key):
        try:
            target = key_map(name)
        except KeyError:
            continue
        if isinstance(target, ParameterSlice) and (
            target.param in shapes or target.param.startswith(missing)
        ):
            return target
    parameters = config.get("target_parameters", [])
    stacked = [name for name in parameters if isinstance(name, str)] if isinstance(parameters, list) else []
    pairs = [name.rpartition(".") for name in stacked]
    leaves = [leaf for path, _, leaf in pairs if f".{module}".endswith(f".{path}")]
    depth = (len(key) - len(module)) // len(_NESTED)
    if depth >= len(leaves):
        return None
    for prefix in ("", "language."):
        if (param := f"{prefix}{module}.{leaves[-1 - depth]}") in shapes:
            return ParameterSlice(param)
    return None


def _shape_of(target: ParameterSlice, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """The shape of a slice."""
    shape = shapes[target.param][len(target.select) :]
    if target.part is not None:
        shape = (shape[0] // target.part[1], *shape[1:])
    return shape


def _check_factors(
    files: AdapterFiles,
    module: str,
    pair: Mapping[str, TensorEntry],
    target: ParameterSlice,
    shapes: Mapping[str, tuple[int, ...]],
) -> float:
    """The scale of a module's product. Raises `CheckpointError` unless its factors fit each other and the
    model."""
    a, b = (tuple(pair[side].shape) if side in pair else () for side in "AB")
    if len(a) != 2 or len(b) != 2 or b[1] != a[0]:
        raise CheckpointError(
            f"{files.folder} is damaged: {shown(module)} has no two factors that fit each other ({list(a)} "
            f"and {list(b)})"
        )
    shape = _shape_of(target, shapes)
    experts = shape[0] if len(shape) == 3 else 1
    if (b[0], a[1]) != shape[-2:] or a[0] % experts:
        raise CheckpointError(
            f"{files.folder} belongs to another size of the model: {target.param} is {list(shape)}, the "
            f"adapter's change of it {[b[0], a[1]]}"
        )
    rank = a[0] // experts
    if not 1 <= rank <= MAX_RANK:
        name = shown(module)
        raise CheckpointError(f"{files.folder}: the rank of {name} is {rank}; accepted: 1 to {MAX_RANK}")
    divisor = math.sqrt(rank) if files.config.flag("use_rslora", False) else rank
    return _alpha(files.config, module) / divisor


def _alpha(config: Section, module: str) -> float:
    """The numerator of a module's scale: PEFT takes the first pattern that matches the end of its name."""
    patterns = config.section("alpha_pattern")
    for pattern in patterns.values:
        if not _MODULE_NAME.fullmatch(pattern):
            raise ConfigError(
                f"{patterns.where} has the pattern {shown(pattern)}; accepted: names of modules or their ends"
            )
        bare = pattern.removeprefix("^").removesuffix("$").replace("\\.", ".")
        if module == bare or (not pattern.startswith("^") and module.endswith(f".{bare}")):
            return Section({"lora_alpha": patterns.values[pattern]}, patterns.where).number("lora_alpha", 0)
    return config.number("lora_alpha", 8)


def _check_whole(
    files: AdapterFiles, name: str, target: ParameterSlice, shapes: Mapping[str, tuple[int, ...]]
) -> None:
    shape, found = _shape_of(target, shapes), files.entries[name].shape
    if math.prod(shape) != math.prod(found) or (len(shape) == len(found) and tuple(shape) != tuple(found)):
        raise CheckpointError(
            f"{files.folder} belongs to another size of the model: {target.param} is {list(shape)}, the "
            f"adapter's {list(found)}"
        )
