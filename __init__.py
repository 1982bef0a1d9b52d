"""Bifrons: one toolkit for Janus-Pro (reads and paints pictures) and DeepSeek-VL2 (answers and points).

>>> from bifrons import JanusPipeline
>>> pipe = JanusPipeline.from_pretrained("janus-nano")
>>> pipe.generate("a photo of a red circle", seed=1)[0].save("circle.png")
"""

import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .blocks.errors import (
        BifronsError,
        CheckpointError,
        ConfigError,
        OptionError,
        PictureError,
        PromptError,
        ResourceError,
    )
    from .blocks.generation_step import GenerationStep
    from .blocks.structured_output import OutputFormat
    from .janus.pipeline import JanusPipeline
    from .text.pipeline import TextPipeline
    from .vl2.grounding import Box
    from .vl2.pipeline import VL2Pipeline

__version__ = "0.1.0"

__all__ = [
    "BifronsError",
    "Box",
    "CheckpointError",
    "ConfigError",
    "GenerationStep",
    "JanusPipeline",
    "OptionError",
    "OutputFormat",
    "PictureError",
    "PromptError",
    "ResourceError",
    "TextPipeline",
    "VL2Pipeline",
    "__version__",
]

_HOMES = {
    "Box": "vl2.grounding",
    "GenerationStep": "blocks.generation_step",
    "JanusPipeline": "janus.pipeline",
    "TextPipeline": "text.pipeline",
    "VL2Pipeline": "vl2.pipeline",
    "BifronsError": "blocks.errors",
    "CheckpointError": "blocks.errors",
    "ConfigError": "blocks.errors",
    "OptionError": "blocks.errors",
    "OutputFormat": "blocks.structured_output",
    "PictureError": "blocks.errors",
    "PromptError": "blocks.errors",
    "ResourceError": "blocks.errors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    # OpenMP reads how threads wait for each other when torch loads it. They spin by default, which is many
    # times slower on a busy machine. The variable is set until then only; a value set by the user wins.
    passive = "torch" not in sys.modules and "OMP_WAIT_POLICY" not in os.environ
    if passive:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    try:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    finally:
        if passive:
            os.environ.pop("OMP_WAIT_POLICY", None)


def __dir__() -> list[str]:
    return sorted(__all__)
