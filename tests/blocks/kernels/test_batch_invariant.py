"""In float32 on the CPU a row's numbers are its own: the same bits alone and in any company."""

from pathlib import Path

import pytest
import torch
from bifrons.blocks.engine.generate import decode_one, prefill
from bifrons.blocks.kernels.batch_invariant import (
    Linear,
    attend,
    is_batch_invariant,
    linear,
    row_sums,
    sigmoid,
)
from bifrons.janus.pipeline import JanusPipeline
from bifrons.vl2.pipeline import VL2Pipeline

DATA = Path(__file__).parent.parent.parent / "data"


@pytest.mark.usefixtures("measured_processor")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", ["janus-mini", "vl2-mini-mha", "vl2-mini-mla", "vl2-mini-noaux"])
def test_rows_are_alike_alone_and_together(name, threads):
    family = JanusPipeline if name.startswith("janus") else VL2Pipeline
    decoder = family.from_pretrained(DATA / name, "cpu").model.decoder
    generator = torch.Generator().manual_seed(0)
    width = decoder.config.hidden_size
    rows = [torch.randn(n, width, generator=generator) for n in (2, 5, 9, 13, 17, 40, 31, 8)]
    inputs = torch.randn(8, 12, width, generator=generator)

    @torch.no_grad()
    def run(chosen: list[int]) -> torch.Tensor:
        some = [rows[i] for i in chosen]
        slots = max(map(len, some)) + 12
        cache = decoder.config.new_cache(len(some), slots, device=torch.device("cpu"), dtype=torch.float32)
        states = [prefill(decoder, some, cache)]
        states += [decode_one(decoder, inputs[chosen, step], cache) for step in range(12)]
        return torch.stack(states, dim=1)

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        together = run(list(range(8)))
        for chosen in ([0], [5], [1, 2], [3, 0, 7], [2, 3, 4, 5, 6]):
            assert torch.equal(run(chosen), together[chosen]), chosen
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 12])
def test_they_are_the_products_that_they_stand_for(rows):
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
def test_attention_is_the_fused_one(queries, kv_heads):
    torch.manual_seed(0)
    q = torch.randn(3, 4, queries, 8)
    k, v = torch.randn(2, 3, kv_heads, 32, 8)
    mask = torch.arange(32) <= torch.arange(20, 20 + queries)[:, None].expand(3, 1, queries, 1)
    fused = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True)
    torch.testing.assert_close(attend(q, k, v, mask), fused)
    torch.testing.assert_close(
        attend(q.double(), k.double(), v.double(), mask), fused.double(), atol=1e-5, rtol=1e-5
    )
