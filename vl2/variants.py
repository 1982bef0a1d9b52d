"""The released DeepSeek-VL2 models, the parts of a model, and its workloads for memory estimates."""

from dataclasses import dataclass

from ..blocks.chat.text_generation import TextGenerationOptions
from ..blocks.placement.memory_estimate import PROMPT_TOKENS, Workload, decoder_workload, siglip_activations
from .config import VL2Config
from .tiles import num_image_tokens


@dataclass(frozen=True)
class Variant:
    """A released model and the sizes that identify it."""

    name: str
    hub_id: str
    num_layers: int
    hidden_size: int


VARIANTS = (
    Variant("DeepSeek-VL2-Tiny", "deepseek-ai/deepseek-vl2-tiny", 12, 1280),
    Variant("DeepSeek-VL2-Small", "deepseek-ai/deepseek-vl2-small", 27, 2048),
    Variant("DeepSeek-VL2", "deepseek-ai/deepseek-vl2", 30, 2560),
)

EXPERTS = "routed experts"
PARTS = {
    "vision encoder (SigLIP)": r"^vision\.",
    "projector": r"^(projector\.|image_newline|view_seperator)",
    "text embedding and head": r"^language\.(model\.embed_tokens|lm_head)\.",
    EXPERTS: r"\.mlp\.experts\.",
    "transformer": r"^language\.model\.",
}
"""Labels of the model's parts and patterns of their parameters' names, for `parameters_by_part`."""


def variant(config: VL2Config) -> str | None:
    """The name of the released model with this architecture, or None."""
    size = (config.decoder.num_layers, config.decoder.hidden_size)
    return next((row.name for row in VARIANTS if (row.num_layers, row.hidden_size) == size), None)


def workloads(config: VL2Config) -> list[Workload]:
    """A conversation with the image that takes the most tokens and an answer of the default length."""
    tile = config.vision.image_size
    grids = [(width // tile, height // tile) for width, height in config.candidates]
    most = max(num_image_tokens(grid, config.tile_side) for grid in grids)
    tiles = 1 + max(columns * rows for columns, rows in grids)
    once = siglip_activations(config.vision, tiles)
    conversation = decoder_workload(
        "conversation, one picture",
        config.decoder,
        config.decoder.vocab_size,
        most + PROMPT_TOKENS,
        TextGenerationOptions.max_new_tokens,
        once=once,
    )
    return [conversation]
