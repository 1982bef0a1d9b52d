"""Reading: what DeepSeek-VL2's conversations are made of before the family-neutral answering takes over.

T prompt tokens, D decoder width.
"""

import torch

from ..blocks.answering import Prompt
from .model import VL2Model
from .processor import Prepared


@torch.no_grad()
def embed_prompt(model: VL2Model, prepared: Prepared) -> Prompt:
    """Text embeddings `[T, D]` with the pictures' tokens in the places that the mask marks."""
    weight = model.decoder.embed_tokens.weight
    x_TD = model.embed_text(prepared.ids.to(weight.device))
    if prepared.grids:
        pixels = prepared.pixels.to(weight.device, weight.dtype)
        pictures = model.embed_pictures(pixels, prepared.grids)
        places = prepared.image_mask.nonzero()[:, 0]  # on the host, which so need not wait for the device
        x_TD = x_TD.index_copy(0, places.to(weight.device), torch.cat(pictures))
    return Prompt(prepared.ids, x_TD)
