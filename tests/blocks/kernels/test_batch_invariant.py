"""A row's results do not depend on the batch: the same bits alone and among others, in float32 on the CPU and
in half precision on CUDA."""

# pyright: reportArgumentType=false

import pytest
import torch
from bifrons.blocks.engine.prefill import decode, prefill
from bifrons.blocks.kernels.batch_invariant import (
    attend,
    is_batch_invariant,
    libraries_are_batch_invariant,
    linear,
    row_sums,
    sigmoid,
    use_batch_invariant_libraries,
)
from bifrons.blocks.model.context import DecoderConfig, LatentConfig
from bifrons.blocks.model.decoder import Decoder
from bifrons.blocks.model.layers import Linear
from bifrons.blocks.model.moe import MoEConfig

on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA")
SIZES = {
    "vocab_size": 704,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_layers": 4,
    "num_heads": 4,
    "num_kv_heads": 4,
    "head_dim": 24,
}
LATENT = LatentConfig(kv_rank=32, nope_dim=24, rope_dim=16, value_dim=20)
EXPERTS = MoEConfig(12, 3, 48, num_shared=2, first_dense=1)
NOAUX = MoEConfig(12, 3, 48, 2, 1, 1, "sigmoid", "noaux_tc", num_groups=2, normalize=True, scale=2.0)
CONFIGS = {
    "multi-head": DecoderConfig(**SIZES),
    "multi-head, experts": DecoderConfig(**SIZES, moe=EXPERTS),
    "latent, experts": DecoderConfig(**SIZES, latent=LATENT, moe=EXPERTS),
    "latent, noaux": DecoderConfig(**SIZES, latent=LATENT, moe=NOAUX),
}


@pytest.mark.usefixtures("measured_processor")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_rows_are_equal_alone_and_together(config, threads):
    torch.manual_seed(0)
    decoder = Decoder(config).requires_grad_(False).eval()
    generator = torch.Generator().manual_seed(0)
    width = decoder.config.hidden_size
    rows = [torch.randn(n, width, generator=generator) for n in (2, 5, 9, 13, 17, 40, 31, 8)]
    inputs = torch.randn(8, 12, width, generator=generator)

    @torch.no_grad()
    def run(indices: list[int]) -> torch.Tensor:
        prompts = [rows[i] for i in indices]
        cache = decoder.new_cache(len(prompts), max(map(len, prompts)) + 12)
        states = [prefill(decoder, prompts, cache)]
        states += [decode(decoder, inputs[indices, step][:, None], cache)[:, 0] for step in range(12)]
        return torch.stack(states, dim=1)

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        together = run(list(range(8)))
        for indices in ([0], [5], [1, 2], [3, 0, 7], [2, 3, 4, 5, 6]):
            assert torch.equal(run(indices), together[indices]), indices
    finally:
        torch.set_num_threads(before)


@pytest.mark.usefixtures("measured_processor")
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@torch.no_grad()
def test_tokens_are_equal_one_by_one_and_in_windows(config):
    torch.manual_seed(0)
    decoder = Decoder(config).requires_grad_(False).eval()
    prompts, x_BTD = torch.randn(3, 9, 96), torch.randn(3, 24, 96)
    single, *others = (decoder.new_cache(3, 40) for _ in range(4))
    prefill(decoder, list(prompts), single)
    expected = torch.cat([decode(decoder, x_BTD[:, t : t + 1], single) for t in range(24)], dim=1)
    for cache, width in zip(others, (3, 8, 24), strict=True):
        prefill(decoder, list(prompts), cache)
        windows = [decode(decoder, x_BTD[:, t : t + width], cache) for t in range(0, 24, width)]
        assert torch.equal(torch.cat(windows, dim=1), expected)


@pytest.mark.usefixtures("measured_processor")
@pytest.mark.parametrize(("inputs", "outputs"), [(96, 384), (384, 832), (832, 384), (2048, 64)])
def test_products_are_equal_for_any_number_of_rows(inputs, outputs):
    torch.manual_seed(0)
    x, layer = torch.randn(300, inputs), Linear(inputs, outputs).requires_grad_(False)
    together = layer(x)
    assert layer.weight.shape == (outputs, inputs)
    for rows in (1, 2, 3, 5, 7, 11, 14, 16, 20, 33, 128, 129, 200):
        assert torch.equal(layer(x[:rows]), together[:rows])
    layer.unpack()
    assert layer.weight.is_contiguous()


