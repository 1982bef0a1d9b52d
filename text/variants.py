"""The released text models, the parts of a model, and its workload for memory estimates."""

from dataclasses import dataclass

from ..blocks.chat.text_generation import TextGenerationOptions
from ..blocks.placement.memory_estimate import PROMPT_TOKENS, Workload, decoder_workload
from .config import TextConfig


@dataclass(frozen=True)
class Variant:
    """A released model, or several of one architecture, and the sizes that identify it."""

    name: str
    hub_id: str
    model_type: str
    num_layers: int
    hidden_size: int


VARIANTS = (
    Variant("DeepSeek-R1-Distill-Qwen-1.5B", "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", "qwen2", 28, 1536),
    Variant("DeepSeek-R1-Distill-Qwen-7B", "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", "qwen2", 28, 3584),
    Variant("DeepSeek-R1-Distill-Qwen-14B", "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B", "qwen2", 48, 5120),
    Variant("DeepSeek-R1-Distill-Qwen-32B", "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B", "qwen2", 64, 5120),
    Variant("DeepSeek-R1-Distill-Llama-8B", "deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "llama", 32, 4096),
    Variant("DeepSeek-R1-Distill-Llama-70B", "deepseek-ai/DeepSeek-R1-Distill-Llama-70B", "llama", 80, 8192),
    Variant("DeepSeek-V2-Lite", "deepseek-ai/DeepSeek-V2-Lite", "deepseek_v2", 27, 2048),
    Variant("DeepSeek-V2", "deepseek-ai/DeepSeek-V2", "deepseek_v2", 60, 5120),
    Variant("DeepSeek-V3 or R1", "deepseek-ai/DeepSeek-R1", "deepseek_v3", 61, 7168),
)

EXPERTS = "routed experts"
PARTS = {
    "text embedding and head": r"^(model\.embed_tokens|lm_head)\.",
    EXPERTS: r"\.mlp\.experts\.",
    "multi-token prediction": r"^ahead\.",
    "transformer": r"^model\.",
}
"""Labels of the model's parts and patterns of their parameters' names, for `parameters_by_part`."""


def variant(config: TextConfig) -> str | None:
    """The name of the released model with this architecture, or None."""
    size = (config.model_type, config.decoder.num_layers, config.decoder.hidden_size)
    return next(
        (row.name for row in VARIANTS if (row.model_type, row.num_layers, row.hidden_size) == size), None
    )


def workloads(config: TextConfig) -> list[Workload]:
    """A question with an answer of the default length."""
    decoder, new = config.decoder, TextGenerationOptions.max_new_tokens
    return [decoder_workload("conversation", decoder, decoder.vocab_size, PROMPT_TOKENS, new)]
