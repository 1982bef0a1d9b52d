"""`bifrons ask` and `bifrons chat`: questions about images, one or a whole conversation."""

import argparse
import io
import os
import sys
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from PIL import Image

from ...blocks.chat.text_generation import TextGenerationOptions, resolve_seed
from ...blocks.errors import BifronsError, OptionError, PromptError
from ...blocks.files import encoding_of
from ..files import print_json
from ..notes import heading, note
from ..pipelines import StepMeter, explain_out_of_memory, load_pipeline
from .ask_many import ask_many
from .file_kinds import check_no_file, is_picture
from .inputs import STDIN, dropped_files, expand_globs, open_picture, picture_files, picture_words, stdin_text
from .long_work import FAILED
from .options import given_fields, loading_options
from .thoughts import model_options, refuse_limit, shown_pieces

if TYPE_CHECKING:
    from ..pipelines import Pipeline

_HELP = """\
/image PATH   add pictures to your next message: paths, within quotes if they hold spaces, or globs;
              a picture dragged into the terminal works alone, without /image
/reset        start a new conversation
/help         show this list
/quit         leave (as does Ctrl-D); Ctrl-C stops an answer"""


def generation_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options and the seed, checked, as keywords of the pipelines."""
    options = TextGenerationOptions(**given_fields(args, TextGenerationOptions))
    return {**asdict(options), "seed": resolve_seed(args.seed)}


def memory_advice(model: str) -> str:
    """What to do where memory is too small for a text."""
    return (
        f"accepted: a smaller max-new-tokens, fewer pictures, a smaller dtype or another device "
        f"(`bifrons info {model}` shows what a conversation needs)"
    )


def load_reader(args: argparse.Namespace) -> "Pipeline":
    """The model of a command, with what reads."""
    return load_pipeline(args.model, **loading_options(args), parts="read")


def ask(args: argparse.Namespace) -> int:
    """Print the answer while it is generated, or JSON."""
    if args.images:
        refuse_limit(args)
        return ask_many(args)
    for option, value in (("output", args.output), ("batch-size", args.batch_size)):
        if value is not None:
            raise OptionError(
                f"{option} is {value!r}; accepted with --images, for a question about each picture"
            )
    if not args.items:
        raise PromptError("there is no question; accepted: bifrons ask [IMAGE ...] QUESTION")
    started = time.monotonic()
    *paths, question = args.items
    if question == STDIN and paths:
        if STDIN in paths:
            raise PromptError("- is standard input, which can't be both picture and question")
        question = stdin_text("the question")
    if not question.strip():
        raise PromptError(f"the question is {question!r}; accepted: a text that is not empty")
    if not is_picture(question):
        check_no_file("the question", question, "- reads it from standard input, as in ask PICTURE - < FILE")
    if question == STDIN or os.path.isfile(question):  # False for questions that no path can be
        raise PromptError(f"there is a picture, {question}, but no question; write the question after it")
    options, paths = generation_options(args), expand_globs(paths)
    images = [open_picture(path, args.exif) for path in paths]
    pipe = load_reader(args)
    options |= model_options(pipe, args)
    meter = StepMeter(pipe)
    with explain_out_of_memory("answering", lambda: memory_advice(args.model)):
        answer = pipe.ask(images, question, stream=not args.json, **options)
        if not args.json:
            for piece in shown_pieces(answer, pipe):
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
            "steps": meter.steps,
            "tokens_per_step": round(meter.tokens_per_step, 3),
            "seconds": round(time.monotonic() - started, 3),
        }
    )
    return 0


class Conversation:
    """The messages so far, in OpenAI's format, and the images to send with the next one."""

    def __init__(
        self, pipe: "Pipeline", model: str, system: str | None, options: dict[str, Any], exif: str = "apply"
    ) -> None:
        self.pipe, self.model, self.options, self.exif = pipe, model, options, exif
        self.initial_messages = [] if system is None else [{"role": "system", "content": system}]
        self.messages: list[dict[str, Any]] = list(self.initial_messages)
        self.pending_images: list[Image.Image] = []

    def reset(self) -> None:
        """Forget all messages but the system message, and the pending images."""
        self.messages, self.pending_images = list(self.initial_messages), []

    def send(self, text: str) -> Generator[str, None, None]:
        """Send a message and yield its answer piece by piece.

        Message and answer join the conversation even if the answer is interrupted. If nothing of it has been
        generated by then, the message is dropped and its images stay pending.
        """
        parts: list[dict[str, Any]] = [{"type": "image", "image": image} for image in self.pending_images]
        message = {"role": "user", "content": [*parts, {"type": "text", "text": text}]}
        answer = ""
        try:
            with explain_out_of_memory("answering", lambda: memory_advice(self.model)):
                for piece in self.pipe.chat([*self.messages, message], stream=True, **self.options):
                    answer += piece
                    yield piece
        finally:
            if answer.strip():
                self.messages += [message, {"role": "assistant", "content": answer.strip()}]
                self.pending_images = []


