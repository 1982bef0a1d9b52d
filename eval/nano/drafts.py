"""Whether drafts change a token of the embedded models, and the steps that they save:
`python -m bifrons.eval.nano.drafts --help`.

Pictures of janus-nano alone, three and sixteen at once, each with a guidance scale, temperature, top-k and
top-p of its own; answers and boxes of vl2-nano. Everything is generated without drafts and with them.
"""

import argparse
import time
from collections.abc import Sequence

import torch
from PIL import Image

from ...blocks.engine.generate import Sequences, scheduler_of
from ...blocks.speculate import Speculate
from ...janus.image_generation import ImageGenerationOptions, image_sequences
from ...janus.pipeline import JanusPipeline
from ...nano.world.sampling import KINDS
from ...vl2.pipeline import VL2Pipeline
from ...vl2.prompts import locate_prompt
from .janus import questions, sentences
from .vl2 import phrases

BATCHES: tuple[tuple[int, Speculate], ...] = ((1, "auto"), (3, "auto"), (16, 8))
"""Pictures at once, and the `speculate` with which they are compared: `auto` makes no drafts for 16."""
OPTIONS = (
    ImageGenerationOptions(2.5),
    ImageGenerationOptions(5.0, top_k=50),
    ImageGenerationOptions(1.0, top_p=0.9),
    ImageGenerationOptions(2.5, temperature=0.0),
    ImageGenerationOptions(4.0, 1.2, top_k=200, top_p=0.95),
    ImageGenerationOptions(2.5, negative_prompt="a red circle"),
)
"""The options of pictures, in turn."""


def seconds(pipe: JanusPipeline | VL2Pipeline) -> float:
    """A clock: the processor's time where it computes, else the time that passes."""
    return time.process_time() if pipe.model.decoder.device.type == "cpu" else time.perf_counter()


class Tally:
    """What was generated twice: how much is equal, and the time and steps with drafts and without."""

    def __init__(self) -> None:
        self.equal = self.count = self.tokens = self.passes = 0
        self.seconds = [0.0, 0.0]

    def __str__(self) -> str:
        per_step = self.tokens / max(1, self.passes)
        plain, drafted = (total / max(1, self.count) for total in self.seconds)
        return (
            f"{self.equal} of {self.count} equal, {per_step:.2f} tokens a step; "
            f"time of each {plain:.2f} s without drafts, {drafted:.2f} s with them"
        )


def paint(
    pipe: JanusPipeline, texts: Sequence[str], numbers: Sequence[int], speculate: Speculate
) -> tuple[list[list[int]], int, float]:
    """Codes of pictures that run together, picture `numbers[i]` with its own seed and options; the sum of
    their steps, and the time in seconds."""
    parts: list[Sequences] = []
    for text, number in zip(texts, numbers, strict=True):
        options = OPTIONS[number % len(OPTIONS)]
        cond, uncond = pipe.processor.generation_ids(text, options.negative_prompt)
        parts.append(
            image_sequences(pipe.model, [cond], [uncond] if options.guided else None, options, [number])
        )
    requests = [request for part in parts for request in part.requests]
    for request in requests:
        request.speculate = speculate
    scheduler, start = scheduler_of(pipe.model.decoder), seconds(pipe)
    scheduler.submit(requests)
    while scheduler.has_work:
        scheduler.step()
    took = seconds(pipe) - start
    return [part.tokens[0] for part in parts], sum(request.passes for request in requests), took


@torch.no_grad()
def compare_pictures(pipe: JanusPipeline, texts: Sequence[str], batch: int, speculate: Speculate) -> Tally:
    """Paint every text without drafts and with them, `batch` at once."""
    tally = Tally()
    for start in range(0, len(texts), batch):
        numbers = range(start, min(start + batch, len(texts)))
        part = [texts[number] for number in numbers]
        plain, _, without = paint(pipe, part, numbers, False)
        drafted, passes, with_drafts = paint(pipe, part, numbers, speculate)
        tally.equal += sum(a == b for a, b in zip(plain, drafted, strict=True))
        tally.count += len(part)
        tally.tokens += sum(map(len, drafted))
        tally.passes += passes
        tally.seconds = [tally.seconds[0] + without, tally.seconds[1] + with_drafts]
    return tally


def compare_answers(pipe: VL2Pipeline, asked: Sequence[tuple[Image.Image, str]]) -> Tally:
    """Answer every question about a picture without drafts and with them, greedily; boxes are tokens too."""
    tally, scheduler = Tally(), scheduler_of(pipe.model.decoder)
    for picture, question in asked:
        answers, before = [], scheduler.passes
        for index, speculate in enumerate((False, 16)):
            start = seconds(pipe)
            before, tokens = scheduler.passes, scheduler.tokens
            answers.append(pipe.ask(picture, question, 160, speculate=speculate))
            tally.seconds[index] += seconds(pipe) - start
        tally.equal += answers[0] == answers[1]
        tally.count += 1
        tally.tokens += scheduler.tokens - tokens
        tally.passes += scheduler.passes - before
    return tally


def main() -> None:
    """Print a line for each number of pictures, and one for answers and boxes each."""
    parser = argparse.ArgumentParser(description="Whether drafts change a token, and the steps they save.")
    parser.add_argument("--sentences", type=int, default=200)
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    where = {"device": args.device, "dtype": args.dtype, "progress": False}
    prompts = sentences(KINDS, -(-args.sentences // len(KINDS)), args.seed, "train")
    texts = [prompt.text for prompt in prompts][: args.sentences]
    janus = JanusPipeline.from_pretrained("janus-nano", **where)
    share = len(texts) // len(BATCHES)
    for index, (batch, speculate) in enumerate(BATCHES):
        part = texts[index * share : (index + 1) * share if index + 1 < len(BATCHES) else None]
        tally = compare_pictures(janus, part, batch, speculate)
        print(f"pictures, {batch} at once, speculate={speculate}: {tally}", flush=True)
    vl2 = VL2Pipeline.from_pretrained("vl2-nano", **where)
    asked = [
        (view.picture.image(), question.text)
        for view, question in questions(args.pictures, args.seed, "train")
    ]
    print(f"answers: {compare_answers(vl2, asked)}", flush=True)
    boxes = [
        (view.picture.image(), locate_prompt(phrase.text))
        for view, phrase in phrases(args.pictures, args.seed, "train")
    ]
    print(f"boxes: {compare_answers(vl2, boxes)}", flush=True)


if __name__ == "__main__":
    main()
