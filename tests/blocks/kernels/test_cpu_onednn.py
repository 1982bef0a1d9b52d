"""Linear layers with prepacked weights against plain ones, and when layers prepack and unpack theirs."""

import copy
import io
from typing import cast

import pytest
import torch
import torch.nn.functional as F
from bifrons.blocks.engine.prefill import decode
from bifrons.blocks.kernels import cpu_onednn
from bifrons.blocks.model.context import DecoderConfig
from bifrons.blocks.model.decoder import Decoder
from bifrons.blocks.model.layers import Linear
from bifrons.blocks.model.quantized_weight import QuantizedWeight
from torch import nn

from ...models import quantize_model

needs_prepacking = pytest.mark.skipif(not cpu_onednn.is_supported(), reason="needs prepacking")


def layer(outputs=1088, inputs=1024, bias=False, dtype=torch.bfloat16) -> Linear:
    torch.manual_seed(0)
    return Linear(inputs, outputs, bias=bias, dtype=dtype).requires_grad_(False).eval()


def used(linear: Linear, times: int = 8) -> Linear:
    """The layer after so many calls with two rows."""
    for _ in range(times):
        linear(torch.randn(2, linear.in_features, dtype=linear.weight.dtype))
    return linear


@needs_prepacking
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 16, 17, 100])
def test_prepacked_linear_equals_the_plain_one(rows, bias):
    linear = used(layer(bias=bias))
    assert linear.weight.is_mkldnn
    weight = linear.weight.to_dense()
    x = torch.randn(rows, 1, 1024).bfloat16()
    exact = F.linear(x.double(), weight.double(), linear.bias.double() if bias else None)
    actual, plain = linear(x), F.linear(x, weight, linear.bias)
    assert actual.shape == plain.shape
    assert actual.dtype == plain.dtype
    assert (actual - exact).abs().max() <= 2**-8 * exact.abs().max()
    assert (actual - exact).abs().mean() <= 1.1 * (plain - exact).abs().mean() + 1e-9


@needs_prepacking
def test_prepacking_keeps_values_shape_and_memory():
    linear = layer()
    before = linear.weight.clone()
    weight = used(linear).weight
    assert weight.is_mkldnn
    assert (weight.shape, weight.dtype, weight.requires_grad) == (before.shape, before.dtype, False)
    assert torch.ops.mkldnn._nbytes(weight) == before.nbytes
    assert [name for name, _ in linear.named_parameters()] == ["weight"]
    linear.unpack()
    assert linear.weight.equal(before)
    assert not linear.weight.is_mkldnn
    assert linear(torch.randn(2, 1024).bfloat16()).shape == (2, 1088)
    assert not linear.weight.is_mkldnn  # it starts to count anew


@needs_prepacking
def test_copies_moves_and_state_dicts_see_the_plain_weight():
    before = layer().weight
    assert used(layer()).state_dict()["weight"].equal(before)
    assert copy.deepcopy(used(layer())).weight.equal(before)
    assert used(layer()).float().weight.equal(before.float())
    assert used(layer()).to("meta").weight.shape == before.shape
    assert used(layer()).train().weight.equal(before)
    other = used(layer())
    other.load_state_dict({"weight": before * 2})
    assert other.weight.equal(before * 2)
    stream = io.BytesIO()
    torch.save(used(layer()), stream)
    stream.seek(0)
    assert torch.load(stream, weights_only=False).weight.equal(before)


@needs_prepacking
def test_gradients_flow_through_a_prepacked_weight():
    linear = used(layer())
    x = torch.randn(2, 1024).bfloat16().requires_grad_()
    linear(x).float().pow(2).sum().backward()
    plain = x.detach().clone().requires_grad_()
    F.linear(plain, linear.weight.to_dense()).float().pow(2).sum().backward()
    assert x.grad is not None
    assert plain.grad is not None
    torch.testing.assert_close(x.grad, plain.grad)


@needs_prepacking
def test_a_weight_prepacked_in_inference_mode_works_outside():
    with torch.inference_mode():
        linear = used(layer())
    assert linear.weight.is_mkldnn
    assert not linear.weight.is_inference()
    assert linear(torch.randn(1, 1024).bfloat16().requires_grad_()).requires_grad


@pytest.mark.parametrize(
    "make",
    [
        lambda: layer(dtype=torch.float32),
        lambda: layer(dtype=torch.float16),
        lambda: layer(outputs=1090),  # not of whole blocks
        lambda: layer(inputs=1040),
        lambda: layer(outputs=64),  # in the caches
        lambda: layer().requires_grad_(),
    ],
)
def test_other_layers_stay_plain(make):
    assert not used(make()).weight.is_mkldnn


def test_prepacking_can_be_switched_off(monkeypatch):
    linear = layer()
    linear.prepacks = False
    assert not used(linear).weight.is_mkldnn
    linear.prepacks = True
    monkeypatch.setattr(cpu_onednn, "is_supported", lambda: False)
    assert not used(linear).weight.is_mkldnn


@needs_prepacking
def test_many_rows_do_not_prepack():
    linear = layer()
    for _ in range(8):
        linear(torch.randn(cpu_onednn.MAX_ROWS + 1, 1024).bfloat16())
    assert not linear.weight.is_mkldnn


@needs_prepacking
def test_a_prepacked_decoder_can_still_be_quantized():
    torch.manual_seed(0)
    config = DecoderConfig(32, 1024, 1024, num_layers=1, num_heads=8, num_kv_heads=8)
    model = nn.ModuleDict({"model": Decoder(config)}).bfloat16().requires_grad_(False).eval()
    decoder = cast(Decoder, model["model"])
    rows_BD, hidden = torch.randn(2, 1024).bfloat16(), []
    for _ in range(8):
        hidden.append(decode(decoder, rows_BD[:, None], decoder.new_cache(2, 4))[:, 0])
    linears = [module for module in decoder.modules() if isinstance(module, Linear)]
    assert len(linears) == 7
    assert all(linear.weight.is_mkldnn for linear in linears)
    assert (hidden[-1] - hidden[0]).abs().max() <= 2**-5 * hidden[0].abs().max()
    quantize_model(model, "int8")
    assert isinstance(decoder.get_submodule("layers.0.mlp.up_proj"), QuantizedWeight)
    quantized = decode(decoder, rows_BD[:, None], decoder.new_cache(2, 4))[:, 0]
    assert (quantized - hidden[0]).abs().max() <= 0.1 * hidden[0].abs().max()
