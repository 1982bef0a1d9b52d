"""Lists the tensors of a model folder, and reads them one at a time.

Files are read, not memory-mapped: mapped pages count as resident memory, and a mapped file that shrinks
crashes the process. Peak memory is what the caller keeps plus one tensor.
"""

import os
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import torch
from torch import Tensor

from ..bin_file import open_bytes
from ..errors import CheckpointError, is_name
from ..foreign_files import is_adapter, no_weights_text, plain_names
from ..json_config import TABLE_BYTES, read_value, shown
from ..kernels.codec import FP8_BLOCK, decode_blocks, decode_rows, repeat_rows
from .formats import TensorEntry, list_bin, list_safetensors

# Indices are preferred, since they state which files belong together.
_SAFETENSORS_INDEX = "model.safetensors.index.json"
_BIN_INDEX = "pytorch_model.bin.index.json"
_BIN = "pytorch_model.bin"
SCALE = "_scale_inv"
"""Ending of the names of scales, with which weights are multiplied as they are read: DeepSeek-V3's."""


def list_tensors(folder: Path) -> dict[str, TensorEntry]:
    """Every tensor of the checkpoint in `folder`, by name; nothing is loaded.

    Accepted, in this order: `*.safetensors.index.json` with its shards, `model.safetensors` or the only
    `*.safetensors`, `pytorch_model.bin.index.json` with its shards, `pytorch_model.bin`. Raises a
    `CheckpointError` that names what is missing, damaged, unsafe or duplicated.
    """
    entries: dict[str, TensorEntry] = {}
    index, files = _find_files(Path(folder))
    for path in files:
        for entry in list_safetensors(path) if path.suffix == ".safetensors" else list_bin(path):
            if entry.name in entries:
                where = f"{entries[entry.name].file.name} and {path.name}"
                raise CheckpointError(f"{folder}: the tensor {entry.name!r} is there twice, in {where}")
            entries[entry.name] = entry
    wrong = [n for n, file in (index or {}).items() if n not in entries or entries[n].file.name != file]
    if index is not None and wrong:
        names = ", ".join(f"{name!r} (in {index[name]})" for name in wrong[:10])
        raise CheckpointError(f"{folder}: {len(wrong)} tensors are not where the index says: {names}")
    plain = plain_names(Path(folder), entries)
    renamed = {plain[name]: replace(entry, name=plain[name]) for name, entry in entries.items()}
    for name in [name for name in renamed if name.endswith(SCALE)]:
        scale, weight = renamed.pop(name), renamed.get(name.removesuffix(SCALE))
        if weight is None or not _is_scale(scale, weight):
            raise CheckpointError(
                f"{folder}: {name!r} {list(scale.shape)} is no scale of fp8 weights in blocks of "
                f"{FP8_BLOCK} x {FP8_BLOCK}, nor of the rows of int8 weights; accepted: one beside such a "
                "weight"
            )
        renamed[weight.name] = replace(weight, scale=scale)
    return renamed


