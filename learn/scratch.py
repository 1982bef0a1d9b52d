"""Models with new weights, from the files of a model folder without them."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..blocks.checkpoints.hub import ModelFolder, find_model_folder
from ..blocks.placement.loaded_pipeline import Source
from ..janus.config import parse_config, read_guidance_scale
from ..janus.model import JanusModel
from ..janus.pipeline import JanusPipeline
from ..janus.processor import JanusProcessor
from ..text import config as text_config
from ..text.model import TextModel
from ..text.pipeline import TextPipeline
from ..text.processor import TextProcessor
from ..text.prompts import read_chat_format
from ..tokenizers.text import TextTokenizer
from ..vl2 import config as vl2_config
from ..vl2.model import VL2Model
from ..vl2.pipeline import VL2Pipeline
from ..vl2.processor import VL2Processor

RESIDUAL = ("o_proj.weight", "down_proj.weight", "attn.proj.weight", "fc2.weight", "experts.down")
"""What projects into the residual stream."""
AS_MADE = ("gen_vision_model.", "image_newline", "view_seperator")
"""Initialized where they are made."""


def initialize(model: nn.Module, depth: int) -> None:
    """Initialize the weights of transformers of `depth` blocks as in GPT-2 (Radford et al. 2019, sec. 2.3).

    Matrices are normal with a standard deviation of 0.02, divided by sqrt(2 depth) for projections into the
    residual stream; patch embeddings have 1 / sqrt(fan-in), and the embedding of image codes 1, as they are
    few numbers each. Biases are zero, and norms stay one.
    """
    for name, param in model.named_parameters():
        if name.startswith(AS_MADE):
            continue
        if name.endswith("patch_embed.proj.weight"):
            nn.init.normal_(param, std=param[0].numel() ** -0.5)
        elif name == "gen_embed.weight":
            nn.init.normal_(param)
        elif param.ndim >= 2:
            nn.init.normal_(param, std=0.02 / (2 * depth) ** 0.5 if name.endswith(RESIDUAL) else 0.02)
        elif name.endswith("bias"):
            nn.init.zeros_(param)


def from_scratch(
    model: str | Path,
    device: str | torch.device = "cpu",
    seed: int = 0,
    parts: Mapping[str, Path] | None = None,
) -> JanusPipeline | VL2Pipeline | TextPipeline:
    """A pipeline with new weights in float32, of the config, tokenizer and processor of a folder.

    `parts` names modules whose weights are read from files: `{"vision": Path("tower.safetensors")}`.
    The same seed gives the same weights. Raises `CheckpointError` for a folder of another kind.
    """
    folder = ModelFolder(str(model), find_model_folder(model))
    torch.manual_seed(seed)
    kind = folder.config.get("model_type")
    makers = dict.fromkeys(text_config.MODEL_TYPES, _new_text) | {vl2_config.MODEL_TYPE: _new_vl2}
    pipe = makers.get(str(kind), _new_janus)(folder)
    initialize(pipe.model, pipe.model.decoder.config.num_layers)
    for name, path in (parts or {}).items():
        weights: dict[str, Tensor] = {key: value.float() for key, value in load_file(path).items()}
        pipe.model.get_submodule(name).load_state_dict(weights)
    pipe.model.to(device)
    pipe.source = Source(folder, {"device": device, "dtype": "float32"})
    return pipe


def _new_janus(folder: ModelFolder) -> JanusPipeline:
    config, _ = parse_config(folder.config)
    tokenizer = TextTokenizer.from_folder(folder.path, config.decoder.vocab_size)
    vision = config.vision
    processor = JanusProcessor.from_folder(folder.path, tokenizer, vision.image_size, vision.num_patches)
    scale = read_guidance_scale(folder.path)
    return JanusPipeline(JanusModel(config), tokenizer, processor, folder.name, scale)


def _new_vl2(folder: ModelFolder) -> VL2Pipeline:
    config = vl2_config.parse_config(folder.config)
    tokenizer = TextTokenizer.from_folder(folder.path, config.decoder.vocab_size)
    processor = VL2Processor.from_folder(folder.path, tokenizer, config)
    return VL2Pipeline(VL2Model(config), tokenizer, processor, folder.name)


def _new_text(folder: ModelFolder) -> TextPipeline:
    config = text_config.parse_config(folder.config)
    tokenizer = TextTokenizer.from_folder(folder.path, config.decoder.vocab_size)
    form = read_chat_format(folder.path, tokenizer, config.model_type)
    processor = TextProcessor(tokenizer, form, folder.name)
    pipe = TextPipeline(TextModel(config), tokenizer, processor, folder.name)
    pipe.temperature, pipe.top_p = text_config.read_sampling(folder.path)
    return pipe
