"""The tensors of a PyTorch `.bin` file: where their bytes lie, found without running the pickle in it.

The zip's members are checked against the file's size before one of them is read.
"""

import io
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch

from .bin_pickle import CodeError, StoredTensor, interpret
from .errors import CheckpointError
from .files import open_regular
from .json_config import shown

MAX_PICKLE_BYTES, MAX_MEMBERS = 16 << 20, 200_000
"""Ten and thirty times what a model of 6,000 tensors needs."""
MAX_INFLATION, MAX_INFLATED = 20, 64 << 20
"""Compressed members may take this many times the file's size, and this many bytes more."""
# The first two pickles of a file in the format before torch 1.6 (torch/serialization.py).
_LEGACY_MAGIC, _LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


@dataclass(frozen=True)
class BinTensor:
    """A tensor of the file: bytes `offset` to `offset + nbytes` of the file, or of its compressed `member`.

    `strides` (in elements) is None for a contiguous tensor; otherwise those bytes are the span that they
    cover. `swapped`: the numbers are in the other byte order than this machine's.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    offset: int
    nbytes: int
    member: str | None
    swapped: bool


@dataclass(frozen=True)
class _Place:
    """Where a storage's bytes begin, in the file or in its compressed `member`."""

    start: int
    nbytes: int
    member: str | None = None
    swapped: bool = False


def read_bin(path: Path) -> dict[str, BinTensor]:
    """The tensors of a flat state dict written by `torch.save`; their data is not read.

    Both byte orders are accepted, and the format before torch 1.6. Raises `CheckpointError` for anything
    else.
    """
    size = 0
    try:
        with open_regular(path) as raw, io.BufferedReader(raw) as stream:
            size = stream.seek(0, io.SEEK_END)
            stream.seek(0)
            read = _read_zip if stream.peek(4)[:4] == b"PK\x03\x04" else _read_legacy
            state, places = read(path, stream, size)
    except (CheckpointError, MemoryError):
        raise
    except CodeError as error:
        raise CheckpointError(
            f"{path} holds code or objects that are not tensors ({error}), and is refused, since loading it "
            f"could run that code; use a .safetensors version of these weights, or convert the file where it "
            f"is trusted"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror or error}") from error
    except Exception as error:  # a damaged zip or pickle can raise anything
        reason = f"{type(error).__name__}: {error}" if isinstance(error, ValueError) else type(error).__name__
        raise CheckpointError(
            f"{path} ({size} bytes) is damaged, incomplete or not a PyTorch checkpoint ({reason}); "
            "download it again"
        ) from error
    return {name: _locate(path, name, tensor, places) for name, tensor in _checked(path, state).items()}


def open_bytes(path: Path, member: str | None = None) -> BinaryIO:
    """The bytes that a tensor's `offset` counts in: the file's, or those of a compressed member of it."""
    if member is None:
        return open_regular(path)
    try:
        with open_regular(path) as stream, zipfile.ZipFile(stream) as archive:
            return io.BytesIO(archive.read(member))
    except (zipfile.BadZipFile, KeyError, EOFError, ValueError) as error:
        raise OSError(0, f"its member {member} is damaged") from error


# --- the files -----------------------------------------------------------------------------------------


def _read_zip(path: Path, stream: BinaryIO, size: int) -> tuple[Any, dict[str, _Place]]:
    """What the pickle in a zip file holds, and the places of its storages."""
    with zipfile.ZipFile(stream) as archive:
        members = {info.filename: info for info in archive.infolist()}
        if any(name.endswith("/constants.pkl") for name in members):
            raise CodeError("TorchScript")
        _check_members(archive.infolist(), size)
        pickles = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) != 1:
            raise ValueError(f"it has {len(pickles)} members data.pkl")
        folder = pickles[0].removesuffix("data.pkl")
        order = _small_member(archive, members.get(f"{folder}byteorder"), 16) or b"little"
        if order not in (b"little", b"big"):
            raise ValueError(f"its byte order is {order!r}; accepted: little and big")
        state, _ = interpret(io.BytesIO(_small_member(archive, members[pickles[0]], MAX_PICKLE_BYTES)))
        places = {}
        for name, info in members.items():
            if name.startswith(f"{folder}data/"):
                start = _data_start(stream, info)
                if start + info.compress_size > size:
                    end = start + info.compress_size
                    raise CheckpointError(
                        f"{path} is incomplete: a tensor ends at byte {end}, the file has {size}"
                    )
                swapped = order.decode() != sys.byteorder
                stored = info.compress_type == zipfile.ZIP_STORED
                places[name.removeprefix(f"{folder}data/")] = _Place(
                    start if stored else 0, info.file_size, None if stored else name, swapped
                )
    return state, places


