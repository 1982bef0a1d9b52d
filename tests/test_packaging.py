"""What is declared, what a wheel holds, and that the files around the package agree with each other."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import bifrons
import pytest
import yaml

ROOT = Path(bifrons.__file__).parent
FOLDERS = ("blocks", "tokenizers", "text", "janus", "vl2", "learn", "nano", "eval", "scale", "apps")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
IMPORTED_AS = {"pillow": "PIL", "opencv-python-headless": "cv2"}
OPTIONAL = {
    "triton": "a part of torch on Linux, imported where it is there",
    "lmms_eval": "imports us by an entry point",
    "vllm": "a peer that `bifrons bench` measures where it is installed",
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
    extras = [item for name in ("eval", "scale", "train", "world") for item in EXTRAS[name]]
    declared = {import_name(item) for item in (*PROJECT["dependencies"], *extras)}
    names = {name for folder in FOLDERS for path in (ROOT / folder).rglob("*.py") for name in imported(path)}
    assert names - declared - set(OPTIONAL) == set()


REQUIREMENTS = [*PROJECT["dependencies"], *(item for extra in EXTRAS.values() for item in extra)]


@pytest.mark.parametrize("requirement", [item for item in REQUIREMENTS if not item.startswith("bifrons[")])
def test_every_dependency_has_a_lower_bound(requirement: str) -> None:
    assert re.search(r">=\d", requirement)


def test_http_is_parsed_strictly() -> None:
    """h11 before 0.16 accepted malformed chunks (CVE-2025-43859)."""
    assert "h11>=0.16" in PROJECT["dependencies"]


def test_extras_are_what_the_code_and_its_developers_need() -> None:
    """`dev` brings the others, so that a checkout has everything; transformers needs no extra."""
    assert {"eval", "dev"} <= set(EXTRAS)
    assert any(re.match(r"transformers>=5", item) for item in PROJECT["dependencies"])
    own = next(item for item in EXTRAS["dev"] if item.startswith("bifrons["))
    assert set(own[len("bifrons[") : -1].split(",")) == set(EXTRAS) - {"dev"}
    assert all(EXTRAS.values())


def test_versions_agree() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert PROJECT["version"] == bifrons.__version__ == citation["version"]
    assert citation["license"] == PROJECT["license"]


def test_addresses_are_those_of_pages_that_exist() -> None:
    """Those of the models and of the benchmark; the project has no page of its own yet."""
    owners = {url.split("/")[3] for url in PROJECT["urls"].values()}
    assert owners == {"deepseek-ai", "djghosh13"}
    assert "repository-code" not in yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))


def test_supported_versions_of_python_are_tested() -> None:
    prefix = "Programming Language :: Python :: 3."
    named = [int(item.removeprefix(prefix)) for item in PROJECT["classifiers"] if item.startswith(prefix)]
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    assert PROJECT["requires-python"] == f">=3.{named[0]}"
    assert workflow["jobs"]["test"]["strategy"]["matrix"]["python"] == [f"3.{minor}" for minor in named]


def test_workflows_match_githubs_schema() -> None:
    workflows = sorted((ROOT / ".github/workflows").glob("*.yml"))
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows"]
    done = subprocess.run([*command, *map(str, workflows)], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr


def test_changelog_keeps_its_form() -> None:
    """Keep a changelog: a section for what isn't released, then one per version, with its date."""
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", item) for item in headings[1:])


