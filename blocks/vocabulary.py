"""The words that a small model knows, from `vocabulary.json` in its folder; other models have no such file.

    {"things": [...], "colors": [...], "most_things": 6, "painting": [...], "reading": [...],
     "spellings": {"colour": "color", ...}, "lookalikes": [...]}

`things` (or `shapes`) are what it shows. `painting` and `reading` are all words of the sentences and of the
questions that the model was trained on. `spellings` are other spellings of these words; the tokenizer reads a
word as the one that it stands for. With `lookalikes`, the model was trained on words with one typing error,
which are known; these words are a letter away from a known one and are not.
An adapter's folder may have `taught_words.json`, the words that training added:

    {"painting": [...], "reading": [...]}
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

from tokenizers import Regex, Tokenizer, normalizers

from .errors import ConfigError, is_name
from .json_config import Section, read_section

FILE, TAUGHT = "vocabulary.json", "taught_words.json"
Work = Literal["painting", "reading"]
WORKS: tuple[Work, ...] = ("painting", "reading")
_SHOWN, _LISTED, _LONGEST, _MOST, _MOST_SPELLINGS = 8, 20, 40, 10_000, 100
_MOST_ERRORS = 100
"""Unknown words that are looked at for typing errors."""
_TEXT = 100_000
"""Characters of a text that are looked at."""
_WORD = re.compile(r"[^\W\d_]+|\d+")
_TAG = re.compile(r"<[^<>\s]{1,40}>")  # the names of special tokens


@dataclass(frozen=True)
class Vocabulary:
    """The words of a model, in lower case: those for what it shows, which are `noun`, and all by kind of
    work."""

    things: tuple[str, ...]
    colors: tuple[str, ...]
    most_things: int
    painting: frozenset[str]
    reading: frozenset[str]
    spellings: dict[str, str]
    noun: str = "things"
    lookalikes: frozenset[str] | None = None
    taught: tuple[str, ...] = ()
    """Those that training added, of both kinds."""

    @property
    def counts(self) -> str:
        """How much it knows: `8 shapes, 10 colors, up to 4 at once`."""
        things, colors = f"{len(self.things)} {self.noun}", f"{len(self.colors)} colors"
        return f"{things}, {colors}, up to {self.most_things} at once"

    @property
    def summary(self) -> str:
        """What it knows, in a line; of many things only the number."""
        taught = f"; taught: {_listed(self.taught)}" if self.taught else ""
        if len(self.things) > _LISTED:
            return f"{self.counts} (`bifrons info MODEL` lists them){taught}"
        return f"{self.counts}: {', '.join(self.things)}; {', '.join(self.colors)}{taught}"

    def with_words(self, words: Mapping[Work, frozenset[str]]) -> Self:
        """The vocabulary with the words of some kinds of work added."""
        known = {work: getattr(self, work) for work in WORKS}
        new = {work: words.get(work, frozenset()) - known[work] for work in WORKS}
        taught = sorted({*self.taught, *new["painting"], *new["reading"]})
        painting, reading = (known[work] | new[work] for work in WORKS)
        return replace(self, painting=painting, reading=reading, taught=tuple(taught))

    def unknown(self, texts: Iterable[str], work: Work) -> list[str]:
        """The words and numbers of texts that the model doesn't know, each once, in lower case."""
        known = getattr(self, work)
        new = [word for word in dict.fromkeys(_words(texts)) if self.spellings.get(word, word) not in known]
        if self.lookalikes is None:
            return new
        return [word for i, word in enumerate(new) if i >= _MOST_ERRORS or not self._mistyped(word, known)]

    def _mistyped(self, word: str, known: Iterable[str]) -> bool:
        """Whether it is a known word with one typing error; of three letters, two of them swapped."""
        if self.lookalikes is None or word in self.lookalikes or not 3 <= len(word) <= _LONGEST:
            return False
        long = len(word) > 3
        return any(
            len(one) > 2 and (long or sorted(one) == sorted(word)) and one_edit_apart(word, one)
            for one in known
        )

    def new_words(self, prompts: Iterable[str], questions: Iterable[str]) -> dict[Work, frozenset[str]]:
        """The words of prompts and of questions that the model doesn't know, by kind of work."""
        return {
            "painting": frozenset(self.unknown(prompts, "painting")),
            "reading": frozenset(self.unknown(questions, "reading")),
        }

    def warning(self, texts: Iterable[str], work: Work) -> str | None:
        """A line about the unknown words of texts; None without any."""
        unknown = self.unknown(texts, work)
        if not unknown:
            return None
        quoted = [f"'{word[:_LONGEST]}'" for word in unknown]
        return f"knows {self.summary}; not: {_listed(quoted)}"

    def content(self) -> dict[str, Any]:
        """As JSON: what the file holds."""
        words = {"painting": sorted(self.painting), "reading": sorted(self.reading)}
        return {
            self.noun: list(self.things),
            "colors": list(self.colors),
            "most_things": self.most_things,
            **{work: known for work, known in words.items() if known},
            "spellings": self.spellings,
            **({} if self.lookalikes is None else {"lookalikes": sorted(self.lookalikes)}),
        }


