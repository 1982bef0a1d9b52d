"""Weights that are multiplied with one input lie side by side, and nothing else changes."""

import weakref
from dataclasses import replace

import pytest
import torch
from bifrons.blocks.graphs.fused_weights import fuse_weights, fused_weight
from bifrons.blocks.kernels import dispatch
from bifrons.blocks.model.context import DecoderConfig, LatentConfig
from bifrons.blocks.model.decoder import Decoder
from bifrons.blocks.model.moe import MoEConfig
from torch import nn

from ...models import quantize_model

CONFIG = DecoderConfig(
    vocab_size=70,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=4,
    head_dim=8,
    max_positions=64,
    moe=MoEConfig(4, 2, 16, 1, first_dense=1),
)
LATENT = {
    "latent": replace(CONFIG, latent=LatentConfig(16, None, 8, 8, 8)),
    "query rank": replace(CONFIG, latent=LatentConfig(16, 20, 8, 8, 8)),
}


@pytest.fixture
def decoder() -> Decoder:
    torch.manual_seed(0)
    return Decoder(CONFIG).requires_grad_(False)


def test_names_and_values_stay(decoder: Decoder) -> None:
    before = {name: tensor.clone() for name, tensor in decoder.state_dict().items()}
    fuse_weights(decoder)
    after = decoder.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    attention = decoder.layers[0].self_attn
    layers = [attention.q_proj, attention.k_proj, attention.v_proj]
    joined = fused_weight(*layers)
    assert joined is not None
    assert torch.equal(joined.codes, torch.cat([layer.weight for layer in layers]))
    places = [tensor.data_ptr() for tensor in decoder.parameters()]
    fuse_weights(decoder)
    assert [tensor.data_ptr() for tensor in decoder.parameters()] == places


@pytest.mark.parametrize("kind", ["int8", "int4", "fp8"])
def test_codes_keep_their_values_and_leave_nothing_behind(
    decoder: Decoder, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "supports_float8", lambda device: True)
    whole = nn.Module()
    whole.decoder = decoder
    quantize_model(whole, kind)
    for module in decoder.modules():  # views, which know what they are views of
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = torch.cat((buffer, buffer))[: len(buffer)]
    before = {name: buffer.clone() for name, buffer in decoder.named_buffers()}
    attention = decoder.layers[0].self_attn
    base = weakref.ref(attention.q_proj.codes._base)
    fuse_weights(decoder)
    after = dict(decoder.named_buffers())
    assert list(after) == list(before)
    assert all(torch.equal(after[name].float(), before[name].float()) for name in before)
    joined = fused_weight(attention.q_proj, attention.k_proj, attention.v_proj)
    assert joined is not None
    assert len(joined.codes) == 3 * len(attention.q_proj.codes)
    assert (joined.zero is None) == (kind != "int4")
    assert base() is None
    places = [buffer.data_ptr() for buffer in decoder.buffers()]
    fuse_weights(decoder)
    assert [buffer.data_ptr() for buffer in decoder.buffers()] == places


@pytest.mark.parametrize("kind", [None, "int8", "int4", "fp8"])
@pytest.mark.parametrize("name", LATENT)
def test_queries_and_latents_have_one_input(name: str, kind: str | None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dispatch, "supports_float8", lambda device: True)
    torch.manual_seed(0)
    whole = nn.Module()
    whole.decoder = Decoder(LATENT[name]).requires_grad_(False)
    if kind is not None:
        quantize_model(whole, kind)
    before = {name: tensor.clone() for name, tensor in whole.decoder.state_dict().items()}
    fuse_weights(whole.decoder)
    after = whole.decoder.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name].float(), before[name].float()) for name in before)
    attention = whole.decoder.layers[0].self_attn
    pair = (attention.first_proj, attention.kv_a_proj_with_mqa)
    assert pair[0] is (attention.q_proj if name == "latent" else attention.q_a_proj)
    joined = fused_weight(*pair)
    assert joined is not None
    codes = [layer.weight if kind is None else layer.codes for layer in pair]
    assert torch.equal(joined.codes.float(), torch.cat([part.float() for part in codes]))


def test_weights_in_training_are_not_moved() -> None:
    decoder = Decoder(CONFIG)
    places = [tensor.data_ptr() for tensor in decoder.parameters()]
    fuse_weights(decoder)
    assert [tensor.data_ptr() for tensor in decoder.parameters()] == places
