"""The parsers of `bifrons train` and its methods; imports nothing heavy."""

from collections.abc import Callable
from typing import Any

from .train_grpo_options import add_grpo, grpo_options
from .train_options import add_sft, sft_options


def add_train(commands: Any, command: Callable[..., Any], add_json: Callable[[Any], None]) -> None:
    """Add the parsers of `train` and its methods.

    `command(commands, name, text, defaults)` makes a parser whose help shows the defaults of a dataclass.
    """
    parser = command(commands, "train", "fine-tune a model (needs bifrons[train])")
    methods = parser.add_subparsers(dest="method", metavar="METHOD", required=True)
    for name, text, add, options in (
        ("sft", "supervised fine-tuning on captioned pictures and conversations", add_sft, sft_options),
        ("grpo", "training by rewards (GRPO), of painting and of answers", add_grpo, grpo_options),
    ):
        method = command(methods, name, text, options)
        add(method)
        add_json(method)