def _listed(words: Sequence[str], most: int = _SHOWN) -> str:
    more = f" and {len(words) - most:,} more" if len(words) > most else ""
    return f"{', '.join(words[:most])}{more}"


def one_edit_apart(a: str, b: str) -> bool:
    """Whether one letter was left out, added or changed, or two neighbors were swapped."""
    if abs(len(a) - len(b)) > 1 or a == b:
        return False
    short, long = sorted((a, b), key=len)
    start = next((i for i, (x, y) in enumerate(zip(short, long, strict=False)) if x != y), len(short))
    if len(short) < len(long):
        return short[start:] == long[start + 1 :]
    swapped = short[:start] + short[start : start + 2][::-1] + short[start + 2 :]
    return short[start + 1 :] == long[start + 1 :] or swapped == long


def words_of(texts: Iterable[str]) -> frozenset[str]:
    """All words and numbers of texts, in lower case."""
    return frozenset(_words(texts))


def _words(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        for found in _WORD.finditer(_TAG.sub(" ", text[:_TEXT])):
            yield found[0].lower()


def read_vocabulary(folder: Path) -> Vocabulary | None:
    """The vocabulary in a model folder; None if it has none. Raises `ConfigError` for a damaged file."""
    if not (folder / FILE).exists():
        return None
    section = read_section(folder / FILE)
    noun = "shapes" if section.get("shapes") is not None else "things"
    things, colors = _names(section, noun), _names(section, "colors")
    painting, reading = (frozenset(_names(section, work)) for work in WORKS)
    most_things, spellings = section.integer("most_things"), _spellings(section)
    lookalikes = None if section.get("lookalikes") is None else frozenset(_names(section, "lookalikes"))
    return Vocabulary(things, colors, most_things, painting, reading, spellings, noun, lookalikes)


def read_taught(folder: Path) -> dict[Work, frozenset[str]]:
    """The words that an adapter was taught; none without a file of them. Raises `ConfigError`."""
    if not (folder / TAUGHT).exists():
        return {}
    section = read_section(folder / TAUGHT)
    return {work: frozenset(_names(section, work)) for work in WORKS}


def write_taught(folder: Path, words: Mapping[Work, frozenset[str]]) -> None:
    """Write the words that an adapter was taught to its folder, as many as may be read."""
    content = {
        work: sorted(word for word in words.get(work, ()) if len(word) <= _LONGEST)[:_MOST] for work in WORKS
    }
    (folder / TAUGHT).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def _names(section: Section, name: str) -> tuple[str, ...]:
    value = section.get(name, [])
    words = value if isinstance(value, list) else [None]
    if len(words) > _MOST or not all(is_name(word, _LONGEST) for word in words):
        accepted = f"a list of at most {_MOST:,} words of at most {_LONGEST} characters"
        raise ConfigError(f"{section.where}: {name} is no list of words; accepted: {accepted}")
    return tuple(value)


def _spellings(section: Section) -> dict[str, str]:
    pairs = section.section("spellings").values
    plain = all(isinstance(word, str) and word.isalpha() for pair in pairs.items() for word in pair)
    if len(pairs) > _MOST_SPELLINGS or not plain or any(len(word) > _LONGEST for word in pairs.values()):
        raise ConfigError(f"{section.where}: spellings is not an object of {_MOST_SPELLINGS} words at most")
    return pairs


def respell(tokenizer: Tokenizer, folder: Path) -> None:
    """Make a tokenizer read other spellings of a word as the vocabulary in its folder says, if it has one."""
    vocabulary = read_vocabulary(folder)
    if vocabulary is not None and vocabulary.spellings:
        pairs = vocabulary.spellings.items()
        replace = [normalizers.Replace(Regex(rf"(?i)\b{word}\b"), known) for word, known in pairs]
        before = [] if tokenizer.normalizer is None else [tokenizer.normalizer]
        tokenizer.normalizer = normalizers.Sequence([*before, *replace])


def last_question(messages: Any) -> str:
    """The text of a conversation's last message, but for one of the assistant that the answer goes on from.

    The conversation has a form of `chat.messages`, or of the server; what isn't text is left out.
    """
    for message in reversed(messages):
        if str(_field(message, "role")).strip("<|>").lower() != "assistant":
            content = _field(message, "content")
            parts = content if isinstance(content, list) else [{"text": content}]
            texts = [_field(part, "text") for part in parts]
            return "\n".join(text for text in texts if isinstance(text, str))
    return ""


def _field(part: Any, name: str) -> Any:
    return part.get(name) if isinstance(part, dict) else getattr(part, name, None)
