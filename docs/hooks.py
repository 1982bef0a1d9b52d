"""Hooks of mkdocs: shows mkdocstrings the package in a form that its parser can follow.

The package's top folders hold no `__init__.py` (CONTRIBUTING.md says why), and griffe passes such folders by.
So it reads a copy with empty ones, in a temporary folder.
"""

import shutil
import tomllib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mkdocs.plugins import event_priority

ROOT = Path(__file__).parent.parent
_copy = TemporaryDirectory(prefix="bifrons-docs-")


@event_priority(100)  # before mkdocstrings reads the paths
def on_config(config: Any) -> Any:
    """Copy the sources, and name the copy to mkdocstrings."""
    target = Path(_copy.name)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    for package in project["tool"]["setuptools"]["packages"]:
        parts = package.split(".")
        folder = target.joinpath(*parts)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "__init__.py").touch()
        for path in ROOT.joinpath(*parts[1:]).glob("*.py"):
            shutil.copyfile(path, folder / path.name)
    config.plugins["mkdocstrings"].config["handlers"]["python"]["paths"] = [str(target)]
    return config


def on_shutdown() -> None:
    """Delete the copy."""
    _copy.cleanup()
