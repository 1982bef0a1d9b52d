"""The same steps of DeepSeek-VL2 by vLLM, in its own process, with random weights of the same sizes.

The prompts are as long as ours, but of text alone: a step then reads as many weights and cache slots.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from ...blocks.checkpoints.hub import find_model_folder
from ...blocks.errors import ResourceError
from ...blocks.model.context import DecoderConfig
from ...nano.recipes.vl2_spec import official_config
from ...vl2.config import VL2Config
from .measure import Bench
from .workloads import Amount, prompt_length

_MEMORY = 0.85
"""Share of the GPU's memory that vLLM may take."""
_FIRST_ID = 100
"""Token of the prompts; any does, as the weights are random."""


def import_vllm() -> Any:
    """The module `vllm`. Raises `ResourceError` with what to do where it isn't installed."""
    try:
        import vllm  # type: ignore[import-not-found]
    except ImportError as error:
        raise ResourceError(
            f"peers vllm needs the package vllm ({error}): install both into one environment, "
            "pip install vllm and then bifrons"
        ) from error
    return vllm


def bench_vllm(
    bench: Bench, config: VL2Config, dtype: torch.dtype, batch: int, limit: float, amount: Amount
) -> list[str]:
    """Measure steps of greedy answers: the difference of longer and shorter ones. `limit` is that of a step,
    in seconds. Returns a message if vLLM failed, whose errors are of many kinds."""
    vllm = import_vllm()
    with tempfile.TemporaryDirectory() as folder:
        try:
            write_folder(Path(folder), config)
            _bench_steps(bench, vllm, folder, config, dtype, batch, limit, amount)
        except Exception as error:
            return [f"vLLM {vllm.__version__} did not run: {type(error).__name__}: {error}"]
    return []


def _bench_steps(
    bench: Bench,
    vllm: Any,
    folder: str,
    config: VL2Config,
    dtype: torch.dtype,
    batch: int,
    limit: float,
    amount: Amount,
) -> None:
    filled = prompt_length(config)
    llm = vllm.LLM(
        model=folder,
        load_format="dummy",
        dtype=str(dtype).removeprefix("torch."),
        max_model_len=filled + amount.steps + 1,
        max_num_seqs=batch,
        gpu_memory_utilization=_MEMORY,
        limit_mm_per_prompt={"image": 0},
        enable_prefix_caching=False,
    )
    prompts = [{"prompt_token_ids": [_FIRST_ID + row] * filled} for row in range(batch)]

    def generate(tokens: int) -> None:
        greedy = {"temperature": 0.0, "ignore_eos": True, "detokenize": False}
        llm.generate(prompts, vllm.SamplingParams(max_tokens=tokens, **greedy), use_tqdm=False)

    shorter = bench.time(lambda: generate(1), repeats=amount.repeats)
    longer = bench.time(lambda: generate(1 + amount.steps), repeats=amount.repeats)
    bench.add(
        "vLLM",
        f"answering, a step of {batch} conversation{'s' if batch > 1 else ''}",
        [(b - a) / amount.steps for a, b in zip(shorter, longer, strict=True)],
        items=batch,
        unit=" tokens/s",
        limit=limit,
        note=f"vLLM {vllm.__version__}, {amount.steps} steps after a prompt of {filled} tokens, greedy; "
        "its memory is that of another process",
    )


def write_folder(folder: Path, config: VL2Config) -> None:
    """Write all of a DeepSeek-VL2 folder but its weights; the tokenizer is vl2-nano's, whose words are
    not used."""
    source = find_model_folder("vl2-nano")
    tokenizer = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
    for name in (*tokenizer, "processor_config.json"):
        shutil.copyfile(source / name, folder / name)
    content = official_config(config.vision, 1, language_config(config.decoder))
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")


def language_config(config: DecoderConfig) -> dict[str, Any]:
    """The `language_config` of a decoder, as `vl2.config.parse_config` reads it."""
    latent, moe = config.latent, config.moe
    assert moe is not None, "DeepSeek-VL2 has experts"
    return {
        "model_type": "deepseek_v2",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "use_mla": latent is not None,
        "kv_lora_rank": latent.kv_rank if latent else None,
        "q_lora_rank": latent.q_rank if latent else None,
        "qk_nope_head_dim": latent.nope_dim if latent else 0,
        "qk_rope_head_dim": latent.rope_dim if latent else 0,
        "v_head_dim": latent.value_dim if latent else 0,
        "n_routed_experts": moe.num_experts,
        "n_shared_experts": moe.num_shared,
        "num_experts_per_tok": moe.top_k,
        "moe_intermediate_size": moe.expert_width,
        "first_k_dense_replace": moe.first_dense,
        "moe_layer_freq": moe.every,
        "scoring_func": moe.scoring,
        "topk_method": moe.method,
        "n_group": moe.num_groups,
        "topk_group": moe.topk_group,
        "norm_topk_prob": moe.normalize,
        "routed_scaling_factor": moe.scale,
    }
