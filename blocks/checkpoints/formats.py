"""The tensors of one weights file (`.safetensors`, or PyTorch's `.bin`) and the bytes that hold them.

Only headers are read here. A file's size is checked against its header, so that an interrupted download is
detected before anything is loaded.
"""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ..bin_file import read_bin
from ..errors import CheckpointError, is_name
from ..files import open_regular
from ..foreign_files import check_content
from ..json_config import parse_json, shown

# The dtype names of the safetensors format (its README, "Format"). Those without a torch counterpart (F4, F6,
# F8_E8M0) are refused.
SAFETENSORS_DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "F32": torch.float32,
    "C64": torch.complex64,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
}
MAX_HEADER_BYTES = 100_000_000  # the reference reader's own limit


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a checkpoint, not loaded.

    Bytes `offset` to `offset + nbytes` of `file` hold it. `strides` (in elements) is None for a contiguous
    tensor; otherwise those bytes are the span that the strides cover. `member`: the bytes count in this
    compressed member of a zip file. `swapped`: numbers have the other byte order than this machine's. `scale`
    is the tensor of the scales of fp8 or int8 weights, with which they are multiplied as they are read. With
    `repeated`, the rows are scales of fp8 blocks, read once for each output.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int
    strides: tuple[int, ...] | None = None
    member: str | None = None
    swapped: bool = False
    scale: "TensorEntry | None" = None
    repeated: bool = False

    @property
    def read_dtype(self) -> torch.dtype:
        """The dtype of the tensor once it is read."""
        return self.dtype if self.scale is None else torch.float32


def file_size(path: Path) -> int:
    """Size in bytes of a regular, non-empty file. Raises `CheckpointError` for anything else."""
    try:
        with open_regular(path) as stream:
            size = os.fstat(stream.fileno()).st_size
        check_content(path)
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror}") from error
    if size == 0:
        raise CheckpointError(f"{path} is empty (0 bytes); download it again")
    return size


# --- safetensors ---------------------------------------------------------------------------------------


def list_safetensors(path: Path) -> list[TensorEntry]:
    """The tensors of one `.safetensors` file, whose header is checked against the file's size.

    Format: the header's length in 8 bytes, little-endian; a JSON header; the tensors' bytes without gaps.
    Raises `CheckpointError`.
    """
    size = file_size(path)
    with open_regular(path) as stream:
        header, start = _read_header(path, stream, size)
    entries = [_safetensors_entry(path, name, info, start) for name, info in header.items()]
    end = start
    for entry in sorted(entries, key=lambda e: (e.offset, e.nbytes)):
        if entry.offset != end:
            what = "overlaps the tensor before it" if entry.offset < end else "leaves a gap before it"
            place = f"byte {entry.offset}, not {end}"
            raise CheckpointError(f"{path} is damaged: {entry.name!r} {what} ({place})")
        end += entry.nbytes
    if end != size:
        raise CheckpointError(
            f"{path} is {'incomplete' if size < end else 'damaged'}: its header promises {end} bytes, "
            f"the file has {size}; download it again"
        )
    return entries


def _read_header(path: Path, stream: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
    if size < 8:
        raise CheckpointError(f"{path} is incomplete: it has only {size} bytes; download it again")
    length = int.from_bytes(stream.read(8), "little")
    if not 2 <= length <= MAX_HEADER_BYTES:
        raise CheckpointError(f"{path} is not a safetensors file: its header length reads {length} bytes")
    if 8 + length > size:
        raise CheckpointError(
            f"{path} is incomplete: its header alone ends at byte {8 + length}, the file has {size}; "
            f"download it again"
        )
    header = parse_json(stream.read(length), f"{path} is not a safetensors file: its header", CheckpointError)
    if not isinstance(header, dict):
        raise CheckpointError(f"{path} is not a safetensors file: its header is not a JSON object")
    header.pop("__metadata__", None)
    if not header:
        raise CheckpointError(f"{path} holds no tensors")
    return header, 8 + length


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _safetensors_entry(path: Path, name: str, info: Any, start: int) -> TensorEntry:
    fields = info if isinstance(info, dict) else {}
    shape, span, kind = fields.get("shape"), fields.get("data_offsets"), fields.get("dtype")
    sound = isinstance(shape, list) and isinstance(span, list) and len(span) == 2
    if not sound or not all(map(_is_count, [*shape, *span])) or span[1] < span[0]:  # type: ignore[misc]
        raise CheckpointError(f"{path} is damaged: the header's entry for {name!r} is malformed")
    dtype = SAFETENSORS_DTYPES.get(kind) if isinstance(kind, str) else None
    if dtype is None:
        accepted = ", ".join(SAFETENSORS_DTYPES)
        raise CheckpointError(f"{path}: {name!r} has the dtype {kind!r}; accepted are {accepted}")
    nbytes = span[1] - span[0]  # type: ignore[index]
    if math.prod(shape) * dtype.itemsize != nbytes:  # type: ignore[arg-type]
        raise CheckpointError(f"{path} is damaged: {name!r} {kind} {shape} can't take {nbytes} bytes")
    return TensorEntry(_checked_name(path, name), dtype, tuple(shape), path, start + span[0], nbytes)  # type: ignore[index, arg-type]


def _checked_name(path: Path, name: str) -> str:
    if not is_name(name):
        raise CheckpointError(f"{path} names a tensor {shown(name)}; accepted: printable names")
    return name


# --- PyTorch .bin --------------------------------------------------------------------------------------


def list_bin(path: Path) -> list[TensorEntry]:
    """The tensors of a flat state dict written by `torch.save`, in either byte order, also before torch 1.6.

    No data is read, and code in the file is never run. Raises `CheckpointError`.
    """
    file_size(path)
    return [
        TensorEntry(
            _checked_name(path, name),
            t.dtype,
            t.shape,
            path,
            t.offset,
            t.nbytes,
            t.strides,
            t.member,
            t.swapped,
        )
        for name, t in read_bin(path).items()
    ]
