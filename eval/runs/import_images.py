"""Importing a folder of images in GenEval's layout, and what is wrong in it."""

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ...blocks.errors import BifronsError
from ...blocks.files import read_bounded
from ...blocks.json_config import CONFIG_BYTES
from ..atomic_io import make_folder, read_json, write_json
from ..geneval.suites import Row, detector_for, geneval_prompts, parse_metadata
from .detect import ImageRecord, file_sha256
from .record import software

_SAMPLE = re.compile(r"(\d+)\.png")
_SIDECAR = re.compile(r"\d+\.json")
_PROMPT_FILES = {"metadata.jsonl", "samples", "grid.png"}
"""The files that GenEval's own scripts write for a prompt."""


@dataclass
class ImageSet:
    """Images to evaluate. problems: {filename, reason} for all that is missing, odd or can't be used.

    detector: its kind where none is named; None without one.
    """

    images: list[ImageRecord] = field(default_factory=list)
    problems: list[dict[str, str]] = field(default_factory=list)
    detector: str | None = None

    def add_problem(self, filename: str, reason: str) -> None:
        """Record something that is missing, odd or can't be used."""
        self.problems.append({"filename": filename, "reason": reason})


def scan_folder(
    folder: Path, images_per_prompt: int | None = None, rows: Sequence[Row] | None = None
) -> ImageSet:
    """The images of a folder in GenEval's layout (or of the folder `images` in it, as in a run folder).

    images_per_prompt: how many there should be; None takes the commonest number. rows: the suite, to find
    missing or different prompts. Raises BifronsError where the folder has another layout.
    """
    root = images_root(folder)
    image_set, prompts = ImageSet(), {}
    for path in sorted(root.iterdir()):
        if not (os.path.isdir(path) and path.name.isdecimal()):
            if not path.name.startswith("."):
                image_set.add_problem(
                    path.name, "not part of the layout (folders named by a number); left out"
                )
        elif int(path.name) in prompts:
            image_set.add_problem(
                path.name, f"prompt {int(path.name)} is there already; its pictures are left out"
            )
        else:
            prompts[int(path.name)] = path
    samples = {index: _samples(path, image_set) for index, path in prompts.items()}
    counts = Counter(len(files) for files in samples.values() if files)
    # Of equally common numbers the larger, so that a missing image is reported rather than overlooked.
    expected = images_per_prompt or max(counts, key=lambda n: (counts[n], n), default=0)
    for index, path in sorted(prompts.items()):
        _add_prompt(image_set, path, samples[index], expected, rows[index : index + 1] if rows else None)
    if rows:
        for index in sorted(set(range(len(rows))) - set(prompts)):
            image_set.add_problem(f"{index:05d}", "the prompt is missing")
    elif gaps := max(prompts) + 1 - len(prompts):
        reason = f"{gaps} of the numbers 0 to {max(prompts)} have no folder: prompts may be missing"
        image_set.add_problem(root.name, reason)
    image_set.detector = detector_for(image.metadata for image in image_set.images)
    return image_set


def images_root(folder: Path) -> Path:
    """`folder` or its `images`, whichever holds 00000, 00001, ...; raises BifronsError where neither does."""
    for root in (folder, folder / "images"):
        inside = root.iterdir() if os.path.isdir(root) else ()
        if any(os.path.isdir(path) and path.name.isdecimal() for path in inside):
            return root
    raise BifronsError(
        f"{folder} holds no prompts; accepted: a folder in GenEval's layout, with 00000/metadata.jsonl and "
        "00000/samples/0000.png"
    )


