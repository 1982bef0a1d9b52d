"""What a report says besides its scores: when, on what and how fast; rows for papers; a table of prompts."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ...blocks.errors import counted
from ..atomic_io import write_file
from ..geneval.schema import TAGS
from ..runs.record import read_stages

GENEVAL_ORDER = (*TAGS, "overall")
_STAGES = {"painting": "generation", "looking": "detection"}


class Part(NamedTuple):
    """Results of the prompts that ask for one thing: correct and all images, and prompts."""

    name: str
    correct: int
    images: int
    prompts: int

    @property
    def share(self) -> float:
        """The share of correct images."""
        return self.correct / max(self.images, 1)


def run_facts(
    run_dir: Path, run: Mapping[str, Any], detector: Mapping[str, Any]
) -> tuple[tuple[str, str], ...]:
    """(name, value) of date, times and speeds, devices, versions and the weights' hashes."""
    facts = [("began", str(run["began"]))] if run.get("began") else []
    for stage, time in read_stages(run_dir).items():
        speed = f"{counted(time.pictures, 'picture')} in {time.seconds:.1f} s, {time.per_second:.2f} a second"
        name = _STAGES.get(stage, stage)
        facts += [(name, f"{speed}; ended {time.ended}"), (f"{name} on", "; ".join(time.devices))]
    for name in ("software", "hashes"):
        content = run.get(name) if name == "software" else detector.get(name)
        if isinstance(content, Mapping):
            label = "{}" if name == "software" else "sha256 of {}"
            facts += [(label.format(key), str(value)) for key, value in content.items() if value]
    return tuple(facts)


def read_parts(content: Any) -> dict[str, tuple[Part, ...]]:
    """The summary's breakdown, without anything that is not one."""
    parts: dict[str, tuple[Part, ...]] = {}
    for part, names in content.items() if isinstance(content, Mapping) else ():
        rows = [
            Part(str(name), cell["correct"], cell["images"], cell["prompts"])
            for name, cell in (names.items() if isinstance(names, Mapping) else ())
            if isinstance(cell, Mapping)
            and all(isinstance(cell.get(key), int) for key in ("correct", "images", "prompts"))
        ]
        if rows:
            parts[str(part)] = tuple(rows)
    return parts


def cells(shares: Mapping[str, float], columns: Sequence[str] = GENEVAL_ORDER) -> list[str]:
    """Shares as 0.xx in the order of the columns; "-" for a kind without an image."""
    return [f"{shares[name]:.2f}" if name in shares else "-" for name in columns]


def latex_row(name: str, shares: Mapping[str, float], columns: Sequence[str] = GENEVAL_ORDER) -> str:
    """A row of a LaTeX table."""
    return " & ".join([latex_text(name), *cells(shares, columns)]) + r" \\"


def latex_text(text: str) -> str:
    """Text escaped for LaTeX."""
    marks = {mark: f"\\{mark}" for mark in "&%$#_{}"}
    marks |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return " ".join("".join(marks.get(mark, mark) for mark in text).split())


def leaderboard_row(name: str, shares: Mapping[str, float], columns: Sequence[str] = GENEVAL_ORDER) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join([name.replace("|", "/"), *cells(shares, columns)]) + " |"


def write_prompts_csv(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """A line per prompt of results rows: number, kind, prompt, correct and all images, reasons."""
    prompts: dict[str, dict[str, Any]] = {}
    for row in rows:
        number = row["filename"].split("/")[0]
        prompt = prompts.setdefault(
            number,
            {"number": number, "kind": row["tag"], "prompt": row["prompt"], "right": 0, "of": 0, "why": []},
        )
        prompt["right"] += row["correct"]
        prompt["of"] += 1
        prompt["why"] += [line for line in row["reason"].splitlines() if line not in prompt["why"]]
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerow(("prompt_number", "kind", "prompt", "correct", "images", "reasons"))
    for prompt in prompts.values():
        texts = _cell(prompt["prompt"]), _cell("; ".join(prompt["why"]))
        writer.writerow((prompt["number"], prompt["kind"], texts[0], prompt["right"], prompt["of"], texts[1]))
    write_file(path, stream.getvalue().encode())


def _cell(text: str) -> str:
    """A text that no spreadsheet takes for a formula."""
    return f"'{text}" if text[:1] in "=+-@\t\r" else text


def asked_for(row: Mapping[str, Any], boxes: Mapping[str, Sequence[Any]]) -> list[tuple[str, Any]]:
    """(class, box) of the classes that the prompt names, the best boxes of each first."""
    metadata = json.loads(row["metadata"])
    named = {
        clause["class"]
        for key in ("include", "exclude")
        for clause in metadata.get(key, ())
        if "class" in clause
    }
    return [(cls, box) for cls, found in boxes.items() if cls in named for box in found]
