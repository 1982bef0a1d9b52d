"""`bifrons ask --images`: one question about each of many pictures, answered in batches, as JSON lines."""

import argparse
import json
import os
import sys
import time
from codecs import BOM_UTF8
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from ...blocks.chat.text_generation import TextGenerationOptions, resolve_seed
from ...blocks.engine.generate import scheduler_of
from ...blocks.errors import (
    OptionError,
    PictureError,
    PromptError,
    ResourceError,
    check_integer,
    counted,
    printable,
)
from ...blocks.files import sync
from ...blocks.image_fit import FittedImage
from ...blocks.json_config import decode_json, shown
from ...blocks.placement.memory_budget import batch_over_devices, batch_that_fits
from ...blocks.progress import progress_bar
from ...eval.atomic_io import read_lines
from ..files import print_json
from ..notes import note
from ..pipelines import chat_workload, explain_out_of_memory, load_pipeline
from .inputs import STDIN, open_picture, picture_files, stdin_text, user_path
from .long_work import FAILED, long_work
from .options import given_fields, loading_options
from .outputs import check_output

if TYPE_CHECKING:
    from ..pipelines import Pipeline

_BATCH, _CPU_BATCH = 64, 16
_READERS = 4
"""Threads that open pictures; each holds one of up to 64 million pixels."""
_SUFFIXES = (".jsonl", ".ndjson")

Line = dict[str, Any]
"""An answer: image, question, model, the options, and `answer` or `error`."""


def ask_many(args: argparse.Namespace) -> int:
    """Answer the question about each picture and write a line for each; 1 if one couldn't be read.

    Pictures whose answers, to this question by this model with these options, are in the output already are
    left out; those with an error are tried again.
    """
    started = time.monotonic()
    options = TextGenerationOptions(**given_fields(args, TextGenerationOptions))
    question, seed = _question(args), resolve_seed(args.seed)
    if args.batch_size is not None:
        check_integer("batch_size", args.batch_size, low=1)
    output = None if args.output in (None, "-") else user_path(args.output)
    if output is not None:  # a file that is there goes on
        check_output(str(args.output), _SUFFIXES, force=True)
    settings = {"question": question, "model": args.model, **asdict(options), "exif": args.exif, "seed": seed}
    del settings["speculate"]  # no answer depends on it
    settings = {key: value for key, value in settings.items() if value is not None}
    # Greedy answers don't depend on the seed, and a random seed is none to look for.
    but = {"seed"} if args.seed is None or not options.temperature else set()
    paths = [path for path in picture_files(args.images) if output is None or not _is_same(path, output)]
    log = AnswerLog(output, settings, but)
    todo = [path for path in paths if printable(path) not in log.answered]
    if todo:
        pipe = load_pipeline(args.model, **loading_options(args), parts="read")
        _work(
            args, Asker(pipe, question, {**asdict(options), "seed": seed}, args.exif), log, todo, len(paths)
        )
    if args.json:
        content = {"model": args.model, "question": question, **log.content()}
        print_json({**content, "seconds": round(time.monotonic() - started, 3)})
    if len(todo) < len(paths):
        note(f"answered already: {len(paths) - len(todo):,} of {counted(len(paths), 'picture')}")
    if log.failed:
        print(f"{log.failed:,} of {counted(len(paths), 'picture')} could not be answered", file=sys.stderr)
    return FAILED if log.failed else 0


def _question(args: argparse.Namespace) -> str:
    """The question, which a shell may have put behind the pictures. Raises `PromptError`."""
    if not args.items and len(args.images) > 1 and not os.path.lexists(args.images[-1]):
        args.items.append(args.images.pop())
    if len(args.items) != 1:
        problem = "also stand before the question" if args.items else "have no question"
        raise PromptError(
            f"the pictures of --images {problem}; accepted: bifrons ask QUESTION --images PATH ..."
        )
    if args.items[0] == STDIN and STDIN not in args.images:
        args.items[0] = stdin_text("the question")
    if not args.items[0].strip():
        raise PromptError(f"the question is {args.items[0]!r}; accepted: a text that is not empty")
    return args.items[0]


def _is_same(path: str, output: Path) -> bool:
    with suppress(OSError, ValueError):
        return os.path.samefile(path, output)
    return False


def _work(args: argparse.Namespace, asker: "Asker", log: "AnswerLog", todo: list[str], count: int) -> None:
    """Answer in batches and log each, with a progress bar on stderr."""
    bar = progress_bar(len(todo), "answering", " pictures")

    def done() -> str:
        bar.close()
        rest = "" if log.path is None else f" in {log.path}; the same command goes on with the rest"
        answered = count - len(todo) + log.written - log.failed
        return f"answered: {answered:,} of {counted(count, 'picture')}{rest}"

    with long_work(done, log.content):
        while todo_now := todo[log.written : log.written + (args.batch_size or asker.batch_size())]:
            size = len(todo_now)
            fewer = f"--batch-size {size // 2}, " if size > 1 else ""
            advice = f"accepted: {fewer}a smaller max-new-tokens, a smaller dtype or another device"
            work = f"answering about {counted(size, 'picture')}"
            with explain_out_of_memory(work, lambda advice=advice: advice):
                results = asker.answers(todo_now)
            for path, result in zip(todo_now, results, strict=True):
                if "error" in result:
                    tqdm.write(printable(f"{path}: {result['error']}"), file=sys.stderr)
            log.write(zip(todo_now, results, strict=True), show=not args.json)
            bar.update(size)
    bar.close()


