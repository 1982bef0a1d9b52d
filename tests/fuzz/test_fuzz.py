"""A few hundred cases of every kind of hostile input, and faults on purpose that must be found."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

FUZZ, ROOT = Path(__file__).parent, Path(__file__).parents[2]
CASES = {"safetensors": 90, "bin": 60, "json": 25, "tokenizers": 60, "pictures": 240}
CASES |= {"settings": 25, "special": 25, "requests": 50, "adapters": 40}
"""About two minutes of them on two cores, with what they start."""
FAULTS = ("crash", "traceback", "hang", "over memory")


def fuzz(keep: Path, *words: object) -> tuple[int, str]:
    """The status and the output of `python tests/fuzz`."""
    command = [sys.executable, str(FUZZ), "--keep", str(keep), *map(str, words)]
    ended = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    return ended.returncode, ended.stdout + ended.stderr[-3000:]


def counts(text: str, kind: str) -> dict[str, int]:
    """The row of a kind in the table."""
    names = ("cases", "accepted", "refused", *FAULTS)
    row = re.search(rf"^{kind}((?: +\d+){{{len(names)}}}) ", text, re.MULTILINE)
    assert row, text
    return dict(zip(names, map(int, row[1].split()), strict=True))


def test_every_planted_fault_is_found(tmp_path):
    status, text = fuzz(tmp_path, "planted", "--cases", 12)
    expected = {
        "cases": 12,
        "accepted": 1,
        "refused": 1,
        "crash": 3,
        "traceback": 2,
        "hang": 2,
        "over memory": 3,
    }
    assert counts(text, "planted") == expected, text
    assert status == 1
    assert "python tests/fuzz planted --seed 0 --first 4 --cases 1" in text
    assert "SIGABRT" in (tmp_path / "planted-0-4" / "fault.txt").read_text()


def test_every_planted_fault_of_a_server_is_found(tmp_path):
    status, text = fuzz(tmp_path, "planted-requests", "--cases", 8, "--workers", 1)
    expected = {
        "cases": 8,
        "accepted": 1,
        "refused": 1,
        "crash": 1,
        "traceback": 3,
        "hang": 1,
        "over memory": 1,
    }
    assert counts(text, "planted-requests") == expected, text
    assert status == 1


@pytest.mark.parametrize("kind", CASES)
def test_hostile_inputs_are_read_or_refused(kind, tmp_path):
    """With a fixed seed; `make fuzz` runs others."""
    status, text = fuzz(tmp_path, kind, "--cases", CASES[kind], "--seed", 0)
    row = counts(text, kind)
    assert status == 0, text
    assert row["cases"] == row["accepted"] + row["refused"] == CASES[kind], text
    assert min(row["accepted"], row["refused"]) >= 1, text
