"""What `vl2-nano` can do on fresh scenes: `python -m bifrons.eval.nano.vl2 --help`.

Questions about one picture, phrases to be located (of which some name nothing), questions about two pictures,
and things like the one that is framed in a first picture. What was left out of training is reported apart.
"""

import argparse
from collections.abc import Sequence
from random import Random

from ...nano.world.pairs import KINDS as PAIR_KINDS
from ...nano.world.pairs import example_search, sample_comparison, sample_pair
from ...nano.world.phrases import KINDS as SEARCH_KINDS
from ...nano.world.phrases import Search, normalized_box, sample_search
from ...nano.world.questions import sample_scene
from ...nano.world.renderer import to_pil
from ...nano.world.scene import Scene
from ...vl2.grounding import Box, draw_boxes, parse_grounding
from ...vl2.pipeline import VL2Pipeline
from ...vl2.prompts import locate_prompt
from .reading import SIDE, TITLES, Table, ask_all, same_answer, score_answers, table_line, tally

ENOUGH = 0.5
"""Intersection over union from which a box is right."""

Corners = tuple[int, int, int, int]


def overlap(a: Corners, b: Corners) -> float:
    """Intersection over union of two boxes."""
    wide, high = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
    shared = max(wide, 0) * max(high, 0)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return shared / (areas - shared) if areas > shared else 0.0


def matched(found: Sequence[Corners], wanted: Sequence[Corners]) -> int:
    """How many wanted boxes are met by one of the found boxes each, best overlaps first."""
    pairs = sorted(
        ((overlap(f, w), i, j) for i, f in enumerate(found) for j, w in enumerate(wanted)), reverse=True
    )
    used: set[tuple[str, int]] = set()
    count = 0
    for value, i, j in pairs:
        if value >= ENOUGH and not {("f", i), ("w", j)} & used:
            used |= {("f", i), ("w", j)}
            count += 1
    return count


def judge_search(said: str, search: Search, scene: Scene) -> tuple[bool, int, int]:
    """(exactly the right boxes, wanted boxes that were met, boxes wanted)."""
    answer = parse_grounding(said, (SIDE, SIDE))
    found = [box.normalized for box in answer.boxes if box.normalized is not None]
    wanted = [normalized_box(thing, scene.aspect) for thing in search.found]
    met = matched(found, wanted)
    exact = met == len(wanted) == len(found) and not answer.problems
    return exact, met, len(wanted)


def score_searches(pipe: VL2Pipeline, scenes: int, seed: int, split: str) -> tuple[Table, tuple[int, int]]:
    """Phrases with exactly the right boxes (none where nothing fits), by kind; boxes met of boxes wanted."""
    rng, cases = Random(seed), []
    while len(cases) < scenes:
        scene = sample_scene(rng, split)
        search = sample_search(scene, rng, SEARCH_KINDS[len(cases) % len(SEARCH_KINDS)])
        if search.held_out == (split == "held_out"):
            cases.append((scene, search))
    asked = [([to_pil(scene, SIDE)], locate_prompt(search.phrase)) for scene, search in cases]
    return _judge_all(pipe, asked, cases)


def _judge_all(pipe, asked, cases) -> tuple[Table, tuple[int, int]]:
    judged = [
        judge_search(said, search, scene)
        for said, (scene, search) in zip(ask_all(pipe, asked, 160), cases, strict=True)
    ]
    table = tally((search.kind if search.found else "absent" for _, search in cases), (j[0] for j in judged))
    return table, (sum(j[1] for j in judged), sum(j[2] for j in judged))


def score_examples(pipe: VL2Pipeline, pairs: int, seed: int) -> tuple[Table, tuple[int, int]]:
    """In-context grounding: things in a second picture like the one that is framed in the first."""
    rng, asked, cases = Random(seed), [], []
    for _ in range(pairs):
        a, b = sample_pair(rng)
        thing, question, search = example_search(a, b, rng)
        box = Box.from_normalized("", normalized_box(thing), (SIDE, SIDE))
        framed = draw_boxes(to_pil(a, SIDE), [box], labels=False, colour=(255, 0, 0))
        asked.append(([framed, to_pil(b, SIDE)], question))
        cases.append((b, search))
    return _judge_all(pipe, asked, cases)


def score_pairs(pipe: VL2Pipeline, pairs: int, seed: int, split: str) -> Table:
    """(right, asked) for each kind of question about two pictures."""
    rng, cases = Random(seed), []
    while len(cases) < pairs:
        a, b = sample_pair(rng, split)
        # Not every kind can be about what was left out.
        kind = PAIR_KINDS[len(cases) % len(PAIR_KINDS)] if split == "train" else None
        question = sample_comparison(a, b, rng, kind)
        if question.held_out == (split == "held_out"):
            cases.append(([to_pil(a, SIDE), to_pil(b, SIDE)], question))
    answers = ask_all(pipe, [(pictures, question.text) for pictures, question in cases], 16)
    right = [same_answer(said, question.answer) for said, (_, question) in zip(answers, cases, strict=True)]
    return tally((question.kind for _, question in cases), right)


def located_line(name: str, result: tuple[Table, tuple[int, int]]) -> str:
    table, (met, wanted) = result
    return f"{table_line(name, table)}; boxes {met / max(wanted, 1):.2%} of {wanted}"


def main() -> None:
    parser = argparse.ArgumentParser(description="What vl2-nano can do on fresh scenes.")
    parser.add_argument("-m", "--model", default="vl2-nano")
    parser.add_argument("--scenes", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=20_000)
    for name in ("--device", "--dtype", "--quantize"):
        parser.add_argument(name)
    args = parser.parse_args()
    pipe = VL2Pipeline.from_pretrained(args.model, args.device, args.dtype, quantize=args.quantize)
    for split, title in TITLES.items():
        print(f"\n{title[0].upper()}{title[1:]}")
        print(table_line("questions", score_answers(pipe, args.scenes, args.seed, split)), flush=True)
        print(located_line("phrases", score_searches(pipe, args.scenes, args.seed, split)), flush=True)
        print(table_line("two pictures", score_pairs(pipe, args.scenes, args.seed, split)), flush=True)
    print()
    print(located_line("like a framed example", score_examples(pipe, args.scenes, args.seed)), flush=True)


if __name__ == "__main__":
    main()
