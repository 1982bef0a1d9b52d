"""The laws of the layout that a machine can check: rooms, imports, lengths, names and packages."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import bifrons
import pytest

ROOT = Path(bifrons.__file__).parent
FOLDERS = ("blocks", "tokenizers", "text", "janus", "vl2", "learn", "nano", "eval", "scale", "apps")
ROOMS = (
    "blocks",
    "blocks.kernels",
    "blocks.model",
    "tokenizers",
    "tokenizers.vq",
    "blocks.checkpoints",
    "blocks.conversion",
    "blocks.placement",
    "blocks.sampling",
    "blocks.graphs",
    "blocks.engine",
    "blocks.chat",
    "text",
    "janus",
    "vl2",
    "learn",
    "nano.world",
    "nano.recipes",
    "eval",
    "scale",
    "eval.geneval",
    "eval.suites",
    "eval.runs",
    "eval.report",
    "eval.judges",
    "eval.math",
    "learn.rewards",
    "eval.read",
    "eval.bench",
    "eval.nano",
    "apps",
    "apps.server",
    "scale.serve",
    "apps.demo",
    "apps.cli",
)
"""Every room may import those before it."""
APART = {"janus", "vl2"}
"""These two never import each other."""
CORE = (
    "blocks/model",
    "blocks/checkpoints",
    "blocks/engine",
    "blocks/sampling",
    "blocks/chat",
    "tokenizers",
    "janus",
    "vl2",
)
FAST_PATHS = tuple(f"tokenizers/vq/{name}.py" for name in ("fused_cuda", "operations", "triton_kernels"))
CORE_BUDGET, FILE_LINES, FUNCTION_LINES = 7700, 300, 50
RETIRED = {
    "station", "store", "voice", "dials", "choosing", "lodger", "lodging", "let_in", "ask_ahead", "no_eye",
    "no_hand", "looker", "things_to_see", "told", "mine", "kept",
}  # fmt: skip
"""Words of an older vocabulary; CHANGELOG.md has the terms that replaced them."""

MODULES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
NAMES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in MODULES}
each_module = pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))


def lines_of(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def room_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).parent.parts)


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes that are there at run time: what stands under `if TYPE_CHECKING` is not."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from statements(child)


def imported(path: Path, nodes: Iterator[ast.AST]) -> set[str]:
    """The project's modules that a module imports, by its relative imports, in functions too."""
    folder, found = path.relative_to(ROOT).parent.parts, set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.level:
            base = folder[: len(folder) - node.level + 1]
            parts = ".".join((*base, *(node.module.split(".") if node.module else ())))
            for name in node.names:
                full = f"{parts}.{name.name}" if parts else name.name
                found.add(full if full in NAMES else parts)
    return found


def test_top_folders_hold_no_init_file() -> None:
    """With one, a process started in the root would import our `tokenizers` in place of Hugging Face's."""
    assert [folder for folder in FOLDERS if (ROOT / folder / "__init__.py").exists()] == []


def test_rooms_below_have_an_init_file_of_a_docstring() -> None:
    for room in ROOMS:
        if "." in room:
            path = ROOT / room.replace(".", "/") / "__init__.py"
            tree = ast.parse(path.read_text(encoding="utf-8"))
            assert len(tree.body) == 1, path
            assert ast.get_docstring(tree), path


def test_packages_are_the_folders_on_disk() -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    on_disk = {room_of(path) for path in MODULES}
    assert on_disk == set(ROOMS)
    assert set(packages) == {"bifrons", *(f"bifrons.{room}" for room in {*on_disk, *FOLDERS})}


def test_the_root_holds_two_modules() -> None:
    assert sorted(path.name for path in ROOT.glob("*.py")) == ["__init__.py", "__main__.py"]


def test_hugging_faces_tokenizers_wins_in_the_root() -> None:
    code = "import tokenizers; print(tokenizers.__version__)"
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).returncode == 0
    )


@each_module
def test_imports_run_one_way(path: Path) -> None:
    """Imports for type checkers too."""
    room = room_of(path)
    allowed = set(ROOMS[: ROOMS.index(room) + 1])
    if room in APART:
        allowed -= APART - {room}
    targets = imported(path, ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    assert {room_of(NAMES[target]) for target in targets if target in NAMES} <= allowed


def test_there_is_no_circle_of_modules() -> None:
    graph = {
        name: imported(path, statements(ast.parse(path.read_text(encoding="utf-8")))) & set(NAMES)
        for name, path in NAMES.items()
    }
    while leaves := {name for name, targets in graph.items() if not targets & set(graph)}:
        for name in leaves:
            del graph[name]
    assert graph == {}


@each_module
def test_files_stay_short(path: Path) -> None:
    assert lines_of(path) <= FILE_LINES


def test_tests_stay_short() -> None:
    tests = [path for path in (ROOT / "tests").rglob("*.py") if lines_of(path) > FILE_LINES]
    assert tests == []


def test_tests_of_blocks_import_no_family() -> None:
    """Nor anything else above the blocks: they are tested with small decoders of their own."""
    for path in (ROOT / "tests" / "blocks").rglob("*.py"):
        modules = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules |= {name.name for name in node.names}
            elif isinstance(node, ast.ImportFrom):
                modules |= {node.module or ""} | {f"{node.module}.{name.name}" for name in node.names}
        folders = {module.split(".")[1] for module in modules if module.startswith("bifrons.")}
        assert folders & {"janus", "vl2", "learn", "nano", "eval", "scale", "apps"} == set(), path


@each_module
def test_functions_stay_short(path: Path) -> None:
    """But for the bodies of Triton kernels."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            kernel = any("triton" in ast.unparse(decorator) for decorator in node.decorator_list)
            assert kernel or (node.end_lineno or 0) - node.lineno < FUNCTION_LINES, node.name


@each_module
def test_public_names_have_docstrings(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            assert node.name.startswith("_") or ast.get_docstring(node), node.name


def defined_names(tree: ast.AST) -> Iterator[str]:
    """What a module names itself: functions, classes, arguments, variables, attributes and aliases."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.alias) and node.asname:
            yield node.asname
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


@each_module
def test_retired_words_are_gone(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    used = {re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower().strip("_") for name in defined_names(tree)}
    assert used & RETIRED == set()


def test_the_core_is_read_in_an_afternoon() -> None:
    fast = {ROOT / name for name in FAST_PATHS}
    assert all(path.exists() for path in fast)
    core = [path for folder in CORE for path in (ROOT / folder).rglob("*.py") if path not in fast]
    assert sum(map(lines_of, core)) <= CORE_BUDGET


def defined(path: Path) -> set[str]:
    """Names of a module: its functions, classes and variables, and the methods of its classes."""
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.ClassDef):
            methods = [n for n in node.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
            names |= {node.name, *(f"{node.name}.{method.name}" for method in methods)}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_files_and_names_in_the_documentation_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    mentioned = re.findall(r"`([\w/]+/\w+\.py)(?:: ([\w.]+))?`", text)
    assert len(mentioned) > 5
    for file, name in mentioned:
        assert (ROOT / file).is_file(), file
        assert not name or name in defined(ROOT / file), f"{file}: {name}"


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
    "GenerationStep",
    "JanusPipeline",
    "OptionError",
    "OutputFormat",
    "PictureError",
    "PromptError",
    "ResourceError",
    "TextPipeline",
    "VL2Pipeline",
    "__version__",
]
