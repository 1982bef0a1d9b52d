"""Splits a text that is still arriving into its thought and its answer."""

from .prompts import THINK_END


class ThoughtSplitter:
    """Splits incremental text at `</think>`; `inside` says whether it begins within a thought.

    The thought has no white space around it. What may turn out to be the mark, or the thought's end, is held
    back until more text arrives.
    """

    def __init__(self, inside: bool = True) -> None:
        self.inside = inside
        self._pending, self._started = "", False

    def feed(self, text: str, last: bool = False) -> tuple[str, str]:
        """More of the thought and of the answer; `last` releases what is held back."""
        if not self.inside:
            return "", text
        self._pending += text
        thought, end, answer = self._pending.partition(THINK_END)
        if end:
            self.inside, self._pending = False, ""
        else:
            place = len(thought) - (0 if last else _partial(thought))
            thought, self._pending = thought[:place], thought[place:]
        if not self._started:
            thought = thought.lstrip()
        if end or last:
            thought = thought.rstrip()
        else:
            shown = thought.rstrip()
            thought, self._pending = shown, thought[len(shown) :] + self._pending
        self._started = self._started or bool(thought)
        return thought, answer


def _partial(text: str) -> int:
    """Length of the longest end of the text that begins the mark."""
    longest = min(len(text), len(THINK_END) - 1)
    return next((n for n in range(longest, 0, -1) if THINK_END.startswith(text[-n:])), 0)
