"""The parsers of the commands that answer or go on from texts; imports nothing heavy."""

from collections.abc import Callable
from typing import Any

from .options import (
    TEMPERATURE_HELP,
    TOP_P_HELP,
    add_batch_size,
    add_exif,
    add_model,
    add_optional,
)
from .speculation import add_speculate
from .thoughts import add_max_thinking_tokens

Command = Callable[..., Any]
AddJson = Callable[[Any], None]


def add_text(commands: Any, command: Command, add_json: AddJson) -> None:
    """Add the parsers of `ask`, `chat` and `complete`."""
    _add_ask(commands, command, add_json)
    _add_chat(commands, command)
    _add_complete(commands, command, add_json)


def text_options() -> type:
    """The dataclass whose defaults the help of texts shows."""
    from ...blocks.chat.text_generation import TextGenerationOptions

    return TextGenerationOptions


def _add_sampling(parser: Any, text: str) -> None:
    """Add how a `text`, such as an answer, is generated."""
    parser.add_argument("--seed", type=int, metavar="N", help="seed of sampling (default: random)")
    add_drawing(parser, text)
    add_speculate(parser)


def add_drawing(parser: Any, text: str) -> None:
    """Add how the tokens of a `text` are drawn."""
    add_optional(
        parser,
        [
            ("--max-new-tokens", int, f"maximum length of {text}"),
            ("--temperature", float, TEMPERATURE_HELP),
            ("--top-p", float, TOP_P_HELP),
            ("--top-k", int, "sample from this many of the likeliest tokens (default: all)"),
            ("--min-p", float, "leave out tokens less likely than this times the likeliest one"),
            ("--repetition-penalty", float, "values above 1 make repetition less likely"),
            ("--presence-penalty", float, "subtracted from the logits of tokens in the text so far"),
            ("--frequency-penalty", float, "subtracted for each time that a token is in the text so far"),
        ],
    )


def _add_answering(parser: Any) -> None:
    add_model(parser)
    add_exif(parser)
    add_max_thinking_tokens(parser)
    _add_sampling(parser, "an answer")


def _add_ask(commands: Any, command: Command, add_json: AddJson) -> None:
    parser = command(commands, "ask", "answer a question about pictures", text_options)
    parser.usage = (
        "bifrons ask [options] [IMAGE ...] QUESTION\n"
        "       bifrons ask [options] QUESTION --images PATH ... [--output FILE.jsonl]"
    )
    parser.add_argument(
        "items",
        nargs="*",
        metavar="IMAGE ... QUESTION",
        help="image files, then the question; - is standard input",
    )
    parser.add_argument(
        "--images",
        nargs="+",
        action="extend",
        metavar="PATH",
        help="ask the question about each of these pictures alone: files, folders or quoted globs",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="with --images: a .jsonl file, to which a line is added per picture; pictures that it answers "
        "already are left out (default: the lines on stdout)",
    )
    add_batch_size(parser, "answered")
    _add_answering(parser)
    add_json(parser)


def _add_chat(commands: Any, command: Command) -> None:
    parser = command(commands, "chat", "chat, about pictures too", text_options)
    parser.add_argument(
        "--image", action="append", metavar="PATH", help="a picture for the first message; may be repeated"
    )
    parser.add_argument("--system", metavar="TEXT", help="a system message (default: the model's own)")
    _add_answering(parser)


def _add_complete(commands: Any, command: Command, add_json: AddJson) -> None:
    parser = command(commands, "complete", "continue a text as it is, without a chat template", text_options)
    parser.add_argument(
        "prompt",
        nargs="?",
        metavar="PROMPT",
        help="the text; special tokens count in it; - is standard input",
    )
    parser.add_argument(
        "--file", metavar="FILE", help="the text of a file, without the line break at its end"
    )
    add_model(parser)
    _add_sampling(parser, "the continuation")
    add_json(parser)