def chat(args: argparse.Namespace) -> int:
    """Read messages and commands from stdin; the status is 1 if a line failed and stdin is not a terminal."""
    options = generation_options(args)
    if STDIN in (args.image or ()):
        raise OptionError("image is -, but standard input holds your messages; accepted: --image PATH")
    images = [open_picture(path, args.exif) for path in picture_files(args.image or ())]
    pipe = load_reader(args)
    options |= model_options(pipe, args)
    conversation = Conversation(pipe, args.model, args.system, options, args.exif)
    conversation.pending_images += images
    interactive = sys.stdin.isatty()
    if interactive:
        note("Ask away; /help lists the commands, Ctrl-D leaves.")
    failed = False
    for line in input_lines(interactive):
        if line in ("/quit", "/exit"):
            break
        try:
            _handle_line(conversation, line)
        except BifronsError as error:
            failed = True
            print(f"{heading('error:', 31)} {error}", file=sys.stderr, flush=True)
    return FAILED if failed and not interactive else 0


def input_lines(interactive: bool) -> Iterator[str]:
    """Lines from stdin without empty ones; with a prompt, line editing and history if interactive."""
    if not interactive:
        yield from (line.strip() for line in _piped_text() if line.strip())
        return
    with suppress(ImportError):  # not on every platform; `input` works without it
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


def _piped_text() -> Iterable[str]:
    """Lines of standard input in the encoding that its byte order mark says, else as the locale says."""
    stream = getattr(sys.stdin, "buffer", None)
    if stream is None:
        return sys.stdin
    encoding = encoding_of(stream.peek(4)) if hasattr(stream, "peek") else None
    return io.TextIOWrapper(stream, encoding or sys.stdin.encoding, errors="surrogateescape")


def _handle_line(conversation: Conversation, line: str) -> None:
    """Run a command, or send a message and print its answer while it is generated."""
    command, _, rest = line.partition(" ")
    if command == "/help":
        print(_HELP)
    elif command == "/reset":
        conversation.reset()
        note("(new conversation)")
    elif command == "/image":
        if not rest.strip():
            raise PromptError("which picture? accepted: /image PATH, with several paths too")
        _add_images(conversation, picture_words(rest.strip()))
    elif paths := dropped_files(line):
        _add_images(conversation, paths)
    elif line.startswith("/"):
        raise PromptError(f"unknown command {command}; accepted: /image PATH, /reset, /help, /quit")
    else:
        _print_answer(conversation, line)


def _add_images(conversation: Conversation, words: list[str]) -> None:
    """Add pictures to the next message: all of them, or none if one can't be read."""
    images = {path: open_picture(path, conversation.exif) for path in picture_files(words)}
    conversation.pending_images += images.values()
    for path, image in images.items():
        size = f"{image.width} x {image.height}"
        note(f"({path}: {size}, goes with your next message)")


def _print_answer(conversation: Conversation, message: str) -> None:
    empty = True
    answer = shown_pieces(conversation.send(message), conversation.pipe)
    try:
        for piece in answer:
            empty = False
            print(piece, end="", flush=True)
        print("(no answer)" if empty else "", flush=True)
    except KeyboardInterrupt:
        answer.close()
        print("\n(stopped)", file=sys.stderr)
