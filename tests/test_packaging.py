"""What pyproject.toml declares: every import, and for each dependency the oldest version that works."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import bifrons
import pytest

ROOT = Path(bifrons.__file__).parent
FOLDERS = ("blocks", "tokenizers", "janus", "vl2", "nano", "eval", "apps")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
IMPORTED_AS = {"pillow": "PIL", "opencv-python-headless": "cv2"}
OPTIONAL = {
    "triton": "a part of torch on Linux, imported where it is there",
    "lmms_eval": "imports us by an entry point",
}


def import_name(requirement: str) -> str:
    name = re.split(r"[\[<>=!~; ]", requirement)[0]
    return IMPORTED_AS.get(name, name.replace("-", "_"))


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add((node.module or "").partition(".")[0])
    return names - set(sys.stdlib_module_names)


def test_every_import_is_declared() -> None:
    declared = {import_name(item) for item in (*PROJECT["dependencies"], *EXTRAS["eval"])}
    names = {name for folder in FOLDERS for path in (ROOT / folder).rglob("*.py") for name in imported(path)}
    assert names - declared - set(OPTIONAL) == set()


@pytest.mark.parametrize("requirement", [*PROJECT["dependencies"], *EXTRAS["test"], *EXTRAS["eval"]])
def test_every_dependency_has_a_lower_bound(requirement: str) -> None:
    assert re.search(r">=\d", requirement)


def test_http_is_parsed_strictly() -> None:
    """h11 before 0.16 accepted malformed chunks (CVE-2025-43859)."""
    assert "h11>=0.16" in PROJECT["dependencies"]
