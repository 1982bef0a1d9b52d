"""What `vl2-nano` can do on fresh pictures of any shape: `python -m bifrons.eval.nano.vl2 --help`.

Questions before and after the picture, words on signs, phrases to be located (of which some name nothing),
captions, questions about two pictures, and things like the one framed in a first picture. Combinations held
out of training are reported separately. Prints Markdown tables, and writes them and results.json to a folder.
"""

import argparse
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from PIL import Image

from ...nano.world.comparing import KINDS as PAIR_KINDS
from ...nano.world.comparing import compare
from ...nano.world.pictures import sample_pair, sample_view
from ...nano.world.pointing import KINDS as PHRASE_KINDS
from ...nano.world.pointing import Phrase, caption, point
from ...nano.world.questions import Question
from ...nano.world.requests import Seen
from ...nano.world.signs import held_out_word
from ...nano.world.view import View
from ...vl2.grounding import Box, draw_boxes, parse_grounding
from ...vl2.pipeline import VL2Pipeline
from ...vl2.prompts import example_prompt, locate_prompt
from ..read.metrics import Corners
from .janus import add_arguments, questions, score_questions, write_results
from .scores import Counts, Figures, ask_all, count, figures, markdown, matched, same_answer, shown

PARTS = ("questions", "words", "phrases", "captions", "two", "like")
NEGATIVES = "absent"
"""The kind of phrases that name nothing in the picture."""
_BOX_TOKENS = 160


def _judge_boxes(text: str, image: Image.Image, targets: Sequence[Corners]) -> tuple[bool, int]:
    """Whether an answer has exactly the right boxes, and how many of them it has."""
    answer = parse_grounding(text, image.size)
    boxes = [(box.x1, box.y1, box.x2, box.y2) for box in answer.boxes]
    matches = matched(boxes, targets)
    return matches == len(targets) == len(boxes) and not answer.problems, matches


def phrases(number: int, seed: int, split: str) -> list[tuple[View, Phrase]]:
    """Pictures of any shape with a phrase each, of all kinds in turn; in the split "held_out", phrases that
    name a combination left out."""
    rng, found = Random(f"phrases {seed} {split}"), []
    while len(found) < number:
        view = sample_view(rng, split if split == "train" else "any")
        kind = PHRASE_KINDS[len(found) % len(PHRASE_KINDS)]
        if kind == "sign" and split == "held_out":
            kind = "named"
        phrase = point(view, rng, kind, split if split == "train" else "any")
        if phrase.held_out == (split == "held_out"):
            found.append((view, phrase))
    return found


def score_phrases(
    pipe: VL2Pipeline, cases: Sequence[tuple[View, Phrase]], batch: int
) -> tuple[Counts, Counts]:
    """Counts of phrases with exactly the right boxes (none where nothing fits) by kind, and of boxes found
    with an IoU of 0.5."""
    pictures = [view.picture.image() for view, _ in cases]
    asked = [
        ([image], locate_prompt(phrase.text)) for image, (_, phrase) in zip(pictures, cases, strict=True)
    ]
    answers = ask_all(pipe, asked, _BOX_TOKENS, batch)
    judged = [
        _judge_boxes(text, image, phrase.targets)
        for text, image, (_, phrase) in zip(answers, pictures, cases, strict=True)
    ]
    kinds = [phrase.kind if phrase.targets else NEGATIVES for _, phrase in cases]
    boxes = [
        i < matches
        for (_, matches), (_, phrase) in zip(judged, cases, strict=True)
        for i in range(len(phrase.targets))
    ]
    return count(kinds, [exact for exact, _ in judged]), count(["boxes"] * len(boxes), boxes)


def score_words(pipe: VL2Pipeline, number: int, seed: int, batch: int) -> Counts:
    """Counts of signs read letter by letter, capitals too: of words seen in training, and of words of which
    one at least was left out."""
    rng, asked, kinds, words = Random(f"words {seed}"), [], [], []
    while len(asked) < number:
        view = sample_view(rng, "any")
        if (sign := view.picture.sign) is not None:
            asked.append(([view.picture.image()], "What does the sign say?"))
            left_out = any(map(held_out_word, sign.words.lower().split()))
            kinds.append("words left out" if left_out else "words")
            words.append(sign.words)
    answers = ask_all(pipe, asked, 24, batch)
    return count(kinds, [a.strip() == text for a, text in zip(answers, words, strict=True)])


def score_captions(pipe: VL2Pipeline, number: int, seed: int, batch: int) -> Counts:
    """Counts of captions that name everything, with colors and place, in order."""
    rng = Random(f"captions {seed}")
    views = [sample_view(rng) for _ in range(number)]
    answers = ask_all(pipe, [([v.picture.image()], "Describe this image.") for v in views], 96, batch)
    right = [same_answer(answer, caption(view)) for answer, view in zip(answers, views, strict=True)]
    return count(["captions"] * number, right)


