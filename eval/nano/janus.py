"""What `janus-nano` can do: `python -m bifrons.eval.nano.janus --help`.

Paints GenEval's own prompts, and fresh sentences of the world of things, judged by the learned detector; asks
about fresh pictures; encodes and decodes fresh pictures. Combinations held out of training are reported
separately, and the detector's own errors beside. Prints a Markdown table, and writes all of it to a folder.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from ...blocks.chat.pipeline import ChatPipeline
from ...janus.pipeline import JanusPipeline
from ...nano.recipes.janus_spec import UNASKED
from ...nano.world.asking import KINDS as QUESTION_KINDS
from ...nano.world.asking import ask
from ...nano.world.pictures import sample_view
from ...nano.world.questions import Question
from ...nano.world.sampling import HELD_OUT_KINDS, KINDS, MORE_KINDS, sample_example
from ...nano.world.things_detector import WEIGHTS, ThingsDetector, load_detector
from ...nano.world.view import View
from ..geneval.detectors import as_row
from ..geneval.scoring import score_row
from ..geneval.suites import geneval_prompts
from .scores import Counts, Figures, ask_all, count, figures, markdown, same_answer, sheet, shown

SIDE = 192
"""Side of a picture in pixels."""
PARTS = ("geneval", "fresh", "held-out", "questions", "tokenizer", "sheet")
HARD = ("counting", "color_attr", "position", "many", "chain", "depth", "mixed", "match")
"""Kinds of the sentences of the contact sheet, eight of each."""
TITLES = {
    "geneval": "GenEval's prompts",
    "fresh": "fresh sentences",
    "held-out": "combinations left out",
    "questions": "questions",
    "questions held-out": "questions, left out",
}
NOTE = (
    "World detector, not comparable to GenEval's. Of depth, size and place, things and colors alone are "
    "judged. In brackets: 95% intervals. The detector's own errors on rendered scenes: "
)


@dataclass(frozen=True)
class Prompt:
    """A sentence, its kind, and GenEval's metadata row."""

    kind: str
    row: dict[str, Any]

    @property
    def text(self) -> str:
        return self.row["prompt"]

    def judge(self, found: dict[str, Any]) -> tuple[bool, str]:
        """Whether a picture with these boxes and colors is right by GenEval's rules, and why not."""
        tag = self.kind if self.kind in KINDS else "two_object"
        row = {"filename": "00000/samples/0000.png", "metadata": {**self.row, "tag": tag}, **found}
        verdict = score_row(row)
        return verdict.correct, verdict.reason

    def is_all(self, found: dict[str, Any]) -> bool:
        """Whether there are as many things as the sentence says, and no others."""
        counts: dict[str, int] = {}
        for clause in self.row["include"]:
            counts[clause["class"]] = counts.get(clause["class"], 0) + clause["count"]
        return {name: len(boxes) for name, boxes in found["boxes"].items()} == counts


def sentences(kinds: Sequence[str], each: int, seed: int, split: str) -> list[Prompt]:
    """`each` different sentences of every kind."""
    rng, found = Random(f"{seed} {split}"), {}
    for kind in kinds:
        own: dict[str, Prompt] = {}
        while len(own) < each:
            example = sample_example(kind, rng, split, SIDE, SIDE)
            own.setdefault(example.prompt, Prompt(kind, example.row))
        found |= {(kind, text): prompt for text, prompt in own.items()}
    return list(found.values())


