"""Matches checkpoint tensors with the parameters, or slices of parameters, that they fill.

Everything is checked by names and shapes, before any data is read.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from math import prod

from torch import Tensor, nn

from ..errors import ConfigError
from .formats import TensorEntry


@dataclass(frozen=True)
class ParameterSlice:
    """The slice of a parameter that a checkpoint tensor fills.

    The slice is `param[select]`, or with `part=(i, n)` the i-th of n equal parts of it along the first
    dimension. `reshape` allows a tensor of another shape with as many elements.

    >>> ParameterSlice("blocks.0.attn.qkv.weight", part=(1, 3))  # the key projection of a fused q, k, v
    >>> ParameterSlice("layers.1.experts.gate_up", select=(7,), part=(0, 2))  # expert 7's gate
    """

    param: str
    select: tuple[int, ...] = ()
    part: tuple[int, int] | None = None
    reshape: bool = False


KeyMap = Callable[[str], ParameterSlice | tuple[ParameterSlice, ...] | None]
"""Maps a tensor's name in the file to the slice that it fills, or to several if the file stores tied
parameters once. None for a known name that is not used; raises `KeyError` for an unknown name."""


def name_pattern(template: str, placeholders: Mapping[str, str]) -> re.Pattern[str]:
    """A pattern for tensor names: `template` is literal except for placeholders such as `{n}`, which become
    groups that match `placeholders["{n}"]`."""
    parts = re.split(r"(\{\w+\})", template)
    return re.compile("".join(f"({placeholders[p]})" if p in placeholders else re.escape(p) for p in parts))


@dataclass(frozen=True)
class Piece:
    """A checkpoint tensor and one of the slices that it fills."""

    entry: TensorEntry
    target: ParameterSlice

    @property
    def scheme(self) -> tuple[int, int]:
        """How the parameter is cut: the number of leading indices and of equal parts. All pieces of a
        parameter must agree."""
        return len(self.target.select), self.target.part[1] if self.target.part else 1

    @property
    def key(self) -> tuple[tuple[int, ...], int]:
        """The indices and the part that identify this piece among those of its scheme."""
        return self.target.select, self.target.part[0] if self.target.part else 0

    @property
    def label(self) -> str:
        """The slice in words: `[7] part 1 of 2`, or `all of it`."""
        return _label(*self.key, self.scheme[1])

    def fill(self, whole: Tensor, tensor: Tensor) -> None:
        """Copy `tensor`, the content of `entry`, into its slice of the parameter `whole`."""
        region = whole[self.target.select] if self.target.select else whole
        if self.target.part:
            index, count = self.target.part
            rows = region.shape[0] // count
            region = region.narrow(0, index * rows, rows)
        region.copy_(tensor.view(region.shape))


def _label(select: tuple[int, ...], part: int, parts: int) -> str:
    words = [f"[{', '.join(map(str, select))}]"] if select else []
    words += [f"part {part + 1} of {parts}"] if parts > 1 else []
    return " ".join(words) or "all of it"


@dataclass(frozen=True)
class MatchReport:
    """How a checkpoint's tensors match a model.

    missing: parameters, or slices of them, that no tensor fills.
    extra: tensors that fill no parameter.
    misshapen: tensors whose shape or kind of number differs from their slice's.
    twice: parameters with a slice that several tensors fill.
    unused: tensors that the key map knows and leaves out.
    """

    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    misshapen: tuple[str, ...] = ()
    twice: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return not (self.missing or self.extra or self.misshapen or self.twice)

    def summary(self) -> str:
        """The number of mismatches of each kind and up to ten names."""
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


def without_parts(key_map: KeyMap, prefixes: Iterable[str]) -> KeyMap:
    """The key map of a model that lacks the parameters with these prefixes: their tensors count as unused."""
    left_out = tuple(prefixes)

    def find(name: str) -> tuple[ParameterSlice, ...] | None:
        return tuple(to for to in _targets(key_map, name) if not to.param.startswith(left_out)) or None

    return find if left_out else key_map


def _targets(key_map: KeyMap, name: str) -> tuple[ParameterSlice, ...]:
    targets = key_map(name)
    if targets is None:
        return ()
    return targets if isinstance(targets, tuple) else (targets,)


def saved_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name: what a checkpoint must fill."""
    excluded = {name for name, _ in non_persistent_buffers(model)}
    tensors: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    buffers = model.named_buffers(remove_duplicate=False)
    return tensors | {name: buffer for name, buffer in buffers if name not in excluded}


