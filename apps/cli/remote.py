"""What the hub says of a model without its weights: sizes of files, and headers of safetensors files."""

import os
from dataclasses import dataclass
from pathlib import Path

from ...blocks.checkpoints.formats import SAFETENSORS_DTYPES, TensorEntry
from ...blocks.checkpoints.hub import ModelFolder
from ...blocks.errors import CheckpointError
from ...blocks.foreign_files import is_hub_id, plain_names
from ...blocks.hub_download import hub_errors, list_files, pick_weights, split_revision


@dataclass(frozen=True)
class RemoteModel:
    """A model on the hub: its top folder's files with their sizes, and its tensors.

    `entries` is None for `.bin` files, whose tensors are known only once they are downloaded.
    """

    files: dict[str, int]
    entries: dict[str, TensorEntry] | None


def read_remote(source: ModelFolder) -> RemoteModel | None:
    """What the hub says of a model; None for one on disk, and without a network. Raises `CheckpointError`."""
    if os.path.isdir(os.path.expanduser(source.name)) or not is_hub_id(source.name):
        return None
    with hub_errors(source.name):
        files = list_files(source.name)
        if files is None:
            return None
        weights = [name for name in pick_weights(files, lambda names: source.path) if name in files]
        weights = [name for name in weights if not name.endswith(".index.json")]
        if not weights:
            return RemoteModel(files, {})
        if any(name.endswith(".bin") for name in weights):
            return RemoteModel(files, None)
        entries = [entry for name in weights for entry in _read_header(source, name, files[name])]
    plain = plain_names(source.path, [entry.name for entry in entries])
    return RemoteModel(files, {plain[entry.name]: entry for entry in entries})


def _read_header(source: ModelFolder, file: str, size: int) -> list[TensorEntry]:
    """The tensors of a safetensors file on the hub, of which only the header is fetched."""
    from huggingface_hub import HfApi

    repo_id, revision = split_revision(source.name)
    header = HfApi().parse_safetensors_file_metadata(repo_id, file, revision=revision)
    entries = []
    for name, tensor in header.tensors.items():
        dtype = SAFETENSORS_DTYPES.get(tensor.dtype)
        if dtype is None:
            raise CheckpointError(f"{source.name}: {file}: {name!r} has the dtype {tensor.dtype!r}")
        start, end = tensor.data_offsets
        entries.append(TensorEntry(name, dtype, tuple(tensor.shape), Path(file), start, end - start))
    needed = max((entry.offset + entry.nbytes for entry in entries), default=0)
    if needed > size:
        raise CheckpointError(f"{source.name}: {file} has {size} bytes on the hub; its header promises more")
    return entries
