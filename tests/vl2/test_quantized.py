"""A quantized DeepSeek-VL2 in its three architectures: agreement, memory, folders."""

import pytest
import torch
from bifrons.blocks.model.quantized_weight import QuantizedWeight
from bifrons.blocks.placement.memory_estimate import model_bytes
from bifrons.vl2.pipeline import VL2Pipeline
from bifrons.vl2.weight_names import keep_float32

KINDS = ("int8", "int4", "fp8")
# The mean KL divergence of next-token distributions that is accepted, the least share of equal best tokens.
# Measured 2.8e-4 to 4.0e-3 and 0.94 to 0.96, 2.3e-2 to 8.2e-2 and 0.50 to 0.71, 3.3e-3 to 2.2e-2 and 0.80 to
# 0.85; the most where a changed score chooses other experts with a weight of 2 (noaux).
BOUNDS = {"int8": (1e-3, 0.9), "int4": (6e-2, 0.55), "fp8": (8e-3, 0.75)}
NOAUX = {"int8": (8e-3, 0.9), "int4": (16e-2, 0.4), "fp8": (4.5e-2, 0.7)}


def load(folder, **options) -> VL2Pipeline:
    return VL2Pipeline.from_pretrained(folder, device="cpu", progress=False, **options)


def logits(pipe: VL2Pipeline, conversations) -> torch.Tensor:
    """At every position of every prompt, `[positions, V]`."""
    with torch.no_grad():
        rows = [pipe.prompts([messages], 0)[0] for messages in conversations]
        hidden = [pipe.model.decoder(row.embeddings_TD[None])[0] for row in rows]
        return torch.cat([pipe.model.text_logits(one) for one in hidden])


def agreement(a: torch.Tensor, b: torch.Tensor) -> tuple[float, float]:
    a, b = a.log_softmax(-1), b.log_softmax(-1)
    kl = (a.exp() * (a - b)).sum(-1).mean().item()
    return kl, (a.argmax(-1) == b.argmax(-1)).float().mean().item()


@pytest.mark.parametrize("kind", KINDS)
def test_next_tokens_agree(case, kind):
    folder = case.folder
    pipe = load(folder, quantize=kind)
    expected = logits(case.pipe, case.conversations)
    kl, same = agreement(expected, logits(pipe, case.conversations))
    most, least = (NOAUX if folder.name.endswith("noaux") else BOUNDS)[kind]
    assert 0 < kl < most
    assert same > least
    for module in pipe.model.modules():
        if isinstance(module, QuantizedWeight):
            module.scale *= 1.5
    assert agreement(expected, logits(pipe, case.conversations))[0] > most


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_equals_prefilling(case, kind):
    """The cache's path, absorbed attention included, on quantized weights."""
    pipe = load(case.folder, quantize=kind)
    messages = case.conversations[0]
    answer = pipe.chat(messages, max_new_tokens=6)
    assert answer == pipe.chat(messages, max_new_tokens=6, prefill_chunk=5)
    x = pipe.prompts([messages], 0)[0].embeddings_TD
    cache = pipe.model.decoder.config.new_cache(1, len(x), device=x.device, dtype=x.dtype)
    with torch.no_grad():
        whole = pipe.model.decoder(x[None])[0, -1]
        for row in x:
            cache.reserve(cache.filled + 1)
            hidden = pipe.model.decoder(row[None, None], cache)[0, 0]
            cache.positions += 1
    torch.testing.assert_close(hidden, whole, rtol=1e-3, atol=1e-3 * whole.abs().max().item())


@pytest.mark.parametrize("kind", KINDS)
def test_a_written_folder_holds_the_same(case, bifrons_main, tmp_path, kind):
    target = tmp_path / "q"
    assert bifrons_main("convert", case.folder, target, "--quantize", kind) == 0
    made, found = load(case.folder, quantize=kind).model, load(target).model
    expected = made.state_dict()
    assert found.state_dict().keys() == expected.keys()
    for name, tensor in found.state_dict().items():
        assert tensor.dtype == expected[name].dtype
        assert tensor.view(torch.uint8).equal(expected[name].view(torch.uint8))  # torch compares no float8
    assert bifrons_main("info", target) == 0
    names = {name for name, module in found.named_modules() if isinstance(module, QuantizedWeight)}
    assert not any("kv_b_proj" in name for name in names)
    assert "language.model.layers.1.mlp.experts.gate_up" in names
    assert "language.model.layers.1.mlp.shared_experts.up_proj" in names
    taken = sum(t.numel() * t.itemsize for t in expected.values())
    assert taken == model_bytes(case.pipe.model, torch.float32, kind, keep_float32)
