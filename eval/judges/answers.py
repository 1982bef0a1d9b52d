"""Answers kept on disk: one SQLite file, each answer in it as soon as it is there."""

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ...blocks.errors import BifronsError
from ..suites.questions import Answer

_WAIT = 60.0
"""Seconds to wait for another process that writes."""
_BATCH = 500


class AnswerFile:
    """Answers by their key, shared by threads and processes of a host. A killed process loses none of them.

    Raises BifronsError where the file can't be read or written, or is something else.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._lock = path, threading.Lock()
        with self._errors():
            self._connection = sqlite3.connect(path, timeout=_WAIT, check_same_thread=False)
            self._connection.execute(
                "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL)"
            )
            self._connection.commit()

    def get(self, keys: Sequence[str]) -> dict[str, Answer]:
        """The answers that are there."""
        found: dict[str, Answer] = {}
        for start in range(0, len(keys), _BATCH):
            part = keys[start : start + _BATCH]
            marks = ",".join("?" * len(part))
            with self._lock, self._errors():
                rows = self._connection.execute(
                    f"SELECT key, answer FROM answers WHERE key IN ({marks})", part
                ).fetchall()
            for key, line in rows:
                with self._errors():
                    found[key] = Answer.loads(line)
        return found

    def put(self, key: str, answer: Answer) -> None:
        """Keep an answer."""
        with self._lock, self._errors():
            self._connection.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (key, answer.dumps()))
            self._connection.commit()

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, ValueError, TypeError, AttributeError) as error:
            raise BifronsError(
                f"the answers in {self.path} can't be used: {error}; accepted: a file that `bifrons eval` "
                "wrote, in a folder that can be written to (remove it to ask anew)"
            ) from error
