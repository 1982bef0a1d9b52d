"""WISE_Verified (Niu et al. 2025, arXiv 2503.07265, and its update of 2026): 1,000 prompts that need
knowledge of the world, each picture judged 0 or 1."""

import re
from collections.abc import Sequence
from pathlib import Path

from ...blocks.errors import BifronsError
from ...blocks.json_config import TABLE_BYTES, read_value
from ..geneval.suites import Row
from .questions import Answer, Question, UnclearAnswer
from .suite import Figures, Item, Suite, Wording, text_of

CATEGORIES = {
    "CULTURE": (1, 400, 0.40),
    "TIME": (401, 520, 0.12),
    "SPACE": (521, 640, 0.12),
    "BIOLOGY": (641, 760, 0.12),
    "PHYSICS": (761, 880, 0.12),
    "CHEMISTRY": (881, 1000, 0.12),
}
"""First and last prompt_id of each category, and its weight."""
CHOICES = ("Score: 0", "Score: 1")
_PARTS = ("cultural_common_sense", "spatio-temporal_reasoning", "natural_science")
_THOUGHT = re.compile(r"<think>.*?</think>|^.*?</think>", re.DOTALL)
_SCORE = re.compile(r"\*{0,2}score\*{0,2}\s*[:：]?\s*([01])\b", re.IGNORECASE)
_BARE = re.compile(r"^\s*([01])\s*$", re.MULTILINE)


def read(path: Path) -> list[Row]:
    """The rows of merge.json, of one of the three files, or of the folder data_verified, by prompt_id."""
    if path.is_dir():
        files = [path / f"{part}_verified.json" for part in _PARTS]
    else:
        files = [path]
    rows: dict[int, Row] = {}
    for file in files:
        content = read_value(file, TABLE_BYTES, BifronsError)
        if not isinstance(content, list):
            raise BifronsError(f"{file} is no list; accepted: WISE_Verified's JSON files")
        for number, entry in enumerate(content, 1):
            where = f"{file} entry {number}"
            prompt, explanation = text_of(entry, "Prompt", where), text_of(entry, "Explanation", where)
            key = entry.get("prompt_id")
            if not isinstance(key, int) or isinstance(key, bool) or not 1 <= key <= 1000 or key in rows:
                raise BifronsError(f"{where}: 'prompt_id' is {key!r}; accepted: 1 to 1000, each once")
            rows[key] = {"prompt": prompt, "explanation": explanation, "prompt_id": key}
    return [rows[key] for key in sorted(rows)]


def ask(row: Row, wording: Wording) -> list[Question]:
    """One question: does the picture show what the explanation says?"""
    fields = {"prompt": row["prompt"], "explanation": row["explanation"]}
    return [wording.ask(500, choices=CHOICES, **fields)]


def score(row: Row, answers: Sequence[Answer], last: bool, official: bool) -> list[Item]:
    """The 0 or 1 in "Score: 1", or alone in a line, as the official script reads it.

    Raises UnclearAnswer where there is none.
    """
    text = _THOUGHT.sub("", answers[0].text)
    found = _SCORE.search(text)
    alone = _BARE.findall(text)
    if found is None and len(alone) != 1:
        raise UnclearAnswer(f"the judge answered {answers[0].text[:80]!r}; accepted: {' or '.join(CHOICES)}")
    value = float(found[1] if found else alone[0])
    key = row["prompt_id"]
    category = next(name for name, (low, high, _) in CATEGORIES.items() if low <= key <= high)
    return [Item(category, value)]


_LEADERBOARD = "leaderboard of PKU-YuanGroup/WISE (eb51174), judge Qwen3.5-35B-A3B"

WISE = Suite(
    name="wise",
    title="WISE_Verified",
    source="https://github.com/PKU-YuanGroup/WISE (eb51174), arXiv 2503.07265",
    license="the repository states no licence for the data",
    formula="a picture is right (1) or wrong (0); overall 0.40 CULTURE + 0.12 for each of TIME, SPACE, "
    "BIOLOGY, PHYSICS and CHEMISTRY",
    files="merge.json of the folder data_verified, or that folder",
    judge="Qwen3.5-35B-A3B",
    read=read,
    ask=ask,
    score=score,
    weights=lambda groups: {name: weight for name, (_, _, weight) in CATEGORIES.items()},
    wording=Wording(
        "The picture was made for this prompt: {prompt}\nWhat a correct picture shows: {explanation}\n"
        "Does the picture show that, and is it good enough to tell? "
        "Answer with exactly one line, Score: 1 if it does, else Score: 0.",
    ),
    official_wording="2772fd0af94b178c31c873f09c48bb3815698094a99f7c94ac9a8d4a57aeb18e",
    script_fields={"prompt_data['Prompt']": "{prompt}", "prompt_data['Explanation']": "{explanation}"},
    fields=("prompt", "explanation"),
    prompts=1000,
    prompts_sha256="5d6f5f5bbc1a72956c575d1050c8379d7f95e28d8abe96d8d70e0793a1cf5448",
    file_sha256={"merge.json": "10f2690624ed8f03f21bd3e9c535e26f791da8bab67ac857903bede65985b82d"},
    published=(
        Figures("NanoBanana-Pro", 0.8760, _LEADERBOARD),
        Figures("GPT-Image-1.5", 0.8250, _LEADERBOARD),
        Figures("QwenImage", 0.5100, _LEADERBOARD),
        Figures("FLUX.1-dev", 0.4160, _LEADERBOARD),
        Figures("BAGEL", 0.3520, _LEADERBOARD),
        Figures("Janus-Pro-7B", 0.3340, _LEADERBOARD),
        Figures("Janus-Pro-1B", 0.2650, _LEADERBOARD),
        Figures("Janus-1.3B", 0.2730, _LEADERBOARD),
    ),
)
