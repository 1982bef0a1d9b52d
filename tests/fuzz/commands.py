"""Runs commands of the project in this process, as `bifrons` does, and judges their ends."""

import contextlib
import io
import re
from pathlib import Path

from bifrons.apps.cli.main import main
from bifrons.blocks.errors import BifronsError
from cases import MEMORY, TRACEBACK, Broken

DATA = Path(__file__).parent.parent / "data"
JANUS, VL2 = DATA / "janus-mini", DATA / "vl2-mini-mla"
_RAW = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x80-\x9f\u202a-\u202e\u2066-\u2069]")


def run_command(*argv: object) -> None:
    """Run one command. Raises BifronsError if it refuses, Broken for text that must not be printed."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([str(word) for word in argv])
    text = out.getvalue() + err.getvalue()
    # An answer is the model's own text.
    checked = err.getvalue() if argv[0] in ("ask", "locate") else text
    if found := _RAW.search(checked):
        around = checked[max(0, found.start() - 40) : found.end() + 20]
        raise Broken(TRACEBACK, f"{argv[0]} prints a control character as it is: {around!r}")
    if "Traceback (most recent call" in text:
        raise Broken(TRACEBACK, f"{argv[0]} prints a traceback: {text[-2000:]}")
    if "out of memory" in text:
        raise Broken(MEMORY, f"{argv[0]}: {err.getvalue()[-300:]}")
    if status not in (0, 1, 2):
        raise Broken(TRACEBACK, f"{argv[0]} has the status {status}")
    if status == 2 or (status == 1 and argv[0] != "info"):
        refusals = [line for line in err.getvalue().splitlines() if line.startswith(("error: ", "usage: "))]
        if not refusals:
            raise Broken(TRACEBACK, f"{argv[0]} refuses without a reason: {text[-300:]!r}")
        raise BifronsError(refusals[-1])


def run_commands(commands: list[list[object]]) -> None:
    """Run commands one after the other. Raises the last refusal, after all of them have run."""
    refusal = None
    for argv in commands:
        try:
            run_command(*argv)
        except BifronsError as error:
            refusal = error
    if refusal is not None:
        raise refusal


def warm_up() -> None:
    """Import and compute once what every worker would do in its first case."""
    for model in (JANUS, VL2):
        run_command("info", model)
        run_command("ask", "hello", "-m", model, "--eager", "--max-new-tokens", 1)


def link_folder(source: Path, target: Path, *but: str) -> Path:
    """A folder with links to the files of another one, but for some."""
    target.mkdir(exist_ok=True)
    for path in source.iterdir():
        if path.name not in but and not path.name.startswith(("figures", "keys")):
            (target / path.name).symlink_to(path)
    return target
