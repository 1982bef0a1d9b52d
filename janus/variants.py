"""What Janus models are called by their size, their parts, and the memory of painting and talking."""

from pathlib import Path

from ..blocks.chat.text_generation import TextGenerationOptions
from ..blocks.placement.memory_estimate import PROMPT_TOKENS, Workload, decoder_workload, siglip_activations
from .config import JanusConfig
from .prompts import PRO

PARTS = {
    "eye (SigLIP, adaptor)": r"^(vision_model|aligner)\.",
    "image tokenizer (VQ)": r"^gen_vision_model\.",
    "image embedding and head": r"^gen_(embed|aligner|head)\.",
    "text embedding and head": r"^language_model\.(model\.embed_tokens|lm_head)\.",
    "transformer": r"^language_model\.model\.",
}
"""Label and pattern of names, for `parameters_by_part`."""


def variant(config: JanusConfig, folder: Path) -> str | None:
    """The name of the released model that has this architecture, or None.

    Janus-1.3B and Janus-Pro-1B differ in their tokenizer alone: the older one has no role tokens.
    """
    decoder = config.decoder
    size = (decoder.num_layers, decoder.hidden_size, decoder.vocab_size, config.vision.layers)
    if size == (30, 4096, 102400, 24):
        return "Janus-Pro-7B"
    if size != (24, 2048, 102400, 24):
        return None
    tokenizer = folder / "tokenizer.json"
    if not tokenizer.is_file():
        return "Janus-Pro-1B or Janus-1.3B"
    text = tokenizer.read_text(encoding="utf-8", errors="replace")
    return "Janus-Pro-1B" if f'"{PRO.user}"' in text else "Janus-1.3B"


def image_generation_workload(config: JanusConfig, guided: bool, prompt: int = PROMPT_TOKENS) -> Workload:
    """One picture of a prompt of so many tokens; the VQ decoder then works on one picture after the other."""
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
    """One conversation with one picture and an answer of the default length."""
    picture = config.vision.num_patches + 2
    return decoder_workload(
        "conversation, one picture",
        config.decoder,
        config.decoder.vocab_size,
        picture + PROMPT_TOKENS,
        TextGenerationOptions.max_new_tokens,
        once=siglip_activations(config.vision, 1),
    )


def workloads(config: JanusConfig) -> list[Workload]:
    images = [image_generation_workload(config, guided) for guided in (True, False)]
    return [*images, chat_workload(config)]


def vq_activations(config: JanusConfig) -> int:
    """Numbers alive in the VQ decoder for one picture: six copies of its largest feature map. VQ-16 at 384
    pixels measured 6.6 on a CPU; on CUDA in half precision it has three and work space."""
    return 6 * config.vq.largest_map(config.grid)
