"""The processes of `bifrons train`, one a GPU: which command starts them, and which of them speaks."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from ...blocks.device import resolve_device
from ...blocks.errors import BifronsError, OptionError, check_integer, printable
from ...eval.atomic_io import disk_errors, folder_lock
from ...learn.distributed import OtherProcessError, from_first
from ...learn.processes import LOST, LostConnectionError, ProcessError, has_launcher, is_launched, launch
from ...learn.run_folder import LOG, open_run
from ..notes import notes
from .long_work import StoppedError, long_work, status_of


def processes_to_start(args: argparse.Namespace) -> int:
    """How many processes `--gpus` and `--device` ask for: 1 to work in this one, as in one that was started
    with others. Raises `OptionError`."""
    device, asked = resolve_device(args.device), args.gpus
    if is_launched():
        here = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
        if asked not in (None, here):
            raise OptionError(f"gpus is {asked}, but {here} processes were started here; accepted: {here}")
        return 1
    most = 1024 if device.type == "cpu" else 1
    if device.type == "cuda" and device.index is None:
        most = torch.cuda.device_count()
    if asked is None:
        return 1 if device.type == "cpu" else most
    return check_integer("gpus", asked, 1, most)


def start_processes(args: argparse.Namespace, processes: int) -> int:
    """Run this command in several processes; returns its exit status once all have ended. Ctrl-C and SIGTERM
    end them, and raise `StoppedError`."""
    try:
        launch(processes, ["-m", "bifrons", *args.words])
    except ProcessError as error:
        if error.number or error.status < 0 or error.status == LOST:
            raise
        return error.status  # the first process has said why
    return 0


def in_processes(args: argparse.Namespace, run_dir: Path, processes: int) -> int:
    """`start_processes` for a run, whose last step is named if they are ended."""

    def step() -> int:
        try:
            lines = (run_dir / LOG).read_text(encoding="utf-8").splitlines()
            return int(json.loads(lines[-1])["step"])
        except (OSError, ValueError, LookupError, TypeError):
            return 0

    with long_work(lambda: goes_on(step()), lambda: {"folder": str(run_dir), "step": step()}):
        return start_processes(args, processes)


def goes_on(step: int) -> str:
    """What is said of a run that was stopped."""
    return f"the same command goes on from the last checkpoint (step {step:,} was reached)"


@contextmanager
def opened_run(run_dir: Path, settings: dict[str, Any]) -> Iterator[None]:
    """The folder of a run, which the first process opens and holds."""

    def hold(stack: ExitStack) -> None:
        open_run(run_dir, settings)
        stack.enter_context(folder_lock(run_dir))

    with disk_errors(f"work in {run_dir}"), ExitStack() as stack:
        from_first(lambda: hold(stack))
        yield


def as_one_of_several(function: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """Run a command in a process that was started with others: the first speaks, others only of failures of
    their own; of signals, what started them speaks, if it is this command. Returns the exit status."""
    first = os.environ["RANK"] == "0"
    try:
        with notes(args.quiet or not first):
            return function(args)
    except OtherProcessError:
        return 0  # the one that failed has another status, and may take a moment to say why
    except KeyboardInterrupt:
        if first and not has_launcher():
            raise
        return 130
    except (BifronsError, StoppedError) as error:
        status = error.status if isinstance(error, StoppedError) else status_of(error)
        is_signal = status > 128
        if has_launcher() and isinstance(error.__cause__, LostConnectionError):
            return LOST
        if first and not (is_signal and has_launcher()):
            raise
        if not is_signal:
            name = f"process {os.environ['RANK']} of {os.environ['WORLD_SIZE']}"
            print(f"{name}: {printable(str(error))}", file=sys.stderr, flush=True)
        return status