class Asker:
    """A model, the question, and the options of an answer."""

    def __init__(self, pipe: "Pipeline", question: str, options: dict[str, Any], exif: str) -> None:
        self.pipe, self.question, self.options, self.exif = pipe, question, options, exif
        self.fit = pipe.processor.fit(1)

    def batch_size(self) -> int:
        """Pictures to answer together: what fits in the memory that is free now, within limits."""
        decoder, work = self.pipe.model.decoder, chat_workload(self.pipe)
        if decoder.layout is not None:
            fitting = batch_over_devices(work, decoder.layout, decoder.dtype)
        else:
            reclaimable = scheduler_of(decoder).runner.cache_bytes
            fitting = batch_that_fits(work, decoder.device, decoder.dtype, reclaimable)
        return min(fitting, _CPU_BATCH if decoder.device.type == "cpu" else _BATCH)

    def answers(self, paths: list[str]) -> list[Line]:
        """`answer` or `error` for each picture; each answer is what `ask` gives alone."""
        with ThreadPoolExecutor(_READERS) as readers:
            read = dict(zip(paths, readers.map(self._read, paths), strict=True))
        results = {path: {"error": one} for path, one in read.items() if isinstance(one, str)}
        pictures = {path: one for path, one in read.items() if not isinstance(one, str)}
        try:
            results |= self._ask(pictures)
        except PromptError:  # of one of them, such as too large a picture for the context
            for path, picture in pictures.items():
                try:
                    results |= self._ask({path: picture})
                except PromptError as error:
                    results[path] = {"error": str(error)}
        return [results[path] for path in paths]

    def _read(self, path: str) -> FittedImage | str:
        """A picture as the model reads it, which takes much less memory, or why it can't be read."""
        try:
            return self.fit(open_picture(path, self.exif))
        except PictureError as error:
            return str(error)

    def _ask(self, pictures: dict[str, FittedImage]) -> dict[str, Line]:
        if not pictures:
            return {}
        messages = [self.pipe.question_messages([one], self.question) for one in pictures.values()]
        answers = self.pipe.chat_batch(messages, **self.options)
        return {path: {"answer": answer} for path, answer in zip(pictures, answers, strict=True)}


class AnswerLog:
    """The lines that are written, to a file or stdout, and the pictures that the file answers already."""

    def __init__(self, path: Path | None, settings: Line, but: Iterable[str] = ()) -> None:
        """`settings` are part of every line. A line of the file counts if it has them, `but` for some."""
        self.path, self.settings = path, settings
        self.written = self.failed = 0
        self.lines: list[Line] = []
        expected = {key: value for key, value in settings.items() if key not in but}
        found = _read_answers(path, expected) if path is not None and path.exists() else {}
        self.answered = {image for image, result in found.items() if "answer" in result}
        self._errors = {image: result for image, result in found.items() if "error" in result}

    def write(self, results: Iterable[tuple[str, Line]], show: bool) -> None:
        """Add lines, but not an error that the file has already. A file gets all of a batch or none.

        Raises `OptionError`.
        """
        lines = [{"image": printable(path), **result, **self.settings} for path, result in results]
        new = [
            line
            for line in lines
            if self._errors.get(line["image"], {}).get("error", "") != line.get("error")
        ]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in new)
        if self.path is not None:
            _append(self.path, text.encode())
        elif show:
            tqdm.write(printable(text), file=sys.stdout, end="")
            sys.stdout.flush()
        self.written += len(lines)
        self.failed += sum("error" in line for line in lines)
        self.lines += [] if show else lines

    def content(self) -> dict[str, Any]:
        """The lines of this run, for `--json`."""
        return {"output": None if self.path is None else str(self.path), "answers": self.lines}


def _append(path: Path, content: bytes) -> None:
    """Add whole lines to a file, which is as before if that fails. Raises `OptionError`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab") as stream:
            size = stream.tell()
            try:
                stream.write(content)
                sync(stream)
            except BaseException:
                stream.truncate(size)
                raise
    except OSError as error:
        raise ResourceError(f"can't write {path}: {error.strerror or error}") from error


def _read_answers(path: Path, settings: Line) -> dict[str, Line]:
    """The last line of each picture that has these settings. What a crash left of a line is removed.

    Raises `OptionError` for a file of anything else.
    """
    found, whole, line = {}, 0, b"\n"
    for number, line in read_lines(path):
        try:
            row = decode_json(line.removeprefix(BOM_UTF8))
        except ValueError as error:
            if not line.endswith(b"\n"):
                break
            raise OptionError(f"{path} line {number} is not JSON: {error}; accepted: another file") from error
        if not isinstance(row, dict) or not isinstance(row.get("image"), str):
            raise OptionError(
                f"{path} line {number} is {shown(row)}, no answer about a picture; accepted: another file"
            )
        whole += len(line)
        if all(row.get(key) == value for key, value in settings.items()):
            found[row["image"]] = row
    else:
        if not line.endswith(b"\n"):
            _append(path, b"\n")
        return found
    note(f"{path}: the last line is incomplete and is dropped")
    try:
        os.truncate(path, whole)
    except OSError as error:
        raise ResourceError(f"can't write {path}: {error.strerror or error}") from error
    return found
