"""The released sizes: their configs, and the full lists of their tensors on meta."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from bifrons import ConfigError
from bifrons.blocks.checkpoints.formats import TensorEntry
from bifrons.blocks.checkpoints.key_mapping import check, saved_tensors
from bifrons.blocks.json_config import Section
from bifrons.text.config import parse_config
from bifrons.text.model import TextModel
from bifrons.text.variants import variant
from bifrons.text.weight_names import pick_key_map, stored_tensors

LLAMA3 = {
    "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192, "rope_type": "llama3",
}  # fmt: skip
YARN = {
    "beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 4096, "type": "yarn",
}  # fmt: skip


def dense(kind: str, layers, width, heads, kv, inner, rows, theta, eps, scaling=None) -> dict[str, Any]:
    return {
        "model_type": kind, "num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": heads,
        "num_key_value_heads": kv, "intermediate_size": inner, "vocab_size": rows, "rope_theta": theta,
        "rms_norm_eps": eps, "hidden_act": "silu", "max_position_embeddings": 131072, "rope_scaling": scaling,
        "tie_word_embeddings": False, "use_sliding_window": False, "sliding_window": 4096,
    }  # fmt: skip


V3 = {
    "model_type": "deepseek_v3", "num_hidden_layers": 61, "hidden_size": 7168, "num_attention_heads": 128,
    "num_key_value_heads": 128, "intermediate_size": 18432, "moe_intermediate_size": 2048,
    "vocab_size": 129280, "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8,
    "first_k_dense_replace": 3,
    "n_group": 8, "topk_group": 4, "topk_method": "noaux_tc", "scoring_func": "sigmoid",
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5, "moe_layer_freq": 1, "q_lora_rank": 1536, "kv_lora_rank": 512,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "rope_theta": 10000,
    "rope_scaling": YARN, "max_position_embeddings": 163840, "rms_norm_eps": 1e-6, "hidden_act": "silu",
    "attention_bias": False, "tie_word_embeddings": False, "num_nextn_predict_layers": 1, "ep_size": 1,
    "quantization_config": {
        "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128],
    },
}  # fmt: skip
CONFIGS = {
    "DeepSeek-R1-Distill-Qwen-1.5B": dense("qwen2", 28, 1536, 12, 2, 8960, 151936, 10000, 1e-6),
    "DeepSeek-R1-Distill-Qwen-7B": dense("qwen2", 28, 3584, 28, 4, 18944, 152064, 10000, 1e-6),
    "DeepSeek-R1-Distill-Qwen-14B": dense("qwen2", 48, 5120, 40, 8, 13824, 152064, 1e6, 1e-5),
    "DeepSeek-R1-Distill-Qwen-32B": dense("qwen2", 64, 5120, 40, 8, 27648, 152064, 1e6, 1e-5),
    "DeepSeek-R1-Distill-Llama-8B": dense("llama", 32, 4096, 32, 8, 14336, 128256, 5e5, 1e-5, LLAMA3),
    "DeepSeek-R1-Distill-Llama-70B": dense("llama", 80, 8192, 64, 8, 28672, 128256, 5e5, 1e-5, LLAMA3),
    "DeepSeek-V3 or R1": V3,
}
PARAMETERS = {
    "DeepSeek-R1-Distill-Qwen-1.5B": 1_777_088_000,
    "DeepSeek-R1-Distill-Qwen-7B": 7_615_616_512,
    "DeepSeek-R1-Distill-Qwen-14B": 14_770_033_664,
    "DeepSeek-R1-Distill-Qwen-32B": 32_763_876_352,
    "DeepSeek-R1-Distill-Llama-8B": 8_030_261_248,
    "DeepSeek-R1-Distill-Llama-70B": 70_553_706_496,
    "DeepSeek-V3 or R1": 671_026_419_200 + 11_610_068_224,
}
"""Of the released weights; V3's and those of its layer for multi-token prediction, without its copies."""


def layer_keys(config: dict[str, Any], layer: int) -> dict[str, tuple[int, ...]]:
    """Names after `model.layers.N.` and shapes of a layer's tensors."""
    width, heads = config["hidden_size"], config["num_attention_heads"]
    keys: dict[str, tuple[int, ...]] = {
        name: (width,) for name in ("input_layernorm.weight", "post_attention_layernorm.weight")
    }
    if config["model_type"] == "deepseek_v3":
        keys |= {
            "self_attn.q_a_proj.weight": (1536, width), "self_attn.q_a_layernorm.weight": (1536,),
            "self_attn.q_b_proj.weight": (heads * 192, 1536),
            "self_attn.kv_a_proj_with_mqa.weight": (576, width),
            "self_attn.kv_a_layernorm.weight": (512,), "self_attn.kv_b_proj.weight": (heads * 256, 512),
            "self_attn.o_proj.weight": (width, heads * 128),
        }  # fmt: skip
    else:
        head = width // heads
        kv = config["num_key_value_heads"] * head
        for name, size in (("q", heads * head), ("k", kv), ("v", kv)):
            keys[f"self_attn.{name}_proj.weight"] = (size, width)
            if config["model_type"] == "qwen2":
                keys[f"self_attn.{name}_proj.bias"] = (size,)
        keys["self_attn.o_proj.weight"] = (width, heads * head)
    prefixes = {"mlp.": config["intermediate_size"]}
    if config["model_type"] == "deepseek_v3" and layer >= 3:
        prefixes = {f"mlp.experts.{expert}.": 2048 for expert in range(256)} | {"mlp.shared_experts.": 2048}
        keys |= {"mlp.gate.weight": (256, width), "mlp.gate.e_score_correction_bias": (256,)}
    for prefix, inner in prefixes.items():
        keys |= {f"{prefix}{name}_proj.weight": (inner, width) for name in ("gate", "up")}
        keys[f"{prefix}down_proj.weight"] = (width, inner)
    return keys


