"""Detokenization of streamed choices: stop strings, stripping of white space, log-probabilities."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...blocks.engine.request import SampledToken
from ...tokenizers.text import StreamDecoder, TextTokenizer
from .responses import TokenLogprob, TopLogprob

_MIN_LOGPROB = -9999.0  # OpenAI's value for "very unlikely"; JSON has no infinity
_REPLACEMENT_CHARACTER = "\ufffd"


class StopStringFilter:
    """Cuts incremental text before the first stop string and strips white space at both ends.

    Text that may turn out to be the beginning of a stop string, or trailing white space, is held back until
    more text arrives. So the joined output doesn't depend on how the input was cut into pieces.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._stops = tuple(stops)
        self._pending = ""
        self._started = False
        self.stopped = False
        """Whether a stop string has been found."""

    def feed(self, text: str) -> str:
        """Take more text; returns what can be released."""
        self._pending += text
        if not self._started:
            self._pending = self._pending.lstrip()
        positions = [position for stop in self._stops if (position := self._pending.find(stop)) >= 0]
        if positions:
            self.stopped = True
            return self._release(min(positions), last=True)
        return self._release(len(self._pending) - self._partial_stop_length(), last=False)

    def finish(self) -> str:
        """The text that is still held back."""
        return self._release(len(self._pending), last=True)

    def _release(self, end: int, last: bool) -> str:
        text = self._pending[:end].rstrip()
        self._pending = "" if last else self._pending[len(text) :]
        self._started = self._started or bool(text)
        return text

    def _partial_stop_length(self) -> int:
        """Length of the longest suffix of the pending text that is the beginning of a stop string."""
        longest = max(map(len, self._stops), default=1) - 1
        lengths = range(min(longest, len(self._pending)), 0, -1)
        suffixes = ((n, self._pending[-n:]) for n in lengths)
        return next((n for n, end in suffixes if any(s.startswith(end) for s in self._stops)), 0)


@dataclass(frozen=True)
class TextChunk:
    """Text of choice `index` and the log-probabilities of its tokens; the last one has a `finish_reason`."""

    index: int
    text: str
    logprobs: list[TokenLogprob]
    finish_reason: str | None = None


class ChoiceDetokenizer:
    """Callbacks of a generation request: detokenizes one choice and passes `TextChunk`s to `emit`.

    There is a chunk at the end and, with `stream`, one whenever there is text to release.
    """

    def __init__(
        self,
        index: int,
        tokenizer: TextTokenizer,
        stops: Sequence[str],
        emit: Callable[[TextChunk], None],
        *,
        skip_special_tokens: bool,
        stream: bool,
    ) -> None:
        self.index, self.tokenizer, self.emit, self.stream = index, tokenizer, emit, stream
        self._decoder = StreamDecoder(tokenizer, skip_special_tokens)
        self._filter = StopStringFilter(stops)
        self._text, self._logprobs = "", []
        self.num_tokens = 0

    def on_token(self, sampled: SampledToken) -> bool:
        """Take a token; returns whether a stop string ends the choice."""
        self.num_tokens += 1
        self._text += self._filter.feed(self._decoder.push(sampled.token))
        if sampled.logprob is not None:
            self._logprobs.append(token_logprob(self.tokenizer, sampled))
        if self.stream and self._text:
            self._emit(None)
        return self._filter.stopped

    def on_end(self, reason: str) -> None:
        """Emit the rest of the text with the finish reason."""
        if not self._filter.stopped:
            self._text += self._filter.feed(self._decoder.flush())
        if not self._filter.stopped:
            self._text += self._filter.finish()
        self._emit("stop" if self._filter.stopped and reason == "length" else reason)

    def _emit(self, finish_reason: str | None) -> None:
        self.emit(TextChunk(self.index, self._text, self._logprobs, finish_reason))
        self._text, self._logprobs = "", []


def token_logprob(tokenizer: TextTokenizer, sampled: SampledToken) -> TokenLogprob:
    """A token with its log-probability and those of its top alternatives, as OpenAI's object."""

    def entry(token: int, logprob: float | None) -> TopLogprob:
        text = tokenizer.decode([token], skip_special_tokens=False)
        # A token that is only part of a character has no text, and the vocabulary doesn't have its bytes.
        raw = None if _REPLACEMENT_CHARACTER in text else list(text.encode())
        return TopLogprob(token=text, logprob=max(logprob or 0.0, _MIN_LOGPROB), bytes=raw)

    own = entry(sampled.token, sampled.logprob)
    top = [entry(token, logprob) for token, logprob in sampled.top]
    return TokenLogprob(token=own.token, logprob=own.logprob, bytes=own.bytes, top_logprobs=top)
