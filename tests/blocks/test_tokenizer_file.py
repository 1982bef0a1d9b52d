"""Hostile `tokenizer.json` files: each is refused before the library can fail, hang or end the process."""

import json
from pathlib import Path

import pytest
from bifrons.blocks.errors import ConfigError
from bifrons.blocks.tokenizer_file import library_errors, read_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from ..models import SHAPES_JANUS

TOKENIZER = Path(SHAPES_JANUS) / "tokenizer.json"
DEEPSEEK_LLM = (
    r"[\r\n]",
    r"\s?[A-Za-zµÀ-ÖØ-öø-ƺ]+",
    r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
    r"\s+$",
    r"[一-龥ࠀ-一가-퟿]+",
    r"\p{N}+",
)
DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"""| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+""",
)
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def content(**changes) -> dict:
    return json.loads(TOKENIZER.read_text(encoding="utf-8")) | changes


def split(pattern: str, kind: str = "Regex") -> dict:
    return {"type": "Split", "pattern": {kind: pattern}, "behavior": "Isolated", "invert": False}


def sequence(*parts: dict) -> dict:
    return {"type": "Sequence", "pretokenizers": list(parts)}


def model(**changes) -> dict:
    return {"model": content()["model"] | changes}


def write(folder: Path, **changes) -> Path:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(content(**changes)))
    return path


@pytest.mark.parametrize("patterns", [DEEPSEEK_LLM, DEEPSEEK_V3])
def test_the_families_pre_tokenizers_are_accepted_and_linear(tmp_path, patterns):
    """Texts of 100,000 characters; the pattern of trailing spaces took 45 seconds for one."""
    path = write(tmp_path, pre_tokenizer=sequence(*map(split, patterns), BYTE_LEVEL))
    tokenizer = read_tokenizer(path)
    for text in (" " * 100_000 + "x", " \n" * 50_000, "a" * 100_000, "!a" * 50_000):
        assert tokenizer.encode(text).ids


@given(text=st.text(alphabet=" \t\n\r\u3000ax1", max_size=30))
def test_trailing_spaces_are_split_as_by_the_original_pattern(text, tmp_path_factory):
    changes = {"pre_tokenizer": sequence(split(r"\s+$"), BYTE_LEVEL)}
    path = write(tmp_path_factory.mktemp("spaces"), **changes)
    assert (
        read_tokenizer(path).encode(text).tokens == Tokenizer.from_str(path.read_text()).encode(text).tokens
    )


@pytest.mark.parametrize(
    "pattern",
    [
        r"(a+)+$",
        r"a+b",
        r"(?:a|a)*$",
        r"\s+\s+x",
        r"a{9}{9}",
        r"a{1,9999}",
        r"a?a?a?",
        r"[a[b]]+",
        r"(?<=a*)b",
        r"(a)\1",
        r"a+?b",
        r"a|",
        r"|a",
        "",
        "[a-z",
        "a" * 5000,
    ],
)
def test_other_patterns_are_refused(tmp_path, pattern):
    with pytest.raises(ConfigError, match="Split whose 'pattern'"):
        read_tokenizer(write(tmp_path, pre_tokenizer=split(pattern)))


