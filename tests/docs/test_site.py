"""The documentation as a whole: the site builds without a warning; links, tables and cli.md are right."""

# pyright: reportMissingImports=false
import re
import runpy
import subprocess
import sys
from pathlib import Path

import bifrons
import pytest
import torch
from bifrons.blocks.checkpoints.quantize import keep_no_float32
from bifrons.blocks.placement.memory_budget import size_text
from bifrons.blocks.placement.memory_estimate import model_bytes, parameters_by_part
from bifrons.eval.bench.configs import pick_config
from bifrons.janus import variants as janus_variants
from bifrons.janus.config import JanusConfig
from bifrons.janus.model import JanusModel
from bifrons.vl2 import variants as vl2_variants
from bifrons.vl2.model import VL2Model
from bifrons.vl2.weight_names import keep_float32

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
MODELS = {
    "janus-nano": ("janus", "nano"),
    "Janus-Pro-1B": ("janus", "1b"),
    "Janus-Pro-7B": ("janus", "7b"),
    "vl2-nano": ("vl2", "nano"),
    "deepseek-vl2-tiny": ("vl2", "tiny"),
    "deepseek-vl2-small": ("vl2", "small"),
    "deepseek-vl2": ("vl2", "base"),
}


def test_the_site_is_built_without_a_warning(tmp_path) -> None:
    """All links and anchors are whole, and the API's docstrings are read."""
    pytest.importorskip("mkdocs", reason="needs the extra docs")
    environment = {"NO_MKDOCS_2_WARNING": "1", "PATH": "", "HOME": str(tmp_path)}
    words = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "--site-dir",
        str(tmp_path / "site"),
    ]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr == done.stdout == ""
    api = (tmp_path / "site" / "api" / "index.html").read_text("utf-8")
    for name in set(bifrons.__all__) - {"__version__"}:
        assert f'id="bifrons.{name}"' in api, name
    assert 'id="bifrons.JanusPipeline.generate"' in api
    assert 'id="bifrons.VL2Pipeline.ask"' in api, "inherited methods are listed"
    for page in (tmp_path / "site").rglob("*.html"):
        loaded = re.findall(r'<(?:script|img|link)[^>]* (?:src|href)="?https?:', page.read_text("utf-8"))
        assert loaded == [], f"{page} loads from another host"


def test_the_page_of_commands_is_current() -> None:
    written = runpy.run_path(str(ROOT / "docs" / "write_cli_page.py"))["page"]()
    assert (ROOT / "docs" / "cli.md").read_text("utf-8") == written, "run `make docs-help`"


def anchors(text: str) -> set[str]:
    """Those of a page's headings."""
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"])
def test_links_of_the_root_pages_are_whole(page: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match("[a-z]+:", target):
            name, _, anchor = target.partition("#")
            path = ROOT / (name or page)
            assert path.exists(), f"{page}: {target}"
            assert not anchor or anchor in anchors(path.read_text("utf-8")), f"{page}: {target}"


def test_every_page_is_reached_from_the_readme() -> None:
    """Also where nobody builds the site."""
    for path in (ROOT / "docs").glob("*.md"):
        if path.stem not in ("index", "api", "janus-nano", "vl2-nano"):
            assert f"(docs/{path.name})" in README, path.name


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 120


def sizes(family: str, size: str) -> tuple[int, dict[str, int]]:
    """Parameters; bytes of weights by their form, and of 1 and 16 pictures or conversations in bfloat16."""
    config = pick_config(family, size, None)
    variants, keep = (janus_variants, keep_no_float32) if family == "janus" else (vl2_variants, keep_float32)
    with torch.device("meta"):
        model = JanusModel(config) if isinstance(config, JanusConfig) else VL2Model(config)
    work = variants.workloads(config)[0]  # type: ignore[arg-type]
    found = {"float32": model_bytes(model, torch.float32, None, keep)}
    for kind in (None, "int8", "fp8", "int4"):
        found[kind or "bfloat16"] = model_bytes(model, torch.bfloat16, kind, keep)
    for batch in (1, 16):
        found[str(batch)] = sum(of(batch, torch.bfloat16) for of in (work.cache_bytes, work.activation_bytes))
    return sum(parameters_by_part(model, variants.PARTS).values()), found


@pytest.mark.parametrize("name", MODELS)
def test_memory_in_the_tables_is_what_info_computes(name: str) -> None:
    count, needs = sizes(*MODELS[name])
    texts = {key: size_text(value) for key, value in needs.items()}
    parameters = f"{count / 1e9:.1f} B" if count > 1e9 else f"{count / 1e6:.0f} M"
    (row,) = re.findall(rf"^\| `(?:deepseek-ai/)?{name}`.*$", README, re.MULTILINE)
    cells = [cell.strip() for cell in row.split("|")[3:-1]]
    assert cells[0].partition(" (")[0] == parameters
    assert cells[1:] == [texts["bfloat16"], texts["int4"], texts["1"]]
    official = name.replace("deepseek-vl2", "DeepSeek-VL2").replace("tiny", "Tiny").replace("small", "Small")
    table = (ROOT / "docs" / "models.md").read_text("utf-8").partition("## Memory")[2]
    (row,) = re.findall(rf"^\| `?{official}`?(?:, [^|]*)? \|.*$", table, re.MULTILINE)
    cells = [cell.strip() for cell in row.split("|")[2:-1]]
    assert cells == [parameters, *(texts[key] for key in ("float32", "bfloat16", "int8", "int4", "1", "16"))]
    assert texts["int8"] == texts["fp8"]
