"""Output formats: what they accept and refuse, which tokens their masks allow, and that answers match."""

import json
import pickle
import re
from pathlib import Path
from random import Random
from typing import Any

import bifrons
import jsonschema
import numpy as np
import pytest
from bifrons.blocks.errors import OptionError
from bifrons.blocks.structured_output import MAX_FORMAT, OutputFormat
from bifrons.blocks.token_masks import OutputMatcher, TokenVocabulary
from pydantic import BaseModel
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel
from tokenizers.models import BPE

from ..models import SHAPES_JANUS, SHAPES_VL2

ROOT = Path(bifrons.__file__).parent
SCHEMAS = json.loads((ROOT / "tests" / "data" / "json_schemas.json").read_text())
FILES = [Path(model) / "tokenizer.json" for model in (SHAPES_VL2, SHAPES_JANUS)]
EOS = "<｜end▁of▁sentence｜>"
VL2 = Tokenizer.from_file(str(FILES[0]))
ROWS = 704


def vocabulary_of(tokenizer: Tokenizer, rows: int = ROWS) -> TokenVocabulary:
    return TokenVocabulary(tokenizer, rows, tokenizer.token_to_id(EOS))


VOCABULARY = vocabulary_of(VL2)


def allowed(matcher: OutputMatcher) -> list[int]:
    return np.flatnonzero(np.unpackbits(matcher.mask_W.view(np.uint8), bitorder="little")).tolist()


def answer(matcher: OutputMatcher, vocabulary: TokenVocabulary, limit: int, seed: int) -> list[int] | None:
    """An answer by a model that draws from random logits and, for odd seeds, hates to end anything. None if
    it was cut off."""
    random, tokens = Random(seed), []
    weights = [random.random() ** 6 for _ in range(ROWS)]
    for character in '}]",' if seed % 2 else "":
        weights[vocabulary.characters[character]] = 1e-9
    weights[vocabulary.eos_id] = 1e-9
    for _ in range(limit):
        choices = allowed(matcher)
        (token,) = random.choices(choices, [weights[choice] for choice in choices])
        if token == vocabulary.eos_id:
            return tokens
        tokens.append(token)
        if matcher.accept(token):
            return tokens
    return None


@pytest.mark.parametrize("file", FILES, ids=("vl2", "janus"))
@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS)
def test_any_models_answer_is_valid(schema: Any, file: Path) -> None:
    """Even one that would never end by itself."""
    tokenizer = Tokenizer.from_file(str(file))
    vocabulary, output_format = vocabulary_of(tokenizer), OutputFormat.json_schema(schema)
    for seed in range(4):
        tokens = answer(output_format.matcher(vocabulary, 200), vocabulary, 200, seed)
        assert tokens is not None
        jsonschema.validate(json.loads(tokenizer.decode(tokens)), schema)


def test_an_answer_without_room_is_cut_off() -> None:
    matcher = OutputFormat.regex("[a-z]{50}").matcher(VOCABULARY, 4)
    assert answer(matcher, VOCABULARY, 4, 0) is None


def test_json_is_written_on_one_line() -> None:
    matcher = OutputFormat.json_schema({"const": {"a": [1, "b\n"]}}).matcher(VOCABULARY, 60)
    tokens = answer(matcher, VOCABULARY, 60, 0)
    assert VL2.decode(tokens or []) == '{"a": [1, "b\\n"]}'


class Answer(BaseModel):
    """A pydantic model."""

    color: str
    count: int | None = None


@pytest.mark.parametrize("schema", [Answer, True, {}, json.dumps({"type": "string"}), {"x-note": 1}])
def test_forms_of_schemas(schema: Any) -> None:
    tokens = answer(OutputFormat.json_schema(schema).matcher(VOCABULARY, 80), VOCABULARY, 80, 1)
    value = json.loads(VL2.decode(tokens or []))
    if schema is Answer:
        Answer.model_validate(value)


REFUSED: dict[str, tuple[Any, str]] = {
    "false": (False, "matches no value"),
    "number": (3, "it is 3"),
    "not json": ("{", "no JSON value"),
    "object": (object(), "no JSON value"),
    "surrogate": ({"pattern": "\ud800"}, "no JSON value"),
    "nan": ({"minimum": float("nan")}, "no JSON value"),
    "deep": (json.loads('{"not":' * 70 + "true" + "}" * 70), "levels"),
    "large": ({"description": "x" * MAX_FORMAT}, "bytes; accepted"),
    "type": ({"type": "strin"}, "strin"),
    "typo": ({"properties": {"a": {"type": "string", "maxLenght": 3}}}, "'maxLenght' is no keyword"),
    "nullable": ({"type": "string", "nullable": True}, "'nullable'"),
    "not": ({"not": {"type": "string"}}, "Unimplemented"),
    "unique": ({"type": "array", "uniqueItems": True}, "Unimplemented"),
    "overlap": ({"oneOf": [{"type": "string"}, {"maxLength": 3, "type": "string"}]}, "oneOf"),
    "format": ({"type": "string", "format": "colour"}, "Unknown format"),
    "reference": ({"$ref": "#/nowhere"}, "nowhere"),
    "other document": ({"$ref": "http://localhost/x.json"}, "localhost"),
    "no value": ({"type": "integer", "minimum": 5, "maximum": 4}, "minimum"),
    "options": ({"type": "string", "x-guidance": {"lenient": True}}, "x-guidance"),
}


