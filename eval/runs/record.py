"""What is recorded about a run besides its pictures: versions, devices, and the time that its stages took.

R/stages.jsonl     a line for each process that worked on a stage: when, on what, how many pictures
R/stages-*.jsonl   such a line of a process that works, or was killed: as of its last finished picture
"""

import json
import os
import platform
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ...blocks.json_config import decode_json
from ..atomic_io import disk_errors, read_lines

STAGES = "stages.jsonl"
_FIELDS = (("stage", str), ("device", str), ("pictures", int), ("start", float), ("end", float))
PACKAGES = ("bifrons", "torch", "transformers", "numpy", "pillow", "opencv-python-headless")


@dataclass(frozen=True)
class StageTime:
    """The recorded work on one stage.

    seconds: wall-clock time in which at least one process worked. pictures: made in that time. devices: of
    all processes. ended: when the last one did, as ISO 8601 in UTC.
    """

    seconds: float
    pictures: int
    devices: tuple[str, ...]
    ended: str

    @property
    def per_second(self) -> float:
        """Pictures per second of wall-clock time."""
        return self.pictures / self.seconds if self.seconds else 0.0


def software() -> dict[str, str]:
    """Versions that may affect pixels and detections, for the record; not part of a fingerprint."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    versions["platform"] = platform.platform(terse=True)
    if torch.version.cuda and torch.cuda.is_available():
        versions["cuda"] = torch.version.cuda
        versions["driver"] = _driver()
    return versions


def _driver() -> str:
    """The version of NVIDIA's driver, as its kernel module states it."""
    source = Path("/proc/driver/nvidia/version")
    if os.path.isfile(source):
        found = re.search(r"\b\d{3,}\.\d+(?:\.\d+)?\b", source.read_text(errors="replace"))
        if found:
            return found.group()
    return "unknown"


@lru_cache(maxsize=8)
def device_name(device: str) -> str:
    """The device with its model, such as "cuda (NVIDIA H100)"."""
    if device.startswith("cuda") and torch.cuda.is_available():
        return f"{device} ({torch.cuda.get_device_name(device)})"
    cpuinfo = Path("/proc/cpuinfo")
    if device == "cpu" and os.path.isfile(cpuinfo):
        found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(errors="replace"), re.MULTILINE)
        if found:
            return f"{device} ({found.group(1)})"
    return f"{device} ({platform.machine()})"


@contextmanager
def recorded(
    root: Path, stage: str, device: str, processes: int, start: float | None = None
) -> Iterator[Callable[[int], None]]:
    """Record the work done within as a line of R/stages.jsonl, also when it ends by an error.

    start: when it began, in seconds since 1970; None for now. Gives a function to call with the number of
    pictures done so far: a killed process leaves what it wrote.
    """
    start = time.time() if start is None else start
    name = device_name(device) + (f", {processes} processes" if processes > 1 else "")
    line = {"stage": stage, "start": start, "end": start, "pictures": 0, "device": name}
    progress = root / f"stages-{time.time_ns()}-{os.getpid()}.jsonl"

    def report(pictures: int) -> None:
        line.update(end=time.time(), pictures=pictures)
        _append(progress, line)

    try:
        yield report
    finally:
        line["end"] = time.time()
        _append(root / STAGES, line)
        progress.unlink(missing_ok=True)


def _append(path: Path, line: Mapping[str, Any]) -> None:
    with disk_errors(f"write {path}"), path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")


def read_stages(root: Path) -> dict[str, StageTime]:
    """The recorded work by stage; torn lines are left out."""
    lines = _lines(root / STAGES)
    for path in sorted(root.glob("stages-*.jsonl")):
        lines += _lines(path)[-1:]
    by_stage: dict[str, list[Mapping[str, Any]]] = {}
    for line in lines:
        by_stage.setdefault(line["stage"], []).append(line)
    return {stage: _total(of_stage) for stage, of_stage in by_stage.items()}


def _lines(path: Path) -> list[Mapping[str, Any]]:
    found = []
    for _, raw in read_lines(path) if os.path.isfile(path) else ():
        with suppress(ValueError):
            line = decode_json(raw)
            if isinstance(line, dict) and all(isinstance(line.get(key), kind) for key, kind in _FIELDS):
                found.append(line)
    return found


def _total(lines: list[Mapping[str, Any]]) -> StageTime:
    """The union of the processes' times."""
    seconds, reached = 0.0, 0.0
    for start, end in sorted((line["start"], line["end"]) for line in lines):
        seconds += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    ended = datetime.fromtimestamp(max(0.0, min(reached, 4e9)), UTC).isoformat(timespec="seconds")
    devices = tuple(dict.fromkeys(line["device"] for line in lines))
    return StageTime(seconds, sum(line["pictures"] for line in lines), devices, ended)
