"""Running a command in this process, and damaged copies of the small checkpoints."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from bifrons.apps.cli import main

MODEL_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "processor_config.json",
    "preprocessor_config.json",
    "model.safetensors",
)


@dataclass(frozen=True)
class Result:
    status: int
    out: str
    err: str


@pytest.fixture
def bifrons(capsys) -> Callable[..., Result]:
    """`bifrons("info", folder)`: the status and both outputs of one command."""

    def run(*argv: object) -> Result:
        capsys.readouterr()
        status = main([str(word) for word in argv])
        return Result(status, *capsys.readouterr())

    return run


@pytest.fixture
def refused(bifrons) -> Callable[..., str]:
    """The message of a command that must fail with one line of error and nothing else."""

    def run(*argv: object) -> str:
        result = bifrons(*argv)
        assert result.status == 2
        assert result.out == ""
        lines = [line for line in result.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1
        assert "Traceback" not in result.err
        return result.err[result.err.index("error: ") :]

    return run


@pytest.fixture
def folder(janus_mini: Path, tmp_path: Path) -> Path:
    """A copy of the small Janus checkpoint, to be damaged."""
    target = tmp_path / "model"
    target.mkdir()
    for name in MODEL_FILES:
        shutil.copyfile(janus_mini / name, target / name)
    return target


@pytest.fixture
def vl2_mini() -> Path:
    return Path(__file__).parent.parent / "data" / "vl2-mini-mla"
