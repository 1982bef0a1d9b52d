"""Reading: what DeepSeek-VL2's conversations are made of before the family-neutral answering takes over.

T prompt tokens, D decoder width.
"""

import torch

from ..blocks.chat.text_generation import Prompt
from .model import VL2Model
from .processor import Prepared


@torch.no_grad()
def embed_prompt(model: VL2Model, prepared: Prepared) -> Prompt:
    """Text embeddings `[T, D]` with the pictures' tokens in the places that the mask marks."""
    device, dtype = model.decoder.device, model.decoder.dtype
    x_TD = model.embed_text(prepared.ids.to(device))
    if prepared.grids:
        pixels = prepared.pixels.to(device, dtype)
        pictures = model.embed_pictures(pixels, prepared.grids)
        places = prepared.image_mask.nonzero()[:, 0]  # on the host, which so need not wait for the device
        x_TD = x_TD.index_copy(0, places.to(device), torch.cat(pictures))
    return Prompt(prepared.ids, x_TD)
