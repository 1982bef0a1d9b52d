"""From tokens to the text of a choice: stop strings, stripping of white space, log-probabilities."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from ...blocks.sampling.request import SampledToken
from ...text.prompts import THINK_END
from ...text.thought_text import ThoughtSplitter
from ...tokenizers.text import StreamDecoder, TextTokenizer
from .notifier import OutputSignal
from .responses import TokenLogprob, ToolCall, ToolCallDelta, TopLogprob
from .tool_calls import CallParser

_MIN_LOGPROB = -9999.0  # OpenAI's value for "very unlikely"; JSON has no infinity
_REPLACEMENT_CHARACTER = "\ufffd"


class StopStringFilter:
    """Cuts incremental text before the stop string that is complete first, and strips white space around it
    (unless `strip` is false).

    Text that may turn out to be the beginning of a stop string, or trailing white space, is held back until
    more text arrives. So the joined output doesn't depend on how the input was cut into pieces. Of text that
    has `started` before, leading white space stays.
    """

    def __init__(self, stops: Sequence[str] = (), strip: bool = True, started: bool = False) -> None:
        self._stops, self._strip = tuple(stops), strip
        self._pending = ""
        self._started = started
        self.stopped = False
        """Whether a stop string has been found."""

    def feed(self, text: str) -> str:
        """Take more text; returns what can be released."""
        self._pending += text
        if self._strip and not self._started:
            self._pending = self._pending.lstrip()
        starts = {stop: start for stop in self._stops if (start := self._pending.find(stop)) >= 0}
        if starts:
            self.stopped = True
            # Of several, the one that is complete first: the others might not have arrived yet.
            _, start = min((start + len(stop), start) for stop, start in starts.items())
            return self._release(start, last=True)
        return self._release(len(self._pending) - self._partial_stop_length(), last=False)

    def finish(self) -> str:
        """The text that is still held back."""
        return self._release(len(self._pending), last=True)

    def _release(self, end: int, last: bool) -> str:
        text = self._pending[:end].rstrip() if self._strip else self._pending[:end]
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
    """Text of a choice, the log-probabilities of its tokens, and what it adds to calls of tools; the last one
    has a `finish_reason`."""

    text: str
    logprobs: list[TokenLogprob]
    finish_reason: str | None = None
    calls: Sequence[ToolCallDelta] = ()
    thought: str = ""


class ChoiceOutput:
    """The tokens of one choice: a scheduler's thread appends them, the event loop makes text of them.

    `signal` is set at the end and, with `stream` or stop strings, at every token. With `continues` the text
    goes on right after the last word of an unfinished answer. A text that begins `in_thought` is split there.
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        stops: Sequence[str],
        signal: OutputSignal,
        *,
        skip_special_tokens: bool,
        stream: bool,
        strip: bool = True,
        parser: CallParser | None = None,
        continues: bool = False,
        in_thought: bool = False,
    ) -> None:
        self._tokenizer, self._stops, self._signal = tokenizer, stops, signal
        self._decoder = StreamDecoder(tokenizer, skip_special_tokens)
        self._filter = StopStringFilter(stops, strip, started=continues)
        self._parser, self._splitter, self._thought = parser, ThoughtSplitter(in_thought), ""
        self._in_thought, self._skip = in_thought, skip_special_tokens
        self._tokens: list[SampledToken] = []
        self._end: str | None = None
        self.num_tokens = 0
        """Tokens that were read; those after a stop string never are."""
        self.finish_reason: str | None = None
        self.on_token: Callable[[SampledToken], None] = self._tokens.append
        if stream or stops:
            self.on_token = self._append

    def _append(self, sampled: SampledToken) -> None:
        self._tokens.append(sampled)
        self._signal.set()

    def on_end(self, reason: str) -> None:
        """Take the reason why the request ended; called after the last token."""
        self._end = reason
        self._signal.set()

    def read(self) -> TextChunk:
        """What has arrived since the last call, on the event loop. A stop string ends the choice."""
        end = self._end  # read before the tokens: if it is there, all of them are
        first = self.num_tokens
        text = self._feed(self._tokens[first:])
        if end is not None and not self._filter.stopped:
            text += self._filter.feed(self._answer(self._decoder.flush(), last=True))
            text += "" if self._filter.stopped else self._filter.finish()
        self.finish_reason = "stop" if self._filter.stopped else end
        tokens = self._tokens[first : self.num_tokens]
        logprobs = [token_logprob(self._tokenizer, token) for token in tokens if token.logprob is not None]
        calls: Sequence[ToolCallDelta] = ()
        if self._parser is not None:
            text, calls = self._parser.feed(text, last=self.finish_reason is not None)
        thought, self._thought = self._thought, ""
        return TextChunk(text, logprobs, self.finish_reason, calls, thought)

    @property
    def calls(self) -> list[ToolCall]:
        """The calls of tools so far."""
        return [] if self._parser is None else self._parser.calls

    @property
    def is_thinking(self) -> bool:
        """Whether the thought goes on."""
        return self._splitter.inside

    @property
    def thought_tokens(self) -> int:
        """Tokens of the thought so far, with the mark of its end."""
        if not self._in_thought or self._splitter.inside:
            return self.num_tokens if self._in_thought else 0
        decoder, text = StreamDecoder(self._tokenizer, self._skip), ""
        for number, sampled in enumerate(self._tokens[: self.num_tokens], 1):
            text = text[-len(THINK_END) :] + decoder.push(sampled.token)
            if THINK_END in text:
                return number
        return self.num_tokens

    def _feed(self, tokens: Sequence[SampledToken]) -> str:
        if not self._stops:
            self.num_tokens += len(tokens)
            new = self._decoder.extend([sampled.token for sampled in tokens])
            return self._filter.feed(self._answer(new))
        text = ""
        for sampled in tokens:  # one by one, to know with which of them a stop string is complete
            self.num_tokens += 1
            text += self._filter.feed(self._answer(self._decoder.push(sampled.token)))
            if self._filter.stopped:
                break
        return text

    def _answer(self, text: str, last: bool = False) -> str:
        """The part of new text that belongs to the answer; stop strings are looked for in it alone."""
        thought, answer = self._splitter.feed(text, last)
        self._thought += thought
        return answer


def token_logprob(tokenizer: TextTokenizer, sampled: SampledToken) -> TokenLogprob:
    """A token with its log-probability and those of its top alternatives, as OpenAI's object."""

    def entry(token: int, logprob: float | None) -> TopLogprob:
        text, raw = _text_and_bytes(tokenizer, token)
        return TopLogprob(token=text, logprob=max(logprob or 0.0, _MIN_LOGPROB), bytes=raw)

    own = entry(sampled.token, sampled.logprob)
    top = [entry(token, logprob) for token, logprob in sampled.top]
    return TokenLogprob(token=own.token, logprob=own.logprob, bytes=own.bytes, top_logprobs=top)


@lru_cache(1 << 16)
def _text_and_bytes(tokenizer: TextTokenizer, token: int) -> tuple[str, list[int] | None]:
    text = tokenizer.decode([token], skip_special_tokens=False)
    # A token that is only part of a character has no text, and the vocabulary doesn't have its bytes.
    return text, None if _REPLACEMENT_CHARACTER in text else list(text.encode())
