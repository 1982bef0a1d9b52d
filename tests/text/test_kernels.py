"""Qwen2's kind of text decoder through the kernels of captured steps, in Triton's interpreter without a GPU:
biases, and queries in groups."""

import copy

import pytest
import torch

pytest.importorskip("triton")
from bifrons.blocks.graphs.fused_weights import fuse_weights
from bifrons.blocks.kernels import dispatch

from ..blocks.graphs.test_packed_decoder import DEVICE, Packed, plain_states

PROMPT, STEPS = 5, 1


def test_packed_passes_are_those_of_the_plain_decoder(text_pair, monkeypatch):
    """The plain decoder is compared with transformers' in `test_parity`."""
    decoder = copy.deepcopy(text_pair("qwen2").pipe.model.decoder).to(DEVICE)
    width = decoder.config.hidden_size
    generator = torch.Generator().manual_seed(2)
    prompt = torch.randn(PROMPT, width, generator=generator).to(DEVICE)
    news = torch.randn(STEPS, 1, width, generator=generator).to(DEVICE)
    with monkeypatch.context() as patch:
        patch.setattr(dispatch, "device_has_kernels", lambda device: False)
        expected = plain_states(decoder, [prompt], news)
    fuse_weights(decoder)
    monkeypatch.setattr(dispatch, "device_has_kernels", lambda device: True)
    packed = Packed(decoder, 1)
    found = [packed.prefill([prompt]), *(packed.decode(new, [0]) for new in news)]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
