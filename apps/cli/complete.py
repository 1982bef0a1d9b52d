"""`bifrons complete`: the text that follows another, as it is."""

import argparse
import time

from ...blocks.errors import PromptError
from ..files import print_json
from ..pipelines import StepMeter, explain_out_of_memory
from .chat import generation_options, load_reader, memory_advice
from .file_kinds import check_no_file
from .inputs import STDIN, whole_text
from .thoughts import own_sampling


def complete(args: argparse.Namespace) -> int:
    """Print the continuation while it is generated, or JSON."""
    started = time.monotonic()
    prompt, options = _prompt(args), generation_options(args)
    pipe = load_reader(args)
    options |= own_sampling(pipe, args)
    meter = StepMeter(pipe)
    with explain_out_of_memory("completing", lambda: memory_advice(args.model)):
        if not args.json:
            for piece in pipe.complete(prompt, stream=True, **options):
                print(piece, end="", flush=True)
            print()
            return 0
        text = pipe.complete(prompt, **options)
    print_json(
        {
            "model": args.model,
            "prompt": prompt,
            "text": text,
            **options,
            "steps": meter.steps,
            "tokens_per_step": round(meter.tokens_per_step, 3),
            "seconds": round(time.monotonic() - started, 3),
        }
    )
    return 0


def _prompt(args: argparse.Namespace) -> str:
    """The text of the argument, of a file or of standard input. Raises `PromptError`."""
    prompt, file = args.prompt, args.file
    if (prompt is None) == (file is None):
        raise PromptError(
            f"there is {'no prompt' if file is None else 'a prompt and a --file'}; accepted: one of "
            "bifrons complete PROMPT, bifrons complete - and bifrons complete --file FILE"
        )
    if file is not None:
        return whole_text(file, "the prompt")
    if prompt == STDIN:
        return whole_text(STDIN, "the prompt")
    if not prompt:
        raise PromptError("the prompt is ''; accepted: a text that is not empty")
    check_no_file("the prompt", prompt, "--file reads it from a file")
    return prompt
