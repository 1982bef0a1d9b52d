"""Answers of a given form: JSON that matches a schema, a regular expression, one of some texts.

An `OutputFormat` says what a whole answer must match. `token_masks.py` holds answers to it, with the library
llguidance.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from llguidance import LLMatcher

from .errors import OptionError
from .json_config import decode_json, shown
from .token_masks import LIMITS, OutputMatcher, TokenVocabulary, library_errors, refuse

MAX_FORMAT = 1 << 16
"""Largest schema, pattern or grammar in bytes, and largest sum of choices."""
MAX_CHOICES = 1000
_JSON_OPTIONS = {
    # As `json.dumps` writes it. With free whitespace, small models write line breaks without end.
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "lenient": False,
    "coerce_one_of": False,
}

_SCHEMA = {
    "additionalItems", "additionalProperties", "items", "not", "if", "then", "else", "contains",
    "propertyNames", "unevaluatedItems", "unevaluatedProperties",
}  # fmt: skip
_SCHEMAS = {"allOf", "anyOf", "oneOf", "prefixItems", "items"}
_NAMED_SCHEMAS = {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"}
_VALUES = {
    "type", "const", "enum", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf",
    "minLength", "maxLength", "pattern", "format", "minItems", "maxItems", "uniqueItems", "minContains",
    "maxContains", "required", "minProperties", "maxProperties", "dependentRequired", "dependencies",
    "$ref", "$id", "id", "$schema", "$anchor", "$dynamicRef", "$dynamicAnchor", "$recursiveRef",
    "$recursiveAnchor", "$vocabulary",
}  # fmt: skip
_NOTES = {
    "title", "description", "default", "example", "examples", "deprecated", "readOnly", "writeOnly",
    "$comment", "contentEncoding", "contentMediaType", "contentSchema", "discriminator",
}  # fmt: skip
"""Keywords that say nothing about which values are valid."""
_COMBINING = {"$ref", "$dynamicRef", "$recursiveRef", "allOf", "anyOf", "oneOf", "dependentSchemas"}
_OPEN = {"additionalProperties", "patternProperties", "unevaluatedProperties", "minProperties"}
"""Keywords that say something about properties that are not listed."""


@dataclass(frozen=True)
class OutputFormat:
    """What a whole answer must match. Make one by `json_object`, `json_schema`, `regex`, `choices` or
    `grammar`, which raise `OptionError` for what can't be held to.

    An answer that reaches its largest number of tokens is cut off, and then doesn't match; its finish reason
    is "length".
    """

    description: str
    """What it is, for errors: "the JSON schema", "the regular expression" ..."""
    source: str
    """The grammar in llguidance's form."""

    def __post_init__(self) -> None:
        with library_errors(self.description):
            is_error, messages = LLMatcher.validate_grammar_with_warnings(self.source, limits=LIMITS)
        if is_error:
            refuse(self.description, messages[0])

    @classmethod
    def json_object(cls) -> "OutputFormat":
        """Any JSON object. Like all JSON here, it is written on one line, as by `json.dumps`."""
        return cls.json_schema({"type": "object"})

    @classmethod
    def json_schema(cls, schema: Any) -> "OutputFormat":
        """JSON that is valid against a schema: a dict, a bool, a JSON text, or a pydantic model class.

        Drafts 4 to 2020-12, except for the keywords that llguidance doesn't implement (`not`, `if`,
        `uniqueItems`, `contains` ...), a `oneOf` of which two branches may match, and references to other
        documents. These are refused, as are keywords that no draft has, but for names in `x-`. Properties
        are written in the order of the schema, and only those that it lists, unless it speaks of others.
        """
        what = "the JSON schema"
        if hasattr(schema, "model_json_schema"):
            schema = schema.model_json_schema()
        try:
            text = schema if isinstance(schema, str) else json.dumps(schema)
            _check_size(what, text)
            value = decode_json(text.encode("utf-8"))
        except (TypeError, ValueError, RecursionError) as error:
            if isinstance(error, OptionError):
                raise
            refuse(what, f"it is no JSON value ({error})")
        if value is False:
            refuse(what, "false matches no value")
        if not isinstance(value, dict) and value is not True:
            refuse(what, f"it is {shown(value)}")
        _check_keywords(value, what)
        _close_objects(value)
        options: Any = _JSON_OPTIONS
        content = {} if value is True else value
        return cls(what, LLMatcher.grammar_from_json_schema(json.dumps(content), overrides=options))

    @classmethod
    def regex(cls, pattern: str) -> "OutputFormat":
        """A text that a regular expression matches from its first to its last character.

        The syntax is that of Rust's `regex`, without look-around, back-references and lazy repetition.
        """
        what = "the regular expression"
        if not isinstance(pattern, str) or not pattern:
            refuse(what, f"it is {shown(pattern)}; a text that is not empty is needed")
        _check_size(what, pattern)
        return cls(what, LLMatcher.grammar_from_regex(pattern))

    @classmethod
    def choices(cls, choices: Sequence[str]) -> "OutputFormat":
        """One of some texts: up to `MAX_CHOICES`, none of them empty."""
        what, texts = "the list of choices", list(choices) if isinstance(choices, Sequence) else []
        if isinstance(choices, str) or not 0 < len(texts) <= MAX_CHOICES:
            refuse(what, f"it is {shown(choices)}; 1 to {MAX_CHOICES} texts are needed")
        for text in texts:
            if not isinstance(text, str) or not text:
                refuse(what, f"it holds {shown(text)}; each must be a text that is not empty")
        _check_size(what, "".join(texts))
        return cls(what, LLMatcher.grammar_from_lark("start: " + " | ".join(map(lark_text, texts))))

    @classmethod
    def grammar(cls, lark: str) -> "OutputFormat":
        """A text of a grammar in llguidance's form of Lark, whose first rule is `start`."""
        what = "the grammar"
        if not isinstance(lark, str) or not lark:
            refuse(what, f"it is {shown(lark)}; a text that is not empty is needed")
        _check_size(what, lark)
        return cls(what, LLMatcher.grammar_from_lark(lark))

    @classmethod
    def pick(cls, json_schema: Any = None, choices: Any = None, regex: Any = None) -> "OutputFormat | None":
        """The format of the one argument that is not None, if there is one. Raises `OptionError`."""
        given = [
            make(value)
            for make, value in ((cls.json_schema, json_schema), (cls.choices, choices), (cls.regex, regex))
            if value is not None
        ]
        if len(given) > 1:
            raise OptionError("json_schema, choices and regex exclude each other; accepted: one of them")
        return given[0] if given else None

    def matcher(self, vocabulary: TokenVocabulary, max_new_tokens: int) -> OutputMatcher:
        """What holds one answer of up to `max_new_tokens` to this format. Raises `OptionError` if the format
        is too complex, or if the vocabulary can't spell it."""
        return OutputMatcher(self.description, self.source, vocabulary, max_new_tokens)