@pytest.mark.parametrize(("schema", "problem"), REFUSED.values(), ids=REFUSED)
def test_schemas_that_cannot_be_held_to_are_refused(schema: Any, problem: str) -> None:
    with pytest.raises(OptionError, match=re.escape(problem)) as caught:
        OutputFormat.json_schema(schema)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "make",
    [
        lambda: OutputFormat.regex("a|(b"),
        lambda: OutputFormat.regex("(?=a)b"),
        lambda: OutputFormat.regex(""),
        lambda: OutputFormat.choices([]),
        lambda: OutputFormat.choices("ab"),
        lambda: OutputFormat.choices(["a", ""]),
        lambda: OutputFormat.choices(["a"] * 1001),
        lambda: OutputFormat.grammar("start: nowhere"),
        lambda: OutputFormat.pick({"type": "string"}, ["a"]),
    ],
)
def test_other_formats_are_refused_in_words(make: Any) -> None:
    with pytest.raises(OptionError):
        make()


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "multipleOf": 999999937},
        {"type": "object", "properties": {f"p{i}": {"enum": list(range(99))} for i in range(150)}},
        {"type": "string", "pattern": "^(([a-z]{0,99}[0-9]{0,99}){0,99}x){0,99}$"},
    ],
)
def test_what_is_too_complex_costs_little(run_bounded: Any, schema: Any) -> None:
    """It is refused, or its masks are computed within limits."""
    code = """
import json, sys
from tokenizers import Tokenizer
from bifrons.blocks.errors import OptionError
from bifrons.blocks.structured_output import OutputFormat
from bifrons.blocks.token_masks import TokenVocabulary
vocabulary = TokenVocabulary(Tokenizer.from_file(sys.argv[2]), 704, 612)
try:
    matcher = OutputFormat.json_schema(sys.argv[3]).matcher(vocabulary, 100)
    print("compiled")
except OptionError as error:
    print("refused", error)
"""
    out = run_bounded(code, FILES[0], json.dumps(schema), memory=1 << 30, seconds=60)
    assert out.startswith(("compiled", "refused"))


def test_texts_that_spell_special_tokens_are_text() -> None:
    """And no special token but the end token is ever allowed, nor an id beyond the tokenizer's."""
    matcher = OutputFormat.choices(["<|User|>", EOS]).matcher(VOCABULARY, 60)
    special = set(VL2.get_added_tokens_decoder())
    tokens = answer(matcher, VOCABULARY, 60, 0) or []
    assert VL2.decode(tokens, skip_special_tokens=False) in ("<|User|>", EOS)
    assert not special & set(tokens)
    matcher = OutputFormat.regex("(?s).+").matcher(VOCABULARY, 60)
    assert not special & set(allowed(matcher))
    assert max(allowed(matcher)) < VL2.get_vocab_size()
    assert len(allowed(matcher)) > 400


def test_choices_may_begin_alike() -> None:
    red, ball = VL2.encode("red", add_special_tokens=False).ids, VL2.encode(" ball").ids
    matcher = OutputFormat.choices(["red", "red ball"]).matcher(VOCABULARY, 20)
    assert [matcher.accept(token) for token in red] == [False] * len(red)
    assert VOCABULARY.eos_id in allowed(matcher)
    assert [matcher.accept(token) for token in ball][-1] is True


def test_a_vocabulary_without_bytes_is_refused_in_words() -> None:
    tokenizer = Tokenizer(BPE({"a": 0, "b": 1}, []))
    tokenizer.decoder = ByteLevel()  # type: ignore[assignment]
    tokenizer.add_special_tokens([EOS])
    with pytest.raises(OptionError, match="can't spell"):
        OutputFormat.json_object().matcher(vocabulary_of(tokenizer, 3), 9)


def test_vocabularies_and_formats_can_be_pickled() -> None:
    vocabulary, output_format = pickle.loads(pickle.dumps((VOCABULARY, OutputFormat.json_object())))
    assert VL2.id_to_token(allowed(output_format.matcher(vocabulary, 9))[0]) == "{"
