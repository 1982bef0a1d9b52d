"""Finding a model's folder by its path, its embedded name or its hub id."""

import os
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..foreign_files import check_config, check_folder, check_path, is_hub_id, name_hint
from ..hub_download import download
from ..json_config import Section, read_section, shown

EMBEDDED = {"janus-nano": "Janus", "vl2-nano": "DeepSeek-VL2"}
"""The small models that the package carries, and their families."""

EMBEDDED_FOLDER = Path(str(files("bifrons") / "nano" / "weights"))
"""Packaged data: one folder for each embedded model. An installation may leave it out."""


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


def open_model(model: str | Path | ModelFolder, revision: str | None = None, **options: Any) -> ModelFolder:
    """The folder of a model; see `find_model_folder`. An open one is returned as it is."""
    if isinstance(model, ModelFolder):
        return model
    name = str(model) if revision is None else f"{model}@{revision}"
    return ModelFolder(name, find_model_folder(model if revision is None else name, **options))


def find_model_folder(model: str | Path, **options: Any) -> Path:
    """The local folder of a model: a folder, the name of an embedded model or a hub id (`owner/name`, or
    `owner/name@revision`).

    A folder on disk wins over a name. A hub id is downloaded once into the hub's cache, with the `options` of
    `huggingface_hub.snapshot_download`. Raises `CheckpointError`.
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
    if isinstance(model, Path) or not is_hub_id(name):
        embedded = ", ".join(sorted(n for n in EMBEDDED if (EMBEDDED_FOLDER / n).is_dir()))
        raise CheckpointError(
            f"no folder {shown(name)}; accepted: a model folder, a hub id such as deepseek-ai/Janus-Pro-1B, "
            f"or an embedded model ({embedded}){name_hint(name)}"
        )
    folder = download(name, **options)
    check_folder(folder)
    return folder
