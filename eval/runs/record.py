"""What is recorded about a run besides its pictures: versions, devices, and the time that its stages took.

    R/stages.jsonl   a line for each process that worked on a stage: when, on what, how many pictures

A killed process leaves no line; its pictures count, its time does not.
"""

import json
import os
import platform
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
def recorded(root: Path, stage: str, device: str, processes: int) -> Iterator[list[int]]:
    """Record the work done within as a line of R/stages.jsonl, also when it ends by an error.

    Gives a list with one number, to be raised to that of the pictures done.
    """
    done, start = [0], time.time()
    try:
        yield done
    finally:
        name = device_name(device) + (f", {processes} processes" if processes > 1 else "")
        line = {"stage": stage, "start": start, "end": time.time(), "pictures": done[0], "device": name}
        path = root / STAGES
        with disk_errors(f"write {path}"), path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")


def read_stages(root: Path) -> dict[str, StageTime]:
    """The recorded work by stage; torn lines are left out."""
    by_stage: dict[str, list[Mapping[str, Any]]] = {}
    for _, raw in read_lines(root / STAGES) if os.path.isfile(root / STAGES) else ():
        try:
            line = decode_json(raw)
        except ValueError:
            continue
        if isinstance(line, dict) and all(
            isinstance(line.get(key), kind)
            for key, kind in (
                ("stage", str),
                ("device", str),
                ("pictures", int),
                ("start", float),
                ("end", float),
            )
        ):
            by_stage.setdefault(line["stage"], []).append(line)
    return {stage: _total(lines) for stage, lines in by_stage.items()}


def _total(lines: list[Mapping[str, Any]]) -> StageTime:
    """The union of the processes' times."""
    seconds, reached = 0.0, 0.0
    for start, end in sorted((line["start"], line["end"]) for line in lines):
        seconds += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    ended = datetime.fromtimestamp(max(0.0, min(reached, 4e9)), UTC).isoformat(timespec="seconds")
    devices = tuple(dict.fromkeys(line["device"] for line in lines))
    return StageTime(seconds, sum(line["pictures"] for line in lines), devices, ended)
