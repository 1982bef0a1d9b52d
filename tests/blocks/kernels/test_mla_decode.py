"""The latent attention kernels against the plain forms; in Triton's interpreter where there is no GPU."""

import pytest
import torch

pytest.importorskip("triton")
from bifrons.blocks.engine.prefill import decode_one, prefill
from bifrons.blocks.kernels import dispatch
from bifrons.blocks.kernels import mla_decode as module
from bifrons.blocks.model.context import DecoderConfig, LatentConfig
from bifrons.blocks.model.decoder import Decoder

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float32, torch.bfloat16)
if DEVICE == "cuda":  # the interpreter is slow
    DTYPES += (torch.float16,)
SMALL = LatentConfig(kv_rank=24, nope_dim=12, rope_dim=8, value_dim=10)
RELEASED = LatentConfig()


def made_decoder(latent: LatentConfig, heads: int) -> Decoder:
    torch.manual_seed(0)
    config = DecoderConfig(
        vocab_size=10,
        hidden_size=64,
        intermediate_size=64,
        num_layers=1,
        num_heads=heads,
        max_positions=512,
        latent=latent,
    )
    return Decoder(config).to(DEVICE).requires_grad_(False)


def steps(decoder, prompts, news, dtype, fast, monkeypatch):
    """Hidden states of some steps after the prompts, and the cache."""
    device = torch.device(DEVICE)
    decoder = decoder.to(dtype)
    longest = max(len(prompt) for prompt in prompts)
    cache = decoder.config.new_cache(len(prompts), longest + len(news), device=device, dtype=dtype)
    monkeypatch.setattr(dispatch, "device_has_kernels", lambda device: False)
    prefill(decoder, [prompt.to(dtype) for prompt in prompts], cache)
    monkeypatch.setattr(dispatch, "device_has_kernels", lambda device: fast)
    found = [decode_one(decoder, new.to(dtype), cache) for new in news]
    return torch.stack(found), cache


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lengths", [[1], [64, 3, 63], [40, 1, 7, 9, 2, 70, 33, 5, 20]])
@pytest.mark.parametrize(
    ("latent", "heads"),
    [(SMALL, 2), (LatentConfig(16, 20, 16, 16, 32), 3), (SMALL, 17)],
    ids=["narrow", "query rank", "many heads"],
)
def test_steps_are_those_of_the_plain_form(latent, heads, lengths, dtype, monkeypatch):
    decoder = made_decoder(latent, heads).to(dtype)  # rounded once, then computed in both dtypes
    prompts = [torch.randn(length, 64).to(DEVICE, dtype) for length in lengths]
    news = torch.randn(2, len(lengths), 64).to(DEVICE, dtype)
    calls = []
    attend = module.attend
    monkeypatch.setattr(module, "attend", lambda *args, **sizes: calls.append(1) or attend(*args, **sizes))
    found, cache = steps(decoder, prompts, news, dtype, True, monkeypatch)
    assert len(calls) == 2
    exact, plain_cache = steps(decoder, prompts, news, torch.float64, False, monkeypatch)
    assert len(calls) == 2
    assert torch.isfinite(found).all()
    # Rotary tables and the norms' statistics are float32 in both.
    bound = 16 * torch.finfo(dtype).eps + 1e-5
    assert (found.double() - exact).abs().max() < bound * exact.abs().max()
    slots, plain_slots = cache.buffers[0].double(), plain_cache.buffers[0]
    assert (slots - plain_slots).abs().max() < bound * plain_slots.abs().max()


def test_longer_splits_give_the_same(monkeypatch):
    decoder = made_decoder(SMALL, 2)
    prompts = [torch.randn(length, 64).to(DEVICE) for length in (150, 20)]
    news = torch.randn(1, 2, 64).to(DEVICE)
    plain, _ = steps(decoder, prompts, news, torch.float32, False, monkeypatch)
    for most in (4, 1):
        monkeypatch.setattr(module, "MAX_PROGRAMS", most)
        found, _ = steps(decoder, prompts, news, torch.float32, True, monkeypatch)
        torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("least", "tile", "group"), [(16, 16, 4), (32, 64, 8), (64, 32, 16), (128, 16, 8)])
