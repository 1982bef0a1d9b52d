"""The data of `bifrons train`: what `--data` names, and what is said about bad rows."""

import hashlib
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...blocks.errors import OptionError, counted
from ...blocks.files import atomic_write
from ...learn import validation
from ...learn.rows import Fault, Row, read_rows
from .inputs import user_path
from .long_work import FAILED, StoppedError

_SHOWN = 20
"""Bad rows that are printed; all are in RUN/bad-rows.jsonl."""


@dataclass(frozen=True)
class Source:
    """One `--data`: its rows to train on, those kept out, and what is wrong with others."""

    path: Path
    weight: float | None
    rows: list[Row]
    kept_out: list[Row]
    faults: list[Fault]

    @property
    def summary(self) -> dict[str, Any]:
        """What makes it the same data in another run."""
        rows = sorted(map(repr, [*self.rows, *self.kept_out]))
        digest = hashlib.sha256("\n".join(rows).encode()).hexdigest()
        return {"path": str(self.path), "weight": self.weight, "rows": len(rows), "sha256": digest}


def read_source(text: str, share: float, seed: int) -> Source:
    """The rows of `PATH[:WEIGHT]`, of which a share is kept out. Raises `OptionError`."""
    path, weight = parse_source(text)
    rows, faults = read_rows(path)
    if not rows:
        raise OptionError(f"no row of {path} can be used: {faults[0]}")
    trained, kept_out = validation.split(rows, share, seed)
    return Source(path, weight, trained, kept_out, faults)


def parse_source(text: str) -> tuple[Path, float | None]:
    """Path and weight of `PATH[:WEIGHT]`. Raises `OptionError`."""
    whole = user_path(text)
    name, colon, number = text.rpartition(":")
    if not colon or not name or whole.exists():
        return whole, None
    try:
        weight = float(number)
    except ValueError:
        return whole, None
    if not 0 < weight < math.inf:
        raise OptionError(f"data is {text!r}; accepted: a weight above 0 behind the colon")
    return user_path(name), weight


def report_faults(sources: Sequence[Source], run: Path, stop: bool) -> None:
    """Name every bad row, and end the work if it shall `stop`."""
    faults = [fault for source in sources for fault in source.faults]
    lines = "".join(json.dumps(asdict(fault), ensure_ascii=False) + "\n" for fault in faults)
    with atomic_write(run / "bad-rows.jsonl") as stream:
        stream.write(lines.encode())
    for fault in faults[:_SHOWN]:
        print(f"bad row: {fault}", file=sys.stderr)
    if len(faults) > _SHOWN:
        print(f"... all {len(faults):,} are in {run / 'bad-rows.jsonl'}", file=sys.stderr)
    if faults and stop:
        raise StoppedError(
            f"{counted(len(faults), 'row')} can't be used; accepted: data without them, or "
            "--on-bad-rows skip",
            FAILED,
            {"bad_rows": [asdict(fault) for fault in faults]},
        )