def _is_scale(scale: TensorEntry, weight: TensorEntry) -> bool:
    if weight.dtype == torch.int8:
        return scale.dtype.is_floating_point and scale.shape == weight.shape[:-1][: len(scale.shape)]
    blocks = tuple(-(-size // FP8_BLOCK) for size in weight.shape)
    return weight.dtype == torch.float8_e4m3fn and scale.shape == blocks


def weight_files(folder: Path) -> list[Path]:
    """The files of `folder` that hold weights or index them, by their names."""
    kinds = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json")
    return sorted(p for p in Path(folder).iterdir() if p.name.endswith(kinds))


def _find_files(folder: Path) -> tuple[dict[str, str] | None, list[Path]]:
    """The index's map from tensor to file name (None without an index), and the files to read."""
    if not os.path.isdir(folder):
        state = "is not a folder" if os.path.lexists(folder) else "does not exist"
        raise CheckpointError(f"{folder} {state}; a model folder is needed")
    for index_file in _indices(folder, "*.safetensors.index.json", _SAFETENSORS_INDEX):
        return _read_index(index_file)
    single = folder / "model.safetensors"
    loose = [single] if os.path.lexists(single) else sorted(folder.glob("*.safetensors"))
    loose = [path for path in loose if not is_adapter(path)]
    if len(loose) > 1:
        names = ", ".join(p.name for p in loose[:10])
        raise CheckpointError(f"{folder} holds {len(loose)} .safetensors files and no index of them: {names}")
    if loose:
        return None, loose
    if os.path.lexists(folder / _BIN_INDEX):
        return _read_index(folder / _BIN_INDEX)
    if os.path.lexists(folder / _BIN):
        return None, [folder / _BIN]
    raise CheckpointError(
        no_weights_text(folder)
        or f"{folder} holds no weights; accepted are *.safetensors (with *.safetensors.index.json if there "
        f"are several), {_BIN_INDEX} with its shards, or {_BIN}"
    )


def _indices(folder: Path, pattern: str, usual: str) -> list[Path]:
    """The index of a folder, the `usual` one if there are several; an empty list without one."""
    paths = sorted(folder.glob(pattern))
    if folder / usual in paths:
        return [folder / usual]
    if len(paths) > 1:
        raise CheckpointError(f"{folder} holds several indices: {', '.join(p.name for p in paths)}; keep one")
    return paths


def _read_index(path: Path) -> tuple[dict[str, str], list[Path]]:
    index = read_value(path, TABLE_BYTES, CheckpointError)
    weights = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weights, dict) or not weights:
        raise CheckpointError(f"{path} has no 'weight_map' from tensor names to files")
    kind = path.name.split(".index.json")[0].rpartition(".")[2]  # "safetensors" or "bin"
    for shard in weights.values():
        plain = is_name(shard) and Path(shard).name == shard and "\\" not in shard
        if not plain or not shard.endswith("." + kind):
            raise CheckpointError(
                f"{path} names {shown(shard)}; accepted are .{kind} files in the same folder"
            )
    shards = list(dict.fromkeys(weights.values()))
    missing = [s for s in shards if not os.path.exists(path.parent / s)]
    if missing:
        names = ", ".join(missing[:10])
        count = f"{len(missing)} of {len(shards)}"
        raise CheckpointError(f"{path.parent}: {count} weights files are missing: {names}")
    return weights, [path.parent / s for s in shards]


class TensorReader:
    """Reads tensors one at a time. A context manager, or to be closed.

    It keeps the last file open, so reading file by file is fastest.
    """

    def __init__(self) -> None:
        self._opened: tuple[Path, str | None] | None = None
        self._stream: BinaryIO | None = None

    def __enter__(self) -> "TensorReader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
        self._opened = self._stream = None

    def read(self, entry: TensorEntry) -> Tensor:
        """The tensor of `entry`, contiguous and in new memory on the CPU, of its `read_dtype`.

        Raises `CheckpointError` if the file has changed.
        """
        flat = torch.empty(entry.nbytes // entry.dtype.itemsize, dtype=entry.dtype)
        self._fill(entry, flat)
        if entry.swapped:
            width = entry.dtype.itemsize // (2 if entry.dtype.is_complex else 1)
            flat.view(torch.uint8).copy_(flat.view(torch.uint8).view(-1, width).flip(1).flatten())
        if entry.repeated:
            return repeat_rows(flat.view(-1, *entry.shape[1:]), entry.shape[0])
        strides = entry.strides
        tensor = flat.view(entry.shape) if strides is None else flat.as_strided(entry.shape, strides)
        if entry.scale is None:
            return tensor.contiguous()
        decode = decode_rows if entry.dtype == torch.int8 else decode_blocks
        return decode(tensor, self.read(entry.scale))

    def _fill(self, entry: TensorEntry, flat: Tensor) -> None:
        if entry.nbytes == 0:
            return
        try:
            if self._stream is None or self._opened != (entry.file, entry.member):
                self.close()
                self._stream, self._opened = open_bytes(entry.file, entry.member), (entry.file, entry.member)
            self._stream.seek(entry.offset)
            view, done = flat.view(torch.uint8).numpy().data, 0
            while done < entry.nbytes:
                got = self._stream.readinto(view[done:])  # type: ignore[attr-defined]
                if not got:
                    raise CheckpointError(f"{entry.file} ends inside {entry.name!r}; did it change?")
                done += got
        except OSError as error:
            raise CheckpointError(f"{entry.file} can't be read: {error.strerror}") from error