def test_container_has_a_user_a_health_check_and_only_the_package() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    stages = re.split(r"^FROM ", dockerfile, flags=re.MULTILINE)[1:]
    names = [stage.splitlines()[0].rpartition(" AS ")[2] for stage in stages]
    assert names == ["wheel", "base", "cpu", "cuda"]
    assert all(re.search(r"^USER [1-9]\d*$", stage, re.MULTILINE) for stage in stages[2:])
    assert "HEALTHCHECK" in stages[1]
    assert "/health" in stages[1]
    wanted = {*FOLDERS, "README.md", "LICENSE", "pyproject.toml", "__init__.py", "py.typed"}
    ignore = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert {line[1:] for line in ignore if line.startswith("!")} == wanted


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the package's files; weights stand in as empty files."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "__init__.py", "__main__.py", "py.typed"):
        shutil.copy(ROOT / name, source)
    for name in (*FOLDERS, "tests"):
        weights = ["*.safetensors"] if name == "nano" else []
        skipped = shutil.ignore_patterns("__pycache__", "data", *weights)
        shutil.copytree(ROOT / name, source / name, ignore=skipped)
    for path in (ROOT / "nano/weights").rglob("*.safetensors"):
        (source / path.relative_to(ROOT)).touch()
    return build(source, "build_wheel(sys.argv[1])", folder, "-W", "error::UserWarning")


def build(source: Path, call: str, folder: Path, *flags: str) -> Path:
    """The wheel that a call of setuptools builds in a folder; `flags` are Python's."""
    code = f"import sys; from setuptools import build_meta; build_meta.{call}"
    command = [sys.executable, *flags, "-c", code, str(folder)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "would be ignored" not in done.stdout + done.stderr
    return next(folder.glob("*.whl"))


def test_static_tools_see_a_strict_editable_install(wheel: Path, tmp_path: Path) -> None:
    """As docs/troubleshooting.md has it: a .pth file leads them to a folder that holds the package."""
    call = "build_editable(sys.argv[1], {'editable_mode': 'strict'})"
    with zipfile.ZipFile(build(wheel.parent / "source", call, tmp_path)) as archive:
        (name,) = (item for item in archive.namelist() if item.endswith(".pth"))
        folder = Path(archive.read(name).decode().strip())
    assert {path.name for path in folder.iterdir()} == {"bifrons"}
    for file in ("__init__.py", "py.typed", "vl2/grounding.py", "apps/demo/page.css"):
        assert (folder / "bifrons" / file).is_file()
    text = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    assert "pip install --editable . --config-settings editable_mode=strict" in text


def test_type_checkers_trust_the_modules_that_are_documented() -> None:
    """They look for py.typed beside a module below a namespace package."""
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").glob("*.py")]
    texts = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    modules = set(re.findall(r"^(?:from bifrons|::: bifrons)((?:\.[a-z_0-9]+)+)", texts, re.MULTILINE))
    assert {".vl2.grounding", ".eval.geneval.scoring"} <= modules
    paths = [ROOT / module[1:].replace(".", "/") for module in modules]
    files = [path if path.with_suffix(".py").exists() else path.parent for path in paths]
    folders = {file.parent for file in files if file != ROOT}
    assert [folder for folder in folders if not (folder / "py.typed").exists()] == []


def test_a_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    found = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()]
    files = {path.relative_to(ROOT) for path in found if "__pycache__" not in path.parts}
    files |= {Path("__init__.py"), Path("__main__.py"), Path("py.typed")}
    assert names == {f"bifrons/{path.as_posix()}" for path in files}


def test_a_wheel_tells_about_itself(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (item for item in archive.namelist() if item.endswith(".dist-info/METADATA"))
        metadata = archive.read(name).decode()
    assert "License-Expression: MIT\n" in metadata
    assert "Project-URL: Janus, https://" in metadata
    assert "Requires-Dist: transformers>=5\n" in metadata


def test_lock_file_is_of_these_dependencies_and_from_pypi() -> None:
    text = (ROOT / "uv.lock").read_text(encoding="utf-8")
    assert set(re.findall(r"https?://([^/\"]+)", text)) == {"pypi.org", "files.pythonhosted.org"}
    (own,) = (item for item in tomllib.loads(text)["package"] if item["name"] == "bifrons")
    locked = {item["name"] + item.get("specifier", "") for item in own["metadata"]["requires-dist"]}
    assert {item.replace("_", "-") for item in PROJECT["dependencies"]} <= locked
