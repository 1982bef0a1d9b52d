"""A folder in GenEval's layout that somebody painted: what can be looked at in it, and what can't."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...blocks.errors import BifronsError
from ...nano.world.scene import SHAPES
from ..atomic_io import fresh_folder, read_json, write_json
from ..geneval.suites import Row, geneval_prompts, parse_metadata
from .detect import ImageRecord, file_sha256

_SAMPLE = re.compile(r"(\d+)\.png")
_KNOWN = re.compile(r"\d+\.json")
_PROMPT_FILES = {"metadata.jsonl", "samples", "grid.png"}
"""What GenEval's own scripts write for a prompt."""


@dataclass
class ImageSet:
    """`problems`: {filename, reason} for all that is missing, odd or can't be used."""

    images: list[ImageRecord] = field(default_factory=list)
    problems: list[dict[str, str]] = field(default_factory=list)

    def problem(self, filename: str, reason: str) -> None:
        self.problems.append({"filename": filename, "reason": reason})


def scan_folder(
    folder: Path, images_per_prompt: int | None = None, rows: Sequence[Row] | None = None
) -> ImageSet:
    """Pictures of a folder in GenEval's layout (or of the folder `images` in it, as a run has it).

    images_per_prompt: how many there should be; None takes the commonest number. rows: the suite that was
    painted, to find prompts that are missing or others. Raises BifronsError where there is no such layout.
    """
    root = images_root(folder)
    found, prompts = ImageSet(), {}
    for path in sorted(root.iterdir()):
        if not (path.is_dir() and path.name.isdecimal()):
            if not path.name.startswith("."):
                found.problem(path.name, "not part of the layout (folders named by a number); left out")
        elif int(path.name) in prompts:
            found.problem(path.name, f"prompt {int(path.name)} is there already; its pictures are left out")
        else:
            prompts[int(path.name)] = path
    samples = {index: _samples(path, found) for index, path in prompts.items()}
    counts = Counter(len(some) for some in samples.values() if some)
    # Of equally common numbers the larger: a picture that is missing is told of, never overlooked.
    wanted = images_per_prompt or max(counts, key=lambda n: (counts[n], n), default=0)
    for index, path in sorted(prompts.items()):
        _add_prompt(found, path, samples[index], wanted, rows[index : index + 1] if rows else None)
    if rows:
        for index in sorted(set(range(len(rows))) - set(prompts)):
            found.problem(f"{index:05d}", "the prompt is missing")
    elif gaps := max(prompts) + 1 - len(prompts):
        told = f"{gaps} of the numbers 0 to {max(prompts)} have no folder: prompts may be missing"
        found.problem(root.name, told)
    return found


def is_small_world(found: ImageSet) -> bool:
    """Whether all that the prompts ask for are shapes of the small world."""
    classes = {clause["class"] for seen in found.images for clause in seen.metadata["include"]}
    return bool(classes) and classes <= set(SHAPES)


def images_root(folder: Path) -> Path:
    """The folder that holds 00000, 00001, ...; raises BifronsError where neither it nor its `images` does."""
    for root in (folder, folder / "images"):
        if root.is_dir() and any(path.is_dir() and path.name.isdecimal() for path in root.iterdir()):
            return root
    raise BifronsError(
        f"{folder} holds no prompts; accepted: a folder in GenEval's layout, with 00000/metadata.jsonl and "
        "00000/samples/0000.png"
    )


def record_import(
    run_dir: Path, source: Path, images_per_prompt: int | None = None, prompts: Path | None = None
) -> None:
    """Make the run folder of an import, or open that of the same source. Raises BifronsError otherwise."""
    content = {
        "kind": "import",
        "source": str(images_root(source).resolve()),
        "images_per_prompt": images_per_prompt,
        "prompts": None if prompts is None else str(prompts.resolve()),
    }
    path = run_dir / "run.json"
    before = read_json(path) if path.exists() else content
    if not isinstance(before, dict) or before.get("source") != content["source"]:
        raise BifronsError(f"{run_dir} is another run's folder; accepted: a new folder for this import")
    fresh_folder(run_dir)
    write_json(path, content)


def rescan_import(run_dir: Path) -> ImageSet:
    """The pictures of an import's run folder, as they are now."""
    content = read_json(run_dir / "run.json")
    named = content.get("prompts")
    rows = geneval_prompts(Path(named)) if named else None
    return scan_folder(Path(content["source"]), content.get("images_per_prompt"), rows)


def _samples(folder: Path, found: ImageSet) -> dict[int, Path]:
    """Numbered pictures of one prompt; all else in its folders is told of."""
    for path in sorted(folder.iterdir()):
        if path.name not in _PROMPT_FILES:
            found.problem(f"{folder.name}/{path.name}", "not part of the layout; left out")
    samples: dict[int, Path] = {}
    inside = folder / "samples"
    for path in sorted(inside.iterdir()) if inside.is_dir() else ():
        name, match = f"{folder.name}/samples/{path.name}", _SAMPLE.fullmatch(path.name)
        if match and not path.is_file():
            found.problem(name, "not a file; left out")
        elif match and int(match[1]) in samples:
            found.problem(name, f"picture {int(match[1])} is there already; left out")
        elif match:
            samples[int(match[1])] = path
        elif not _KNOWN.fullmatch(path.name):
            found.problem(name, "not part of the layout (pictures named by a number, as .png); left out")
    return samples


def _add_prompt(
    found: ImageSet, folder: Path, samples: dict[int, Path], wanted: int, rows: Sequence[Row] | None
) -> None:
    """Its pictures, if its metadata can be used. `rows`: the suite's row for it, or an empty list."""
    try:
        metadata = _metadata(folder)
        if rows is not None and list(rows) != [metadata]:
            raise BifronsError("the metadata is not the suite's for this number")
    except BifronsError as error:
        found.problem(f"{folder.name}/metadata.jsonl", str(error))
        for path in samples.values():
            found.problem(f"{folder.name}/samples/{path.name}", "not scored: its metadata can't be used")
        return
    for number in sorted({*samples, *range(wanted)}):
        name = f"{folder.name}/samples/{number:04d}.png"
        if number not in samples:
            found.problem(name, "the picture is missing")
            continue
        try:
            digest = file_sha256(samples[number])
        except OSError as error:
            found.problem(name, f"can't be read: {error.strerror}")
            continue
        filename = f"{folder.name}/samples/{samples[number].name}"
        found.images.append(ImageRecord(filename, samples[number], digest, metadata))


def _metadata(folder: Path) -> Row:
    path = folder / "metadata.jsonl"
    try:
        lines = [line for line in path.read_bytes().splitlines() if line.strip()]
    except OSError as error:
        raise BifronsError(f"can't be read: {error.strerror}") from error
    if len(lines) != 1:
        raise BifronsError(f"holds {len(lines)} lines; accepted: one")
    return parse_metadata(lines[0], "the line")