def comparisons(number: int, seed: int, split: str) -> list[tuple[View, View, Question]]:
    """Pairs of pictures with a question each; of all kinds in turn for the split "train"."""
    rng, found = Random(f"two {seed} {split}"), []
    while len(found) < number:
        a, b = sample_pair(rng, split if split == "train" else "any")
        kind = PAIR_KINDS[len(found) % len(PAIR_KINDS)] if split == "train" else None
        question = compare(a, b, rng, kind, split)
        if question is not None:
            found.append((a, b, question))
    return found


def score_comparisons(pipe: VL2Pipeline, cases: Sequence[tuple[View, View, Question]], batch: int) -> Counts:
    """Counts of right answers by kind."""
    asked = [([a.picture.image(), b.picture.image()], question.text) for a, b, question in cases]
    answers = ask_all(pipe, asked, 48, batch)
    right = [same_answer(answer, q.answer) for answer, (_, _, q) in zip(answers, cases, strict=True)]
    return count([q.kind for _, _, q in cases], right)


def framed(view: View, one: Seen) -> Image.Image:
    """The picture with a thing framed, as `VL2Pipeline.locate` frames an example."""
    x0, y0, x1, y1 = (min(max(round(v), 0), (view.width, view.height)[i % 2]) for i, v in enumerate(one.box))
    return draw_boxes(view.picture.image(), [Box("", x0, y0, x1, y1)], labels=False, colour=(255, 0, 0))


def score_like(pipe: VL2Pipeline, number: int, seed: int, batch: int) -> Counts:
    """Counts of second pictures in which exactly the things like the framed one of the first are found."""
    rng, asked, targets = Random(f"like {seed}"), [], []
    for _ in range(number):
        a, b = sample_pair(rng)
        one = rng.choice(a.seen)
        asked.append(([framed(a, one), b.picture.image()], example_prompt(rng.choice((None, one.thing)))))
        targets.append([other.box for other in b.matching(one.thing)])
    answers = ask_all(pipe, asked, _BOX_TOKENS, batch)
    right = [
        _judge_boxes(text, pictures[1], boxes)[0]
        for text, (pictures, _), boxes in zip(answers, asked, targets, strict=True)
    ]
    return count(["like the framed" if boxes else NEGATIVES for boxes in targets], right)


def run(args: argparse.Namespace, pipe: VL2Pipeline) -> dict[str, Figures]:
    """The figures of all parts that are asked for, by what was asked."""
    number, seed, batch = args.questions, args.seed, args.batch_size
    splits = (("", "train"), (", left out", "held_out"))
    found: dict[str, Figures] = {}

    def add(name: str, counts: Counts) -> None:
        found[name] = figures(counts, pooled=True)
        print(f"{name}: {shown(found[name]['overall'])}", flush=True)

    for ending, split in splits:
        if "questions" in args.parts:
            cases = questions(number, seed, split)
            add(f"questions{ending}", score_questions(pipe, cases, batch))
            add(f"questions before the picture{ending}", score_questions(pipe, cases, batch, text_first=True))
        if "phrases" in args.parts:
            exact, boxes = score_phrases(pipe, phrases(number, seed, split), batch)
            add(f"phrases{ending}", exact)
            add(f"boxes at 0.5{ending}", boxes)
        if "two" in args.parts:
            add(f"two pictures{ending}", score_comparisons(pipe, comparisons(number, seed, split), batch))
    more: dict[str, Callable[..., Counts]] = {
        "words": score_words, "captions": score_captions, "like": score_like
    }  # fmt: skip
    for part, score in more.items():
        if part in args.parts:
            add(part, score(pipe, number, seed, batch))
    return found


def table(found: dict[str, Figures]) -> str:
    """The figures as Markdown: one table of all parts, and kinds apart where there are several."""
    lines = ["| | right | of |", "|---|---|---|"]
    lines += [f"| {name} | {shown(c['overall'])} | {c['overall']['of']:,} |" for name, c in found.items()]
    blocks = ["\n".join(lines)]
    for start in ("questions", "phrases", "two pictures", "words", "like"):
        own = {name: cells for name, cells in found.items() if name.startswith(start)}
        if own:
            blocks.append(markdown(own))
    return "\n\n".join(blocks) + "\n\nIn brackets: 95% intervals.\n"


def main() -> None:
    """Print and write every figure of vl2-nano."""
    parser = argparse.ArgumentParser(description="What vl2-nano can do on fresh pictures.")
    add_arguments(parser, "vl2-nano", PARTS)
    args = parser.parse_args()
    pipe = VL2Pipeline.from_pretrained(args.model, args.device, args.dtype, quantize=args.quantize)
    found = run(args, pipe)
    facts: dict[str, Any] = {name: str(value) for name, value in vars(args).items()}
    write_results(args.folder, {"figures": found}, table(found), facts)


if __name__ == "__main__":
    main()