class Painter:
    """Paints prompts and judges the pictures. options: of `JanusPipeline.generate`."""

    def __init__(
        self, pipe: JanusPipeline, detector: ThingsDetector, batch: int, options: dict[str, Any]
    ) -> None:
        self.pipe, self.detector, self.batch, self.options = pipe, detector, batch, options

    def paint(self, texts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        """One picture for each text."""
        pictures: list[Image.Image] = []
        for start in range(0, len(texts), self.batch):
            part = slice(start, start + self.batch)
            one = {"seed": list(seeds[part]), "progress": False, **self.options}
            pictures += self.pipe.generate(list(texts[part]), **one)
        return pictures

    def score(
        self, prompts: Sequence[Prompt], each: int, seed: int
    ) -> tuple[Counts, list[dict[str, Any]], float]:
        """Counts of right pictures, a row for each wrong one, and the share of pictures that are right and
        show nothing else. Picture i has the seed `seed + i`."""
        every = [prompt for prompt in prompts for _ in range(each)]
        pictures = self.paint([p.text for p in every], range(seed, seed + len(every)))
        found = [as_row(boxes) for boxes in self.detector.detect_all(pictures)]
        verdicts = [prompt.judge(boxes) for prompt, boxes in zip(every, found, strict=True)]
        right = [good for good, _ in verdicts]
        wrong = [
            {"kind": prompt.kind, "prompt": prompt.text, "seed": seed + i, "reason": verdicts[i][1]}
            for i, prompt in enumerate(every)
            if not right[i]
        ]
        exact = [good and p.is_all(b) for good, p, b in zip(right, every, found, strict=True)]
        return count([prompt.kind for prompt in prompts], right, each), wrong, sum(exact) / len(exact)


def questions(
    number: int, seed: int, split: str, kinds: Sequence[str] = QUESTION_KINDS, side: int | None = None
) -> list[tuple[View, Question]]:
    """Pictures with a question each, of all kinds in turn; in the split "held_out", about combinations left
    out. side: of square pictures, in pixels; None for pictures of any size."""
    rng, found = Random(f"questions {seed} {split}"), []
    while len(found) < number:
        view = sample_view(rng, split if split == "train" else "any", (side, side) if side else None)
        kind = kinds[len(found) % len(kinds)] if split == "train" else rng.choice(kinds)
        question = ask(view, rng, kind, split)
        if question is not None:
            found.append((view, question))
    return found


def score_questions(
    pipe: ChatPipeline, asked: Sequence[tuple[View, Question]], batch: int, text_first: bool = False
) -> Counts:
    """Counts of right answers by kind. What a sign says must be read letter by letter, capitals too."""
    pairs = [([view.picture.image()], question.text) for view, question in asked]
    answers = ask_all(pipe, pairs, 48, batch, text_first)
    right = [
        answer.strip() == q.answer if q.kind == "sign" else same_answer(answer, q.answer)
        for answer, (_, q) in zip(answers, asked, strict=True)
    ]
    return count([question.kind for _, question in asked], right)


def score_tokenizer(pipe: JanusPipeline, scenes: int, seed: int, path: Path) -> dict[str, float]:
    """Peak signal-to-noise ratio in dB of encode then decode, on 8-bit values; writes a sheet of pictures and
    what became of them."""
    rng, values, shown_pictures, texts = Random(f"tokenizer {seed}"), [], [], []
    for i in range(scenes):
        picture = sample_view(rng, "any", (SIDE, SIDE)).picture.image()
        back = pipe.decode_codes(pipe.encode_image(picture))[0]
        picture = picture.resize(back.size)
        error = np.square(np.asarray(picture, np.float64) - np.asarray(back, np.float64)).mean()
        values.append(10 * np.log10(255**2 / max(error, 1e-6)))
        if i < 24:
            shown_pictures += [picture, back]
            texts += ["", f"{values[-1]:.1f} dB"]
    sheet(shown_pictures, texts, 8, path)
    return {"mean": round(float(np.mean(values)), 2), "least": round(float(np.min(values)), 2)}


def hard_sentences(seed: int) -> list[Prompt]:
    """64 sentences of the kinds of HARD, chosen by the seed alone; counts are four and more."""
    rng, found = Random(f"sheet {seed}"), []
    for kind in HARD:
        own = 0
        while own < 8:
            example = sample_example(kind, rng, "any", SIDE, SIDE)
            if kind != "counting" or example.request.total >= 4:
                found.append(Prompt(kind, example.row))
                own += 1
    return found


def run(args: argparse.Namespace, pipe: JanusPipeline, detector: ThingsDetector) -> dict[str, Any]:
    """All parts that are asked for: their figures and rows of wrong pictures. Writes sheets."""
    options = {"guidance_scale": args.guidance_scale, "temperature": args.temperature}
    painter = Painter(pipe, detector, args.batch_size, options | {"top_k": args.top_k, "top_p": args.top_p})
    results: dict[str, Any] = {"figures": {}, "exact": {}, "wrong": {}}
    more = (*KINDS, *MORE_KINDS)
    sets = {
        "geneval": lambda: [Prompt(row["tag"], row) for row in geneval_prompts(args.prompts)],
        "fresh": lambda: sentences(more, args.sentences, args.seed, "train"),
        "held-out": lambda: sentences(HELD_OUT_KINDS, args.sentences, args.seed, "held_out"),
    }
    for name, make in sets.items():
        if name in args.parts:
            counts, wrong, exact = painter.score(make(), args.per_prompt, args.seed)
            results["figures"][name], results["wrong"][name] = figures(counts), wrong
            results["exact"][name] = round(exact, 4)
            print(
                f"{name}: {shown(results['figures'][name]['overall'])}; nothing else in {exact:.1%}",
                flush=True,
            )
    if "questions" in args.parts:
        kinds = [kind for kind in QUESTION_KINDS if kind not in UNASKED]
        for name, split in (("questions", "train"), ("questions held-out", "held_out")):
            asked = questions(args.questions, args.seed, split, kinds, SIDE)
            counts = score_questions(pipe, asked, args.batch_size)
            results["figures"][name] = figures(counts, pooled=True)
            print(f"{name}: {shown(results['figures'][name]['overall'])}", flush=True)
    if "tokenizer" in args.parts:
        path = args.folder / "reconstructions.png"
        results["psnr"] = score_tokenizer(pipe, args.scenes, args.seed, path)
        print(f"encode then decode: {results['psnr']} dB; see {path}", flush=True)
    if "sheet" in args.parts:
        hard = hard_sentences(args.seed)
        pictures = painter.paint([one.text for one in hard], range(args.seed, args.seed + len(hard)))
        sheet(pictures, [one.text for one in hard], 8, args.folder / "sheet.png")
    return results


def table(results: dict[str, Any], detector: ThingsDetector) -> str:
    """The figures as Markdown, with the detector's errors."""
    columns: dict[str, Figures] = {TITLES[name]: cells for name, cells in results["figures"].items()}
    painting = {name: cells for name, cells in columns.items() if not name.startswith("questions")}
    reading = {name: cells for name, cells in columns.items() if name.startswith("questions")}
    errors = ", ".join(
        f"{name.removeprefix('none ')} {value:.1%}"
        for name, value in detector.report.items()
        if name.startswith("none ")
    )
    parts = [f"{markdown(painting)}\n\n{NOTE}{errors or 'not measured'}."] if painting else []
    parts += [markdown(reading)] if reading else []
    if psnr := results.get("psnr"):
        parts.append(f"Encode then decode: {psnr['mean']} dB on average, {psnr['least']} dB at worst.")
    return "\n\n".join(parts) + "\n"


def write_results(folder: Path, results: dict[str, Any], text: str, facts: dict[str, Any]) -> None:
    """Write results.json and table.md to the folder, and print the table."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps({**facts, **results}, indent=1) + "\n", encoding="utf-8")
    (folder / "table.md").write_text(text, encoding="utf-8")
    print(f"\n{text}", flush=True)


def add_arguments(parser: argparse.ArgumentParser, model: str, parts: Sequence[str]) -> None:
    """Options that the reports of both models have."""
    parser.add_argument("-m", "--model", default=model)
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=20_000)
    parser.add_argument("--batch-size", type=int, default=512, help="pictures or questions at once")
    parser.add_argument("--folder", type=Path, required=True, help="for results.json, table.md and sheets")
    for name in ("--device", "--dtype", "--quantize"):
        parser.add_argument(name)


def main() -> None:
    """Print and write every figure of janus-nano."""
    parser = argparse.ArgumentParser(description="What janus-nano can do, judged by the learned detector.")
    add_arguments(parser, "janus-nano", PARTS)
    parser.add_argument("--detector", type=Path, default=WEIGHTS, help="the folder of its weights")
    parser.add_argument("--prompts", type=Path, help="GenEval's evaluation_metadata.jsonl (default: fetched)")
    parser.add_argument("--per-prompt", type=int, default=4)
    parser.add_argument("--sentences", type=int, default=40, help="of each kind")
    parser.add_argument("--scenes", type=int, default=256, help="pictures that are encoded and decoded")
    parser.add_argument("--guidance-scale", type=float)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--top-k", type=int, default=0)
    parser.add_argument("--top-p", type=float, default=1.0)
    args = parser.parse_args()
    pipe = JanusPipeline.from_pretrained(args.model, args.device, args.dtype, quantize=args.quantize)
    detector = load_detector(args.detector, pipe.device)
    results = run(args, pipe, detector)
    facts = {name: str(value) for name, value in vars(args).items()} | {"detector errors": detector.report}
    write_results(args.folder, results, table(results, detector), facts)


if __name__ == "__main__":
    main()
