"""The stage that looks at pictures: from files to rows of detections, in any number of processes.

    R/detections/part-*.jsonl   rows as they come, one file per process that ever worked on the run
    R/detections.jsonl          all of them, in the order of their file names, once none is missing
    R/unreadable.jsonl          the rows of pictures that could not be looked at, with the reason

A row is what the scorer takes, with two more keys: the picture's sha256 and the detector. A row counts while
the picture is still the one that was looked at. R/detect.json says which detector it was.
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

from ...blocks.chat.image_io import open_image
from ...blocks.errors import BifronsError, PictureError
from ..atomic_io import disk_errors, fresh_folder, whole_file, write_json
from ..geneval.detectors import Detector, make_detector
from ..geneval.suites import Row
from .recipe import model_fingerprint
from .run_dir import RunDir
from .workers import Advance, Ranks, default_processes, run_workers

_SEEN, _UNREADABLE, _PARTS = "detections.jsonl", "unreadable.jsonl", "detections"
_DETECTOR_BYTES = {"shapes": 200 * 2**20}
"""Memory of a process on the CPU, roughly; the Mask2Formers with CLIP take the other figure."""
_OTHER_BYTES = 4 * 2**30


class ImageRecord(NamedTuple):
    """A picture to look at: its name in the results, where it is, and what was to be painted."""

    filename: str
    path: Path
    sha256: str
    metadata: Row


@dataclass(frozen=True)
class DetectorChoice:
    """Which detector, as `make_detector` takes it."""

    kind: str = "shapes"
    weights: str | None = None
    clip: str | None = None

    def make(self, device: str | None) -> Detector:
        """The detector, loaded; the exact one runs on the CPU, whatever the device is."""
        return make_detector(self.kind, self.weights, self.clip, None if self.kind == "shapes" else device)

    def fingerprint(self) -> str:
        """sha256 over the kind and the weights. Raises BifronsError as `make_detector` does for the kind."""
        total = hashlib.sha256(self.kind.encode())
        for name in (self.weights, self.clip):
            if name is not None:
                path = Path(name).expanduser()
                total.update((model_fingerprint(path) if path.is_dir() else file_sha256(path)).encode())
        return total.hexdigest()


@dataclass(frozen=True)
class DetectionWorker:
    """Looks at pictures and appends a row for each to a part file of its own."""

    root: Path
    choice: DetectorChoice

    def __call__(self, share: Sequence[ImageRecord], device: str, advance: Advance) -> None:
        if not share:
            return
        detector = self.choice.make(device)
        who = {
            "name": detector.name,
            "comparable": detector.comparable,
            "kind": self.choice.kind,
            "fingerprint": self.choice.fingerprint(),
        }
        path = self.root / _PARTS / f"part-{time.time_ns()}-{os.getpid()}.jsonl"
        with disk_errors(f"write {path}"), path.open("x", encoding="utf-8") as stream:
            for seen in share:
                row: Row = {"filename": seen.filename, "metadata": seen.metadata}
                try:
                    row.update(detector.detect(open_image(seen.path, apply_exif=True), seen.metadata))
                except PictureError as error:
                    row["problem"] = str(error)
                row.update(picture=seen.sha256, detector=who)
                stream.write(json.dumps(row) + "\n")
                stream.flush()  # a row that a killed process wrote is kept
                advance(1)


def images_of_run(run: RunDir) -> list[ImageRecord]:
    """A run's pictures. Raises BifronsError where some are not painted yet."""
    found, missing = [], []
    for picture in run.image_keys():
        digest = run.sha256(picture)
        if digest is None:
            missing.append(picture.filename)
        else:
            found.append(ImageRecord(picture.filename, run.path(picture), digest, run.rows[picture.index]))
    if missing:
        raise BifronsError(
            f"{run.root} lacks {len(missing)} of {len(missing) + len(found)} pictures, such as {missing[0]}; "
            "accepted: a run whose pictures are all painted (`bifrons eval generate` goes on)"
        )
    return found


