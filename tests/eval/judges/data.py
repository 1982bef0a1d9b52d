"""Small files of every suite, in the official formats, and scores computed anew from recorded answers."""

import csv
import json
import math
from pathlib import Path
from typing import Any

PROMPTS = ("three red circles", "a blue square left of a star", "two green stars, and one circle")


def write(suite: str, folder: Path) -> Path:
    """A file (or folder) of three prompts."""
    path = folder / {"dpg": "dpg_bench.csv", "wise": "merge.json", "genai": "genai_image.json"}.get(
        suite, "rows.jsonl"
    )
    if suite == "geneval2":
        rows: Any = [
            {
                "prompt": prompt,
                "atom_count": 3 + i,
                "vqa_list": [
                    ["How many stars are there?", "three"],
                    ["Is it red?", "Yes"],
                    ["Is there a star?", "Yes"],
                ],
                "skills": ["count", "attribute", "object"],
            }
            for i, prompt in enumerate(PROMPTS)
        ]
    elif suite == "geneval++":
        items = [
            {"class": "star", "count": 2, "color": "red"},
            {"class": "hot dog", "count": 1, "region": "left"},
        ]
        rows = [{"tag": "abb"[i], "include": items, "prompt": prompt} for i, prompt in enumerate(PROMPTS)]
        rows[0]["exclude"] = [{"class": "star", "count": 3}]
    elif suite == "wise":
        rows = [
            {"Prompt": prompt, "Explanation": f"shows it, {number}", "prompt_id": number}
            for prompt, number in zip(2 * PROMPTS, (1000, 400, 401, 521, 641, 761), strict=True)
        ]
    elif suite == "genai":
        (folder / "genai_skills.json").write_text(
            json.dumps({"basic": [0, 1], "counting": [0], "all of it": []})
        )
        rows = {f"{i:05d}": {"id": f"{i:05d}", "prompt": prompt} for i, prompt in enumerate(PROMPTS)}
    elif suite == "questions":
        kinds = [{"question": "How many?", "answer": ["three", "four"], "kind": "count"}]
        rows = [{"prompt": p, "questions": ["Is it red?", ["Which color?", "red"], *kinds]} for p in PROMPTS]
    else:
        _write_dpg(path)
        return path
    lines = "".join(json.dumps(row) + "\n" for row in rows) if path.suffix == ".jsonl" else json.dumps(rows)
    path.write_text(lines)
    return path


def _write_dpg(path: Path) -> None:
    columns = ("item_id", "text", "keywords", "proposition_id", "dependency", "category_broad",
               "category_detailed", "tuple", "question_natural_language")  # fmt: skip
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        for i, prompt in enumerate(PROMPTS):
            # 4 depends on 3, which comes later in the file and depends on 1.
            for number, depends in ((1, "0"), (2, "1"), (4, "3, 2"), (3, "1")) if i else ((1, "0"), (2, "0")):
                kind = "entity - whole" if number == 1 else "attribute - color"
                row = (
                    f"item{i}",
                    prompt,
                    "",
                    number,
                    depends,
                    "",
                    "",
                    f"{kind} (x, {number})",
                    f"Is {number} so?",
                )
                writer.writerow(row)


def recomputed(suite: str, rows: list[dict[str, Any]], official: bool = False) -> float:
    """The overall score from the rows of results.jsonl, as the papers and official scripts define it."""
    answers = [[a["text"].lower().strip(".") for a in row["answers"]] for row in rows]
    first = [[{t: math.exp(v) for t, v in a["first"].items()} for a in row["answers"]] for row in rows]
    if suite == "geneval2":
        number = ("three", "Three", " three", " Three", "3", " 3")
        forms = [number, ("Yes", "yes", " Yes", " yes"), ("Yes", "yes", " Yes", " yes")]
        # " 3", " three" and " Yes" begin with the token " ", which counts once.
        atoms = [[_mass(p, f) for p, f in zip(of, forms, strict=True)] for of in first]
        return sum(math.prod(of) ** (1 / 3) for of in atoms) / len(atoms)
    if suite == "genai":
        return (first[0][0]["Yes"] + first[1][0]["Yes"]) / 2
    if suite == "geneval++":
        right = ['"correct": 1' in row["answers"][0]["text"] for row in rows]
        return (right[0] + (right[1] + right[2]) / 2) / 2
    if suite == "wise":
        score = [int(row["answers"][0]["text"][-1]) for row in rows]
        return 0.4 * score[0] + 0.12 * sum(score[1:])
    if suite == "questions":
        return sum((of[0] == "yes") + (of[1] == "red") + (of[2] in ("three", "four")) for of in answers) / 9
    return _dpg(rows, answers, official)


def _mass(p: dict[str, float], forms: tuple[str, ...]) -> float:
    tokens = {form if form in p else " " if form[0] == " " else None for form in forms}
    return sum(p.get(token, 0.0) for token in tokens if token)


def _dpg(rows: list[dict[str, Any]], answers: list[list[str]], official: bool) -> float:
    scores = []
    for row, of in zip(rows, answers, strict=True):
        yes = [float(answer == "yes") for answer in of]
        if row["prompt"] == PROMPTS[0]:
            yes = yes[1:] if official else yes
        else:
            one, two, four, three = yes
            two, three_now = min(one, two), min(one, three)
            # The official script visits 4 before 3 is set to 0.
            yes = [one, two, min(four, two, three if official else three_now), three_now]
        scores.append(sum(yes) / len(yes))
    return sum(scores) / len(scores)
