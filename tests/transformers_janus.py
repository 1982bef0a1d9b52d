"""transformers' small Janus with random weights, and a pipeline with the same."""

import shutil
from pathlib import Path
from typing import Any

import torch
from bifrons import JanusPipeline

SIZES = {
    "text_config": {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 704,
        "max_position_embeddings": 2048,
    },
    "vision_config": {
        "hidden_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "image_size": 96,
        "patch_size": 16,
        "projection_dim": 64,
        "num_image_tokens": 36,
    },
    "vq_config": {
        "base_channels": 32,
        "latent_channels": 64,
        "num_embeddings": 512,
        "projection_dim": 64,
        "image_token_embed_dim": 64,
    },
    "image_token_id": 509,
    "tie_word_embeddings": False,
}


def make_pair(folder: Path, tokenizer: Path) -> tuple[Any, JanusPipeline]:
    """The model, which is written to the folder, and the pipeline that is read from there with the tokenizer
    of another folder."""
    import transformers

    torch.manual_seed(0)
    theirs = transformers.JanusForConditionalGeneration(transformers.JanusConfig(**SIZES)).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(std=0.15 if parameter.ndim > 1 else 0.5)
    theirs.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(tokenizer / name, folder)
    return theirs, JanusPipeline.from_pretrained(folder, device="cpu", progress=False)
