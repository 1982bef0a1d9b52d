"""The detection stage: from images to rows of detections, in any number of processes.

    R/detections/part-*.jsonl   rows in the order they are made, one file per process that worked on the run
    R/detections.jsonl          all of them, in the order of their file names, once none is missing
    R/unreadable.jsonl          the rows of images that could not be read, with the reason

A row is the scorer's input with two more keys: the image's sha256 ("picture") and the detector. It is valid
while the image has that sha256. R/detect.json names the detector.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ...blocks.errors import BifronsError, PictureError
from ...blocks.files import open_regular
from ...blocks.image_io import open_image
from ...blocks.json_config import decode_json
from ...blocks.placement.fingerprint import model_fingerprint
from ...nano.world.things_detector import WEIGHTS
from ...scale.placement import default_processes
from ...scale.progress import Advance
from ..atomic_io import atomic_file, disk_errors, make_folder, read_lines, write_json
from ..geneval.detectors import Detector, make_detector
from ..geneval.options import OFFICIAL, ScorerOptions
from ..geneval.suites import Row
from .ranks import Ranks
from .run_dir import RunDir
from .workers import run_workers

_DETECTED, _UNREADABLE, _PARTS = "detections.jsonl", "unreadable.jsonl", "detections"
_PREPROCESSING = b"padded, then normalised"
"""Part of Mask2Former's fingerprint, since older versions padded later and detected other things."""
_SHAPES_BYTES, _WORLD_BYTES, _MASK2FORMER_BYTES = 200 * 2**20, 600 * 2**20, 4 * 2**30
"""Roughly the memory of a detecting process on the CPU; that of Mask2Former includes CLIP."""


class ImageRecord(NamedTuple):
    """An image to detect objects in: its name in the results, its file, and its prompt's metadata."""

    filename: str
    path: Path
    sha256: str
    metadata: Row


@dataclass(frozen=True)
class DetectorChoice:
    """The arguments of `make_detector`, and a fingerprint of them."""

    kind: str
    weights: str | None = None
    clip: str | None = None
    options: ScorerOptions = OFFICIAL

    def make(self, device: str | None) -> Detector:
        """Load the detector; that of the world of shapes runs on the CPU, whatever the device."""
        place = None if self.kind == "shapes" else device
        return make_detector(self.kind, self.weights, self.clip, place, self.options)

    def fingerprint(self) -> str:
        """sha256 over kind, weights and options. Raises BifronsError as `make_detector` does for the kind."""
        total = hashlib.sha256(self.kind.encode())
        if self.kind.startswith("mask2former"):
            total.update(_PREPROCESSING)
        if changed := self.options.changed():
            total.update(json.dumps(changed, sort_keys=True).encode())
        embedded = str(WEIGHTS) if self.kind == "world" else None
        for name in (self.weights or embedded, self.clip):
            if name is not None:
                path = Path(name).expanduser()
                with disk_errors(f"read {path}"):
                    digest = model_fingerprint(path) if os.path.isdir(path) else file_sha256(path)
                total.update(digest.encode())
        return total.hexdigest()


@dataclass(frozen=True)
class DetectionWorker:
    """Runs the detector on images and writes a row for each to a part file of its own."""

    root: Path
    choice: DetectorChoice

    def __call__(self, share: Sequence[ImageRecord], device: str, advance: Advance) -> None:
        if not share:
            return
        detector = self.choice.make(device)
        description = {
            "name": detector.name,
            "official": detector.official,
            "comparable": detector.comparable,
            "kind": self.choice.kind,
            "fingerprint": self.choice.fingerprint(),
            "hashes": dict(detector.hashes),
            "options": self.choice.options.changed(),
        }
        path = self.root / _PARTS / f"part-{time.time_ns()}-{os.getpid()}.jsonl"
        with disk_errors(f"write {path}"), path.open("x", encoding="utf-8") as stream:
            for record in share:
                row: Row = {"filename": record.filename, "metadata": record.metadata}
                try:
                    row.update(detector.detect(open_image(record.path), record.metadata))
                except PictureError as error:
                    row["problem"] = str(error)
                row.update(picture=record.sha256, detector=description)
                stream.write(json.dumps(row) + "\n")
                stream.flush()  # so that the row outlives a killed process
                advance(1)


