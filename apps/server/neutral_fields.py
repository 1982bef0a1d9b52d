"""Fields that clients send although they change nothing, and the values with which they do: one table.

They are fields of OpenAI's API, and of servers and clients beside it, for what these models don't have. With
one of its values here, a field is dropped; with any other it would change the answer, and is refused by name.
A field of null is one that is not given, whatever its name. docs/server.md shows this table.
"""

import json
from typing import Any, NamedTuple

MAX_TEXT = 256
"""Characters of a text that is not read."""


class Row(NamedTuple):
    """Fields of some objects of a request (names of `schema`'s classes, separated by spaces), and their
    values that change nothing. A type stands for all its values: any text, boolean or object."""

    objects: str
    fields: str
    values: tuple[Any, ...]


_PLAIN = "CompletionRequest ResponsesRequest"
_TEXTS = f"ChatRequest {_PLAIN}"
_ALL = f"{_TEXTS} ImageRequest"
_PEOPLE = "SystemMessage UserMessage"
_SPEAKERS = f"{_PEOPLE} AssistantMessage"
_MESSAGES = f"{_SPEAKERS} ToolMessage"

TABLE = (
    # Who asks, and how the request is accounted, stored and cached.
    Row(_ALL, "user safety_identifier request_id rid session_id chat_id cache_salt", (str,)),
    Row(_ALL, "prompt_cache_key prompt_cache_retention", (str,)),
    Row(_ALL, "metadata", (dict,)),
    Row(_ALL, "service_tier", ("auto", "default")),
    Row(_ALL, "store", (False,)),
    Row(_ALL, "priority", (0,)),
    Row(_ALL, "cache_prompt", (bool,)),
    Row(_ALL, "extra_body extra_headers extra_query vllm_xargs kv_transfer_params provider options", ({},)),
    Row(_ALL, "plugins transforms guardrails", ([],)),
    Row(_TEXTS, "usage", ({}, {"include": False})),
    # Tools, other modalities and reasoning.
    Row(_TEXTS, "functions", ([],)),
    Row(_PLAIN, "tools", ([],)),
    Row(_PLAIN, "tool_choice", ("none", "auto")),
    Row(_PLAIN, "parallel_tool_calls", (bool,)),
    Row(_TEXTS, "function_call", ("none", "auto")),
    Row(_TEXTS, "modalities", (["text"],)),
    Row(_TEXTS, "audio prediction web_search_options moderation", ()),
    Row(_TEXTS, "verbosity", ("medium",)),
    Row(_TEXTS, "reasoning_effort", ("none",)),
    Row(_TEXTS, "reasoning", ({}, {"effort": "none"}, {"enabled": False}, {"exclude": True})),
    Row(_TEXTS, "thinking", ({"type": "disabled"},)),
    Row(_TEXTS, "enable_thinking", (False,)),
    Row(_TEXTS, "thinking_budget", (0,)),
    Row(_TEXTS, "include_reasoning separate_reasoning stream_reasoning", (bool,)),
    # Prompts.
    Row(_TEXTS, "add_generation_prompt", (True,)),
    Row(_TEXTS, "continue_final_message add_special_tokens echo safe_prompt", (False,)),
    Row(_TEXTS, "chat_template truncate_prompt_tokens prompt_logprobs prompt_embeds", ()),
    Row(_TEXTS, "chat_template_kwargs", ({}, {"enable_thinking": False}, {"thinking": False})),
    Row(_TEXTS, "mm_processor_kwargs media_io_kwargs", ({},)),
    Row(_TEXTS, "chat_template_content_format", ("auto",)),
    Row(_TEXTS, "documents", ([],)),
    Row(_TEXTS, "suffix grammar", ("",)),
    # Sampling and stopping.
    Row(_TEXTS, "min_tokens mirostat top_a dynatemp_range smoothing_factor", (0,)),
    Row(_TEXTS, "xtc_probability dry_multiplier epsilon_cutoff eta_cutoff", (0,)),
    Row(_TEXTS, "length_penalty best_of typical_p tfs_z", (1,)),
    Row(_TEXTS, "use_beam_search ignore_eos include_stop_str_in_output", (False,)),
    Row(_TEXTS, "stop_token_ids bad_words logits_processors", ([],)),
    Row(_TEXTS, "allowed_token_ids", ()),
    # The form of the answer.
    Row(_TEXTS, "spaces_between_special_tokens", (bool,)),
    Row(_TEXTS, "return_token_ids return_tokens_as_token_ids return_hidden_states", (False,)),
    Row("StreamOptions", "include_obfuscation continuous_usage_stats", (False,)),
    # Messages and their parts: what answers of other servers hold is sent back to this one.
    Row(_MESSAGES, "id", (str,)),
    Row(_SPEAKERS, "name", (str,)),
    Row(_MESSAGES, "refusal reasoning", ("",)),
    Row(f"{_PEOPLE} ToolMessage", "reasoning_content", ("",)),
    Row(_MESSAGES, "annotations thinking_blocks images", ([],)),
    Row(f"{_PEOPLE} ToolMessage", "tool_calls", ([],)),
    Row(_MESSAGES, "audio function_call", ()),
    Row(_SPEAKERS, "tool_call_id", ()),
    Row(_MESSAGES, "provider_specific_fields", ({},)),
    Row("AssistantMessage", "prefix", (False,)),
    Row("TextPart", "annotations logprobs", ([],)),
    Row("ImageAddress", "format", (str,)),
    Row("TextPart ImagePart ImageAddress", "cache_control", ()),
    Row("InputMessage", "id status", (str,)),
    Row("InputText", "annotations logprobs", ([],)),
    Row("InputImage", "file_id", ()),
    # What is stored by other servers of responses.
    Row("ResponsesRequest", "previous_response_id conversation prompt context_management", ()),
    Row("ResponsesRequest", "max_tool_calls", ()),
    Row("ResponsesRequest", "truncation", ("disabled",)),
    Row("ResponsesRequest", "background", (False,)),
    Row("ResponsesRequest", "stream_options", ({}, {"include_obfuscation": False})),
    Row("TextOptions", "verbosity", ("medium",)),
    # Pictures.
    Row("ImageRequest", "moderation", ("auto", "low")),
    Row("ImageRequest", "quality", ("auto", "standard")),
    Row("ImageRequest", "background", ("auto", "opaque")),
    Row("ImageRequest", "style image images mask input_fidelity", ()),
)

