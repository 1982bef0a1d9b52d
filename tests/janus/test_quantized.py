"""A quantized Janus: what changes, what does not, and folders that hold it."""

import json

import pytest
import torch
from bifrons import ConfigError, JanusPipeline, OptionError
from bifrons.blocks.checkpoints.quantize import quantizable_weights
from bifrons.blocks.checkpoints.reader import list_tensors
from bifrons.blocks.model.quantized_weight import QuantizedWeight
from bifrons.blocks.placement.memory_estimate import model_bytes

from ..models import quantize_model

KINDS = ("int8", "int4", "fp8")
PROMPTS = ("a red apple", "two dogs", "the green cup above a table", "x")
# The mean KL divergence of next-token distributions that is accepted, the least share of equal best tokens.
# Measured 1.8e-4 and 0.950, 2.4e-2 and 0.582, 2.8e-3 and 0.831: the weights are random, and many tokens
# nearly as likely.
BOUNDS = {"int8": (4e-4, 0.9), "int4": (4e-2, 0.5), "fp8": (5e-3, 0.75)}


def load(folder, **options) -> JanusPipeline:
    return JanusPipeline.from_pretrained(folder, device="cpu", progress=False, **options)


@pytest.fixture(scope="module")
def plain(janus_mini) -> JanusPipeline:
    return load(janus_mini)


@pytest.fixture(scope="module")
def quantized(janus_mini) -> dict[str, JanusPipeline]:
    return {kind: load(janus_mini, quantize=kind) for kind in KINDS}


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """In every bit; torch compares no float8."""
    return a.view(torch.uint8).equal(b.view(torch.uint8))


def agreement(plain: JanusPipeline, other: JanusPipeline) -> tuple[float, float]:
    """Mean KL(plain || other) and the share of equal likeliest tokens, over image and text positions."""
    codes = plain.generate(list(PROMPTS), seed=1, guidance_scale=1.0, output_type="codes")
    pairs = []
    with torch.no_grad():
        for prompt, row in zip(PROMPTS, codes, strict=True):
            ids = plain.processor.generation_ids(prompt)[0]
            logits = []
            for pipe in (plain, other):
                model = pipe.model
                x = torch.cat((model.embed_text(ids), model.embed_codes(row)))[None]
                hidden = model.decoder(x)[0]
                logits.append((model.text_logits(hidden), model.image_logits(hidden)))
            pairs += zip(*logits, strict=True)
    logs = [(a.log_softmax(-1), b.log_softmax(-1)) for a, b in pairs]
    kl = torch.cat([(a.exp() * (a - b)).sum(-1) for a, b in logs])
    same = torch.cat([a.argmax(-1) == b.argmax(-1) for a, b in pairs])
    return kl.mean().item(), same.float().mean().item()


@pytest.mark.parametrize("kind", KINDS)
def test_next_tokens_agree(plain, quantized, kind):
    most, least = BOUNDS[kind]
    kl, same = agreement(plain, quantized[kind])
    assert 0 < kl < most
    assert same > least


def test_broken_scales_exceed_the_bounds(plain, janus_mini):
    for kind in KINDS:
        broken = load(janus_mini, quantize=kind)
        for module in broken.model.modules():
            if isinstance(module, QuantizedWeight):
                module.scale *= 1.25
        assert agreement(plain, broken)[0] > 2 * BOUNDS[kind][0]


@pytest.mark.parametrize("kind", KINDS)
def test_the_decoder_alone_is_quantized(plain, quantized, kind):
    model = quantized[kind].model
    changed = {name for name, module in model.named_modules() if isinstance(module, QuantizedWeight)}
    leaves = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
    leaves += ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    assert changed == {f"language_model.model.layers.{i}.{leaf}" for i in range(3) for leaf in leaves}
    concerned = quantizable_weights(plain.model)
    kept = {name: tensor for name, tensor in plain.model.named_parameters() if name not in concerned}
    found = dict(model.named_parameters())
    assert found.keys() == kept.keys()
    assert all(found[name].equal(tensor) for name, tensor in kept.items())


@pytest.mark.parametrize("kind", KINDS)
def test_quantizing_afterwards_is_the_same(janus_mini, quantized, kind):
    """The file holds bfloat16, so that the codes do not depend on the dtype of loading."""
    later = quantize_model(load(janus_mini, dtype="bfloat16").model, kind)
    for name, buffer in quantized[kind].model.named_buffers():
        assert same_bits(dict(later.named_buffers())[name], buffer), name


