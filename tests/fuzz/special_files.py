"""The kind `special`: paths that are no plain files, and files of odd sizes and names, as any input."""

import os
import random
import socket
from collections.abc import Callable
from pathlib import Path

import json_files
from bifrons.apps.server.middleware import read_keys
from cases import Kind
from commands import JANUS, VL2, link_folder, run_commands

HUGE = 1 << 40


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's path may have 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(path.name[:90])
    finally:
        os.chdir(here)


def _sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, HUGE)


def _loop(path: Path) -> None:
    path.symlink_to(path.name)


def _sparse_text(path: Path) -> None:
    path.write_bytes(b'{"a": 1,')
    os.truncate(path, 5_000_000_000)


def _to(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


SPECIALS: dict[str, Callable[[Path], None]] = {
    "FIFO": _fifo,
    "socket": _socket,
    "folder": Path.mkdir,
    "loop of links": _loop,
    "link to nothing": _to("/nowhere/at/all"),
    "link to a folder": _to("/proc"),
    "/dev/zero": _to("/dev/zero"),
    "/dev/null": _to("/dev/null"),
    "/dev/random": _to("/dev/urandom"),
    "/proc/self/mem": _to("/proc/self/mem"),
    "/dev/stdin": _to("/dev/stdin"),
    "sparse": _sparse,
    "sparse text": _sparse_text,
    "empty": Path.touch,
    "link to a name too long": _to("x" * 300),
    "nothing": lambda path: None,
}
NAMES = (
    "x" * 255,
    "x" * 256,
    "é" * 200,
    "a/" * 2100,
    "\udcff\udc80",
    "\x1b[31mred",
    "a\nb",
    "-",
    "--help",
    "~",
    "",
    ".",
    "..",
    "a\0b",
)
MODEL_FILES = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "processor_config.json", "preprocessor_config.json", "generation_config.json", "model.safetensors",
    "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
)  # fmt: skip
RUN_FILES = (
    "run.json", "prompts.jsonl", "images", "images/00000", "images/00000/samples",
    "images/00000/metadata.jsonl", "images/00000/samples/0000.json", "images/00000/samples/0000.png",
    "detect.json", "detections.jsonl", "results.jsonl", "summary.json",
)  # fmt: skip
ARGUMENTS = (
    "picture",
    "codes.json",
    "codes.npy",
    "detections.jsonl",
    "detections.jsonl.gz",
    "prompts",
    "keys",
    "model",
    "output",
)


def build(rng: random.Random, folder: Path) -> list[list[object]]:
    """A special file as a part of a model, of an evaluation, or as what a command is given."""
    where = rng.choice(("model", "model", "run", "argument", "argument", "name"))
    if where == "name":
        return _commands(rng, rng.choice(ARGUMENTS), Path(folder, rng.choice(NAMES)), folder)
    special = SPECIALS[rng.choice(list(SPECIALS))]
    if where == "argument":
        kind = rng.choice(ARGUMENTS)
        path = folder / ("x.png" if kind in ("picture", "output") else kind)
        special(path)
        return _commands(rng, kind, path, folder)
    if where == "model":
        name, family = rng.choice(MODEL_FILES), rng.choice((JANUS, VL2))
        but = ("model.safetensors",) if name.startswith("pytorch") else ()
        model = link_folder(family, folder / "model", name, *but)
        special(model / name)
        return json_files.use_model(rng, model, family, folder)
    name = rng.choice(RUN_FILES)
    json_files.copy_run(folder / "run", name)
    special(folder / "run" / name)
    stages = json_files.stages(folder / "run", folder)
    return rng.sample(stages, 2)


def _commands(rng: random.Random, kind: str, path: Path, folder: Path) -> list[list[object]]:
    if kind == "picture":
        model = rng.choice((JANUS, VL2))
        use: list[list[object]] = [
            ["ask", path, "What is this?", "-m", model, "--eager", "--max-new-tokens", 2]
        ]
        return (
            [*use, ["encode", path, "-m", JANUS]]
            if model == JANUS
            else [*use, ["locate", path, "star", "-m", VL2]]
        )
    if kind.startswith("codes"):
        return [["decode", path, "-m", JANUS, "-o", folder / "codes.png"]]
    if kind.startswith("detections"):
        return [["eval", "score", "--detections", path, "-o", folder / "results.jsonl"]]
    if kind == "prompts":
        source = json_files.SHARED / "run" / "images"
        return [["eval", "import", source, "-R", folder / "new", "--prompts", path, "--processes", 1]]
    if kind == "keys":
        return [["keys", path]]
    if kind == "output":
        return [["decode", json_files.SHARED / "codes.json", "-m", JANUS, "-o", path], ["convert", VL2, path]]
    return [
        ["info", path],
        ["ask", "hello", "-m", path],
        ["eval", "report", "-R", path],
        ["eval", "compare", path, path],
    ]


def read(commands: list[list[object]]) -> None:
    """Run the commands; `keys` stands for reading the server's file of keys, which would start it."""
    for argv in commands:
        if argv[0] == "keys":
            read_keys(Path(str(argv[1])))
            return
    run_commands(commands)


SPECIAL = Kind("special", build, read, prepare=json_files.prepare, seconds=20)