CHANGES = {
    "expanding": {"normalizer": {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 9**6}},
    "expanding Prepend": {"normalizer": {"type": "Prepend", "prepend": "x" * 10**6}},
    "doubling": {"normalizer": {"type": "Sequence", "normalizers": [{"type": "ByteLevel"}] * 300}},
    "doubling splits": {"pre_tokenizer": sequence(BYTE_LEVEL, BYTE_LEVEL)},
    "long sequence": {"pre_tokenizer": sequence(*[split("a")] * 33)},
    "nested sequence": {"pre_tokenizer": sequence(sequence(split("a")))},
    "Precompiled": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "!!!!"}},
    "FixedLength": {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
    "WordLevel": model(type="WordLevel"),
    "Unigram": {"model": {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": None}},
    "no model": {"model": None},
    "missing unk": model(unk_token="[UNK]"),
    "prefix": model(continuing_subword_prefix="##"),
    "dropout": model(dropout=0.5),
    "vocabulary of texts": model(vocab={"a": "b"}),
    "large id": model(vocab={"a": 2**32}),
    "negative id": model(vocab={"a": -1}),
    "vocabulary is a list": model(vocab=["a"]),
    "long token": model(vocab={"a" * 1001: 0}),
    "empty token": model(vocab={"": 0}),
    "merges are no list": model(merges="a b"),
    "merge out of the vocabulary": model(merges=[["zzz", "zzz"]]),
    "merge of three": model(merges=[["a", "b", "c"]]),
    "field": model(surprise=1),
    "added token": {"added_tokens": [{"id": "a", "content": "b"}]},
    "added id": {"added_tokens": [{"id": 2**40, "content": "b"}]},
    "empty added token": {"added_tokens": [{"id": 999, "content": "", "special": True}]},
    "decoder": {"decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True}},
    "decoder is a list": {"decoder": [1]},
    "post-processor": {"post_processor": {"type": "BertProcessing", "sep": ["a", 1], "cls": ["b", 2]}},
    "broken template": {"post_processor": {"type": "TemplateProcessing", "single": 1, "pair": []}},
    "type is a list": {"normalizer": {"type": ["NFC"]}},
}  # fmt: skip

ENCODE = """
from bifrons.blocks.tokenizer_file import read_tokenizer
for path in sorted(Path(sys.argv[2]).glob("*.json")):
    try:
        read_tokenizer(path).encode("a é 漢 " * 2000)
        print(path.stem, "accepted")
    except BifronsError as error:
        print(path.stem, "refused:", " ".join(str(error).split()))
"""


def test_other_components_and_models_are_refused(tmp_path, run_bounded):
    for name, changes in CHANGES.items():
        write(tmp_path, **changes).rename(tmp_path / f"{name}.json")
    printed = run_bounded(ENCODE, tmp_path, memory=300 << 20).splitlines()
    assert len(printed) == len(CHANGES)
    for line in printed:
        assert "refused: " in line
        assert "can't be read as a tokenizer" in line
        assert len(line) < 1000


def test_a_bomb_is_refused_unparsed(tmp_path, run_bounded):
    (tmp_path / "a.json").write_bytes(b'{"model": [' + b"[]," * 5_000_000 + b"[]]}")
    with (tmp_path / "b.json").open("wb") as stream:
        stream.truncate(20 << 30)
    (tmp_path / "c.json").write_bytes(b'{"a":' * 100_000)
    printed = run_bounded(ENCODE, tmp_path, memory=200 << 20).splitlines()
    assert ["values" in printed[0], "larger" in printed[1], "levels" in printed[2]] == [True] * 3


def test_ids_beyond_the_embedding_are_refused(tmp_path):
    last = max(read_tokenizer(TOKENIZER).get_vocab(with_added_tokens=True).values())
    assert read_tokenizer(TOKENIZER, last + 1)
    with pytest.raises(ConfigError, match=f"has id {last}, beyond the {last} embeddings"):
        read_tokenizer(TOKENIZER, last)
    with pytest.raises(ConfigError, match="has id 4000, beyond the 700 embeddings"):
        read_tokenizer(write(tmp_path, **model(vocab=content()["model"]["vocab"] | {"rare": 4000})), 700)


def test_panics_of_the_library_are_errors_of_ours_and_others_pass():
    class PanicException(BaseException):
        pass

    for raised in (PanicException("index out of bounds"), Exception("plain")):
        with pytest.raises(ConfigError, match=r"x failed: '(index|plain)"), library_errors("x failed"):
            raise raised
    with pytest.raises(KeyboardInterrupt), library_errors("x failed"):
        raise KeyboardInterrupt
