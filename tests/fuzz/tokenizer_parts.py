"""Components of a `tokenizer.json`, made up."""

import random
from collections.abc import Callable
from typing import Any

from mutate import bad_value

REGEXES = (
    "(a+)+$", "(a|a)*$", "(a|aa)+$", "(.*)*x", "a{1,1000}{1,1000}", "(?=(a+))\\1+$", "(?<=a+)b", "\\p{L}+",
    "(", "[", "\\s+(?!\\S)|\\s+", "(?i)" * 500, "(" * 5000 + ")" * 5000, "(?:a?){3000}a{3000}",
    "^(([a-z])+.)+[A-Z]([a-z])+$", "", ".", "x*", "\\G", "(?<n>a)\\k<n>+", "\\d{1,3}", "[\\r\\n]", "\\X",
    "(?R)?",
)  # fmt: skip


def _pattern(rng: random.Random) -> Any:
    kind = rng.choice(("Regex", "Regex", "String"))
    return {kind: rng.choice(REGEXES) if kind == "Regex" else rng.choice(("", "a", " ", "\n", "x" * 999))}


_NORMALIZERS: tuple[Callable[[random.Random], Any], ...] = (
    lambda rng: {
        "type": rng.choice(("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Nmt", "ByteLevel"))
    },
    lambda rng: {
        "type": "Replace",
        "pattern": _pattern(rng),
        "content": rng.choice(("", "b", "a" * 1000, "a" * 10**6)),
    },
    lambda rng: {"type": "Prepend", "prepend": rng.choice(("▁", "", "x" * 10**6))},
    lambda rng: {"type": "Strip", "strip_left": True, "strip_right": rng.choice((True, False))},
    lambda rng: {
        "type": "Precompiled",
        "precompiled_charsmap": rng.choice(("", "AAAA", "////" * 99, "BAAAAAEAAAACAAAAYQA=", "!")),
    },
    lambda rng: {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": True,
        "strip_accents": None,
        "lowercase": True,
    },
)
_PRE_TOKENIZERS: tuple[Callable[[random.Random], Any], ...] = (
    lambda rng: {"type": rng.choice(("BertPreTokenizer", "Whitespace", "WhitespaceSplit", "UnicodeScripts"))},
    lambda rng: {
        "type": "Split",
        "pattern": _pattern(rng),
        "behavior": rng.choice(_BEHAVIORS),
        "invert": rng.random() < 0.3,
    },
    lambda rng: {"type": "Split", "pattern": _pattern(rng), "behavior": "Isolated", "invert": False},
    lambda rng: {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    lambda rng: {
        "type": "Metaspace",
        "replacement": rng.choice(("▁", "ab", "", " ")),
        "prepend_scheme": rng.choice(("always", "first", "x")),
        "split": True,
    },
    lambda rng: {"type": "CharDelimiterSplit", "delimiter": rng.choice(("a", "ab", ""))},
    lambda rng: {"type": "Punctuation", "behavior": rng.choice(_BEHAVIORS)},
    lambda rng: {"type": "Digits", "individual_digits": rng.choice((True, False))},
    lambda rng: {"type": "FixedLength", "length": rng.choice((0, 1, 5, 2**63))},
)
_BEHAVIORS = ("Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous", "Odd")
_DECODERS: tuple[Callable[[random.Random], Any], ...] = (
    lambda rng: {"type": rng.choice(("ByteFallback", "Fuse", "ByteLevel"))},
    lambda rng: {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    lambda rng: {"type": "WordPiece", "prefix": rng.choice(("##", "", "é")), "cleanup": True},
    lambda rng: {"type": "BPEDecoder", "suffix": rng.choice(("</w>", "", "a"))},
    lambda rng: {"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": True},
    lambda rng: {
        "type": "Strip",
        "content": rng.choice(("a", " ", "ab")),
        "start": rng.choice((0, 1, 2**40)),
        "stop": rng.choice((0, 3)),
    },
    lambda rng: {"type": "Replace", "pattern": _pattern(rng), "content": rng.choice(("", "a" * 10**5))},
    lambda rng: {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
)
_PROCESSORS: tuple[Callable[[random.Random], Any], ...] = (
    lambda rng: {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "?", "type_id": 0}}],
        "pair": [],
        "special_tokens": {},
    },
    lambda rng: {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
    lambda rng: {"type": "BertProcessing", "sep": ["x", 2**31], "cls": ["y", 5]},
    lambda rng: {
        "type": "RobertaProcessing",
        "sep": ["x", 1],
        "cls": ["y", 5],
        "trim_offsets": True,
        "add_prefix_space": True,
    },
)
_PARTS = {
    "normalizer": (_NORMALIZERS, "normalizers"),
    "pre_tokenizer": (_PRE_TOKENIZERS, "pretokenizers"),
    "decoder": (_DECODERS, "decoders"),
    "post_processor": (_PROCESSORS, "processors"),
}


def other_part(rng: random.Random, content: Any) -> Any:
    """Another component, alone, several in turn, or nested; some with a wrong value."""
    name = rng.choice(
        ("normalizer", "normalizer", "pre_tokenizer", "pre_tokenizer", "decoder", "post_processor")
    )
    makers, plural = _PARTS[name]

    def sequence(items: list[Any]) -> Any:
        return {"type": "Sequence", plural: items}

    part = rng.choice(makers)(rng)
    what = rng.randrange(6)
    if what == 0:
        part = sequence([rng.choice(makers)(rng) for _ in range(rng.choice((0, 2, 5)))])
    elif what == 1:
        part = sequence([part] * rng.choice((20, 300)))
    elif what == 2:
        for _ in range(rng.choice((3, 60, 400))):
            part = sequence([part])
    elif what == 3:
        part[rng.choice(list(part))] = bad_value(rng, [])
    elif what == 4 and isinstance(content[name], dict):
        part = sequence([content[name], part])
    return content | {name: part}
