"""The tensors of one weights file (`.safetensors`, or PyTorch's `.bin`) and the bytes that hold them.

Only headers are read here. A file's size is checked against its header, so that an interrupted download is
detected before anything is loaded.
"""

import json
import math
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ..errors import CheckpointError

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

# Parts of the messages with which torch refuses code (torch/_weights_only_unpickler.py), in lower case.
_CODE_REFUSALS = (
    "unsupported global",
    "can only create new object",
    "can only build",
    "trying to call reduce",
    "persistent_load",
    "torchscript",
)


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a checkpoint, not loaded.

    Bytes `offset` to `offset + nbytes` of `file` hold it. `strides` (in elements) is None for a contiguous
    tensor; otherwise those bytes are the span that the strides cover. `whole_file` means that the tensor's
    position in the file is unknown: reading it loads the whole file.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int
    strides: tuple[int, ...] | None = None
    whole_file: bool = False


def file_size(path: Path) -> int:
    """Size in bytes of a regular, non-empty file. Raises `CheckpointError` for anything else."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror}") from error
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file")
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
    with path.open("rb") as stream:
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
    try:
        header = json.loads(stream.read(length), object_pairs_hook=_no_duplicates)
    except _DuplicateKeyError as error:
        raise CheckpointError(f"{path} names {error.args[0]!r} twice in its header") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a safetensors file: its header is no JSON ({error})") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path} is not a safetensors file: its header is not a JSON object")
    header.pop("__metadata__", None)
    if not header:
        raise CheckpointError(f"{path} holds no tensors")
    return header, 8 + length


class _DuplicateKeyError(Exception):
    pass


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise _DuplicateKeyError(key)
        result[key] = value
    return result


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
    return TensorEntry(name, dtype, tuple(shape), path, start + span[0], nbytes)  # type: ignore[index, arg-type]


# --- PyTorch .bin --------------------------------------------------------------------------------------


def list_bin(path: Path) -> list[TensorEntry]:
    """The tensors of a flat state dict written by `torch.save`. Code in the file is never run.

    From PyTorch's zip files (torch 1.6 and later) no data is read: torch rebuilds the tensors without data
    and reports each storage's offset, which is compared with the zip directory. Where that is impossible (the
    older format, zips written by other tools, another byte order), the file is loaded once here to list it
    and again to read it, so such a shard must fit in memory. Raises `CheckpointError`.
    """
    size = file_size(path)
    with path.open("rb") as stream:
        is_zip = stream.read(4) == b"PK\x03\x04"
    if not is_zip:
        return _whole_file_entries(path, load_bin(path))
    records = _zip_records(path, size)
    state = _checked_state(path, _torch_load(path, skeleton=True))
    entries = [_bin_entry(path, name, tensor, records) for name, tensor in state.items()]
    if records is None or None in entries:
        return _whole_file_entries(path, load_bin(path))
    return [entry for entry in entries if entry is not None]


def load_bin(path: Path) -> dict[str, Tensor]:
    """The whole state dict of one `.bin` file on the CPU (`weights_only`, so no code runs)."""
    return _checked_state(path, _torch_load(path, skeleton=False))


def _torch_load(path: Path, *, skeleton: bool, fake: bool | None = None) -> Any:
    """`torch.load`; with `skeleton`, tensors have no data, but their storages a `_checkpoint_offset`.

    torch sets those offsets when it loads to `meta`, older versions only under `FakeTensorMode` (150 MB of
    imports, so not the first choice); `fake` forces one of the two.
    """
    if fake is None:
        fake = not hasattr(torch.serialization, "_is_meta_location")
    try:
        if skeleton and fake:
            from torch._subclasses import FakeTensorMode

            with FakeTensorMode():
                return torch.load(path, map_location="cpu", weights_only=True)
        return torch.load(path, map_location="meta" if skeleton else "cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise _refusal(path, error) from error


def _refusal(path: Path, error: Exception) -> CheckpointError:
    text = f"{error}".lower()
    if any(phrase in text for phrase in _CODE_REFUSALS):
        return CheckpointError(
            f"{path} holds code or objects that are not tensors, and is refused, since loading it could run "
            f"that code; use a .safetensors version of these weights, or convert the file where it is trusted"
        )
    return CheckpointError(
        f"{path} ({path.stat().st_size} bytes) is damaged, incomplete or not a PyTorch checkpoint "
        f"({type(error).__name__}); download it again"
    )


def _zip_records(path: Path, size: int) -> dict[int, int] | None:
    """Start and length in bytes of every uncompressed storage in the zip, or None if the byte order is not
    this machine's."""
    records: dict[int, int] = {}
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as stream:
            for info in archive.infolist():
                if info.filename.endswith("/constants.pkl"):
                    raise _refusal(path, ValueError("torchscript"))
                if info.filename.endswith("/byteorder") and archive.read(info) != sys.byteorder.encode():
                    return None
                if "/data/" not in info.filename or info.compress_type != zipfile.ZIP_STORED:
                    continue
                # A local file header has 30 bytes, then the name and an extra field of the stated lengths.
                stream.seek(info.header_offset + 26)
                lengths = stream.read(4)
                skip = int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
                records[info.header_offset + 30 + skip] = info.file_size
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        raise _refusal(path, error) from error
    for start, length in records.items():
        if start + length > size:
            end = start + length
            raise CheckpointError(f"{path} is incomplete: a tensor ends at byte {end}, the file has {size}")
    return records


def _checked_state(path: Path, state: Any) -> dict[str, Tensor]:
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds a {type(state).__name__}, not a dict of names to tensors")
    for name, value in state.items():
        if isinstance(name, str) and isinstance(value, Tensor) and value.layout == torch.strided:
            continue
        if isinstance(value, dict):
            raise CheckpointError(f"{path} nests a dict under {name!r}; accepted is a flat dict of tensors")
        kind = type(value).__name__
        raise CheckpointError(f"{path}: {name!r} is a {kind}; accepted are names with plain, dense tensors")
    if not state:
        raise CheckpointError(f"{path} holds no tensors")
    return state


def _bin_entry(path: Path, name: str, tensor: Tensor, records: dict[int, int] | None) -> TensorEntry | None:
    """The entry of a tensor, or None unless its storage is exactly one record of the zip."""
    shape, strides, itemsize = tuple(tensor.shape), tensor.stride(), tensor.dtype.itemsize
    storage = tensor.untyped_storage()
    start = getattr(storage, "_checkpoint_offset", None)
    if tensor.numel() == 0:
        return TensorEntry(name, tensor.dtype, shape, path, 0, 0)
    if records is None or start is None or records.get(start) != storage.nbytes() or tensor.is_conj():
        return None
    span = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    first = tensor.storage_offset()
    if first < 0 or min((*strides, 0)) < 0 or (first + span) * itemsize > storage.nbytes():
        raise CheckpointError(f"{path} is damaged: {name!r} reaches outside its own data")
    stored = None if tensor.is_contiguous() else tuple(strides)
    return TensorEntry(name, tensor.dtype, shape, path, start + first * itemsize, span * itemsize, stored)


def _whole_file_entries(path: Path, state: dict[str, Tensor]) -> list[TensorEntry]:
    """Entries of a file that is loaded whole; their offsets only keep the order."""
    return [
        TensorEntry(name, t.dtype, tuple(t.shape), path, i, t.numel() * t.dtype.itemsize, whole_file=True)
        for i, (name, t) in enumerate(state.items())
    ]
