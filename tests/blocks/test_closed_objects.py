"""Objects of a JSON schema get the properties that it lists, unless it speaks of others."""

import json
from typing import Any

import pytest
from bifrons.blocks.errors import OptionError
from bifrons.blocks.structured_output import OutputFormat
from pydantic import BaseModel

A, B = {"properties": {"a": {}}}, {"properties": {"b": {}}}


def used(schema: Any) -> Any:
    """The schema that answers are held to."""
    (grammar,) = json.loads(OutputFormat.json_schema(schema).source)["grammars"]
    return {name: value for name, value in grammar["json_schema"].items() if name != "x-guidance"}


def test_what_is_not_listed_is_not_written():
    class Inner(BaseModel):
        properties: int

    class Outer(BaseModel):
        inner: Inner
        others: list[Inner] | None = None

    held = used(Outer)
    assert held["additionalProperties"] is False
    assert held["$defs"]["Inner"]["additionalProperties"] is False
    assert "additionalProperties" not in held["$defs"]["Inner"]["properties"]
    anonymous = used({"items": {"anyOf": [A, B]}, "prefixItems": [A]})
    assert [one["additionalProperties"] for one in anonymous["items"]["anyOf"]] == [False, False]
    assert anonymous["prefixItems"][0]["additionalProperties"] is False


@pytest.mark.parametrize(
    "schema",
    [
        {**A, "additionalProperties": True},
        {**A, "additionalProperties": {"type": "string"}},
        {**A, "patternProperties": {"^x": {}}},
        {**A, "required": ["b"]},
        {"allOf": [A, B]},
        {**A, "anyOf": [B, {"required": ["c"]}]},
        {**A, "$ref": "#/$defs/b", "$defs": {"b": B}},
        {"allOf": [{"$ref": "#/$defs/b"}], "required": ["c"], "$defs": {"b": B}},
        {"type": "object"},
        {"const": A},
        {"enum": [A]},
    ],
)
def test_a_schema_that_speaks_of_others_or_combines_some_is_used_as_it_is(schema):
    assert used(schema) == schema


def test_the_given_schema_is_not_changed():
    schema = {"properties": {"a": {}}}
    OutputFormat.json_schema(schema)
    assert schema == {"properties": {"a": {}}}


@pytest.mark.parametrize("required", [5, "a", [5], [["a"]], None])
def test_a_wrong_list_of_required_properties_is_left_to_the_library(required):
    with pytest.raises(OptionError, match="required"):
        OutputFormat.json_schema({**A, "required": required})
