"""Hooks of mkdocs: shows mkdocstrings the package in a form that its parser can follow.

The package's top folders hold no `__init__.py` (CONTRIBUTING.md says why), and griffe passes such folders by.
So it reads a copy with empty ones, in a temporary folder, in which the default of an argument that is a field
of an options class (`TextGenerationOptions.top_p`) is replaced by its value.
"""

import ast
import re
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
    _write_defaults(target)
    config.plugins["mkdocstrings"].config["handlers"]["python"]["paths"] = [str(target)]
    return config


def _write_defaults(target: Path) -> None:
    """Replace defaults that are fields of an options class by their values."""
    texts = {path: path.read_text(encoding="utf-8") for path in target.rglob("*.py")}
    values = {
        f"{node.name}.{field.target.id}": ast.unparse(field.value)
        for text in texts.values()
        if "Options:\n" in text
        for node in ast.parse(text).body
        if isinstance(node, ast.ClassDef) and node.name.endswith("Options")
        for field in node.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and field.value
    }
    for path, text in texts.items():
        written = re.sub(r"(?<= = )\w+Options\.\w+(?=[,\n])", lambda m: values.get(m[0], m[0]), text)
        if written != text:
            path.write_text(written, encoding="utf-8")


def on_shutdown() -> None:
    """Delete the copy."""
    _copy.cleanup()