def non_persistent_buffers(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Buffers that a state dict leaves out, by name."""
    found = []
    for path, module in model.named_modules():
        for leaf in module._non_persistent_buffers_set:
            buffer = module._buffers.get(leaf)
            if buffer is not None:
                found.append((f"{path}.{leaf}" if path else leaf, buffer))
    return found


def check_counts(names: Iterable[str], counts: Mapping[str, int], where: str) -> None:
    """Raise `ConfigError` if a config, named by `where`, has more layers or experts than the files.

    To be called before a model is built. `counts` are the config's, by what stands before the number in the
    tensors' names. What the files lack altogether is left to `match`.
    """
    held = dict.fromkeys(counts, 0)
    pattern = re.compile(rf"({'|'.join(map(re.escape, counts))})\.(\d{{1,9}})\.")
    for name in names:
        for start, number in pattern.findall(name):
            held[start] = max(held[start], int(number) + 1)
    for start, count in counts.items():
        if 0 < held[start] < count:
            raise ConfigError(
                f"{where} has {count} {start}, but the weights have {held[start]}; accepted: as many"
            )


def check(model: nn.Module, entries: Mapping[str, TensorEntry], key_map: KeyMap) -> MatchReport:
    """Compare a checkpoint's names and shapes with a model, usually on meta; neither loads nor raises."""
    return match(saved_tensors(model), entries, key_map)[1]


def match(
    parameters: Mapping[str, Tensor], entries: Mapping[str, TensorEntry], key_map: KeyMap
) -> tuple[dict[str, list[Piece]], MatchReport]:
    """The pieces of every parameter, and a report of how they match `parameters` (see `saved_tensors`)."""
    pieces: dict[str, list[Piece]] = {}
    extra, unused = [], []
    for entry in entries.values():
        try:
            targets = _targets(key_map, entry.name)
        except KeyError:
            extra.append(entry.name)
            continue
        if not targets:
            unused.append(entry.name)
        for target in targets:
            pieces.setdefault(target.param, []).append(Piece(entry, target))
    for param in pieces.keys() - parameters.keys():
        extra += [f"{piece.entry.name} (no {param!r} in this model)" for piece in pieces[param]]
    missing: list[str] = []
    misshapen: list[str] = []
    twice: list[str] = []
    for param, tensor in parameters.items():
        group = pieces.get(param, [])
        if not group:
            missing.append(f"{param} {list(tensor.shape)}")
        elif len({piece.scheme for piece in group}) > 1:
            twice.append(f"{param}: " + ", ".join(f"{p.entry.name} ({p.label})" for p in group[:4]))
        else:
            _match_pieces(param, tensor, group, missing, extra, misshapen, twice)
    lists = (missing, extra, misshapen, twice, unused)
    return pieces, MatchReport(*(tuple(sorted(names)) for names in lists))


def _match_pieces(
    param: str,
    tensor: Tensor,
    group: list[Piece],
    missing: list[str],
    extra: list[str],
    misshapen: list[str],
    twice: list[str],
) -> None:
    """Check the pieces of one parameter, all of one scheme, against its shape; mismatches go to the lists."""
    depth, parts = group[0].scheme
    expected = list(product(product(*map(range, tensor.shape[:depth])), range(parts)))
    allowed = set(expected)
    filled: dict[tuple[tuple[int, ...], int], str] = {}
    for piece in group:
        name = piece.entry.name
        if piece.key in filled:
            twice.append(f"{param} ({piece.label}): {filled[piece.key]} and {name}")
        elif piece.key not in allowed:
            extra.append(f"{name} ({param} {list(tensor.shape)} has no {piece.label})")
        else:
            misshapen += _mismatch(piece, tensor)
        filled[piece.key] = name
    lacking = [_label(*key, parts) for key in expected if key not in filled]
    if lacking:
        more = ", ..." if len(lacking) > 4 else ""
        missing.append(f"{param}: {', '.join(lacking[:4])}{more} ({len(lacking)} of {len(expected)} pieces)")


def _mismatch(piece: Piece, tensor: Tensor) -> list[str]:
    """At most one message: why the piece can't fill its slice of a parameter like `tensor`."""
    entry, (depth, parts) = piece.entry, piece.scheme
    shape = list(tensor.shape[depth:])
    if parts > 1:
        if not shape or shape[0] % parts:
            return [f"{entry.name}: {piece.target.param} {list(tensor.shape)} has no {parts} equal parts"]
        shape[0] //= parts
    reshapes = piece.target.reshape and prod(shape) == prod(entry.shape)
    if list(entry.shape) != shape and not reshapes:
        return [f"{entry.name}: {list(entry.shape)} in the file, {shape} in the model"]
    quantized = tensor.dtype.itemsize == 1  # codes, float8 ones too, must be stored as such
    casts = entry.read_dtype.is_floating_point and tensor.dtype.is_floating_point and not quantized
    if not casts and entry.read_dtype != tensor.dtype:
        return [f"{entry.name}: {entry.read_dtype} in the file, {tensor.dtype} in the model"]
    return []
