"""Bodies of `/v1/responses` and its events. OpenAI's names of the types stand in parentheses."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from .responses import TokenLogprob

Status = Literal["in_progress", "completed", "incomplete"]


class OutputText(BaseModel):
    """The text of an answer (`ResponseOutputText`)."""

    type: Literal["output_text"] = "output_text"
    text: str = ""
    annotations: list[Any] = []
    logprobs: list[TokenLogprob] = []


class OutputMessage(BaseModel):
    """An answer (`ResponseOutputMessage`)."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    status: Status
    content: list[OutputText]


class ReasoningText(BaseModel):
    """The text of a thought (`ResponseReasoningItem.Content`)."""

    type: Literal["reasoning_text"] = "reasoning_text"
    text: str = ""


class ReasoningItem(BaseModel):
    """The thought before an answer (`ResponseReasoningItem`)."""

    id: str
    type: Literal["reasoning"] = "reasoning"
    status: Status
    summary: list[Any] = []
    content: list[ReasoningText]


class ResponseUsage(BaseModel):
    """Token counts of a response (`ResponseUsage`)."""

    input_tokens: int
    input_tokens_details: dict[str, int] = {"cached_tokens": 0}
    output_tokens: int
    output_tokens_details: dict[str, int]
    total_tokens: int


class ResponseObject(BaseModel):
    """A response (`Response`); what it repeats of its request stands as it was used."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Status
    model: str
    output: list[ReasoningItem | OutputMessage]
    usage: ResponseUsage | None = None
    incomplete_details: dict[str, str] | None = None
    instructions: str | None
    max_output_tokens: int | None
    temperature: float
    top_p: float
    top_logprobs: int
    text: dict[str, Any]
    error: None = None
    metadata: dict[str, str] = {}
    tools: list[Any] = []
    tool_choice: Literal["none"] = "none"
    parallel_tool_calls: bool = False
    previous_response_id: None = None
    reasoning: dict[str, None] = {"effort": None, "summary": None}
    background: Literal[False] = False
    truncation: Literal["disabled"] = "disabled"
    service_tier: Literal["default"] = "default"


class ResponseEvent(BaseModel):
    """An event of a streamed response (`ResponseStreamEvent`): by its `type` it has some of these fields. The
    last one is `response.completed` or `response.incomplete`, with the whole response."""

    type: str
    sequence_number: int
    response: ResponseObject | None = None
    output_index: int | None = None
    content_index: int | None = None
    item_id: str | None = None
    item: ReasoningItem | OutputMessage | None = None
    part: ReasoningText | OutputText | None = None
    delta: str | None = None
    text: str | None = None
    logprobs: list[TokenLogprob] | None = Field(None, description="Of the tokens of a delta or a text.")
