"""The checkpoint of a shard in work: its results so far, appended batch by batch by one process.

A record is `magic, length of the rest, crc32 of the rest`, then a line of JSON and a PNG, which may be empty.
A process that is killed, or a disk that is full, leaves at most a torn record at the end, which is cut off
when the file is opened again.
"""

import json
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..blocks.errors import BifronsError
from ..eval.atomic_io import disk_errors
from .tasks import Result

_HEADER = struct.Struct("<4sQI")
_MAGIC = b"BFR1"
_LARGEST = 1 << 30


class Spool:
    """The results of a shard by the numbers of their rows."""

    def __init__(self, path: Path) -> None:
        """Open the file or begin one. Raises BifronsError."""
        self.path = path
        self._places: dict[int, tuple[int, int]] = {}
        with disk_errors(f"write {path}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b", buffering=0)
            self._end = self._scan()
            self._file.truncate(self._end)

    def _scan(self) -> int:
        """Find the records; returns where the last whole one ends."""
        size, place = os.fstat(self._file.fileno()).st_size, 0
        while place + _HEADER.size <= size:
            self._file.seek(place)
            magic, length, check = _HEADER.unpack(self._file.read(_HEADER.size))
            if magic != _MAGIC or length > min(_LARGEST, size - place - _HEADER.size):
                break
            payload = self._file.read(length)
            if len(payload) < length or zlib.crc32(payload) != check:
                break
            self._places[_decode(payload).number] = place + _HEADER.size, length
            place += _HEADER.size + length
        return place

    @property
    def numbers(self) -> set[int]:
        """The rows that have a result."""
        return set(self._places)

    def append(self, results: Iterable[Result]) -> None:
        """Add results, all or none. Raises BifronsError where the disk refuses; what was added before
        stays."""
        parts, places, place = [], {}, self._end
        for result in results:
            line = json.dumps([result.number, result.record], ensure_ascii=False)
            payload = line.encode() + b"\n" + result.png
            parts += [_HEADER.pack(_MAGIC, len(payload), zlib.crc32(payload)), payload]
            places[result.number] = place + _HEADER.size, len(payload)
            place += _HEADER.size + len(payload)
        content = memoryview(b"".join(parts))
        with disk_errors(f"write {self.path}"):
            try:
                while content:
                    content = content[self._file.write(content) :]
            except OSError:
                self._file.truncate(self._end)
                raise
        self._end = place
        self._places |= places

    def results(self) -> Iterator[Result]:
        """All results, by number. Raises BifronsError where the file was changed by another process."""
        for _, (place, length) in sorted(self._places.items()):
            self._file.seek(place)
            payload = self._file.read(length)
            if len(payload) < length:
                raise BifronsError(f"{self.path} was changed; accepted: run the same command again")
            yield _decode(payload)

    def close(self) -> None:
        """Close the file, which remains."""
        self._file.close()

    def remove(self) -> None:
        """Close and remove the file, once its results are elsewhere."""
        self.close()
        self.path.unlink(missing_ok=True)


def _decode(payload: bytes) -> Result:
    line, _, png = payload.partition(b"\n")
    number, record = json.loads(line)
    return Result(number, record, png)