def all_keys(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    width, rows, layers = config["hidden_size"], config["vocab_size"], config["num_hidden_layers"]
    keys: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (rows, width),
        "model.norm.weight": (width,),
        "lm_head.weight": (rows, width),
    }
    ahead = config["model_type"] == "deepseek_v3"
    for layer in range(layers + ahead):
        keys |= {f"model.layers.{layer}.{name}": shape for name, shape in layer_keys(config, layer).items()}
    if ahead:
        keys |= {
            f"model.layers.{layers}.{name}.weight": shape
            for name, shape in {
                "enorm": (width,), "hnorm": (width,), "eh_proj": (width, 2 * width),
                "shared_head.norm": (width,), "shared_head.head": (rows, width),
                "embed_tokens": (rows, width),
            }.items()
        }  # fmt: skip
    return keys


def entries_of(keys: dict[str, tuple[int, ...]]) -> dict[str, TensorEntry]:
    return {n: TensorEntry(n, torch.bfloat16, shape, Path("x"), 0, 0) for n, shape in keys.items()}


@pytest.mark.parametrize("name", CONFIGS)
def test_published_tensors_fill_the_model(name: str):
    entries = entries_of(all_keys(CONFIGS[name]))
    config = parse_config(Section(CONFIGS[name], "config.json"), entries)
    assert variant(config) == name
    with torch.device("meta"):
        model = TextModel(config)
    key_map = pick_key_map(config.decoder.num_layers, config.tied)
    report = check(model, entries, key_map)
    assert report.ok, report.summary()
    assert len(report.unused) == (2 if config.predicts_ahead else 0)
    assert sum(tensor.numel() for tensor in saved_tensors(model).values()) == PARAMETERS[name]
    first = next(iter(entries))
    lacking = {n: entry for n, entry in entries.items() if n != first}
    assert not check(model, lacking, key_map).ok
    written = {
        stored: tuple(part.shape)
        for param, tensor in saved_tensors(model).items()
        if ".experts." not in param or tensor.shape[0] < 9
        for stored, part in stored_tensors(param, tensor, config.decoder.num_layers)
    }
    assert all(entries[stored].shape == shape for stored, shape in written.items())


def test_v3s_rotary_embedding():
    """YaRN's figures for V3: dimensions 10 to 23 of 32 lie between kept and divided, scores are multiplied by
    1.3689 squared."""
    decoder = parse_config(Section(V3, "config.json")).decoder
    assert decoder.frequencies is not None
    assert decoder.latent is not None
    plain = [10000 ** (-pair / 32) for pair in range(32)]
    shares = [own / kept for own, kept in zip(decoder.frequencies, plain, strict=True)]
    assert [round(share, 4) for share in shares[:11]] == [1.0] * 11
    assert [round(share, 4) for share in shares[23:]] == [0.025] * 9
    assert all(a > b for a, b in itertools.pairwise(shares[10:24]))
    assert decoder.rotary_scale == 1.0
    with torch.device("meta"):
        assert parse_config(Section(V3, "config.json")).decoder == decoder
    assert round(decoder.latent.score_factor * decoder.latent.query_dim**-0.5, 6) == 0.135234


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mistral"}, "accepted: 'qwen2', 'llama', 'deepseek_v2', 'deepseek_v3'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; accepted: 'silu'"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"num_key_value_heads": 5}, "12 heads can't share 5"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "default, linear, llama3, yarn"),
        ({"rope_scaling": {"type": "yarn", "factor": -1}}, "factor is -1; accepted: a number from 0.001"),
        ({"rope_scaling": {**LLAMA3, "low_freq_factor": 4.0}}, "below high_freq_factor"),
        ({"hidden_size": 10**9}, "hidden_size is 1000000000; accepted: a whole number"),
        ({"attention_bias": False}, "attention_bias"),
    ],
)
def test_configs_that_are_refused(change: dict[str, Any], message: str):
    config = {**CONFIGS["DeepSeek-R1-Distill-Qwen-1.5B"], **change}
    with pytest.raises(ConfigError, match=message):
        parse_config(Section(config, "config.json"))
