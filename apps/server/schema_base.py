"""The base of request bodies, which decides what becomes of fields that it doesn't know."""

from functools import cache
from typing import Annotated, Any, Self, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from .neutral_fields import is_neutral, refusal

UNSUPPORTED = "unsupported_value"
"""Type and code of the error for a value of a neutral field that would change something."""
MAX_TEXT = 200_000

Text = Annotated[str, Field(max_length=MAX_TEXT)]
ShortText = Annotated[str, Field(max_length=256)]


class Request(BaseModel):
    """Base of request bodies. It is strict: no strings for numbers, no unknown fields, no infinities."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="wrap")
    @classmethod
    def _drop_neutral_fields(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Drop unknown fields that change nothing; if all others are right, refuse the first that does."""
        if not isinstance(data, dict):
            return handler(data)
        known = _field_names(cls)
        checked = handler({name: data[name] for name in data if name in known})
        for name in data:
            if name not in known and not is_neutral(cls.__name__, name, data[name]):
                text = cast(Any, refusal(cls.__name__, name))
                kind = "extra_forbidden" if text is None else PydanticCustomError(UNSUPPORTED, text)
                problem = InitErrorDetails(type=kind, loc=(name,), input=None)
                raise ValidationError.from_exception_data(cls.__name__, [problem])
        return checked


@cache
def _field_names(model: type[Request]) -> frozenset[str]:
    """The names of a model's fields in requests."""
    return frozenset(field.alias or name for name, field in model.model_fields.items())
