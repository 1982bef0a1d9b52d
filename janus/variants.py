"""The released Janus models, the parts of a model, and its workloads for memory estimates."""

import os
from dataclasses import dataclass
from pathlib import Path

from ..blocks.chat.text_generation import TextGenerationOptions
from ..blocks.json_config import names_token
from ..blocks.placement.memory_estimate import PROMPT_TOKENS, Workload, decoder_workload, siglip_activations
from .config import JanusConfig
from .prompts import FIRST, PRO, Template


@dataclass(frozen=True)
class Variant:
    """A released model and the properties that identify it."""

    name: str
    hub_id: str
    num_layers: int
    hidden_size: int
    template: Template


VARIANTS = (
    Variant("Janus-Pro-1B", "deepseek-ai/Janus-Pro-1B", 24, 2048, PRO),
    Variant("Janus-1.3B", "deepseek-ai/Janus-1.3B", 24, 2048, FIRST),
    Variant("Janus-Pro-7B", "deepseek-ai/Janus-Pro-7B", 30, 4096, PRO),
)

PARTS = {
    "vision encoder (SigLIP, projector)": r"^(vision_model|aligner)\.",
    "image tokenizer (VQ)": r"^gen_vision_model\.",
    "image embedding and head": r"^gen_(embed|aligner|head)\.",
    "text embedding and head": r"^language_model\.(model\.embed_tokens|lm_head)\.",
    "transformer": r"^language_model\.model\.",
}
"""Labels of the model's parts and patterns of their parameters' names, for `parameters_by_part`."""


def variant(config: JanusConfig, folder: Path) -> str | None:
    """The name of the released model with this architecture, or None.

    Janus-1.3B and Janus-Pro-1B differ only in their tokenizer: the older one has no role tokens. Without a
    `tokenizer.json` in the folder, both are named.
    """
    decoder = config.decoder
    if (decoder.vocab_size, config.vision.layers) != (102400, 24):
        return None
    size = (decoder.num_layers, decoder.hidden_size)
    same_size = [row for row in VARIANTS if (row.num_layers, row.hidden_size) == size]
    tokenizer = folder / "tokenizer.json"
    if len(same_size) > 1 and os.path.isfile(tokenizer):
        template = PRO if names_token(tokenizer, PRO.user) else FIRST
        same_size = [row for row in same_size if row.template == template]
    return " or ".join(row.name for row in same_size) or None


def image_generation_workload(config: JanusConfig, guided: bool, prompt: int = PROMPT_TOKENS) -> Workload:
    """One image after a prompt of this many tokens. The VQ decoder then decodes images one at a time."""
    return decoder_workload(
        "picture, guided" if guided else "picture, guidance scale 1",
        config.decoder,
        config.vq.codebook_size,
        prompt,
        config.num_codes,
        rows=2 if guided else 1,
        once=vq_activations(config),
    )


def chat_workload(config: JanusConfig) -> Workload:
    """One conversation with one image and an answer of the default length."""
    image_tokens = config.vision.num_patches + 2
    return decoder_workload(
        "conversation, one picture",
        config.decoder,
        config.decoder.vocab_size,
        image_tokens + PROMPT_TOKENS,
        TextGenerationOptions.max_new_tokens,
        once=siglip_activations(config.vision, 1),
    )


def workloads(config: JanusConfig) -> list[Workload]:
    """The kinds of work that memory is estimated for."""
    images = [image_generation_workload(config, guided) for guided in (True, False)]
    return [*images, chat_workload(config)]


def vq_activations(config: JanusConfig) -> int:
    """Activations of the VQ decoder for one image: six copies of its largest feature map.

    For VQ-16 at 384 pixels, 6.6 copies were measured on a CPU, and three plus workspace on CUDA in half
    precision.
    """
    return 6 * config.vq.largest_map(config.grid)
