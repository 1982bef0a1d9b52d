"""What stands where a part of a model was not loaded."""

from typing import Any

from torch import nn

from ..errors import OptionError


class Absent(nn.Module):
    """Holds nothing and refuses every use with an `OptionError` that says what would have it."""

    def __init__(self, what: str, parts: str, instead: str) -> None:
        super().__init__()
        self._refusal = (
            f"{what} was not loaded, as parts={parts!r} asks; accepted for this work: from_pretrained with "
            f"parts='all' or parts={instead!r}"
        )

    def __getattr__(self, name: str) -> Any:
        # Called for what is not there only. Python and torch look for private names on any object.
        if name.startswith("_"):
            return super().__getattr__(name)
        raise OptionError(self._refusal)

    def forward(self, *inputs: Any, **options: Any) -> Any:
        raise OptionError(self._refusal)


def absent(what: str, parts: str, instead: str) -> Any:
    """`Absent`, typed as the part that it stands for."""
    return Absent(what, parts, instead)


def absent_parts(model: nn.Module) -> list[str]:
    """Names of what is not there, each with a dot at its end: prefixes of parameters to leave out."""
    found = model.named_modules(remove_duplicate=False)
    return [f"{name}." for name, module in found if isinstance(module, Absent)]
