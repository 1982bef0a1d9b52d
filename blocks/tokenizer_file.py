"""Reads a `tokenizer.json`, with what the families' tokenizers consist of and nothing else.

The library that runs them (`tokenizers`) takes files at their word: other components can fail on some texts,
end the process, or take time and memory without end. So components and their settings are compared with those
that are known here, and regular expressions with forms whose cost grows with the text's length alone.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from .errors import ConfigError
from .files import read_bounded
from .json_config import LIMITS, TABLE_BYTES, parse_json, shown

MAX_TOKEN, MAX_PATTERN, MAX_COMPONENTS = 1000, 4000, 32
"""Characters of a token and of a pattern, and components of a sequence."""
_MAX_ID = int(LIMITS["vocab_size"][1]) - 1

Settings = dict[str, Callable[[Any], object]]
"""Settings of a component, and what checks them."""

_PIECE = re.compile(
    r"(?:\[\^?(?:[^\[\]\\]|\\.)+\]|\\[pP]\{\^?\w+\}|\\[dDsSwWrnt]|\\[^\w\s]|[^\\\[\](){}|?*+^$])"
    r"(\?|\*|\+|\{\d\}|\{\d,\d\})?",
    re.DOTALL,
)
"""A character, class or escape of a pattern, and how often it may come."""
_WHOLE_BRANCHES = (r"\s+(?!\S)", r"\s*[\r\n]+", r"\s+$", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)")
"""Alternatives that DeepSeek's, Qwen's and Llama's patterns contain and `_check_pattern` would refuse."""

# DeepSeek-LLM's pattern of trailing spaces tries every start in a long run of them. To begin where the run
# begins finds the same in linear time.
_TRAILING = re.compile(rb'("Regex"\s*:\s*)"\\\\s\+\$"')
_TRAILING_ONCE = rb'\1"(?<!\\\\s)\\\\s+$"'


def read_tokenizer(path: Path, rows: int | None = None) -> Tokenizer:
    """The tokenizer of a `tokenizer.json` of these families. Raises `ConfigError` for any other file, and for
    ids beyond the `rows` of the model's embedding."""
    try:
        content = read_bounded(path, TABLE_BYTES)
    except OSError as error:
        raise ConfigError(f"{path} can't be read as a tokenizer: {error.strerror}") from error
    vocabulary = _check(parse_json(content, str(path)), f"{path} can't be read as a tokenizer")
    with library_errors(f"{path} can't be read as a tokenizer"):
        tokenizer = Tokenizer.from_buffer(_TRAILING.sub(_TRAILING_ONCE, content))
        ids = {*vocabulary.values(), *tokenizer.get_added_tokens_decoder()}
        if rows is not None and max(ids, default=0) >= rows:
            name = shown(tokenizer.id_to_token(max(ids)))
            raise ConfigError(f"{path}: the token {name} has id {max(ids)}, beyond the {rows} embeddings")
    return tokenizer


@contextmanager
def library_errors(what: str) -> Iterator[None]:
    """Turn anything that the library raises within into a `ConfigError` that begins with `what`.

    That includes the panics of its Rust code, which are no `Exception`.
    """
    try:
        yield
    except ConfigError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ConfigError(f"{what}: {shown(str(error))}") from error


def _check(content: Any, where: str) -> dict[str, int]:
    """The vocabulary of the file, of which everything is checked."""
    if not isinstance(content, dict):
        raise ConfigError(f"{where}: it holds a {type(content).__name__}; accepted: an object")
    for name in ("normalizer", "pre_tokenizer", "decoder", "post_processor"):
        _check_component(content.get(name), _COMPONENTS[name], f"{where}: {name}")
    if str(content.get("pre_tokenizer")).count("'ByteLevel'") > 1:
        raise ConfigError(f"{where}: its pre_tokenizer has ByteLevel twice; accepted: once")
    model = content.get("model")
    if not isinstance(model, dict):
        raise ConfigError(f"{where}: it has no model; accepted: BPE")
    _check_component({"type": "BPE", **model}, {"BPE": _BPE}, f"{where}: model")
    vocabulary, unknown = model.get("vocab"), model.get("unk_token")
    if not isinstance(vocabulary, dict) or not all(map(_is_token, vocabulary)):
        raise ConfigError(
            f"{where}: the vocabulary is no object, or has tokens of over {MAX_TOKEN} characters"
        )
    if not all(map(_is_id, vocabulary.values())):
        raise ConfigError(f"{where}: the vocabulary has ids that are no whole numbers from 0 to {_MAX_ID}")
    if unknown is not None and unknown not in vocabulary:
        raise ConfigError(f"{where}: the vocabulary lacks the unk_token {shown(unknown)}")
    added = content.get("added_tokens", [])
    if not isinstance(added, list) or not all(map(_is_added_token, added)):
        raise ConfigError(f"{where}: added_tokens must be objects with an id, a content and flags")
    return vocabulary


