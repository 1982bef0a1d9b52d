"""Reads the calls of tools out of an answer, as its text arrives."""

import json
import re
import secrets

from .responses import CalledFunction, FunctionDelta, ToolCall, ToolCallDelta
from .tools import CALL, CALL_END, ToolUse

_HEAD = re.compile(rf'\n?{CALL}{{"name": ("[^"]*"), "arguments": ')
_END = "}" + CALL_END


class CallParser:
    """Divides the text of one answer, which follows the grammar of a `ToolUse`, into text and calls.

    The joined output doesn't depend on how the text was cut into pieces. An answer that was cut off may end
    with incomplete arguments.
    """

    def __init__(self, use: ToolUse) -> None:
        self.calls: list[ToolCall] = []
        """The calls so far."""
        self._named = use.functions[0].name if use.choice == "named" else None
        self._is_text = False if use.choice != "auto" else None
        self._pending = ""
        self._object: _ObjectEnd | None = None

    def feed(self, text: str, last: bool) -> tuple[str, list[ToolCallDelta]]:
        """Take more text, all of it if `last`; returns what is text, and what is added to the calls."""
        self._pending += text
        if self._is_text is None:
            if CALL.startswith(self._pending) and not last:
                return "", []
            self._is_text = not self._pending.startswith(CALL)
        if self._is_text:
            text, self._pending = self._pending, ""
            return text, []
        if self._named is not None:
            return "", self._feed_named()
        deltas: list[ToolCallDelta] = []
        while (more := self._feed_call()) is not None:
            deltas += more
        return "", deltas

    def _feed_named(self) -> list[ToolCallDelta]:
        """The one call, whose arguments are the whole answer."""
        if not self._pending:
            return []
        deltas = [] if self.calls else [self._start(self._named or "")]
        text, self._pending = self._pending, ""
        return [*deltas, self._add(text)]

    def _feed_call(self) -> list[ToolCallDelta] | None:
        """The next part of a call; None if it isn't there yet."""
        if self._object is None:
            head = _HEAD.match(self._pending)
            if head is None:
                return None
            self._pending, self._object = self._pending[head.end() :], _ObjectEnd()
            return [self._start(json.loads(head[1]))]
        if not self._object.ended:
            length = self._object.feed(self._pending)
            text, self._pending = self._pending[:length], self._pending[length:]
            return [self._add(text)] if text else None
        if not self._pending.startswith(_END):
            return None
        self._pending, self._object = self._pending[len(_END) :], None
        return []

    def _start(self, name: str) -> ToolCallDelta:
        call = ToolCall(id=f"call_{secrets.token_hex(12)}", function=CalledFunction(name=name, arguments=""))
        self.calls.append(call)
        function = FunctionDelta(name=name, arguments="")
        return ToolCallDelta(index=len(self.calls) - 1, id=call.id, type="function", function=function)

    def _add(self, arguments: str) -> ToolCallDelta:
        self.calls[-1].function.arguments += arguments
        return ToolCallDelta(index=len(self.calls) - 1, function=FunctionDelta(arguments=arguments))


class _ObjectEnd:
    """Finds the end of a JSON object."""

    def __init__(self) -> None:
        self._depth, self._in_string, self._escaped = 0, False, False
        self.ended = False

    def feed(self, text: str) -> int:
        """How many characters of the text belong to the object."""
        for place, character in enumerate(text):
            if self._escaped:
                self._escaped = False
            elif self._in_string:
                self._escaped, self._in_string = character == "\\", character != '"'
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self.ended = True
                    return place + 1
        return len(text)