def test_other_plans_give_the_same(least, tile, group, monkeypatch):
    decoder = made_decoder(SMALL, 2)
    prompts = [torch.randn(length, 64).to(DEVICE) for length in (150, 31, 63, 1)]
    news = torch.randn(3, 4, 64).to(DEVICE)
    plain, _ = steps(decoder, prompts, news, torch.float32, False, monkeypatch)
    plan = {"MIN_SPLIT": least, "TILE_V": tile, "COMBINE_BLOCK": group, "TILE_R": 2 * tile}
    for name, value in plan.items():
        monkeypatch.setattr(module, name, value)
    found, _ = steps(decoder, prompts, news, torch.float32, True, monkeypatch)
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-5)


def test_the_number_of_splits_is_bounded():
    for programs in (1, 8, 40, 3000):
        for span in (32, 128, 1152, 4096, 131072):
            split = module.plan_split(programs, span)
            count = -(-span // split)
            assert count <= 64
            assert programs * count <= 1024 or count == 1
            assert split == 32 or -(-span // (split // 2)) > min(64, 1024 // programs)


@pytest.mark.parametrize(
    ("rows", "heads"), [(2, 3), (9, 1)] if DEVICE == "cpu" else [(2, 16), (9, 16), (1, 32)]
)
def test_released_sizes(rows, heads, monkeypatch):
    decoder = made_decoder(RELEASED, heads)
    prompts = [torch.randn(1 + 8 * row, 64).to(DEVICE) for row in range(rows)]
    news = torch.randn(1, rows, 64).to(DEVICE)
    plain, _ = steps(decoder, prompts, news, torch.float32, False, monkeypatch)
    found, _ = steps(decoder, prompts, news, torch.float32, True, monkeypatch)
    torch.testing.assert_close(found, plain, rtol=1e-3, atol=1e-4)


def test_slots_beyond_the_end_of_a_row_are_not_read(monkeypatch):
    decoder = made_decoder(SMALL, 2)
    cache = decoder.config.new_cache(2, 200, device=torch.device(DEVICE), dtype=torch.float32)
    cache.buffers[0].fill_(torch.nan)
    cache.reserve(100)
    monkeypatch.setattr(dispatch, "device_has_kernels", lambda device: True)
    found = []
    for new in torch.randn(3, 2, 64).to(DEVICE):
        found.append(decode_one(decoder, new, cache))
    assert torch.isfinite(torch.stack(found)).all()
    assert torch.isnan(cache.buffers[0][:, :, 3:]).all()


cuda = pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")


@cuda
@pytest.mark.parametrize("rows", [1, 3, 12])
def test_captured_steps_follow_the_positions(rows, monkeypatch):
    """A step captured once, over the whole cache, replayed at other positions."""
    dtype, device = torch.bfloat16, torch.device(DEVICE)
    decoder = made_decoder(RELEASED, heads=16).to(dtype)
    prompts = [torch.randn(100 + 57 * row % 300, 64).to(DEVICE, dtype) for row in range(rows)]
    news = torch.randn(4, rows, 64).to(DEVICE, dtype)
    plain, _ = steps(decoder, prompts, news, dtype, False, monkeypatch)
    monkeypatch.setattr(dispatch, "device_has_kernels", lambda device: True)
    cache = decoder.config.new_cache(rows, 512, device=device, dtype=dtype)
    prefill(decoder, prompts, cache)
    cache.reserve(512)
    x = news[0].clone()
    positions = cache.positions.clone()
    with torch.no_grad():
        for _ in range(2):
            decoder(x[:, None], cache)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            hidden = decoder(x[:, None], cache)[:, 0]
    cache.positions.copy_(positions)
    for step, new in enumerate(news):
        x.copy_(new)
        graph.replay()
        cache.positions += 1
        assert (hidden.float() - plain[step].float()).abs().max() < 0.1
