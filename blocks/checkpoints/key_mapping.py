"""What goes where: a checkpoint's tensors against a model's parameters, before anything is read."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn

from .formats import TensorEntry


@dataclass(frozen=True)
class ParameterSlice:
    """Where a checkpoint tensor goes: `model.param[select]`, and of that part i of n equal parts along
    its first dimension if `part` is (i, n). `reshape` allows another shape with as many elements.

    >>> ParameterSlice("blocks.0.attn.qkv.weight", part=(1, 3))  # the key projection of a fused q, k, v
    >>> ParameterSlice("layers.1.experts.gate_up", select=(7,), part=(0, 2))  # expert 7's gate
    """

    param: str
    select: tuple[int, ...] = ()
    part: tuple[int, int] | None = None
    reshape: bool = False


KeyMap = Callable[[str], ParameterSlice | tuple[ParameterSlice, ...] | None]
"""Name in the file -> where it goes (several places where the file ties what the model keeps apart);
None: known and unused. `KeyError`: an unknown name."""


def name_pattern(template: str, placeholders: Mapping[str, str]) -> re.Pattern[str]:
    """A pattern of tensor names: a literal name, but for placeholders such as `{n}`, which become groups that
    match `placeholders["{n}"]`."""
    parts = re.split(r"(\{\w+\})", template)
    return re.compile("".join(f"({placeholders[p]})" if p in placeholders else re.escape(p) for p in parts))


@dataclass(frozen=True)
class Piece:
    """One tensor of the file with one of its places."""

    entry: TensorEntry
    to: ParameterSlice

    @property
    def scheme(self) -> tuple[int, int]:
        """Into how many leading indices and parts its parameter is cut: the same for all its pieces."""
        return len(self.to.select), self.to.part[1] if self.to.part else 1

    @property
    def label(self) -> str:
        """Which piece of the parameter it is, for messages: `[7] part 1 of 2`, 'all of it'."""
        return _label(self.to.select, self.to.part[0] if self.to.part else 0, self.scheme[1])


def _label(select: tuple[int, ...], i: int, n: int) -> str:
    words = [f"[{', '.join(map(str, select))}]"] if select else []
    words += [f"part {i + 1} of {n}"] if n > 1 else []
    return " ".join(words) or "all of it"


@dataclass(frozen=True)
class Report:
    """How a checkpoint compares with a model. `missing` are parameters (with the parts that lack),
    `extra` names in the file that no parameter takes, `misshapen` ones of another shape or kind of
    number, `twice` parameters filled more than once, `unused` known names that are left alone."""

    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    misshapen: tuple[str, ...] = ()
    twice: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return not (self.missing or self.extra or self.misshapen or self.twice)

    def summary(self) -> str:
        """The counts, with the first ten names of each kind of trouble."""
        kinds = {
            "missing from the file": self.missing,
            "unknown in the file": self.extra,
            "of the wrong shape or kind": self.misshapen,
            "filled more than once": self.twice,
        }
        lines = []
        for kind, names in kinds.items():
            if names:
                more = f"\n  ... and {len(names) - 10} more" if len(names) > 10 else ""
                lines.append(f"{len(names)} {kind}:\n  " + "\n  ".join(names[:10]) + more)
        return "\n".join(lines) or f"all tensors fit ({len(self.unused)} known and unused)"


def group_by_parameter(
    entries: Iterable[TensorEntry], key_map: KeyMap
) -> tuple[dict[str, list[Piece]], list[str], list[str]]:
    """Groups a file's tensors by the parameter they fill: (pieces by parameter, unknown names, unused
    names)."""
    pieces: dict[str, list[Piece]] = {}
    unknown, unused = [], []
    for entry in entries:
        try:
            places = key_map(entry.name)
        except KeyError:
            unknown.append(entry.name)
            continue
        if places is None:
            unused.append(entry.name)
            continue
        for to in places if isinstance(places, tuple) else (places,):
            pieces.setdefault(to.param, []).append(Piece(entry, to))
    return pieces, unknown, unused


def without_parts(key_map: KeyMap, prefixes: Iterable[str]) -> KeyMap:
    """The key map of a model without the parts whose parameters begin so: their tensors count as unused."""
    left_out = tuple(prefixes)

    def find(name: str) -> ParameterSlice | tuple[ParameterSlice, ...] | None:
        places = key_map(name)
        if places is None:
            return None
        several = places if isinstance(places, tuple) else (places,)
        return tuple(to for to in several if not to.param.startswith(left_out)) or None

    return find if left_out else key_map


def check(model: nn.Module, entries: dict[str, TensorEntry], key_map: KeyMap) -> Report:
    """Compares names and shapes of the file with the parameters and persistent buffers of `model`
    (usually on `meta`). Loads nothing and raises nothing: see `Report.ok` and `Report.summary()`."""
    return compare(saved_tensors(model), *group_by_parameter(entries.values(), key_map))


def saved_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name: what a checkpoint must fill."""
    loose = {name for name, _ in non_persistent_buffers(model)}
    wanted: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    wanted.update((n, b) for n, b in model.named_buffers(remove_duplicate=False) if n not in loose)
    return wanted