@pytest.mark.parametrize("kind", KINDS)
def test_memory_is_as_planned(janus_mini, plain, quantized, kind):
    tensors = [*quantized[kind].model.parameters(), *quantized[kind].model.buffers()]
    taken = sum(t.numel() * t.itemsize for t in tensors)
    assert taken == model_bytes(plain.model, torch.float32, kind, lambda name: False)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_rows_and_seeds_hold(janus_mini, quantized, dtype):
    pipe = quantized["int4"] if dtype == "float32" else load(janus_mini, dtype=dtype, quantize="int8")
    assert pipe.dtype == getattr(torch, dtype)
    together = pipe.generate(list(PROMPTS[:2]), seed=4, output_type="codes")
    assert together.shape == (2, 36)
    if dtype == "float32":
        assert pipe.generate(PROMPTS[1], seed=4, output_type="codes")[0].equal(together[1])


@pytest.mark.parametrize("kind", KINDS)
def test_a_written_folder_holds_the_same(bifrons_main, janus_mini, quantized, tmp_path, kind):
    target = tmp_path / "q"
    assert bifrons_main("convert", janus_mini, target, "--quantize", kind) == 0
    assert json.loads((target / "config.json").read_text())["quantization_config"]["weights"] == kind
    for options in ({}, {"quantize": kind}):
        again = load(target, **options)
        expected = quantized[kind].model.state_dict()
        found = again.model.state_dict()
        assert found.keys() == expected.keys()
        assert all(found[name].dtype == tensor.dtype for name, tensor in expected.items())
        assert all(same_bits(found[name], tensor) for name, tensor in expected.items())
    other = KINDS[KINDS.index(kind) - 1]
    with pytest.raises(OptionError, match=f"holds {kind} weights; accepted: '{kind}'"):
        load(target, quantize=other)
    assert bifrons_main("info", target) == 0
    assert bifrons_main("convert", target, tmp_path / "again") == 0
    assert list_tensors(tmp_path / "again").keys() == list_tensors(target).keys()
    assert bifrons_main("convert", target, tmp_path / "other", "--quantize", other) == 2


def test_info_tells_what_is_quantized(bifrons_main, capsys, janus_mini, tmp_path):
    target = tmp_path / "q"
    bifrons_main("convert", janus_mini, target, "--quantize", "int8")
    capsys.readouterr()
    found = {}
    for folder in (janus_mini, target):
        bifrons_main("info", folder, "--json")
        found[folder] = json.loads(capsys.readouterr().out)
    assert found[target]["quantization"] == "int8"
    assert found[target]["parameters"] == found[janus_mini]["parameters"]
    assert found[target]["memory"]["weights"] == found[janus_mini]["memory"]["quantized"]["int8"]
    assert found[target]["tensors"]["missing"] == found[target]["tensors"]["extra"] == []


def test_damaged_quantized_folders_are_refused(bifrons_main, janus_mini, tmp_path):
    from safetensors.torch import load_file, save_file

    target = tmp_path / "q"
    bifrons_main("convert", janus_mini, target, "--quantize", "int8")
    tensors = load_file(target / "model.safetensors")
    name = "language_model.model.layers.1.mlp.up_proj.codes"
    save_file({k: v for k, v in tensors.items() if k != name}, target / "model.safetensors")
    with pytest.raises(ValueError, match=f"1 missing from the file:\n  {name}"):
        load(target)
    save_file(tensors | {name: tensors[name].view(torch.uint8)}, target / "model.safetensors")
    with pytest.raises(ValueError, match=r"torch.uint8 in the file, torch.int8 in the model"):
        load(target)
    config = json.loads((target / "config.json").read_text())
    for entry, words in (
        ({"quant_method": "awq"}, "quant_method is 'awq'; accepted: 'bifrons'"),
        ({"quant_method": "bifrons", "weights": "int3"}, "weights is 'int3'; accepted: int8, int4, fp8"),
        ({"quant_method": "bifrons", "weights": "int4", "group_size": 32}, "group_size is 32; accepted: 64"),
    ):
        (target / "config.json").write_text(json.dumps(config | {"quantization_config": entry}))
        with pytest.raises(ConfigError, match=words):
            load(target)


def test_other_numbers_are_not_rounded_to_codes(bifrons_main, janus_mini, tmp_path):
    from safetensors.torch import load_file, save_file

    target = tmp_path / "q"
    bifrons_main("convert", janus_mini, target, "--quantize", "fp8")
    tensors = load_file(target / "model.safetensors")
    name = "language_model.model.layers.1.mlp.up_proj.codes"
    assert tensors[name].dtype == torch.float8_e4m3fn
    for dtype in (torch.bfloat16, torch.float8_e5m2, torch.int8):
        save_file(tensors | {name: tensors[name].float().to(dtype)}, target / "model.safetensors")
        with pytest.raises(ValueError, match=f"{dtype} in the file, torch.float8_e4m3fn in the model"):
            load(target)


def test_other_kinds_are_refused(janus_mini):
    with pytest.raises(OptionError, match="quantize is 'int2'; accepted: int8, int4, fp8"):
        load(janus_mini, quantize="int2")
