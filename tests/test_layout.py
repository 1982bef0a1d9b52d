"""The house rules that a machine can check: folders, packages, imports, file lengths, public names."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import bifrons
import pytest

ROOT = Path(bifrons.__file__).parent
FOLDERS = ("blocks", "janus", "vl2", "tokenizers", "apps", "nano", "eval")
MAY_IMPORT = {
    "blocks": {"blocks", "tokenizers"},
    "tokenizers": {"blocks", "tokenizers"},
    "janus": {"blocks", "tokenizers", "janus"},
    "vl2": {"blocks", "tokenizers", "vl2"},
    "nano": {"blocks", "tokenizers", "janus", "vl2", "nano"},
    "eval": {"blocks", "tokenizers", "janus", "vl2", "nano", "eval"},
    "apps": set(FOLDERS),
}
MODULES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def test_folders_hold_no_init_file() -> None:
    """With one, a process started in the root would import our `tokenizers` in place of Hugging Face's."""
    assert [folder for folder in FOLDERS if (ROOT / folder / "__init__.py").exists()] == []


def test_packages_are_the_folders_on_disk() -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    on_disk = {f"bifrons.{path.parent.relative_to(ROOT).as_posix().replace('/', '.')}" for path in MODULES}
    assert set(packages) == {"bifrons", *on_disk, *(f"bifrons.{folder}" for folder in FOLDERS)}


def test_the_root_holds_one_module() -> None:
    assert [path.name for path in ROOT.glob("*.py")] == ["__init__.py"]


def test_hugging_faces_tokenizers_wins_in_the_root() -> None:
    code = "import tokenizers; print(tokenizers.__version__)"
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).returncode == 0
    )


def relative_targets(path: Path) -> set[str]:
    """Top folders of the project that a module imports, from its relative imports."""
    folder, found = path.relative_to(ROOT).parent.parts, set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = folder[: len(folder) - node.level + 1]
            parts = (*base, *(node.module.split(".") if node.module else ()))
            found.add(parts[0] if parts else node.names[0].name)
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    folder = path.relative_to(ROOT).parts[0]
    assert relative_targets(path) <= MAY_IMPORT[folder]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_stay_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 360


def test_importing_the_package_is_cheap() -> None:
    code = "import sys, bifrons; dir(bifrons); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT.parent).returncode == 0


def test_public_names() -> None:
    assert sorted(bifrons.__all__) == PUBLIC
    for name in PUBLIC:
        assert getattr(bifrons, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Pipeline'"):
        bifrons.Pipeline  # noqa: B018


PUBLIC = [
    "BifronsError",
    "Box",
    "CheckpointError",
    "ConfigError",
    "JanusPipeline",
    "OptionError",
    "PictureError",
    "PromptError",
    "VL2Pipeline",
    "__version__",
]
