"""Thoughts of models that reason, in the command line: their options, and how answers with them are shown."""

import argparse
import os
import sys
from collections.abc import Generator, Iterable
from typing import TYPE_CHECKING, Any

from ...blocks.errors import OptionError

if TYPE_CHECKING:
    from ..pipelines import Pipeline

_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"


def add_max_thinking_tokens(parser: Any) -> None:
    """Add `--max-thinking-tokens`."""
    parser.add_argument(
        "--max-thinking-tokens",
        type=int,
        metavar="N",
        help="end the thought of a model that thinks first after N tokens (default: when it is done)",
    )


def own_sampling(pipe: "Pipeline", args: argparse.Namespace) -> dict[str, Any]:
    """The model's own temperature and top-p where none are given."""
    return {name: getattr(pipe, name) for name in ("temperature", "top_p") if name not in args}


def model_options(pipe: "Pipeline", args: argparse.Namespace) -> dict[str, Any]:
    """Options of `chat` that depend on the model: its own temperature and top-p where none are given, and the
    limit of its thought. Raises `OptionError` for that of a model of pictures."""
    from ..pipelines import as_text

    options = own_sampling(pipe, args)
    if (limit := args.max_thinking_tokens) is not None:
        if as_text(pipe) is None:
            raise _no_thoughts(limit, args.model)
        options["max_thinking_tokens"] = limit
    return options


def refuse_limit(args: argparse.Namespace) -> None:
    """Raise `OptionError` if a thought is limited in work for which only models of pictures are used."""
    if args.max_thinking_tokens is not None:
        raise _no_thoughts(args.max_thinking_tokens, "a model of pictures")


def _no_thoughts(limit: int, model: str) -> OptionError:
    return OptionError(f"max-thinking-tokens is {limit}, but {model} doesn't think first; accepted: none")


def shown_pieces(pieces: Iterable[str], pipe: "Pipeline") -> Generator[str, None, None]:
    """Pieces of an answer as they are printed: a thought is dimmed on terminals, without the mark of its end;
    elsewhere all is as it was generated."""
    from ...text.thought_text import ThoughtSplitter
    from ..pipelines import as_text

    text = as_text(pipe)
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not sys.stdout.isatty()
    if text is None or not text.thinks or plain:
        yield from pieces
        return
    splitter, begun = ThoughtSplitter(), False
    try:
        for piece in pieces:
            thinking = splitter.inside
            thought, answer = splitter.feed(piece)
            if thought:
                yield f"{_DIM}{thought}{_PLAIN}"
            if thinking and not splitter.inside:
                yield "\n\n"
            answer = answer if begun else answer.lstrip()
            if answer:
                begun = True
                yield answer
        rest, _ = splitter.feed("", last=True)
        if rest:
            yield f"{_DIM}{rest}{_PLAIN}"
    finally:
        if (close := getattr(pieces, "close", None)) is not None:
            close()
