"""Placeholders for the parts of a model that the `parts` option left out."""

from typing import Any

from torch import nn

from ..errors import OptionError


class MissingPart(nn.Module):
    """A module without weights. Any use of it raises an `OptionError` that says which `parts` to load."""

    def __init__(self, what: str, parts: str, needed: str) -> None:
        super().__init__()
        choices = " or ".join(f"parts={choice!r}" for choice in dict.fromkeys(("all", needed)))
        self._refusal = (
            f"{what} was not loaded, as parts={parts!r} asks; accepted for this work: "
            f"from_pretrained with {choices}"
        )

    def __getattr__(self, name: str) -> Any:
        # Called only for missing attributes. Python and torch probe any object for private ones.
        if name.startswith("_"):
            return super().__getattr__(name)
        raise OptionError(self._refusal)

    def forward(self, *inputs: Any, **options: Any) -> Any:
        raise OptionError(self._refusal)


def missing_part(what: str, parts: str, needed: str) -> Any:
    """A `MissingPart` for `what`, which loading with `parts` left out and `parts=needed` loads.

    Typed `Any`, so that it can stand in for the module.
    """
    return MissingPart(what, parts, needed)


def missing_prefixes(model: nn.Module) -> list[str]:
    """Name prefixes, each ending in a dot, of the parameters that were left out."""
    modules = model.named_modules(remove_duplicate=False)
    return [f"{name}." for name, module in modules if isinstance(module, MissingPart)]
