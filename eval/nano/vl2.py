"""What `vl2-nano` can do on fresh scenes: `python -m bifrons.eval.nano.vl2 --help`.

Questions about one picture, phrases to be located (of which some name nothing), questions about two pictures,
and objects like the one framed in a first picture. Combinations held out of training are reported separately.
"""

import argparse
from random import Random

from ...nano.world.pairs import KINDS as PAIR_KINDS
from ...nano.world.pairs import sample_comparison, sample_example_query, sample_pair
from ...nano.world.phrases import KINDS as QUERY_KINDS
from ...nano.world.phrases import GroundingQuery, normalized_box, sample_query
from ...nano.world.renderer import to_pil
from ...nano.world.scene import Scene, sample_scene
from ...vl2.grounding import Box, draw_boxes, parse_grounding
from ...vl2.pipeline import VL2Pipeline
from ...vl2.prompts import locate_prompt
from .janus import SIDE, TITLES, Table, score_answers, table_line, tally
from .scores import ask_all, matched, same_answer


def judge_query(text: str, query: GroundingQuery, scene: Scene) -> tuple[bool, int, int]:
    """(exactly the right boxes, expected boxes that were matched, expected boxes)."""
    answer = parse_grounding(text, (SIDE, SIDE))
    predicted = [box.normalized for box in answer.boxes if box.normalized is not None]
    expected = [normalized_box(obj, scene.aspect) for obj in query.targets]
    matches = matched(predicted, expected)
    exact = matches == len(expected) == len(predicted) and not answer.problems
    return exact, matches, len(expected)


def score_queries(pipe: VL2Pipeline, scenes: int, seed: int, split: str) -> tuple[Table, tuple[int, int]]:
    """Phrases with exactly the right boxes (none where nothing fits), by kind; boxes matched of expected."""
    rng, cases = Random(seed), []
    while len(cases) < scenes:
        scene = sample_scene(rng, split)
        query = sample_query(scene, rng, QUERY_KINDS[len(cases) % len(QUERY_KINDS)])
        if query.held_out == (split == "held_out"):
            cases.append((scene, query))
    asked = [([to_pil(scene, SIDE)], locate_prompt(query.phrase)) for scene, query in cases]
    return _judge_all(pipe, asked, cases)


def _judge_all(pipe, asked, cases) -> tuple[Table, tuple[int, int]]:
    judged = [
        judge_query(text, query, scene)
        for text, (scene, query) in zip(ask_all(pipe, asked, 160), cases, strict=True)
    ]
    exact, matches, expected = zip(*judged, strict=True)
    kinds = [query.kind if query.targets else "absent" for _, query in cases]
    return tally(kinds, exact), (sum(matches), sum(expected))


def score_examples(pipe: VL2Pipeline, pairs: int, seed: int) -> tuple[Table, tuple[int, int]]:
    """In-context grounding: objects in a second image like the one framed in the first."""
    rng, asked, cases = Random(seed), [], []
    for _ in range(pairs):
        a, b = sample_pair(rng)
        obj, question, query = sample_example_query(a, b, rng)
        box = Box.from_normalized("", normalized_box(obj), (SIDE, SIDE))
        framed = draw_boxes(to_pil(a, SIDE), [box], labels=False, colour=(255, 0, 0))
        asked.append(([framed, to_pil(b, SIDE)], question))
        cases.append((b, query))
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
    questions = [question for _, question in cases]
    right = [same_answer(answer, one.answer) for answer, one in zip(answers, questions, strict=True)]
    return tally([question.kind for question in questions], right)


def located_line(name: str, result: tuple[Table, tuple[int, int]]) -> str:
    """`table_line`, and the share of the expected boxes that were matched."""
    table, (matches, expected) = result
    return f"{table_line(name, table)}; boxes {matches / max(expected, 1):.2%} of {expected}"


def main() -> None:
    """Print every figure of vl2-nano."""
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
        print(located_line("phrases", score_queries(pipe, args.scenes, args.seed, split)), flush=True)
        print(table_line("two pictures", score_pairs(pipe, args.scenes, args.seed, split)), flush=True)
    print()
    print(located_line("like a framed example", score_examples(pipe, args.scenes, args.seed)), flush=True)


if __name__ == "__main__":
    main()