def _check_component(value: Any, kinds: dict[str, Settings], where: str) -> None:
    """Raise `ConfigError` unless a component is missing, or of one of these kinds with their settings."""
    if value is None:
        return
    kind = value.get("type") if isinstance(value, dict) else value
    if not isinstance(kind, str) or kind not in kinds:
        raise ConfigError(f"{where} is {shown(kind)}; accepted: {', '.join(kinds)}")
    for name, setting in value.items():
        check = kinds[kind].get(name)
        if name == "type":
            continue
        if name in _SEQUENCES and check is not None:
            if not isinstance(setting, list) or len(setting) > MAX_COMPONENTS:
                raise ConfigError(f"{where} is no list of at most {MAX_COMPONENTS} components")
            for part in setting:
                _check_component(part, {k: v for k, v in kinds.items() if k != "Sequence"}, f"{where}'s part")
        elif check is None or not check(setting):
            raise ConfigError(
                f"{where} is a {kind} whose {shown(name)} is {shown(setting)}, which isn't accepted"
            )


def _check_pattern(pattern: Any) -> bool:
    """Whether a `Split` searches for a text, or for a regular expression of a form that never backtracks far.

    Each alternative is a row of single characters or classes, at most two of them optional or counted; after
    the first that repeats without a limit, only what may be missing.
    """
    if not isinstance(pattern, dict) or len(pattern) != 1:
        return False
    (kind, text), *_ = pattern.items()
    if not isinstance(text, str) or not 0 < len(text) <= MAX_PATTERN:
        return False
    return kind == "String" or (kind == "Regex" and _is_linear(text))


def _is_linear(pattern: str) -> bool:
    position = 0
    while True:
        whole = next(
            (b for b in _WHOLE_BRANCHES if re.match(rf"{re.escape(b)}(\||$)", pattern[position:])), ""
        )
        end, unbounded, choices = position + len(whole), False, 0
        while not whole and end < len(pattern) and pattern[end] != "|":
            piece = _PIECE.match(pattern, end)
            if piece is None:
                return False
            often = piece[1] or ""
            choices += often not in ("", "*", "+")
            if choices > 2 or (unbounded and often not in ("?", "*")):
                return False
            unbounded, end = unbounded or often in ("*", "+"), piece.end()
        if end == position:
            return False  # an empty alternative
        if end == len(pattern):
            return True
        position = end + 1


def _is_token(token: Any) -> bool:
    return isinstance(token, str) and 0 < len(token) <= MAX_TOKEN


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _MAX_ID


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_empty(value: Any) -> bool:
    return value is None or value == "" or (type(value) in (int, float) and value == 0)


def _is_added_token(token: Any) -> bool:
    if not isinstance(token, dict) or not _is_id(token.get("id")) or not _is_token(token.get("content")):
        return False
    return all(isinstance(value, bool) for name, value in token.items() if name not in ("id", "content"))


def _anything(value: Any) -> bool:
    return True


_BYTE_LEVEL: Settings = {"add_prefix_space": _is_flag, "trim_offsets": _is_flag, "use_regex": _is_flag}
_BPE: Settings = {
    "dropout": _is_empty,
    "unk_token": lambda value: value is None or _is_token(value),
    "continuing_subword_prefix": _is_empty,
    "end_of_word_suffix": _is_empty,
    "fuse_unk": _is_flag,
    "byte_fallback": _is_flag,
    "ignore_merges": _is_flag,
    "vocab": _anything,
    "merges": lambda value: isinstance(value, list),
}
_SEQUENCES = ("normalizers", "pretokenizers", "processors")
_BEHAVIORS = ("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous")
_COMPONENTS: dict[str, dict[str, Settings]] = {
    "normalizer": {"Sequence": {"normalizers": _anything}, "NFC": {}, "Lowercase": {}},
    "pre_tokenizer": {
        "Sequence": {"pretokenizers": _anything},
        "Split": {"pattern": _check_pattern, "behavior": _BEHAVIORS.__contains__, "invert": _is_flag},
        "Digits": {"individual_digits": _is_flag},
        "ByteLevel": _BYTE_LEVEL,
    },
    "decoder": {"ByteLevel": _BYTE_LEVEL},
    # Unused: texts are encoded without special tokens.
    "post_processor": {
        "Sequence": {"processors": _anything},
        "ByteLevel": _BYTE_LEVEL,
        "TemplateProcessing": {"single": _anything, "pair": _anything, "special_tokens": _anything},
    },
}
"""Accepted kinds of each component with the checks of their settings."""
