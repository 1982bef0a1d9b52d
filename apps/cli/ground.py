"""`bifrons locate`: where in a picture is what a phrase names."""

import argparse
import sys
import time
from dataclasses import asdict
from pathlib import Path

from ...blocks.chat.image_io import open_image
from ...blocks.checkpoints.hub import open_model
from ...blocks.errors import OptionError, PromptError
from ...vl2.grounding import draw_boxes
from ...vl2.prompts import locate_prompt
from ..defaults import DEFAULT_FINDER
from ..files import print_json, write_new
from ..pipelines import family_of, load_pipeline
from .options import loading


def find(args: argparse.Namespace) -> int:
    """One line a box, in pixels; with an output name, the picture with the boxes drawn. Pieces of the answer
    that are no boxes are told on stderr."""
    from ...vl2.pipeline import VL2Pipeline

    started = time.monotonic()
    if not args.phrase.strip():
        raise PromptError("the phrase is empty; say what to look for")
    target = None if args.output is None else Path(args.output)
    if target is not None and target.suffix.lower() != ".png":
        raise OptionError(f"output is {args.output!r}; accepted: a name that ends in .png")
    picture = open_image(args.image)
    family = family_of(open_model(args.model))
    if family != "DeepSeek-VL2":
        raise OptionError(
            f"{args.model} is a {family} model, which does not point at things; "
            f"accepted: a DeepSeek-VL2 model, such as {DEFAULT_FINDER} or deepseek-ai/deepseek-vl2-tiny"
        )
    pipe = load_pipeline(args.model, **loading(args))
    assert isinstance(pipe, VL2Pipeline)
    found = pipe.ground(picture, locate_prompt(args.phrase))
    boxes = found.boxes
    drawn = None
    if target is not None:
        annotated = draw_boxes(picture, boxes)
        drawn = write_new(target, lambda stream: annotated.save(stream, "PNG"))
    if args.json:
        listed = [{"label": b.label, "box": list(b.pixels), "normalized": b.normalized} for b in boxes]
        seconds = round(time.monotonic() - started, 3)
        print_json(
            {
                "model": args.model,
                "phrase": args.phrase,
                "boxes": listed,
                "text": found.text,
                "problems": [asdict(problem) for problem in found.problems],
                "file": None if drawn is None else str(drawn),
                "seconds": seconds,
            }
        )
        return 0
    for problem in found.problems:
        print(f"not read: {problem.text!r}: {problem.reason}", file=sys.stderr)
    for box in boxes:
        print(f"{box.label}: {box.x1} {box.y1} {box.x2} {box.y2}")
    if not boxes:
        print(f"{args.phrase}: not found")
    if drawn is not None:
        print(drawn)
    return 0
