"""`bifrons eval math`: questions with one right answer."""

import argparse
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from ...eval.atomic_io import folder_lock, make_folder
from ...eval.math.run import MathOptions, evaluate_math
from ..files import print_json
from .eval_read import model_choice, print_scores
from .options import given_fields


def math(args: argparse.Namespace) -> int:
    """Ask the questions of a file, or go on, and print the scores."""
    given = {name: value for name, value in given_fields(args, MathOptions).items() if value is not None}
    choice, options = model_choice(args), MathOptions(**given)
    with ExitStack() as stack:
        root = args.run_dir or Path(stack.enter_context(TemporaryDirectory()))
        make_folder(root)
        stack.enter_context(folder_lock(root))
        where = (args.device, args.processes, args.threads)
        content = evaluate_math(root, args.path, choice, options, args.images, *where)
    if args.json:
        print_json(content)
    else:
        print_scores(content, "answer")
    return 0
