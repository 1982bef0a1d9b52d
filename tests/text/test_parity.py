"""Logits beside transformers' models with the same random weights, in float32."""

import pytest
import torch
from bifrons.blocks.engine.prefill import decode, prefill
from torch import Tensor

from ..transformers_text import SIZES

LENGTHS = (1, 2, 7, 64, 300)
"""YaRN's and Llama 3's former context is of 128 positions."""


def close(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).abs().max() <= 1e-5 * expected.abs().max())


def prompts(vocabulary: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(vocabulary, (length,), generator=generator) for length in LENGTHS]


@pytest.mark.parametrize("kind", SIZES)
@torch.no_grad()
def test_logits_are_those_of_transformers(text_pair, kind: str):
    """Of whole prompts, of prompts in chunks and of steps with a cache."""
    model, theirs = text_pair(kind).pipe.model, text_pair(kind).theirs
    for ids in prompts(model.decoder.config.vocab_size):
        expected = theirs(ids[None]).logits[0]
        x_TD = model.embed_text(ids)
        assert close(model.text_logits(model.decoder(x_TD[None])[0]), expected)
        cache = model.decoder.new_cache(1, len(ids) + 1)
        assert close(model.text_logits(prefill(model.decoder, [x_TD], cache, chunk=90))[0], expected[-1])
        token = expected[-1].argmax()[None]
        following = theirs(torch.cat((ids, token))[None]).logits[0, -1]
        hidden = decode(model.decoder, model.embed_text(token)[:, None], cache)
        assert close(model.text_logits(hidden)[0, -1], following)