@pytest.mark.usefixtures("measured_processor")
def test_products_of_many_inputs_are_equal_with_two_threads():
    torch.manual_seed(0)
    x, layer, before = torch.randn(60, 1408), Linear(1408, 512).requires_grad_(False), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        together = layer(x)
        assert all(torch.equal(layer(x[:rows]), together[:rows]) for rows in (1, 2, 5, 16, 19, 33, 49))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 12])
def test_products_equal_those_of_torch(rows):
    torch.manual_seed(0)
    x = torch.randn(rows, 24)
    layer = Linear(24, 7)
    assert is_batch_invariant(x)
    assert not is_batch_invariant(x.double())
    torch.testing.assert_close(layer(x[None]), torch.nn.functional.linear(x, layer.weight, layer.bias)[None])
    torch.testing.assert_close(
        linear(x.double(), layer.weight.double()), x.double() @ layer.weight.double().T
    )
    torch.testing.assert_close(sigmoid(x), x.sigmoid())
    torch.testing.assert_close(row_sums(x), x.sum(-1, keepdim=True))


@pytest.mark.parametrize(("queries", "kv_heads"), [(1, 4), (6, 4), (6, 2)])
def test_attention_equals_the_fused_one(queries, kv_heads):
    torch.manual_seed(0)
    q = torch.randn(3, 4, queries, 8)
    k, v = torch.randn(2, 3, kv_heads, 32, 8)
    mask = torch.arange(32) <= torch.arange(20, 20 + queries)[:, None].expand(3, 1, queries, 1)
    fused = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True)
    torch.testing.assert_close(attend(q, k, v, mask), fused)
    torch.testing.assert_close(
        attend(q.double(), k.double(), v.double(), mask), fused.double(), atol=1e-5, rtol=1e-5
    )


def library_settings() -> tuple[object, ...]:
    """What torch's products and attention on CUDA go by."""
    matmul = torch.backends.cuda.matmul
    reduced = (matmul.allow_bf16_reduced_precision_reduction, matmul.allow_fp16_reduced_precision_reduction)
    return torch.backends.cuda.preferred_blas_library(), reduced, tuple(torch._C._get_sdp_priority_order())


def test_other_devices_change_no_setting():
    before = library_settings()
    assert not use_batch_invariant_libraries(torch.device("cpu"))
    assert library_settings() == before


@on_cuda
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("inputs", "outputs"), [(4304, 1152), (5632, 2048), (588, 1152), (96, 704)])
def test_products_on_cuda_are_equal_for_any_number_of_rows(inputs, outputs, dtype):
    assert use_batch_invariant_libraries(torch.device("cuda"))
    assert libraries_are_batch_invariant()
    torch.manual_seed(0)
    x = torch.randn(300, inputs, device="cuda", dtype=dtype)
    layer = Linear(inputs, outputs, device="cuda", dtype=dtype).requires_grad_(False)
    together, plain = layer(x), linear(x, layer.weight)
    for rows in (1, 2, 3, 7, 16, 33, 64, 200):
        assert torch.equal(layer(x[:rows]), together[:rows])
        assert torch.equal(layer(x[:rows, None]), together[:rows, None])
        assert torch.equal(linear(x[-rows:], layer.weight), plain[-rows:])
        every_other = x.view(150, 2, inputs)[:rows, 1:]
        assert torch.equal(layer(every_other), together.view(150, 2, outputs)[:rows, 1:])


@on_cuda
@pytest.mark.parametrize(("heads", "width", "positions"), [(16, 72, 729), (16, 64, 576)])
def test_attention_on_cuda_is_equal_in_any_batch(heads, width, positions):
    assert use_batch_invariant_libraries(torch.device("cuda"))
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 12, heads, positions, width, device="cuda", dtype=torch.bfloat16)
    together = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    for rows in (1, 2, 3, 5, 8):
        alone = torch.nn.functional.scaled_dot_product_attention(q[:rows], k[:rows], v[:rows])
        assert torch.equal(alone, together[:rows])