def images_of_run(run: RunDir) -> list[ImageRecord]:
    """A run's images. Raises BifronsError where some are not generated yet."""
    records, missing = [], []
    for key in run.image_keys():
        digest = run.sha256(key)
        if digest is None:
            missing.append(key.filename)
        else:
            records.append(ImageRecord(key.filename, run.path(key), digest, run.rows[key.index]))
    if missing:
        raise BifronsError(
            f"{run.root} lacks {len(missing)} of {len(missing) + len(records)} pictures, such as "
            f"{missing[0]}; accepted: a run whose pictures are all painted (`bifrons eval generate` goes on)"
        )
    return records


def detect_objects(
    root: Path,
    images: Sequence[ImageRecord],
    choice: DetectorChoice,
    device: str | None = None,
    processes: int | None = None,
    threads: int = 1,
    ranks: Ranks | None = None,
) -> int:
    """Run the detector on images that have no row yet; returns their number in this rank's share.

    Raises BifronsError where the folder has rows of another detector, or where the disk refuses.
    """
    ranks = ranks or Ranks()
    make_folder(root / _PARTS)
    share = ranks.divide(images, lambda records: _without_row(root, records, choice))
    if share:
        on_cpu = choice.kind == "shapes"
        if processes is None:
            needed = {"shapes": _SHAPES_BYTES, "world": _WORLD_BYTES}.get(choice.kind, _MASK2FORMER_BYTES)
            processes = 1 if ranks.size > 1 else default_processes("cpu" if on_cpu else device, needed)
        device = "cpu" if on_cpu else ranks.device(device)
        run_workers(
            DetectionWorker(root, choice), share, len(share), processes, device, threads, "looking", root
        )
    ranks.wait()
    return len(share)


def collect(root: Path, images: Sequence[ImageRecord]) -> dict[str, str]:
    """Gather the rows of all images, at least one, into detections.jsonl; for one process, at the end.

    Returns {filename: reason} of unreadable images. Raises BifronsError where an image has no row.
    """
    rows = _rows(root, images)
    missing = [record.filename for record in images if record.filename not in rows]
    if missing:
        raise BifronsError(
            f"{root} has no detections for {len(missing)} of {len(images)} pictures, such as {missing[0]}; "
            "`bifrons eval detect` goes on"
        )
    ordered = [rows[name] for name in sorted(rows)]
    write_json(root / "detect.json", ordered[0]["detector"])
    for name, unreadable in ((_DETECTED, False), (_UNREADABLE, True)):
        with atomic_file(root / name) as stream:
            stream.writelines(
                (json.dumps(row) + "\n").encode() for row in ordered if ("problem" in row) == unreadable
            )
    shutil.rmtree(root / _PARTS, ignore_errors=True)  # its rows are in the two files now
    return {row["filename"]: row["problem"] for row in ordered if "problem" in row}


def file_sha256(path: Path) -> str:
    """The sha256 of a file's content."""
    with open_regular(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _without_row(root: Path, images: Sequence[ImageRecord], choice: DetectorChoice) -> list[ImageRecord]:
    rows, own = _rows(root, images), choice.fingerprint()
    others = {row["detector"]["name"] for row in rows.values() if row["detector"]["fingerprint"] != own}
    if others:
        raise BifronsError(
            f"{root} has detections by another detector or of other weights, options or version: "
            f"{', '.join(sorted(others))}; accepted: the same, or remove {_DETECTED}, {_UNREADABLE} and "
            f"{_PARTS} there to look anew"
        )
    return [record for record in images if record.filename not in rows]


def _rows(root: Path, images: Sequence[ImageRecord]) -> dict[str, dict[str, Any]]:
    """The valid rows of these images by file name; the first of several."""
    hashes = {record.filename: record.sha256 for record in images}
    rows: dict[str, dict[str, Any]] = {}
    for path in [root / _DETECTED, root / _UNREADABLE, *sorted((root / _PARTS).glob("part-*.jsonl"))]:
        for row in _complete_lines(path):
            name = row.get("filename")
            if name in hashes and row.get("picture") == hashes[name]:
                rows.setdefault(name, row)
    return rows


def _complete_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file, without a last line that a killed process did not finish."""
    if not os.path.isfile(path):
        return
    for number, line in read_lines(path):
        if not line.endswith(b"\n"):
            return
        try:
            row = decode_json(line)
        except ValueError as error:
            raise BifronsError(f"{path} line {number} is not JSON: {error}; remove the file") from error
        if not _is_row(row):
            raise BifronsError(f"{path} line {number} is no row of this stage; remove the file")
        yield row


def _is_row(row: Any) -> bool:
    detector = row.get("detector") if isinstance(row, dict) else None
    if not isinstance(detector, dict):
        return False
    texts = row.get("filename"), detector.get("name"), detector.get("fingerprint"), row.get("problem", "")
    return all(isinstance(text, str) for text in texts)
