"""Reading: what Janus's conversations are made of before the family-neutral answering takes over.

T prompt tokens, D decoder width, N pictures, P tokens of a picture.
"""

import torch

from ..blocks.chat.text_generation import Prompt
from .model import JanusModel
from .processor import Prepared


@torch.no_grad()
def embed_prompt(model: JanusModel, prepared: Prepared) -> Prompt:
    """Text embeddings `[T, D]` with the pictures' embeddings in the places that the mask marks."""
    device, dtype = model.decoder.device, model.decoder.dtype
    x_TD = model.embed_text(prepared.ids.to(device))
    if len(prepared.pixels):
        pixels = prepared.pixels.to(device, dtype)
        places = prepared.image_mask.nonzero()[:, 0]  # on the host, which so need not wait for the device
        x_TD = x_TD.index_copy(0, places.to(device), model.embed_pictures(pixels).flatten(0, 1))
    return Prompt(prepared.ids, x_TD)
