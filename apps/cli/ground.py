"""`bifrons locate`: boxes in an image around what a phrase names."""

import argparse
import sys
import time
from dataclasses import asdict
from pathlib import Path

from ...blocks.checkpoints.hub import open_model
from ...blocks.errors import OptionError, PromptError
from ...vl2.grounding import Grounding, draw_boxes
from ...vl2.prompts import locate_prompt
from ..defaults import DEFAULT_GROUNDING_MODEL
from ..files import print_json
from ..pipelines import family_of, load_pipeline
from .file_kinds import check_no_file
from .inputs import STDIN, open_picture, stdin_text
from .options import loading_options
from .outputs import STDOUT, check_output, write_image


def locate(args: argparse.Namespace) -> int:
    """Print each box in pixels, or JSON; with `--output`, write the image with the boxes drawn.

    Parts of the answer that can't be parsed as boxes are reported on stderr.
    """
    from ...vl2.pipeline import VL2Pipeline

    started = time.monotonic()
    if args.phrase == STDIN:
        if args.image == STDIN:
            raise PromptError("- is standard input, which can't be both picture and phrase")
        args.phrase = stdin_text("the phrase")
    if not args.phrase.strip():
        raise PromptError("the phrase is empty; say what to look for")
    check_no_file("the phrase", args.phrase, "it stands behind the picture: bifrons locate PICTURE PHRASE")
    target = None if args.output is None else check_output(args.output, force=args.force, json=args.json)
    image = open_picture(args.image, args.exif)
    family = family_of(open_model(args.model))
    if family != "DeepSeek-VL2":
        raise OptionError(
            f"{args.model} is a {family} model, which does not point at things; "
            f"accepted: a DeepSeek-VL2 model, such as {DEFAULT_GROUNDING_MODEL} or "
            "deepseek-ai/deepseek-vl2-tiny"
        )
    pipe = load_pipeline(args.model, **loading_options(args))
    assert isinstance(pipe, VL2Pipeline)
    grounding = pipe.ground(image, locate_prompt(args.phrase))
    if target is not None:
        write_image(target, draw_boxes(image, grounding.boxes), args.force)
    if args.json:
        content = {
            "model": args.model,
            "phrase": args.phrase,
            "boxes": [
                {"label": box.label, "box": list(box.pixels), "normalized": box.normalized}
                for box in grounding.boxes
            ],
            "text": grounding.text,
            "problems": [asdict(problem) for problem in grounding.problems],
            "file": None if target is None else str(target),
            "seconds": round(time.monotonic() - started, 3),
        }
        print_json(content)
    else:
        _print_boxes(args.phrase, grounding, target)
    return 0


def _print_boxes(phrase: str, grounding: Grounding, file: Path | None) -> None:
    for problem in grounding.problems:
        print(f"not read: {problem.text!r}: {problem.reason}", file=sys.stderr)
    lines = [f"{box.label}: {box.x1} {box.y1} {box.x2} {box.y2}" for box in grounding.boxes]
    print("\n".join(lines or [f"{phrase}: not found"]), file=sys.stderr if file == STDOUT else sys.stdout)
    if file not in (None, STDOUT):
        print(file)