def lark_text(text: str) -> str:
    """A text as a literal of a Lark grammar."""
    return json.dumps(text, ensure_ascii=False)


def _check_size(description: str, text: str) -> None:
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError as error:
        refuse(description, f"it is not valid Unicode ({error.reason})")
    if size > MAX_FORMAT:
        refuse(description, f"it has {size:,} bytes; accepted: {MAX_FORMAT:,}")


def _check_keywords(schema: Any, description: str) -> None:
    """Refuse keywords that the library would not read. It refuses itself those that it knows of."""
    known = _SCHEMA | _SCHEMAS | _NAMED_SCHEMAS | _VALUES | _NOTES
    for one in _schemas(schema):
        for keyword in one:
            if keyword == "x-guidance" or not (keyword in known or keyword.startswith("x-")):
                refuse(description, f"{shown(keyword)} is no keyword that is supported")


def _schemas(schema: Any) -> Iterator[dict[str, Any]]:
    """A schema and all those inside it, without booleans."""
    pending = [schema]
    while pending:
        one = pending.pop()
        if not isinstance(one, dict):
            continue
        yield one
        for keyword, value in one.items():
            if keyword in _NAMED_SCHEMAS and isinstance(value, dict):
                pending += value.values()
            elif keyword in _SCHEMAS and isinstance(value, list):
                pending += value
            elif keyword in _SCHEMA:
                pending.append(value)


def _close_objects(schema: Any) -> None:
    """Forbid properties that the schema doesn't list, where it says nothing about them: else models add
    some until their tokens are used up.

    A schema that combines others, each of which lists some of the properties, stays as it is.
    """
    schemas = list(_schemas(schema))
    for one in schemas:
        alternatives = one.get("allOf", ())
        combines = not _COMBINING.isdisjoint(one) and not one.keys().isdisjoint(("properties", "required"))
        if combines or (isinstance(alternatives, list) and len(alternatives) > 1):
            return
    for one in schemas:
        listed, required = one.get("properties"), one.get("required", [])
        if not isinstance(listed, dict) or not isinstance(required, list) or not _OPEN.isdisjoint(one):
            continue
        if all(isinstance(name, str) and name in listed for name in required):
            one["additionalProperties"] = False
