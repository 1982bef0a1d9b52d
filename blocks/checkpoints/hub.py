"""Finding a model's folder by its path, its embedded name or its hub id."""

import os
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path

from ..errors import CheckpointError
from ..foreign_files import check_config, check_folder, check_path, name_hint
from ..json_config import Section, read_section, shown

EMBEDDED = {"janus-nano": "Janus", "vl2-nano": "DeepSeek-VL2"}
"""The small models that the package carries, and their families."""

EMBEDDED_FOLDER = Path(str(files("bifrons") / "nano" / "weights"))
"""Packaged data: one folder for each embedded model. An installation may leave it out."""

_DOWNLOADED = ["*.json", "*.safetensors", "pytorch_model*.bin"]


@dataclass(frozen=True)
class ModelFolder:
    """A model on disk: the `name` by which the user asked for it, and the `path` of its folder."""

    name: str
    path: Path

    @cached_property
    def config(self) -> Section:
        """The content of `config.json`, read once. Raises `ConfigError`, also for what
        `check_config` refuses."""
        section = read_section(self.path / "config.json")
        check_config(section)
        return section


def open_model(model: str | Path | ModelFolder) -> ModelFolder:
    """The folder of a model; see `find_model_folder`. An open one is returned as it is."""
    return model if isinstance(model, ModelFolder) else ModelFolder(str(model), find_model_folder(model))


def find_model_folder(model: str | Path) -> Path:
    """The local folder of a model: a folder, the name of an embedded model or a hub id (`owner/name`).

    A folder on disk wins over a name. A hub id is downloaded once into the hub's cache. Raises
    `CheckpointError`.
    """
    path = Path(os.path.expanduser(model))
    if os.path.isdir(path):
        try:
            os.listdir(path)
        except OSError as error:
            raise CheckpointError(f"{path} can't be read: {error.strerror}") from error
        check_folder(path)
        return path
    if os.path.isfile(path):
        check_path(path)
    name = str(model)
    if name in EMBEDDED and (EMBEDDED_FOLDER / name).is_dir():
        return EMBEDDED_FOLDER / name
    if isinstance(model, Path) or name.count("/") != 1 or ":" in name or name.startswith((".", "/", "~")):
        embedded = ", ".join(sorted(n for n in EMBEDDED if (EMBEDDED_FOLDER / n).is_dir()))
        raise CheckpointError(
            f"no folder {shown(name)}; accepted: a model folder, a hub id such as deepseek-ai/Janus-Pro-1B, "
            f"or an embedded model ({embedded}){name_hint(name)}"
        )
    return _download(name)


def _download(repo_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo_id, allow_patterns=_DOWNLOADED))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{repo_id!r} is no local folder and could not be fetched from the hub: {first_line}. "
            "Without a network, give the folder that holds the files"
        ) from error
