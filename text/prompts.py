"""Prompts of text models: DeepSeek's chat templates, as texts in pieces.

Which of them a folder has is read from its own template and vocabulary. A last message of the assistant that
is not empty is gone on from; its thought stays.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..blocks.chat.messages import parse_messages
from ..blocks.errors import ConfigError, PromptError
from ..blocks.files import read_bounded
from ..blocks.json_config import CONFIG_BYTES, shown
from ..blocks.message_parts import Part, join_parts
from ..blocks.special_tokens import PlainText
from ..tokenizers.text import EOS, TextTokenizer, read_settings

USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
THINK, THINK_END = "<think>", "</think>"
_THOUGHT_MARKS = re.compile(f"({THINK}|{THINK_END})")
NO_IMAGE = "<image>"
"""Stands for a picture while messages are read; a text model refuses them."""


@dataclass(frozen=True)
class ChatFormat:
    """A form of conversations: what stands before and after a message of each role, and the cue for an
    answer.

    `systems` says what becomes of several system messages: the last counts, all are joined with a blank line,
    or each stays in its place. `drops_thoughts`: of earlier answers only what follows `</think>` stays.
    """

    user: tuple[str, str]
    assistant: tuple[str, str]
    cue: str
    system_end: str = ""
    systems: Literal["last", "joined", "in place"] = "last"
    drops_thoughts: bool = False

    @property
    def thinks(self) -> bool:
        """Whether the prompt opens a thought, which the answer begins with."""
        return self.cue.endswith(f"{THINK}\n")

    def render(self, messages: Any) -> list[str]:
        """A conversation without the token at its beginning, up to the answer: pieces of text, in which
        special tokens count unless they are `PlainText`. Raises `PromptError`."""
        turns = [
            (role, _pieces(role, message, parts))
            for message, (role, parts) in zip(messages, parse_messages(messages, NO_IMAGE), strict=True)
        ]
        if turns[-1][0] == "assistant" and not "".join(turns[-1][1]).strip():
            turns.pop()  # it asks for an answer
        pieces: list[str] = []
        if self.systems != "in place":
            systems = [texts for role, texts in turns if role == "system"]
            for number, texts in enumerate(systems if self.systems == "joined" else systems[-1:]):
                pieces += ["\n\n", *texts] if number else texts
        for number, (role, texts) in enumerate(turns):
            last = number == len(turns) - 1
            if role == "user":
                pieces += [self.user[0], *texts, self.user[1]]
            elif role == "assistant":
                shown = texts if last or not self.drops_thoughts else _without_thought(texts)
                pieces += [self.assistant[0], *shown, *([] if last else [self.assistant[1]])]
            elif self.systems == "in place":
                pieces += [*texts, self.system_end]
        return pieces if turns[-1][0] == "assistant" else [*pieces, self.cue]


def _pieces(role: str, message: Any, parts: list[Part]) -> list[str]:
    if any(part.sources for part in parts):
        raise PromptError("a message has a picture, and this is a text model; accepted: texts alone")
    if not parts:
        return [PlainText(message["content"])] if isinstance(message.get("content"), str) else []
    pieces = join_parts(parts, NO_IMAGE)
    if role != "assistant":
        return pieces
    # The marks of thoughts count in answers, which have them from the model.
    split = [(piece, part) for piece in pieces for part in _THOUGHT_MARKS.split(piece) if part]
    return [part if part in (THINK, THINK_END) else type(piece)(part) for piece, part in split]


def _without_thought(pieces: list[str]) -> list[str]:
    ends = [number for number, piece in enumerate(pieces) if piece == THINK_END]
    return pieces[ends[-1] + 1 :] if ends else pieces


def split_thought(text: str) -> tuple[str | None, str]:
    """The thought and the answer in a text that began within a thought, stripped; while the thought is not
    over, the answer is empty. A text that opens its thought itself is split alike; None without a thought.

    >>> split_thought("2 and 2 ...</think>\\n\\n4")
    ('2 and 2 ...', '4')
    """
    opened = text.lstrip().startswith(THINK)
    thought, end, answer = text.partition(THINK_END)
    if not end and not opened:
        return None, text.strip()
    return thought.lstrip().removeprefix(THINK).strip(), answer.strip()


_DEEPSEEK_LLM = ChatFormat(
    ("User: ", "\n\n"), ("Assistant: ", EOS), "Assistant:", system_end="\n\n", systems="in place"
)
"""Conversations of DeepSeek-V2 and DeepSeek-LLM."""


def read_chat_format(folder: Path, tokenizer: TextTokenizer, model_type: str) -> ChatFormat | None:
    """The form of a folder's conversations, None if it is another than DeepSeek's. Raises `ConfigError`.

    A folder without a template has that of R1 if its vocabulary has the marks of thoughts, else V3's.
    """
    template = _read_template(folder)
    has_marks = tokenizer.has(USER) and tokenizer.has(ASSISTANT)
    if not (has_marks and (USER in template or not template)):
        plain = "'User: '" in template if template else model_type == "deepseek_v2"
        return _DEEPSEEK_LLM if plain else None
    reasons = f"{ASSISTANT}{THINK}" in template if template else tokenizer.has(THINK_END)
    return ChatFormat(
        user=(USER, ""),
        assistant=(ASSISTANT, EOS),
        cue=f"{ASSISTANT}{THINK}\n" if reasons else ASSISTANT,
        systems="joined" if "is_first_sp" in template else "last",
        drops_thoughts=THINK_END in template if template else reasons,
    )


def _read_template(folder: Path) -> str:
    """The folder's Jinja template, of which only some words are looked at; empty without one."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return read_bounded(path, CONFIG_BYTES).decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} can't be read as a template: {error}") from error
    path = folder / "tokenizer_config.json"
    template = read_settings(path).get("chat_template")
    if isinstance(template, list):  # of several by name, the default one
        named = {one.get("name"): one.get("template") for one in template if isinstance(one, dict)}
        template = named.get("default")
    if template is not None and not isinstance(template, str):
        raise ConfigError(f"{path}: chat_template is {shown(template)}; accepted: a text")
    return template or ""
