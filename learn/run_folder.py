"""A run's folder: its settings, with which alone a run goes on, and its log."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..blocks.errors import OptionError, ResourceError, shown
from ..blocks.files import atomic_write, read_bounded
from ..blocks.json_config import TABLE_BYTES, decode_json

SETTINGS, LOG = "run.json", "log.jsonl"


def open_run(folder: Path, settings: Mapping[str, Any]) -> bool:
    """Make the folder of a new run, or find that it is the one of these settings; whether it was there.

    Raises `OptionError` for a folder of another run or of other files, and `ResourceError` if it can't be
    written.
    """
    settings = json.loads(json.dumps(settings))  # as they are read again
    stored = read_settings(folder)
    if stored is not None:
        for name in sorted(stored.keys() | settings.keys()):
            if stored.get(name) != settings.get(name):
                before, now = shown(stored.get(name)), shown(settings.get(name))
                raise OptionError(
                    f"{folder} is a run with {name} {before}, not {now}; accepted: the same settings, or "
                    "another folder"
                )
        return True
    if folder.is_dir() and any(folder.iterdir()):
        raise OptionError(f"{folder} holds other files; accepted: a new or empty folder, or that of a run")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / SETTINGS) as stream:
            stream.write(json.dumps(settings, indent=2).encode() + b"\n")
    except OSError as error:
        raise ResourceError(f"can't write {folder / SETTINGS}: {error.strerror or error}") from error
    return False


def read_settings(folder: Path) -> dict[str, Any] | None:
    """The settings of the run in a folder, or None. Raises `ResourceError` if the file is damaged."""
    path = folder / SETTINGS
    if not os.path.lexists(path):
        return None
    try:
        stored = decode_json(read_bounded(path, TABLE_BYTES))
    except (OSError, ValueError) as error:
        raise ResourceError(f"{path} can't be read: {error}") from error
    if not isinstance(stored, dict):
        raise ResourceError(f"{path} is no run's: it holds no object")
    return stored


def append_log(folder: Path, figures: Mapping[str, float]) -> None:
    """Add a step's figures to the log."""
    with (folder / LOG).open("a", encoding="utf-8") as log:
        log.write(json.dumps(dict(figures)) + "\n")


def cut_log(folder: Path, step: int) -> None:
    """Remove the lines after a step, from which the run goes on, and a line that was cut off."""
    path = folder / LOG
    if not path.exists():
        return
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            if line.endswith("\n") and json.loads(line)["step"] <= step:
                lines.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    with atomic_write(path) as stream:
        stream.write("".join(lines).encode())
