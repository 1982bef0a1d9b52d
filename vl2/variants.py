"""The released DeepSeek-VL2 models, the parts of a model, and its workloads for memory estimates."""

from ..blocks.chat.text_generation import TextGenerationOptions
from ..blocks.placement.memory_estimate import PROMPT_TOKENS, Workload, decoder_workload, siglip_activations
from .config import VL2Config
from .tiles import num_image_tokens

VARIANTS = {
    (12, 1280): "DeepSeek-VL2-Tiny",
    (27, 2048): "DeepSeek-VL2-Small",
    (30, 2560): "DeepSeek-VL2",
}
"""The released models by their decoders' layers and width."""

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
    return VARIANTS.get((config.decoder.num_layers, config.decoder.hidden_size))


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
