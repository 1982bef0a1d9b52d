"""Completion in the shells themselves: what is typed, and what stands there after a tabulator."""

import os
import re
import select
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from bifrons.apps.cli import completion
from bifrons.apps.cli.parsers import build_parser
from bifrons.blocks.kernels.codec import KINDS
from bifrons.eval.read.benchmarks import BENCHMARKS
from bifrons.eval.runs.recipe import SUITES

CASES = {
    "bifrons gener": "bifrons generate",
    "bifrons eval ju": "bifrons eval judge",
    "bifrons generate x --guid": "bifrons generate x --guidance-scale",
    "bifrons ask hea": "bifrons ask hearts.png",
    "bifrons generate x -o hea": "bifrons generate x -o hearts.png",
    "bifrons eval run -R hd": "bifrons eval run -R hdir/",
    "bifrons convert x y --quantize fp": "bifrons convert x y --quantize fp8",
    "bifrons ask x --exif ap": "bifrons ask x --exif apply",
    "bifrons ask x -m janus-n": "bifrons ask x -m janus-nano",
}
SETUP = {
    "bash": (["bash", "--norc", "-i"], 'eval "$(bifrons completion bash)"'),
    "zsh": (["zsh", "-f", "-i"], 'autoload -Uz compinit; compinit -u; eval "$(bifrons completion zsh)"'),
    "tcsh": (["tcsh", "-f"], "bifrons completion tcsh > c.tcsh; source c.tcsh"),
}
LIMIT = 60  # seconds, against hangs only


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The shells' folder, with things to complete; `bifrons` is the one under test."""
    (tmp_path / "hdir").mkdir()
    (tmp_path / "hearts.png").touch()
    program = tmp_path / "bin" / "bifrons"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m bifrons "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("TERM", "vt100")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def need(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")


class Terminal:
    """A shell in a pseudo-terminal."""

    def __init__(self, words: list[str]) -> None:
        import fcntl
        import pty
        import termios

        self.fd, ours = pty.openpty()
        streams: Any = {"stdin": ours, "stdout": ours, "stderr": ours}
        take = partial(fcntl.ioctl, 0, termios.TIOCSCTTY, 0)
        self.process = subprocess.Popen(words, **streams, start_new_session=True, preexec_fn=take)
        os.close(ours)

    def type(self, text: str, until: str) -> str:
        """What is shown after these keys, once `until` is in it; then the line is cleared."""
        os.write(self.fd, text.encode())
        shown, end = "", time.monotonic() + LIMIT
        while until not in shown and time.monotonic() < end:
            if select.select([self.fd], [], [], 0.1)[0]:
                new = os.read(self.fd, 1 << 16).decode(errors="replace")
                shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[>=]|.\x08|[\0\r\x07]", "", shown + new)
        os.write(self.fd, b"\x15")
        return shown

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.fd)


@pytest.mark.parametrize("shell", SETUP)
def test_a_tabulator_completes(folder: Path, shell: str) -> None:
    need(shell)
    words, setup = SETUP[shell]
    terminal = Terminal(words)
    try:
        assert "\nready" in terminal.type(f"{setup}; echo ready\n", "\nready")
        for typed, expected in CASES.items():
            if shell == "tcsh" and "-m" in typed:  # which completes folders only there
                continue
            assert expected in terminal.type(f"{typed}\t", expected), typed
    finally:
        terminal.close()


def test_fish_completes(folder: Path) -> None:
    need("fish")
    asked = "".join(f"; echo =; complete -C '{typed}'" for typed in CASES)
    words = ["fish", "--no-config", "-c", f"bifrons completion fish | source{asked}"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT)
    offered = [{line.split("\t")[0] for line in part.split("\n")} for part in done.stdout.split("=\n")[1:]]
    for (typed, expected), words in zip(CASES.items(), offered, strict=True):
        assert expected.rpartition(" ")[2] in words, typed


def test_the_words_are_those_that_are_accepted() -> None:
    assert set(completion.WORDS["suite"]) == set(SUITES)
    assert set(completion.WORDS["quantize"]) == set(KINDS)
    assert set(completion.WORDS["benchmark"]) == set(BENCHMARKS)


def test_a_shell_starts_quickly() -> None:
    """Neither torch nor anything else that takes long is imported for the script."""
    program = (
        "import sys; from bifrons.apps.cli.main import main\n"
        "for shell in ('bash', 'zsh', 'fish'): assert main(['completion', shell]) == 0\n"
        "heavy = {'torch', 'numpy', 'PIL', 'transformers', 'gradio'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, done.stderr


def test_every_argument_that_is_a_path_is_completed_as_one() -> None:
    def paths(parser) -> set[str]:
        found = {action.metavar for action in parser._actions if action.type is Path}
        groups = parser._subparsers._group_actions if parser._subparsers else []
        return found.union(*(paths(child) for group in groups for child in group.choices.values()))

    assert {"FILE", "R", "RUN"} <= paths(build_parser()) <= {*completion.FILES, *completion.FOLDERS}
