"""The items of a response, and the events of a streamed one: a thought, if there is one, then the answer."""

import secrets
from collections.abc import Iterator
from typing import Any

from .response_objects import (
    OutputMessage,
    OutputText,
    ReasoningItem,
    ReasoningText,
    ResponseEvent,
    ResponseObject,
    Status,
)
from .responses import TokenLogprob
from .sse import event


class OutputItems:
    """The items of one response, with ids of their own."""

    def __init__(self) -> None:
        self.thought_id, self.answer_id = (f"{kind}_{secrets.token_hex(12)}" for kind in ("rs", "msg"))

    def thought(self, status: Status, *content: ReasoningText) -> ReasoningItem:
        """The thought."""
        return ReasoningItem(id=self.thought_id, status=status, content=list(content))

    def answer(self, status: Status, *content: OutputText) -> OutputMessage:
        """The answer."""
        return OutputMessage(id=self.answer_id, status=status, content=list(content))


class ResponseEvents:
    """Makes the numbered events of one response. An item begins with its first text, and the thought ends
    where the answer begins."""

    def __init__(self, items: OutputItems) -> None:
        self._items, self._count = items, 0
        self._thought: dict[str, Any] | None = None
        self._answer: dict[str, Any] | None = None
        """The place of an item's text, once it has begun."""
        self.thought = ""
        self.text = ""
        self.logprobs: list[TokenLogprob] = []

    def begin(self, response: ResponseObject) -> bytes:
        """The first events."""
        return b"".join(
            self._event(f"response.{kind}", response=response) for kind in ("created", "in_progress")
        )

    def think(self, delta: str) -> bytes:
        """More of the thought."""
        begun = b""
        if self._thought is None:
            self._thought = {"output_index": 0, "content_index": 0, "item_id": self._items.thought_id}
            begun = self._add(self._thought, self._items.thought("in_progress"), ReasoningText())
        self.thought += delta
        return begun + self._event("response.reasoning_text.delta", **self._thought, delta=delta)

    def answer(self, delta: str, logprobs: list[TokenLogprob]) -> bytes:
        """More of the answer."""
        begun = b"" if self._answer is not None else b"".join(self._begin_answer())
        self.text, self.logprobs = self.text + delta, self.logprobs + logprobs
        more = {**(self._answer or {}), "delta": delta, "logprobs": logprobs}
        return begun + self._event("response.output_text.delta", **more)

    def end(self, response: ResponseObject) -> bytes:
        """The last events, with the whole response."""
        made = []
        if isinstance(response.output[-1], ReasoningItem):  # cut off within the thought
            made.append(self._end_thought(response.output[-1]))
        else:
            made += [] if self._answer is not None else self._begin_answer()
            item, place = response.output[-1], self._answer or {}
            text = {"text": self.text, "logprobs": self.logprobs}
            made.append(self._event("response.output_text.done", **place, **text))
            made.append(self._end_item(place, item))
        return b"".join((*made, self._event(f"response.{response.status}", response=response)))

    def _begin_answer(self) -> Iterator[bytes]:
        if self._thought is not None:
            yield self._end_thought(self._items.thought("completed", ReasoningText(text=self.thought)))
        index = 0 if self._thought is None else 1
        self._answer = {"output_index": index, "content_index": 0, "item_id": self._items.answer_id}
        yield self._add(self._answer, self._items.answer("in_progress"), OutputText())

    def _end_thought(self, item: ReasoningItem) -> bytes:
        place = self._thought or {}
        done = self._event("response.reasoning_text.done", **place, text=self.thought)
        return done + self._end_item(place, item)

    def _add(self, place: dict[str, Any], item: Any, part: Any) -> bytes:
        added = self._event("response.output_item.added", output_index=place["output_index"], item=item)
        return added + self._event("response.content_part.added", **place, part=part)

    def _end_item(self, place: dict[str, Any], item: Any) -> bytes:
        done = self._event("response.content_part.done", **place, part=item.content[0])
        return done + self._event("response.output_item.done", output_index=place["output_index"], item=item)

    def _event(self, kind: str, **fields: Any) -> bytes:
        made = ResponseEvent(type=kind, sequence_number=self._count, **fields)
        self._count += 1
        content = made.model_dump(mode="json")
        return event({name: content[name] for name in ("type", "sequence_number", *fields)}, kind)
