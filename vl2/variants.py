"""What DeepSeek-VL2 models are called by their size, their parts, and the memory of a conversation."""

from ..blocks.chat.text_generation import TextGenerationOptions
from ..blocks.placement.memory_estimate import PROMPT_TOKENS, Workload, decoder_workload, siglip_activations
from .config import VL2Config
from .tiles import num_image_tokens

EXPERTS = "routed experts"
PARTS = {
    "eye (SigLIP)": r"^vision\.",
    "projector": r"^(projector\.|image_newline|view_seperator)",
    "text embedding and head": r"^language\.(model\.embed_tokens|lm_head)\.",
    EXPERTS: r"\.mlp\.experts\.",
    "transformer": r"^language\.model\.",
}
"""Label and pattern of names, for `parameters_by_part`."""

_BY_SIZE = {
    (12, 1280): "DeepSeek-VL2-Tiny",
    (27, 2048): "DeepSeek-VL2-Small",
    (30, 2560): "DeepSeek-VL2",
}


def variant(config: VL2Config) -> str | None:
    """The name of the released model that has this architecture, or None."""
    return _BY_SIZE.get((config.decoder.num_layers, config.decoder.hidden_size))


def workloads(config: VL2Config) -> list[Workload]:
    """A conversation with the picture that takes most tokens and an answer of the default length."""
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
