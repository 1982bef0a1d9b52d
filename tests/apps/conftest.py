"""Runs commands in this process and servers in their own; a checkpoint to damage; strange image files."""

import io
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from bifrons.apps.cli.main import main
from PIL import Image

COMMAND = ["-m", "bifrons.apps.cli.main"]
MODEL_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "processor_config.json",
    "preprocessor_config.json",
    "model.safetensors",
)


@dataclass(frozen=True)
class Result:
    status: int
    out: str
    err: str


@pytest.fixture
def bifrons(capsys) -> Callable[..., Result]:
    """`bifrons("info", folder)` runs a command and returns its exit status, stdout and stderr."""

    def run(*argv: object) -> Result:
        capsys.readouterr()
        status = main([str(word) for word in argv])
        return Result(status, *capsys.readouterr())

    return run


@pytest.fixture
def refused(bifrons) -> Callable[..., str]:
    """Runs a command that must be refused with a one-line error and nothing else; returns the message."""

    def run(*argv: object, status: int = 2) -> str:
        result = bifrons(*argv)
        assert result.status == status
        assert result.out == ""
        lines = [line for line in result.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1
        assert "Traceback" not in result.err
        return result.err[result.err.index("error: ") :]

    return run


@pytest.fixture
def failed(refused) -> Callable[..., str]:
    """`refused` for a command that must fail at its work: its exit status is 1."""
    return partial(refused, status=1)


@pytest.fixture
def folder(janus_mini: Path, tmp_path: Path) -> Path:
    """A copy of the small Janus checkpoint that tests may damage."""
    target = tmp_path / "model"
    target.mkdir()
    for name in MODEL_FILES:
        shutil.copyfile(janus_mini / name, target / name)
    return target


@pytest.fixture
def vl2_mini() -> Path:
    return Path(__file__).parent.parent / "data" / "vl2-mini-mla"


class RunningServer:
    """A server process on a free port, which may have `files` open files and runs the program `first`."""

    def __init__(self, *options: object, files: int | None = None, first: str = "") -> None:
        program = ["-c", f"{first}\nfrom bifrons.apps.cli.main import run\nrun()"] if first else COMMAND
        words = [sys.executable, *program, "serve", "--port", "0", *map(str, options)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        if files is not None:
            words = ["sh", "-c", f'ulimit -n {files} && exec "$@"', "sh", *words]
        self.process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment)
        assert self.process.stderr is not None
        self.lines: list[str] = []
        for line in self.process.stderr:
            self.lines.append(line)
            if found := re.search(r"on (http://\S+)", line):
                self.url = found[1]
                break
        else:
            pytest.fail("".join(self.lines))
        self.reader = threading.Thread(target=lambda: self.lines.extend(self.process.stderr), daemon=True)
        self.reader.start()

    def client(self, key: str = "none") -> Any:
        """The official OpenAI client of this server."""
        import openai

        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60)

    def metric(self, name: str, model: str, **more) -> float:
        text = httpx.get(f"{self.url}/metrics", **more).text
        found = re.search(rf'^bifrons_engine_{name}{{model="{model}"}} (\S+)$', text, re.MULTILINE)
        assert found, text
        return float(found[1])

    def memory(self, what: str = "VmRSS") -> float:
        """Resident memory in MB; with `VmHWM`, its peak."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(rf"{what}:\s+(\d+) kB", text)
        assert found, text
        return int(found[1]) / 1000

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(60)
        self.reader.join(10)
        self.process.stderr.close()
        return code


@pytest.fixture(scope="module")
def start_server() -> Iterator[Callable[..., RunningServer]]:
    """`start_server("-m", model, ...)` starts a server that is stopped after the module's last test."""
    started: list[RunningServer] = []

    def start(*options: object, **more: Any) -> RunningServer:
        started.append(RunningServer(*options, **more))
        return started[-1]

    yield start
    for running in started:
        if running.process.poll() is None:
            assert running.stop() == 0
        log = "".join(running.lines)
        assert "Traceback" not in log, log[-5000:]


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _png(width: int, height: int, rows: bytes, *more: bytes) -> bytes:
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    data = _chunk(b"IDAT", zlib.compress(rows, 9))
    return b"".join([b"\x89PNG\r\n\x1a\n", head, *more, data, _chunk(b"IEND", b"")])


