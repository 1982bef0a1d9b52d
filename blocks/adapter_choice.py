"""How adapters are named to commands: `FOLDER[:SCALE]`, in a server also `NAME=FOLDER[:SCALE]`."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from .errors import OptionError, check_number

_NAME = re.compile(r"[\w.:-]{1,100}")
NAME_TEXT = "up to 100 letters, digits and . _ - :"
"""The names of adapters, in words."""


@dataclass(frozen=True)
class AdapterChoice:
    """An adapter to load: its folder, the scale of its changes, and its name, by default the folder's."""

    folder: Path
    scale: float = 1.0
    name: str | None = None

    @property
    def shown_name(self) -> str:
        """The name under which it is loaded."""
        return self.name or self.folder.absolute().name

    def __str__(self) -> str:
        return f"{self.folder.absolute()}:{self.scale:g}"


def parse_adapter(text: str) -> AdapterChoice:
    """`FOLDER` or `FOLDER:SCALE`. Raises `OptionError` for a folder that there isn't, and another scale."""
    folder, sign, number = text.rpartition(":")
    path = Path(text).expanduser()
    if os.path.isdir(path) or not sign:
        scale = 1.0
    else:
        path = Path(folder).expanduser()
        try:
            scale = check_number("adapter's scale", float(number))
        except ValueError:
            accepted = f"FOLDER, or FOLDER:SCALE such as {folder}:0.8"
            raise OptionError(f"adapter is {text!r}; accepted: {accepted}") from None
    if not os.path.isdir(path):
        accepted = "FOLDER or FOLDER:SCALE, of an adapter in PEFT's format"
        raise OptionError(f"adapter is {text!r}, but there is no folder {path}; accepted: {accepted}")
    return AdapterChoice(path, scale)


def is_name(text: str) -> bool:
    """Whether an adapter may have this name."""
    return _NAME.fullmatch(text) is not None


def parse_named_adapter(text: str) -> AdapterChoice:
    """`NAME=FOLDER[:SCALE]`, or what `parse_adapter` takes. Raises `OptionError`."""
    name, sign, rest = text.partition("=")
    if not sign or os.path.isdir(Path(text).expanduser()):
        return parse_adapter(text)
    if not is_name(name):
        accepted = "NAME=FOLDER, with letters, digits and . _ - : in NAME"
        raise OptionError(f"adapter is {text!r}; accepted: {accepted}")
    choice = parse_adapter(rest)
    return AdapterChoice(choice.folder, choice.scale, name)
