"""Questions about pictures, with their answers."""

from dataclasses import dataclass

NO_MATCH = "It is not there."
"""The answer where a question or a phrase names nothing in the picture."""


@dataclass(frozen=True)
class Question:
    """A question with its answer. held_out: whether either depends on a held-out combination."""

    kind: str
    text: str
    answer: str
    held_out: bool
