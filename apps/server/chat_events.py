"""Server-sent events of a streamed chat completion."""

import json
from collections.abc import Sequence

from . import responses
from .responses import to_json
from .sse import event
from .stream_text import TextChunk

_PLACEHOLDER = "\0"


class ChatEvents:
    """Makes the events of one completion.

    An event with text is sent for nearly every token, so what its JSON has around the text is made once.
    """

    def __init__(self, completion_id: str, created: int, model: str) -> None:
        self.id, self.created, self.model = completion_id, created, model
        self._around_text: dict[int, tuple[bytes, bytes, bytes]] = {}

    def role(self, index: int) -> bytes:
        """The first event of a choice."""
        return self._choice(index, responses.Delta(role="assistant", content=""))

    def text(self, index: int, chunk: TextChunk, with_logprobs: bool) -> bytes:
        """More text of a choice."""
        if index not in self._around_text:
            before, _, rest = self._choice(index, responses.Delta(content=_PLACEHOLDER)).partition(
                json.dumps(_PLACEHOLDER).encode()
            )
            middle, _, after = rest.partition(b"null")  # the value of logprobs
            self._around_text[index] = before, middle, after
        before, middle, after = self._around_text[index]
        logprobs = b"null"
        if with_logprobs:
            logprobs = responses.Logprobs(content=chunk.logprobs).model_dump_json().encode()
        return b"".join((before, json.dumps(chunk.text).encode(), middle, logprobs, after))

    def thought(self, index: int, chunk: TextChunk) -> bytes:
        """More of the thought of a choice."""
        return self._choice(index, responses.Delta(reasoning_content=chunk.thought))

    def calls(self, index: int, deltas: Sequence[responses.ToolCallDelta]) -> bytes:
        """More of the calls of a choice, an event each: clients add up one delta of a call at a time."""
        return b"".join(self._choice(index, responses.Delta(tool_calls=[delta])) for delta in deltas)

    def finish(self, index: int, reason: responses.Finish) -> bytes:
        """The last event of a choice."""
        return self._choice(index, responses.Delta(), reason)

    def usage(self, usage: responses.Usage) -> bytes:
        """The event with the token counts."""
        return self._event([], usage)

    def _choice(
        self, index: int, delta: responses.Delta, finish_reason: responses.Finish | None = None
    ) -> bytes:
        choice = responses.ChunkChoice(index=index, delta=delta, finish_reason=finish_reason)
        return self._event([choice], None)

    def _event(self, choices: list[responses.ChunkChoice], usage: responses.Usage | None) -> bytes:
        chunk = responses.ChatChunk(
            id=self.id, created=self.created, model=self.model, choices=choices, usage=usage
        )
        content = to_json(chunk)
        for choice, made in zip(content["choices"], choices, strict=True):
            choice["delta"] = made.delta.model_dump(mode="json", exclude_none=True)
        return event(content)
