"""Strict, streaming loading of a checkpoint into a model built on `meta`.

Everything is compared by name and shape before the first byte is read; then tensors are read one by
one, so that memory peaks at the model's size plus one tensor; at the end it is proved that nothing
was left out. How file names become parameter names is the family's key map, a plain function.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..errors import CheckpointError
from ..model.missing_parts import absent_parts
from ..model.quantized_linear import QuantizedWeight
from .formats import TensorEntry
from .key_mapping import (
    KeyMap,
    Piece,
    Report,
    compare,
    group_by_parameter,
    non_persistent_buffers,
    saved_tensors,
    without_parts,
)
from .quantize import Quantization, quantized_dtypes, quantized_key_map, replace_with_quantized
from .reader import TensorReader, list_tensors


def _never(name: str) -> bool:
    return False


def load_weights(
    model: nn.Module,
    folder: Path,
    key_map: KeyMap,
    *,
    device: torch.device | str | Callable[[str], torch.device],
    dtype: torch.dtype | None,
    progress: bool = True,
    keep_float32: Callable[[str], bool] = _never,
    entries: dict[str, TensorEntry] | None = None,
    quantization: Quantization | None = None,
) -> Report:
    """Fills `model`, built on `meta`, from the checkpoint in `folder` and moves it to `device`, or
    each parameter to where `device` says of its name.

    Floating tensors become `dtype` (None: what the file has), those whose parameter name
    `keep_float32` picks become float32; others stay what the file has. Parameters come without
    gradients. Buffers that are not saved (rotary tables) must be real already; they are moved only.
    `entries` is what `list_tensors(folder)` gave, if it is at hand. Tensors of parts that are `Absent` are
    passed over. With `quantization`, the weights that it concerns are quantized one by one as they come, from
    the numbers of the file, or read as they are stored; `model` is plain when it is handed in.

    Raises `CheckpointError`, with no weight loaded, if anything is missing, unknown, misshapen or
    there twice; later only if a file changes or can't be read any more. `progress` shows a bar on
    stderr when loading takes more than half a second.
    """
    for name, buffer in non_persistent_buffers(model):
        assert not buffer.is_meta, f"the buffer {name} is not saved, so it can't be on meta"
    key_map = without_parts(key_map, absent_parts(model))
    quantized: dict[str, QuantizedWeight] = {}
    if quantization is None:
        wanted = saved_tensors(model)
    elif quantization.stored:
        replace_with_quantized(model, quantization.kind)
        wanted = saved_tensors(model)
        key_map = quantized_key_map(key_map, quantized_dtypes(model))
    else:
        wanted = saved_tensors(model)
        quantized = replace_with_quantized(model, quantization.kind)
    fixed = quantized_dtypes(model)
    if entries is None:
        entries = list_tensors(folder)
    pieces, unknown, unused = group_by_parameter(entries.values(), key_map)
    report = compare(wanted, pieces, unknown, unused)
    if not report.ok:
        raise CheckpointError(f"{folder} does not fit this model: {report.summary()}")

    def want(piece: Piece) -> torch.dtype:
        if not piece.entry.dtype.is_floating_point or piece.to.param in quantized:
            return piece.entry.dtype
        if piece.to.param in fixed:
            return fixed[piece.to.param]
        return torch.float32 if keep_float32(piece.to.param) else dtype or piece.entry.dtype

    def where(name: str) -> torch.device:
        return device(name) if callable(device) else torch.device(device)

    _stream(model, wanted, pieces, where, want, progress, quantized)
    for name, buffer in non_persistent_buffers(model):
        assign(model, name, buffer.to(where(name)))
    left = [name for name, tensor in saved_tensors(model).items() if tensor.is_meta]
    assert not left, f"still on meta after loading: {left[:10]}"
    return report


def _stream(
    model: nn.Module,
    wanted: dict[str, Tensor],
    pieces: dict[str, list[Piece]],
    where: Callable[[str], torch.device],
    want: Callable[[Piece], torch.dtype],
    progress: bool,
    quantized: dict[str, QuantizedWeight],
) -> None:
    """Reads all pieces in the order of the files; a parameter is assigned when its last piece is in."""
    queue = sorted((p for g in pieces.values() for p in g), key=lambda p: (str(p.entry.file), p.entry.offset))
    open_params: dict[str, tuple[Tensor, int]] = {}  # a parameter in pieces, and how many are still to come
    done: set[str] = set()
    total = sum(p.entry.nbytes for p in queue)
    with TensorReader() as reader, progress_bar(total, "loading weights", progress) as bar:
        for piece in queue:
            param, target = piece.to.param, wanted[piece.to.param]
            assert param not in done, f"{param} is filled twice"
            device = where(param)
            tensor = reader.read(piece.entry).to(device=device, dtype=want(piece))
            group = pieces[param]
            if len(group) == 1:
                filled, left = tensor.view(target.shape), 0
            else:
                if param not in open_params:
                    kind = want(piece)
                    for other in group:
                        kind = torch.promote_types(kind, want(other))
                    open_params[param] = torch.empty(target.shape, dtype=kind, device=device), len(group)
                filled, left = open_params[param]
                fill(filled, piece, tensor)
                left -= 1
                open_params[param] = filled, left
            if left == 0:
                if param in quantized:
                    for leaf, buffer in quantized[param].encode(filled).items():
                        setattr(quantized[param], leaf, buffer)
                else:
                    assign(model, param, filled)
                open_params.pop(param, None)
                done.add(param)
            bar.update(piece.entry.nbytes)
    assert done == wanted.keys(), f"not filled: {sorted(wanted.keys() - done)[:10]}"


def fill(whole: Tensor, piece: Piece, tensor: Tensor) -> None:
    """Copies `tensor`, what `piece` reads, into its region of the parameter `whole`."""
    region = whole[piece.to.select] if piece.to.select else whole
    if piece.to.part:
        i, n = piece.to.part
        rows = region.shape[0] // n
        region = region.narrow(0, i * rows, rows)
    region.copy_(tensor.view(region.shape))


def assign(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Puts a tensor in the place of a parameter (then without gradients) or a buffer."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    if leaf in module._parameters:
        setattr(module, leaf, nn.Parameter(tensor, requires_grad=False))
    else:
        setattr(module, leaf, tensor)


def progress_bar(total: int, what: str, show: bool = True) -> tqdm:
    """A bar on stderr that counts bytes, from half a second on; where stderr is no terminal too, but
    renewed once a second only, so that logs stay short."""
    return tqdm(
        total=total,
        desc=what,
        unit="B",
        unit_scale=True,
        file=sys.stderr,
        disable=not show,
        delay=0.5,
        mininterval=0.1 if sys.stderr.isatty() else 1.0,
    )
