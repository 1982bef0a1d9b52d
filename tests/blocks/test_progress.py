"""Progress bars: for terminals, and elsewhere only when asked for."""

import sys
from pathlib import Path

import pytest
from bifrons.blocks.progress import byte_bar, progress_bar

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("wait", [0.0, 9.0])
@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("show", [True, False, None])
def test_a_bar_of_bytes_is_for_terminals_and_only_when_it_takes_long(
    capsys, monkeypatch, show, terminal, wait
):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    with byte_bar(2000, "loading weights", show) as bar:
        if not bar.disable:
            bar.start_t = bar.last_print_t = bar.start_t - wait
        bar.update(1000)
    shown = capsys.readouterr().err
    if wait and (show or (show is None and terminal)):
        assert "loading weights:  50%" in shown
        assert "1.00k/2.00k" in shown
    else:
        assert shown == ""


def test_the_variable_of_tqdm_turns_bars_off(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TQDM_DISABLE", "1")
    with progress_bar(2, "painting", " tokens") as bar:
        bar.update(2)
    assert capsys.readouterr().err == ""


def test_no_other_module_draws_bars():
    """`tqdm.write` and its lock are all that others use of it."""
    rooms = ("blocks", "janus", "vl2", "tokenizers", "nano", "eval", "scale", "apps", "learn")
    files = [path for room in rooms for path in (ROOT / room).rglob("*.py")]
    assert [path.name for path in files if "tqdm(" in path.read_text("utf-8")] == []