def _check_members(infos: list[zipfile.ZipInfo], size: int) -> None:
    """Raise `ValueError` for members that are double, encrypted, overlapping, or inflate beyond measure."""
    if len(infos) > MAX_MEMBERS or len({info.filename for info in infos}) < len(infos):
        raise ValueError(f"its {len(infos)} members are too many, or one is there twice")
    end = 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        if info.header_offset < end or info.flag_bits & 1:
            raise ValueError(f"its member {shown(info.filename)} is encrypted or overlaps another")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"its member {shown(info.filename)} is compressed in another way than deflated")
        if info.compress_type == zipfile.ZIP_STORED and info.compress_size != info.file_size:
            raise ValueError(f"its member {shown(info.filename)} contradicts its own size")
        end = info.header_offset + 30 + info.compress_size
        if end > size:
            raise ValueError(f"its member {shown(info.filename)} reaches beyond the file")
    if sum(info.file_size for info in infos) > MAX_INFLATION * size + MAX_INFLATED:
        raise ValueError(f"its members would take more than {MAX_INFLATION} times the file's {size} bytes")


def _data_start(stream: BinaryIO, info: zipfile.ZipInfo) -> int:
    """Where a member's bytes begin: after a header of 30 bytes, the name, and an extra field."""
    stream.seek(info.header_offset)
    header = stream.read(30)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise ValueError(f"its member {shown(info.filename)} has no header")
    lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    return info.header_offset + 30 + lengths


def _small_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo | None, limit: int) -> bytes:
    if info is None:
        return b""
    if info.file_size > limit:
        raise ValueError(f"its member {shown(info.filename)} has {info.file_size} bytes; accepted: {limit}")
    return archive.read(info)


def _read_legacy(path: Path, stream: BinaryIO, size: int) -> tuple[Any, dict[str, _Place]]:
    """The format before torch 1.6: pickles, the last one of the storages' keys, then each storage's number
    of elements (8 bytes) and its bytes, always little-endian."""
    head = io.BytesIO(stream.read(MAX_PICKLE_BYTES))
    if interpret(head)[0] != _LEGACY_MAGIC or interpret(head)[0] != _LEGACY_PROTOCOL:
        raise ValueError("it is neither a zip file nor begins with PyTorch's number")
    interpret(head)  # the writer's system, which nothing depends on
    state, storages = interpret(head)
    keys, _ = interpret(head)
    position, places = head.tell(), {}
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ValueError("its list of storages is malformed")
    for key in keys:
        stream.seek(position)
        nbytes = int.from_bytes(stream.read(8), "little") * storages[key].dtype.itemsize
        if position + 8 + nbytes > size:
            raise CheckpointError(
                f"{path} is incomplete: a tensor ends at byte {position + 8 + nbytes}, the file has {size}"
            )
        places[key] = _Place(position + 8, nbytes, swapped=sys.byteorder == "big")
        position += 8 + nbytes
    return state, places


def _checked(path: Path, state: Any) -> dict[str, StoredTensor]:
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds a {type(state).__name__}, not a dict of names to tensors")
    for name, value in state.items():
        if isinstance(name, str) and isinstance(value, StoredTensor):
            continue
        if isinstance(value, dict):
            raise CheckpointError(f"{path} nests a dict under {name!r}; accepted is a flat dict of tensors")
        kind = type(value).__name__
        raise CheckpointError(f"{path}: {name!r} is a {kind}; accepted are names with plain, dense tensors")
    if not state:
        raise CheckpointError(f"{path} holds no tensors")
    return state


def _locate(path: Path, name: str, tensor: StoredTensor, places: Mapping[str, _Place]) -> BinTensor:
    dtype, shape, strides = tensor.dtype, tensor.shape, tensor.strides
    if prod(shape) == 0:
        return BinTensor(dtype, shape, None, 0, 0, None, False)
    place = places.get(tensor.storage.key)
    span = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    if place is None or place.nbytes != tensor.storage.nbytes:
        raise CheckpointError(f"{path} is damaged: the data of {name!r} is missing or of another size")
    if (tensor.first + span) * dtype.itemsize > place.nbytes:
        raise CheckpointError(f"{path} is damaged: {name!r} reaches outside its own data")
    contiguous = all(s == prod(shape[i + 1 :]) for i, s in enumerate(strides) if shape[i] != 1)
    start = place.start + tensor.first * dtype.itemsize
    nbytes = span * dtype.itemsize
    return BinTensor(
        dtype, shape, None if contiguous else strides, start, nbytes, place.member, place.swapped
    )
