"""Placeholders for parts of a model that were not loaded."""

from typing import Any

from torch import nn

from ..errors import OptionError


class Absent(nn.Module):
    """A module without weights; every use raises an `OptionError` that says which `parts` to load."""

    def __init__(self, what: str, parts: str, instead: str) -> None:
        super().__init__()
        self._refusal = (
            f"{what} was not loaded, as parts={parts!r} asks; accepted for this work: from_pretrained with "
            f"parts='all' or parts={instead!r}"
        )

    def __getattr__(self, name: str) -> Any:
        # Called only for names that are not found. Python and torch look up private names on any object.
        if name.startswith("_"):
            return super().__getattr__(name)
        raise OptionError(self._refusal)

    def forward(self, *inputs: Any, **options: Any) -> Any:
        raise OptionError(self._refusal)


def absent(what: str, parts: str, instead: str) -> Any:
    """An `Absent` module, typed so that it may replace the part."""
    return Absent(what, parts, instead)


def absent_parts(model: nn.Module) -> list[str]:
    """Prefixes (with a dot at the end) of the parameters that the model does not have."""
    modules = model.named_modules(remove_duplicate=False)
    return [f"{name}." for name, module in modules if isinstance(module, Absent)]
