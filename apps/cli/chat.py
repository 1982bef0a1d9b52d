"""`bifrons ask` and `bifrons chat`: answers about pictures."""

import argparse
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from ...blocks.chat.image_io import open_image
from ...blocks.chat.text_generation import TextGenerationOptions, resolve_seed
from ...blocks.errors import BifronsError, PromptError
from ..files import print_json
from ..pipelines import explain_memory, load_pipeline
from .options import loading

if TYPE_CHECKING:
    from ..pipelines import Pipeline

_HELP = """\
/image PATH   show a picture with your next message (several are allowed)
/reset        forget the conversation
/help         this list
/quit         leave (so does Ctrl-D); Ctrl-C stops an answer"""


def _answer_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options as keywords of the pipelines, checked."""
    given = {f.name: getattr(args, f.name) for f in fields(TextGenerationOptions) if f.name in args}
    options = TextGenerationOptions(**given)
    return {f.name: getattr(options, f.name) for f in fields(options)} | {"seed": resolve_seed(args.seed)}


def _advice(model: str) -> str:
    return (
        f"accepted: a smaller max-new-tokens, fewer pictures, a smaller dtype or another device "
        f"(`bifrons info {model}` tells what a conversation needs)"
    )


def _load(args: argparse.Namespace) -> "Pipeline":
    return load_pipeline(args.model, **loading(args), parts="read", eager=args.eager)


def ask(args: argparse.Namespace) -> int:
    """Print the answer as it is generated, or JSON."""
    started = time.monotonic()
    *paths, question = args.items
    if not paths and Path(question).is_file():
        raise PromptError(f"there is a picture, {question}, but no question; write the question after it")
    options = _answer_options(args)
    pictures = [open_image(path) for path in paths]
    pipe = _load(args)
    with explain_memory("answering", lambda: _advice(args.model)):
        answer = pipe.ask(pictures, question, stream=not args.json, **options)
        if not args.json:
            for piece in answer:
                print(piece, end="", flush=True)
            print()
            return 0
    print_json(
        {
            "model": args.model,
            "images": paths,
            "question": question,
            "answer": answer,
            **options,
            "seconds": round(time.monotonic() - started, 3),
        }
    )
    return 0


class Conversation:
    """What was said so far, in OpenAI's form of messages, and the pictures that wait for the next message."""

    def __init__(self, pipe: "Pipeline", model: str, system: str | None, options: dict[str, Any]) -> None:
        self.pipe, self.model, self.options = pipe, model, options
        self.opening = [] if system is None else [{"role": "system", "content": system}]
        self.messages: list[dict[str, Any]] = list(self.opening)
        self.waiting: list[Image.Image] = []

    def reset(self) -> None:
        self.messages, self.waiting = list(self.opening), []

    def say(self, text: str) -> Generator[str, None, None]:
        """Pieces of the answer. A turn counts once something of its answer was seen, also if it is then
        stopped; else it is as if it had not been, and its pictures wait for the next message."""
        parts: list[dict[str, Any]] = [{"type": "image", "image": picture} for picture in self.waiting]
        turn = {"role": "user", "content": [*parts, {"type": "text", "text": text}]}
        said = ""
        try:
            with explain_memory("answering", lambda: _advice(self.model)):
                for piece in self.pipe.chat([*self.messages, turn], stream=True, **self.options):
                    said += piece
                    yield piece
        finally:
            if said.strip():
                self.messages += [turn, {"role": "assistant", "content": said.strip()}]
                self.waiting = []


def chat(args: argparse.Namespace) -> int:
    """0, or 2 where the input is no terminal and a line of it failed."""
    options = _answer_options(args)
    pictures = [open_image(path) for path in args.image or ()]
    pipe = _load(args)
    conversation = Conversation(pipe, args.model, args.system, options)
    conversation.waiting += pictures
    interactive = sys.stdin.isatty()
    if interactive:
        print("Ask away; /help lists the commands, Ctrl-D leaves.", file=sys.stderr)
    failed = False
    for line in _lines(interactive):
        if line in ("/quit", "/exit"):
            break
        try:
            _take(conversation, line)
        except BifronsError as error:
            failed = True
            print(f"error: {error}", file=sys.stderr, flush=True)
    return 2 if failed and not interactive else 0


def _lines(interactive: bool) -> Iterator[str]:
    """What the user types, without empty lines, until the end of the input."""
    if not interactive:
        yield from (line.strip() for line in sys.stdin if line.strip())
        return
    with suppress(ImportError):  # not on every platform; typing works without
        import readline  # noqa: F401  (gives `input` its line editing and history)
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print("\n(Ctrl-D or /quit leaves)", file=sys.stderr)
            continue
        if line:
            yield line


def _take(conversation: Conversation, line: str) -> None:
    """One line: a command, or a message whose answer is written as it comes."""
    command, _, rest = line.partition(" ")
    if command == "/help":
        print(_HELP)
    elif command == "/reset":
        conversation.reset()
        print("(forgotten)", file=sys.stderr)
    elif command == "/image":
        path = rest.strip().strip("\"'")
        picture = open_image(path)
        conversation.waiting.append(picture)
        print(f"({path}: {picture.width} x {picture.height}, goes with your next message)", file=sys.stderr)
    elif line.startswith("/"):
        raise PromptError(f"unknown command {command}; accepted: /image PATH, /reset, /help, /quit")
    else:
        _answer(conversation, line)


def _answer(conversation: Conversation, line: str) -> None:
    written = False
    answer = conversation.say(line)
    try:
        for piece in answer:
            written = True
            print(piece, end="", flush=True)
        print("" if written else "(no answer)", flush=True)
    except KeyboardInterrupt:
        answer.close()
        print("\n(stopped)", file=sys.stderr)
