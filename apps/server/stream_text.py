"""From tokens to the text of an answer: stop strings, white space at its ends, log-probabilities."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...blocks.engine.request import SampledToken
from ...tokenizers.text import StreamDecoder, TextTokenizer
from .schema import TokenLogprob, TopLogprob

_LEAST_LOGPROB = -9999.0  # what OpenAI's interface says for "very unlikely"; JSON has no infinity
_BROKEN = "\ufffd"


class TextFilter:
    """Text in pieces, cut before the first stop string and without white space at either end.

    What may be the beginning of a stop string, or white space at the end, is held until that is certain; so
    the pieces joined are the whole answer, however it was cut into pieces.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self._started = False
        self.stopped = False

    def feed(self, piece: str) -> str:
        """Take a piece; the text that became certain. `stopped` tells that a stop string was found."""
        self._held += piece
        if not self._started:
            self._held = self._held.lstrip()
        places = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if places:
            self.stopped = True
            return self._give(min(places), last=True)
        return self._give(len(self._held) - self._possible_stop(), last=False)

    def finish(self) -> str:
        """The text that was held back."""
        return self._give(len(self._held), last=True)

    def _give(self, end: int, last: bool) -> str:
        text = self._held[:end].rstrip()
        self._held = "" if last else self._held[len(text) :]
        self._started = self._started or bool(text)
        return text

    def _possible_stop(self) -> int:
        """Length of the longest end of the text that some stop string begins with."""
        longest = max(map(len, self._stops), default=1) - 1
        ends = range(min(longest, len(self._held)), 0, -1)
        return next((n for n in ends if any(s.startswith(self._held[-n:]) for s in self._stops)), 0)


@dataclass(frozen=True)
class Piece:
    """Some text of choice `index`, the tokens behind it, and with the last one why it ended."""

    index: int
    text: str
    logprobs: list[TokenLogprob]
    reason: str | None = None


class AnswerWriter:
    """The callbacks of a text request. `tell` gets a `Piece` at its end, with `stream` as it is written."""

    def __init__(
        self,
        index: int,
        tokenizer: TextTokenizer,
        stops: Sequence[str],
        tell: Callable[[Piece], None],
        *,
        skip_special_tokens: bool,
        stream: bool,
    ) -> None:
        self.index, self.tokenizer, self.tell, self.stream = index, tokenizer, tell, stream
        self._decoder = StreamDecoder(tokenizer, skip_special_tokens)
        self._filter = TextFilter(stops)
        self._text, self._logprobs = "", []
        self.count = 0

    def on_token(self, choice: SampledToken) -> bool:
        self.count += 1
        self._text += self._filter.feed(self._decoder.push(choice.token))
        if choice.logprob is not None:
            self._logprobs.append(token_logprob(self.tokenizer, choice))
        if self.stream and self._text:
            self._tell(None)
        return self._filter.stopped

    def on_end(self, reason: str) -> None:
        if not self._filter.stopped:
            self._text += self._filter.feed(self._decoder.flush())
        if not self._filter.stopped:
            self._text += self._filter.finish()
        self._tell("stop" if self._filter.stopped and reason == "length" else reason)

    def _tell(self, reason: str | None) -> None:
        self.tell(Piece(self.index, self._text, self._logprobs, reason))
        self._text, self._logprobs = "", []


def token_logprob(tokenizer: TextTokenizer, choice: SampledToken) -> TokenLogprob:
    def entry(token: int, logprob: float | None) -> TopLogprob:
        text = tokenizer.decode([token], skip_special_tokens=False)
        # A part of a character has no text, and this vocabulary does not tell its bytes.
        raw = None if _BROKEN in text else list(text.encode())
        return TopLogprob(token=text, logprob=max(logprob or 0.0, _LEAST_LOGPROB), bytes=raw)

    own = entry(choice.token, choice.logprob)
    top = [entry(token, logprob) for token, logprob in choice.top]
    return TokenLogprob(token=own.token, logprob=own.logprob, bytes=own.bytes, top_logprobs=top)
