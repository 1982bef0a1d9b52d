"""GenAI-Bench (Li et al. 2024, arXiv 2406.13743): 527 or 1,600 prompts with skills, scored by VQAScore (Lin
et al. 2024, arXiv 2404.01291)."""

from collections.abc import Sequence
from pathlib import Path

from ...blocks.errors import BifronsError
from ...blocks.json_config import TABLE_BYTES, read_value
from ..geneval.suites import Row
from .questions import Answer, Question, probability
from .suite import Figures, Item, Suite, Wording, text_of

PROMPTS, SKILLS = "genai_image.json", "genai_skills.json"
_ALL = "all"


def read(path: Path) -> list[Row]:
    """The rows of genai_image.json, {"00000": {prompt}}, with the skills of genai_skills.json beside it,
    {skill: [numbers]}: {prompt, id, skills} each."""
    folder = path if path.is_dir() else path.parent
    file = path / PROMPTS if path.is_dir() else path
    prompts = read_value(file, TABLE_BYTES, BifronsError)
    if not isinstance(prompts, dict) or not all(key.isdecimal() for key in prompts):
        raise BifronsError(f'{file} is no object of prompts by number; accepted: {PROMPTS}, {{"00000": ...}}')
    skills = read_value(folder / SKILLS, TABLE_BYTES, BifronsError)
    if not isinstance(skills, dict) or not all(
        isinstance(numbers, list) and all(isinstance(n, int) and not isinstance(n, bool) for n in numbers)
        for numbers in skills.values()
    ):
        raise BifronsError(f"{folder / SKILLS} is no object of lists of numbers; accepted: {SKILLS}")
    by_number: dict[int, list[str]] = {}
    for skill, numbers in skills.items():
        for number in numbers:
            by_number.setdefault(number, []).append(skill)
    rows = [
        {
            "prompt": text_of(entry, "prompt", f"{file}: {key}"),
            "id": key,
            "skills": sorted(set(by_number.get(int(key), ()))),
        }
        for key, entry in prompts.items()
    ]
    unknown = sorted(by_number.keys() - {int(key) for key in prompts})
    if unknown:
        raise BifronsError(f"{folder / SKILLS} names the prompt {unknown[0]}, which {file.name} doesn't have")
    return rows


def ask(row: Row, wording: Wording) -> list[Question]:
    """Does the picture show the prompt?"""
    return [wording.ask(1, ("Yes",), prompt=row["prompt"])]


def score(row: Row, answers: Sequence[Answer], last: bool, official: bool) -> list[Item]:
    """The probability of "Yes", for each skill; as officially, "all" are the prompts that have a skill."""
    value = probability(answers[0], ("Yes",))
    groups = [*row["skills"], _ALL] if row["skills"] else ["without a skill"]
    return [Item(group, value) for group in groups]


_TABLE = "genai_bench/model_performance_vqacore.md of linzhiqiu/t2v_metrics (6ecb74f)"

GENAI = Suite(
    name="genai",
    title="GenAI-Bench (VQAScore)",
    source="https://github.com/linzhiqiu/t2v_metrics (genai_bench) and the data set "
    "BaiqiL/GenAI-Bench-1600, arXiv 2406.13743",
    license="Apache 2.0",
    formula="VQAScore: the probability of Yes for the question whether the picture shows the prompt; overall "
    "the mean over prompts that have a skill",
    files=f"{PROMPTS} with {SKILLS} beside it",
    judge="clip-flant5-xxl",
    read=read,
    ask=ask,
    score=score,
    weights=lambda groups: {_ALL: 1.0},
    wording=Wording('Does this figure show "{prompt}"? Please answer yes or no.'),
    official_wording=Wording('Does this figure show "{prompt}"? Please answer yes or no.').sha256,
    fields=("prompt",),
    prompts=1600,
    needs_probabilities=True,
    published=(
        Figures("DALL-E 3", 0.78, _TABLE),
        Figures("Midjourney v6", 0.76, _TABLE),
        Figures("SD-XL", 0.72, _TABLE),
        Figures("SD-XL Turbo", 0.71, _TABLE),
        Figures("DeepFloyd-IF", 0.71, _TABLE),
        Figures("SD v2.1", 0.67, _TABLE),
    ),
)