def detect_objects(
    root: Path,
    pictures: Sequence[ImageRecord],
    choice: DetectorChoice,
    device: str | None = None,
    processes: int | None = None,
    threads: int = 1,
    ranks: Ranks | None = None,
) -> int:
    """Look at the pictures that have no row yet; the number of them in this rank's share.

    Raises BifronsError where the folder has rows of another detector, or where the disk refuses.
    """
    ranks = ranks or Ranks()
    fresh_folder(root / _PARTS)
    share = ranks.divide(pictures, lambda some: _without_row(root, some, choice))
    if share:
        if processes is None:
            own = _DETECTOR_BYTES.get(choice.kind, _OTHER_BYTES)
            place = "cpu" if choice.kind == "shapes" else device
            processes = 1 if ranks.size > 1 else default_processes(place, own)
        place = "cpu" if choice.kind == "shapes" else ranks.device(device)
        run_workers(DetectionWorker(root, choice), share, len(share), processes, place, threads, "looking")
    ranks.wait()
    return len(share)


def collect(root: Path, pictures: Sequence[ImageRecord]) -> dict[str, str]:
    """Gather the rows of all pictures, at least one, into detections.jsonl; for one process, at the end.

    Returns the pictures that could not be read, with the reason. Raises BifronsError where one was not looked
    at.
    """
    rows = _rows(root, pictures)
    missing = [seen.filename for seen in pictures if seen.filename not in rows]
    if missing:
        raise BifronsError(
            f"{root} has no detections for {len(missing)} of {len(pictures)} pictures, such as {missing[0]}; "
            "`bifrons eval detect` goes on"
        )
    ordered = [rows[name] for name in sorted(rows)]
    write_json(root / "detect.json", ordered[0]["detector"])
    for name, broken in ((_SEEN, False), (_UNREADABLE, True)):
        with whole_file(root / name) as stream:
            stream.writelines(
                (json.dumps(row) + "\n").encode() for row in ordered if ("problem" in row) == broken
            )
    shutil.rmtree(root / _PARTS, ignore_errors=True)  # all that was in it is in the two files now
    return {row["filename"]: row["problem"] for row in ordered if "problem" in row}


def file_sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _without_row(root: Path, pictures: Sequence[ImageRecord], choice: DetectorChoice) -> list[ImageRecord]:
    rows, mine = _rows(root, pictures), choice.fingerprint()
    others = {row["detector"]["name"] for row in rows.values() if row["detector"]["fingerprint"] != mine}
    if others:
        raise BifronsError(
            f"{root} has detections by another detector or other weights: {', '.join(sorted(others))}; "
            f"accepted: the same, or remove {_SEEN}, {_UNREADABLE} and {_PARTS} there to look anew"
        )
    return [seen for seen in pictures if seen.filename not in rows]


def _rows(root: Path, pictures: Sequence[ImageRecord]) -> dict[str, dict[str, Any]]:
    """Rows of these pictures as they are now, by file name; of several, the first."""
    wanted = {seen.filename: seen.sha256 for seen in pictures}
    rows: dict[str, dict[str, Any]] = {}
    for path in [root / _SEEN, root / _UNREADABLE, *sorted((root / _PARTS).glob("part-*.jsonl"))]:
        for row in _whole_lines(path):
            name = row.get("filename")
            if name in wanted and row.get("picture") == wanted[name]:
                rows.setdefault(name, row)
    return rows


def _whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file, but for a last line without its end, of a process that was killed."""
    if not path.is_file():
        return
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.endswith(b"\n"):
                return
            try:
                row = json.loads(line)
            except ValueError as error:
                raise BifronsError(f"{path} line {number} is not JSON: {error}; remove the file") from error
            if not isinstance(row, dict) or not isinstance(row.get("detector"), dict):
                raise BifronsError(f"{path} line {number} is no row of this stage; remove the file")
            yield row
