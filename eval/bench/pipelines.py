"""Pipelines of released sizes with random weights, and a tokenizer whose vocabulary is as large as theirs."""

import json

import torch
from tokenizers import AddedToken, Tokenizer

from ...blocks.checkpoints.hub import find_model_folder
from ...janus.config import JanusConfig
from ...janus.image_transform import ImageTransform
from ...janus.model import JanusModel
from ...janus.pipeline import JanusPipeline
from ...janus.processor import JanusProcessor
from ...tokenizers.text import BOS, PAD, TextTokenizer
from ...vl2.config import VL2Config
from ...vl2.model import VL2Model
from ...vl2.pipeline import VL2Pipeline
from ...vl2.processor import VL2Processor
from .configs import random_model

_NEVER = "<never>"


def wide_tokenizer(name: str, size: int) -> TextTokenizer:
    """The tokenizer of an embedded model with made-up words up to `size` tokens, for models of any size.

    Every token has a text, and the end token is one that no model draws: answers are as long as is asked.
    """
    hf = TextTokenizer.from_folder(find_model_folder(name)).hf
    content = json.loads(hf.to_str())
    vocabulary = content["model"]["vocab"]
    # Added tokens that are not in the vocabulary get the ids after it when it is loaded.
    last = size - sum(token["content"] not in vocabulary for token in content["added_tokens"])
    vocabulary.update({f"Ġword{i}": i for i in range(len(vocabulary), last)})
    hf = Tokenizer.from_str(json.dumps(content))
    hf.add_special_tokens([AddedToken(_NEVER, normalized=False, special=True)])
    names = {"bos_token": BOS, "eos_token": _NEVER, "pad_token": PAD}
    return TextTokenizer(hf, names=names, add_bos=True, origin=name)


def random_pipeline(
    config: JanusConfig | VL2Config, device: torch.device, dtype: torch.dtype, kind: str | None
) -> JanusPipeline | VL2Pipeline:
    """A pipeline with random weights, quantized to `kind` (None: not). Raises `OptionError` where it does not
    fit."""
    model = random_model(config, device, dtype, kind)
    size = config.decoder.vocab_size
    if isinstance(model, JanusModel):
        tokenizer = wide_tokenizer("janus-nano", size)
        vision = model.config.vision
        processor = JanusProcessor(tokenizer, ImageTransform(vision.image_size), vision.num_patches)
        return JanusPipeline(model, tokenizer, processor, "janus-random")
    assert isinstance(model, VL2Model)
    tokenizer = wide_tokenizer("vl2-nano", size)
    return VL2Pipeline(model, tokenizer, VL2Processor(tokenizer, model.config), "vl2-random")
