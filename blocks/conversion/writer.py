"""Writes sharded safetensors, atomically and with one tensor in memory at a time."""

import json
import math
import shutil
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoints.formats import SAFETENSORS_DTYPES
from ..checkpoints.reader import weight_files
from ..errors import CheckpointError
from ..files import sync, temporary_path

_DTYPE_NAMES = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}
_INDEX = "model.safetensors.index.json"

TensorSpec = tuple[str, Callable[[], Tensor], tuple[int, ...], torch.dtype]
"""A tensor to write: name, a function that makes it, shape, dtype."""


def write_safetensors(
    folder: Path,
    tensors: Iterable[TensorSpec],
    max_shard_bytes: int = 5_000_000_000,
    metadata: dict[str, str] | None = None,
    on_bytes: Callable[[int], object] = lambda count: None,
) -> list[Path]:
    """Write `model.safetensors`, or shards `model-00001-of-0000N.safetensors` and their index.

    Tensors are distributed in order; a shard holds at most `max_shard_bytes`, or one larger tensor.
    `on_bytes` is called with the size of each tensor after it is written. Files get their names only once all
    are complete, the index last, so a failed write can't be mistaken for a checkpoint. Returns the files.
    Raises `CheckpointError` if the disk is full or not writable, or if the folder holds other weights that
    the new ones would not replace.
    """
    folder, specs = Path(folder), list(tensors)
    if max_shard_bytes < 1:
        raise CheckpointError(f"max_shard_bytes is {max_shard_bytes}; accepted is 1 or more")
    if not specs:
        raise CheckpointError("there are no tensors to write")
    if len({spec[0] for spec in specs}) != len(specs):
        raise CheckpointError("two tensors to write have the same name")
    shards = _split(specs, max_shard_bytes)
    total = sum(spec_bytes(spec) for spec in specs)
    names = ["model.safetensors"]
    if len(shards) > 1:
        names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    metadata = {"format": "pt"} if metadata is None else metadata
    files = [folder / name for name in ([*names, _INDEX] if len(shards) > 1 else names)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _refuse_stale(folder, {file.name for file in files})
        _refuse_full(folder, total)
        with ExitStack() as stack:
            parts = [stack.enter_context(temporary_path(file)) for file in files]
            for part, shard in zip(parts, shards, strict=False):
                _write_shard(part, shard, metadata, on_bytes)
            if len(shards) > 1:
                _write_index(parts[-1], names, shards, total)
                # Without an index, a half-renamed set of shards is refused, not read.
                (folder / _INDEX).unlink(missing_ok=True)
            for part, file in zip(parts, files, strict=True):
                part.replace(file)
    except OSError as error:
        why = error.strerror or error
        raise CheckpointError(f"can't write {total} bytes of weights to {folder}: {why}") from error
    return files


def spec_bytes(spec: TensorSpec) -> int:
    """Size of the tensor in bytes."""
    return math.prod(spec[2]) * spec[3].itemsize


def _split(specs: list[TensorSpec], limit: int) -> list[list[TensorSpec]]:
    shards: list[list[TensorSpec]] = [[]]
    size = 0
    for spec in specs:
        if shards[-1] and size + spec_bytes(spec) > limit:
            shards.append([])
            size = 0
        shards[-1].append(spec)
        size += spec_bytes(spec)
    # Widest dtypes first, which keeps every tensor aligned to its itemsize.
    return [sorted(shard, key=lambda spec: -spec[3].itemsize) for shard in shards]


def _refuse_stale(folder: Path, new: set[str]) -> None:
    stale = [p.name for p in weight_files(folder) if p.name not in new]
    if stale:
        raise CheckpointError(
            f"{folder} holds other weights that would stay beside the new ones ({', '.join(stale[:10])}); "
            f"choose an empty folder or remove them"
        )


def _refuse_full(folder: Path, total: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < total:
        raise CheckpointError(f"{folder} is on a disk with {free} bytes free; the weights take {total}")


def _write_shard(
    path: Path, shard: list[TensorSpec], metadata: dict[str, str], on_bytes: Callable[[int], object]
) -> None:
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, _, shape, dtype in shard:
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for spec in shard:
            name, make, shape, dtype = spec
            tensor = make()
            assert tuple(tensor.shape) == tuple(shape), f"{name} is {list(tensor.shape)}, not {list(shape)}"
            assert tensor.dtype == dtype, f"{name} is {tensor.dtype}, not {dtype}"
            flat = tensor.detach().cpu().contiguous().view(-1)
            if flat.numel():
                stream.write(flat.view(torch.uint8).numpy().data)
            del tensor, flat
            on_bytes(spec_bytes(spec))
        sync(stream)


def _write_index(path: Path, names: list[str], shards: list[list[TensorSpec]], total: int) -> None:
    where = {spec[0]: name for name, shard in zip(names, shards, strict=True) for spec in shard}
    index = {"metadata": {"total_size": total}, "weight_map": where}
    path.write_text(json.dumps(index, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
