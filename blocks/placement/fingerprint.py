"""The fingerprint of a model folder: two folders with the same one hold the same model."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from ..adapter_choice import parse_adapter
from ..checkpoints.formats import TensorEntry
from ..checkpoints.hub import find_model_folder
from ..checkpoints.reader import list_tensors
from ..conversion.adapter import open_adapter
from ..errors import CheckpointError
from ..files import read_bounded
from ..json_config import TABLE_BYTES
from ..vocabulary import FILE as VOCABULARY

_SMALL = 256 * 2**20
"""Checkpoints of up to this many bytes are hashed as a whole, larger ones by samples of every tensor."""
_SAMPLE = 4096


def model_fingerprint(folder: Path) -> str:
    """sha256 over a model folder: the JSON files but the list of words, every tensor's name, shape and type,
    and the weights.

    Weights of up to 256 MiB are hashed whole; of larger ones, three samples of 4 KiB of each tensor (start,
    middle, end), or of the file where tensors have no byte range in it. Raises CheckpointError where the
    folder has no weights.
    """
    entries = sorted(list_tensors(folder).values(), key=lambda entry: entry.name)
    total = hashlib.sha256()
    for path in sorted(folder.glob("*.json")):
        if path.name != VOCABULARY and not path.name.endswith(".index.json"):
            total.update(f"{path.name}\0{hashlib.sha256(_settings(path)).hexdigest()}\n".encode())
    for entry in entries:
        total.update(f"{entry.name}\0{entry.dtype}\0{list(entry.shape)}\n".encode())
    files = sorted({entry.file for entry in entries})
    if sum(path.stat().st_size for path in files) <= _SMALL:
        for path in files:
            total.update(hashlib.sha256(path.read_bytes()).digest())
    else:
        for path in files:
            _add_samples(total, path, [entry for entry in entries if entry.file == path])
    return total.hexdigest()


def _settings(path: Path) -> bytes:
    try:
        return read_bounded(path, TABLE_BYTES)
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror}") from error


def _add_samples(total: "hashlib._Hash", path: Path, entries: list[TensorEntry]) -> None:
    size = path.stat().st_size
    spans = {(0, size) if entry.member else (entry.offset, entry.nbytes) for entry in entries}
    total.update(f"{size}\n".encode())
    with path.open("rb") as stream:
        for offset, length in sorted(spans):
            for start in (0, (length - _SAMPLE) // 2, length - _SAMPLE):
                stream.seek(offset + max(start, 0))
                total.update(stream.read(min(_SAMPLE, length)))


def weights_fingerprint(model: str, adapters: Sequence[str] = ()) -> str:
    """`model_fingerprint` of a named model, and of its adapters if it has any."""
    own = model_fingerprint(find_model_folder(model))
    if not adapters:
        return own
    chosen = [parse_adapter(text) for text in adapters]
    parts = [own, *(f"{open_adapter(one.folder).fingerprint}:{one.scale:g}" for one in chosen)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