_VALUES = {
    (name, field): row.values for row in TABLE for name in row.objects.split() for field in row.fields.split()
}
_TYPES = {str: f"any text of up to {MAX_TEXT} characters", bool: "true or false", dict: "any object"}
_PLACES = {
    _ALL: "any request",
    _TEXTS: "chats, completions, responses",
    _PLAIN: "completions, responses",
    "ResponsesRequest": "responses",
    "InputMessage": "messages of responses",
    "InputText": "`input_text`",
    "InputImage": "`input_image`",
    "TextOptions": "`text` of responses",
    _MESSAGES: "messages",
    _SPEAKERS: "messages but a tool's",
    f"{_PEOPLE} ToolMessage": "messages but the assistant's",
    "AssistantMessage": "the assistant's messages",
    "StreamOptions": "`stream_options`",
    "TextPart": "text parts",
    "ImageAddress": "`image_url`",
    "TextPart ImagePart ImageAddress": "parts of messages",
    "ImageRequest": "pictures",
}


def is_neutral(name: str, field: str, value: Any) -> bool:
    """Whether a field of an object, by its class's name, changes nothing with this value."""
    return value is None or any(_matches(value, accepted) for accepted in _VALUES.get((name, field), ()))


def refusal(name: str, field: str) -> str | None:
    """What to say about a field in the table with another value; None for a field that isn't there."""
    values = _VALUES.get((name, field))
    return None if values is None else f"this value is not supported; accepted: {accepted_text(values)}"


def accepted_text(values: tuple[Any, ...]) -> str:
    """The values of a row in words, null included."""
    texts = [_TYPES[value] if isinstance(value, type) else json.dumps(value) for value in values]
    return ", ".join(["null", *texts])


def table_text() -> str:
    """The table in Markdown, with the fields together that have the same place and values."""
    fields: dict[tuple[str, str], list[str]] = {}
    for row in TABLE:
        place = _PLACES.get(row.objects) or ", ".join(f"`{name}`" for name in row.objects.split())
        fields.setdefault((place, accepted_text(row.values)), []).extend(row.fields.split())
    lines = [
        f"| {place} | {', '.join(f'`{name}`' for name in names)} | {values} |"
        for (place, values), names in fields.items()
    ]
    return "\n".join(["| In | Fields | Change nothing as |", "|---|---|---|", *lines])


def _matches(value: Any, accepted: Any) -> bool:
    if isinstance(accepted, type):
        return type(value) is accepted and (accepted is not str or len(value) <= MAX_TEXT)
    if isinstance(value, dict):
        value = {key: one for key, one in value.items() if one is not None}
    return value == accepted and isinstance(value, bool) == isinstance(accepted, bool)
