"""Attention of one query on the CPU against torch's own, in bfloat16."""

import pytest
import torch
import torch.nn.functional as F
from bifrons.blocks.chat.text_generation import score_tokens
from bifrons.blocks.engine.generate import Sequences
from bifrons.blocks.kernels.cpu_attention import attend_one, is_faster
from bifrons.blocks.sampling.request import SamplingParams, TokenHead


def random_qkv(heads=4, slots=50, queries=1, dtype=torch.bfloat16):
    torch.manual_seed(slots)
    shapes = ((3, heads, queries, 32), (3, slots, 4, 32), (3, slots, 4, 32))
    return [torch.randn(shape).to(dtype) for shape in shapes]


@pytest.mark.parametrize("slots", [1, 50, 300])
def test_equals_torch_within_rounding(slots):
    q, k, v = random_qkv(slots=slots)
    ends = torch.tensor([1, (slots + 1) // 2, slots])
    mask = (torch.arange(slots) < ends[:, None])[:, None, None]
    out = attend_one(q, k, v, mask)
    plain = [x.transpose(1, 2) for x in (k, v)]
    exact = F.scaled_dot_product_attention(q.double(), *(x.double() for x in plain), attn_mask=mask)
    assert out.shape == exact.shape
    assert out.dtype == q.dtype
    error = (out - exact).abs().max()
    assert error <= 2**-7 * exact.abs().max()
    torch_error = (F.scaled_dot_product_attention(q, *plain, attn_mask=mask) - exact).abs().max()
    assert error <= 4 * torch_error + 2**-9 * exact.abs().max()


@pytest.mark.parametrize("numbers", [1, 32 * 50, 32 * 50 * 3, 32 * 50 * 4, 32 * 50 * 9])
def test_parts_equal_the_whole(numbers, monkeypatch):
    """Parts of a head, of some heads of a row, of a row, and of some rows."""
    from bifrons.blocks.kernels import cpu_attention as module

    q, k, v = random_qkv()
    mask = (torch.arange(50) < torch.tensor([50, 20, 3])[:, None])[:, None, None]
    whole = attend_one(q, k, v, mask)
    monkeypatch.setattr(module, "PART", numbers)
    assert (attend_one(q, k, v, mask) - whole).abs().max() <= 2**-8 * whole.abs().max()
    with torch.inference_mode():
        assert attend_one(q, k, v, mask).shape == whole.shape


def test_is_faster_only_where_it_applies():
    assert is_faster(*random_qkv()[:2])
    assert not is_faster(*random_qkv(dtype=torch.float32)[:2])
    assert not is_faster(*random_qkv(queries=2)[:2])
    assert not is_faster(*random_qkv(heads=8)[:2])
    assert not is_faster(random_qkv()[0].requires_grad_(), random_qkv()[1])


@torch.no_grad()
def test_the_decoder_uses_it_for_single_steps(small_model, monkeypatch):
    from bifrons.blocks.kernels import cpu_attention as module

    model = small_model("dense", dtype=torch.bfloat16)
    decoder, head = model.decoder, TokenHead(model.embed_codes, model.image_logits)
    prompts = [model.embed_text(torch.arange(length)) for length in (9, 5)]
    calls = []
    monkeypatch.setattr(module, "attend_one", lambda *args: calls.append(1) or attend_one(*args))
    sequences = Sequences(head, [prompts], SamplingParams(guidance_scale=5.0), [1], 36)
    codes = sequences.run_all(decoder)[0]
    assert len(calls) == 35 * 3  # every step after the prompt, every layer
    scores = score_tokens(decoder, head, prompts[0], codes)
    calls.clear()
    monkeypatch.setattr(module, "is_faster", lambda *args: False)
    scores_without = score_tokens(decoder, head, prompts[0], codes)
    assert (scores_without - scores).abs().max() == 0  # whole sequences never take it
    rows = torch.randn(2, 30, 96).bfloat16()
    cached = []
    for use in (True, False):
        monkeypatch.setattr(module, "is_faster", is_faster if use else lambda *args: False)
        cache = decoder.config.new_cache(2, 30, device=rows.device, dtype=rows.dtype)
        for x in rows.transpose(0, 1):
            cache.reserve(cache.filled + 1)
            hidden = decoder(x[:, None], cache)
            cache.positions += 1
        cached.append(hidden.float())
    assert len(calls) == 30 * 3
    assert (cached[0] - cached[1]).abs().max() < 0.05 * cached[1].abs().max()