def _patched(file: bytes, at: int, form: str, *values: int) -> bytes:
    return file[:at] + struct.pack(form, *values) + file[at + struct.calcsize(form) :]


class StrangeImageFiles:
    """`valid`: a PNG. `equivalent`: files with its pixels and extra content. `invalid`: not images."""

    def __init__(self) -> None:
        rng = random.Random(1)
        lines = [b"\0" + rng.randbytes(3 * 32) for _ in range(24)]
        rows = b"".join(lines)
        self.valid = _png(32, 24, rows)
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as file:
            file.writestr("index.html", "<script>alert(1)</script>")
        archive = stream.getvalue()
        script = _chunk(b"tEXt", b"Comment\0<?php system($_GET[0]); ?>")
        tails = (archive, b"<html><script>alert(1)</script></html>", b"*/=1;alert(1)//", self.valid)
        self.equivalent = [self.valid + tail for tail in tails]
        self.equivalent += [_png(32, 24, rows, script), _png(32, 24, rows + bytes(50_000_000))]
        picture = Image.frombytes("RGB", (32, 24), b"".join(line[1:] for line in lines))
        self._files = {"PNG": self.valid}
        for kind in ("JPEG", "GIF", "WEBP", "BMP", "TIFF"):
            stream = io.BytesIO()
            picture.save(stream, kind)
            self._files[kind] = stream.getvalue()
        self.invalid = [*self._parts(rng), *self._headers(), *self._inflating()]
        fronts = (archive, b"<html>", b"GIF89a=1;/*", b"#!/bin/sh\n", b"\0", b"%PDF-1.7\n", b"\x7fELF")
        self.invalid += [front + self.valid for front in fronts]
        self.invalid += [
            b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n",
        ]

    def _parts(self, rng: random.Random) -> Iterator[bytes]:
        """Truncated images, signatures followed by noise, and headers with a wrong checksum."""
        for file in self._files.values():
            yield from (file[: len(file) * part // 20] for part in range(1, 19))
        magics = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"RIFF\0\1\0\0WEBPVP8 ", b"II*\0", b"", b"BM")
        for magic in magics:
            yield from (magic + rng.randbytes(rng.randrange(20, 200)) for _ in range(15))
        for place in range(16, 33):
            yield _patched(self.valid, place, "B", self.valid[place] ^ 255)

    def _headers(self) -> Iterator[bytes]:
        """Small files that claim to be large."""
        gif, jpeg, webp, bmp = (self._files[kind] for kind in ("GIF", "JPEG", "WEBP", "BMP"))
        for size in ((30_000, 30_000), (4001, 4000), (2**31 - 1, 1), (1, 2**31 - 1), (0, 0)):
            yield _png(*size, bytes(99))
        yield from (_png(20_000, 1, bytes(60_001)), _png(1, 20_000, bytes(80_000)))
        for side in (65_535, 5000):
            yield _patched(gif, 6, "<HH", side, side)
            yield _patched(gif, gif.rindex(b"\x2c\0\0\0\0") + 5, "<HH", side, side)
            yield _patched(jpeg, jpeg.index(b"\xff\xc0") + 5, ">HH", side, side)
        for size in ((40_000, 40_000), (-64, -48), (2**31 - 1, 2)):
            yield _patched(bmp, 18, "<ii", *size)
        for width, height in ((30_000, 30_000), (4000, 4000), (10**20, 1)):
            yield b"P6 %d %d 255\n" % (width, height) + bytes(99)
        canvas = b"WEBPVP8X" + struct.pack("<I", 10) + b"\2\0\0\0" + b"\xff\xff\0" * 2
        yield b"RIFF" + struct.pack("<I", len(webp) + 10) + canvas + webp[12:]

    def _inflating(self) -> Iterator[bytes]:
        """Small images with text chunks that decompress to large ones."""
        rows, large = bytes(310), zlib.compress(bytes(50_000_000), 9)
        yield _png(10, 10, rows, _chunk(b"zTXt", b"k\0\0" + large))
        yield _png(10, 10, rows, _chunk(b"iCCP", b"k\0\0" + large))
        yield _png(10, 10, rows, _chunk(b"iTXt", b"k\0\1\0\0\0" + large))
        yield _png(10, 10, rows, *[_chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(1_000_000)))] * 70)


@pytest.fixture(scope="session")
def strange_files() -> StrangeImageFiles:
    return StrangeImageFiles()