def non_persistent_buffers(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Buffers that a state dict leaves out, by name."""
    found = []
    for path, module in model.named_modules():
        for leaf in module._non_persistent_buffers_set:
            buffer = module._buffers.get(leaf)
            if buffer is not None:
                found.append((f"{path}.{leaf}" if path else leaf, buffer))
    return found


def compare(
    wanted: dict[str, Tensor], pieces: dict[str, list[Piece]], unknown: list[str], unused: list[str]
) -> Report:
    """`check`, from what `saved_tensors` and `place` gave."""
    extra = list(unknown)
    for param in pieces.keys() - wanted.keys():
        extra += [f"{p.entry.name} (no {param!r} in this model)" for p in pieces[param]]
    missing, misshapen, twice = [], [], []
    for param, target in wanted.items():
        group = pieces.get(param, [])
        if not group:
            missing.append(f"{param} {list(target.shape)}")
            continue
        if len({p.scheme for p in group}) > 1:
            twice.append(f"{param}: " + ", ".join(f"{p.entry.name} ({p.label})" for p in group[:4]))
            continue
        depth, parts = group[0].scheme
        cut = target.shape[:depth]
        absent = {(s, i): None for s in product(*map(range, cut)) for i in range(parts)}
        filled: dict[tuple[tuple[int, ...], int], str] = {}
        for piece in group:
            key = (piece.to.select, piece.to.part[0] if piece.to.part else 0)
            if key in filled:
                twice.append(f"{param} ({piece.label}): {filled[key]} and {piece.entry.name}")
            elif key not in absent:
                extra.append(f"{piece.entry.name} ({param} {list(target.shape)} has no {piece.label})")
            else:
                misshapen += _misfit(piece, target)
            filled[key] = piece.entry.name
        lack = [_label(*key, parts) for key in absent if key not in filled]
        if lack:
            more = ", ..." if len(lack) > 4 else ""
            missing.append(f"{param}: {', '.join(lack[:4])}{more} ({len(lack)} of {len(absent)} pieces)")
    return Report(*(tuple(sorted(names)) for names in (missing, extra, misshapen, twice, unused)))


def _piece_shape(piece: Piece, target: Tensor) -> list[int] | None:
    """The shape of the region that `piece` fills; None if the parameter can't be cut so."""
    depth, parts = piece.scheme
    shape = list(target.shape[depth:])
    if parts > 1:
        if not shape or shape[0] % parts:
            return None
        shape[0] //= parts
    return shape


def _misfit(piece: Piece, target: Tensor) -> list[str]:
    """Why the piece can't fill its place: no line, or one."""
    entry, shape = piece.entry, _piece_shape(piece, target)
    if shape is None:
        return [f"{entry.name}: {piece.to.param} {list(target.shape)} has no {piece.scheme[1]} equal parts"]
    same = torch.Size(shape).numel() == torch.Size(entry.shape).numel() if piece.to.reshape else False
    if list(entry.shape) != shape and not same:
        return [f"{entry.name}: {list(entry.shape)} in the file, {shape} in the model"]
    codes = target.dtype.itemsize == 1  # of a quantized weight, float8 too: never rounded from other numbers
    exact = codes or not (entry.dtype.is_floating_point and target.dtype.is_floating_point)
    if exact and entry.dtype != target.dtype:
        return [f"{entry.name}: {entry.dtype} in the file, {target.dtype} in the model"]
    return []