def record_import(
    run_dir: Path,
    source: Path,
    images_per_prompt: int | None = None,
    prompts: Path | None = None,
    model: str | None = None,
    note: str | None = None,
) -> None:
    """Make the run folder of an import, or renew its record. model, note: what painted the pictures, and
    anything else that a reader should know; without them, those recorded before stay.

    Raises BifronsError where the folder is that of anything else.
    """
    content = {
        "kind": "import",
        "source": os.path.realpath(images_root(source)),
        "images_per_prompt": images_per_prompt,
        "prompts": None if prompts is None else os.path.realpath(prompts),
    }
    path = run_dir / "run.json"
    existing = read_json(path) if os.path.lexists(path) else content
    if not isinstance(existing, dict) or existing.get("source") != content["source"]:
        raise BifronsError(f"{run_dir} is another run's folder; accepted: a new folder for this import")
    for name, text in (("model", model), ("note", note)):
        content[name] = existing.get(name) if text is None else text
    content["began"] = existing.get("began") or datetime.now(UTC).isoformat(timespec="seconds")
    content["software"] = software()
    make_folder(run_dir)
    write_json(path, content)


def rescan_import(content: Mapping[str, Any]) -> ImageSet:
    """The current images of an import. content: of its run.json."""
    source, prompts, count = (content.get(name) for name in ("source", "prompts", "images_per_prompt"))
    if not (isinstance(source, str) and isinstance(prompts, str | None) and isinstance(count, int | None)):
        raise BifronsError("run.json is no import's; accepted: what `bifrons eval import` writes")
    return scan_folder(Path(source), count, geneval_prompts(Path(prompts)) if prompts else None)


def _samples(folder: Path, image_set: ImageSet) -> dict[int, Path]:
    """The numbered images of one prompt; anything else in its folders is a problem."""
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise BifronsError(f"{folder} can't be read: {error.strerror}") from error
    for path in paths:
        if path.name not in _PROMPT_FILES:
            image_set.add_problem(f"{folder.name}/{path.name}", "not part of the layout; left out")
    samples: dict[int, Path] = {}
    samples_dir = folder / "samples"
    for path in sorted(samples_dir.iterdir()) if os.path.isdir(samples_dir) else ():
        name, match = f"{folder.name}/samples/{path.name}", _SAMPLE.fullmatch(path.name)
        if match and not os.path.isfile(path):
            image_set.add_problem(name, "not a file; left out")
        elif match and int(match[1]) in samples:
            image_set.add_problem(name, f"picture {int(match[1])} is there already; left out")
        elif match:
            samples[int(match[1])] = path
        elif not _SIDECAR.fullmatch(path.name):
            image_set.add_problem(
                name, "not part of the layout (pictures named by a number, as .png); left out"
            )
    return samples


def _add_prompt(
    image_set: ImageSet, folder: Path, samples: dict[int, Path], expected: int, rows: Sequence[Row] | None
) -> None:
    """Add a prompt's images, if its metadata can be used. rows: [the suite's row], or [] if it has none."""
    try:
        metadata = _metadata(folder)
        if rows is not None and list(rows) != [metadata]:
            raise BifronsError("the metadata is not the suite's for this number")
    except BifronsError as error:
        image_set.add_problem(f"{folder.name}/metadata.jsonl", str(error))
        for path in samples.values():
            image_set.add_problem(
                f"{folder.name}/samples/{path.name}", "not scored: its metadata can't be used"
            )
        return
    for number in sorted({*samples, *range(expected)}):
        name = f"{folder.name}/samples/{number:04d}.png"
        if number not in samples:
            image_set.add_problem(name, "the picture is missing")
            continue
        try:
            digest = file_sha256(samples[number])
        except OSError as error:
            image_set.add_problem(name, f"can't be read: {error.strerror}")
            continue
        filename = f"{folder.name}/samples/{samples[number].name}"
        image_set.images.append(ImageRecord(filename, samples[number], digest, metadata))


def _metadata(folder: Path) -> Row:
    path = folder / "metadata.jsonl"
    try:
        lines = [line for line in read_bounded(path, CONFIG_BYTES).splitlines() if line.strip()]
    except OSError as error:
        raise BifronsError(f"can't be read: {error.strerror}") from error
    if len(lines) != 1:
        raise BifronsError(f"holds {len(lines)} lines; accepted: one")
    return parse_metadata(lines[0], "the line")
