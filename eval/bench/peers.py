"""The same work by others, in the same process and with random weights of the same sizes: transformers'
`JanusForConditionalGeneration.generate`, and a plain loop around its Llama.

B pictures, R = 2 B rows, D decoder width.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
from torch import nn

from ...blocks.engine.sampling_params import guide
from ...janus.config import JanusConfig
from ..transformers_loading import import_transformers, quiet
from .configs import fill_random
from .measure import Bench
from .workloads import PROMPT, Amount

_BOS, _BOI, _PAD = 1, 2, 3  # of no importance to random weights
_GUIDANCE = 5.0


def bench_peers(
    bench: Bench, config: JanusConfig, dtype: torch.dtype, batch: int, limit: float, amount: Amount
) -> list[str]:
    """Both peers, one after the other. `limit` is that of one step. `BifronsError` without transformers.

    Returns what went wrong within a peer's own code, as in transformers 5.17, whose `generate` fails at its
    cache.
    """
    transformers, failed = import_transformers(), []
    with quiet(transformers), torch.no_grad():
        for who, peer in (("Llama", _bench_llama), ("Janus", _bench_janus)):
            try:
                peer(bench, transformers, config, dtype, batch, limit, amount)
            except (TypeError, AttributeError, ValueError) as error:
                where = f"transformers {transformers.__version__}"
                failed.append(f"{where} {who} did not run: {type(error).__name__}: {error}")
    return failed


def _text_settings(config: JanusConfig) -> dict[str, Any]:
    decoder = config.decoder
    return {
        "vocab_size": decoder.vocab_size,
        "hidden_size": decoder.hidden_size,
        "intermediate_size": decoder.intermediate_size,
        "num_hidden_layers": decoder.num_layers,
        "num_attention_heads": decoder.num_heads,
        "num_key_value_heads": decoder.num_kv_heads,
        "head_dim": decoder.head_dim,
        "max_position_embeddings": decoder.max_positions,
        "rms_norm_eps": decoder.rms_norm_eps,
    }


@contextmanager
def _quick_build(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Modules come to be on the device, in the dtype, with whatever lies in their memory."""
    from transformers.initialization import no_init_weights

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with no_init_weights(), device:
            yield
    finally:
        torch.set_default_dtype(before)


def _built(kind: Any, settings: Any, bench: Bench, dtype: torch.dtype) -> Any:
    with _quick_build(bench.device, dtype):
        model = kind(settings)
    fixed = {name: b.dtype for name, b in model.named_buffers()}
    kept = {name: b.clone() for name, b in model.named_buffers()}
    fill_random(model, bench.device, dtype, fixed)
    for name, buffer in kept.items():
        model.get_buffer(name).copy_(buffer)
    return model.eval()


def _bench_llama(
    bench: Bench,
    transformers: Any,
    config: JanusConfig,
    dtype: torch.dtype,
    batch: int,
    limit: float,
    amount: Amount,
) -> None:
    """Steps of `LlamaModel` with its dynamic cache, then head, guidance, a draw and the next embedding."""
    rows, width, device = 2 * batch, config.decoder.hidden_size, bench.device
    settings = transformers.LlamaConfig(**_text_settings(config), attn_implementation="sdpa")
    model = _built(transformers.LlamaModel, settings, bench, dtype)
    hand = nn.ModuleDict(
        {
            "up": nn.Linear(width, config.gen_head_width),
            "head": nn.Linear(config.gen_head_width, config.vq.codebook_size),
            "embed": nn.Embedding(config.vq.codebook_size, config.vq.code_dim),
            "align": nn.Linear(config.vq.code_dim, width),
            "align2": nn.Linear(width, width),
        }
    )
    hand.to(device, dtype)
    start = torch.randn(rows, 1, width, device=device).to(dtype)
    # Renamed between releases of transformers 5.
    cache_name = "cache" if "cache" in signature(model.forward).parameters else "past_key_values"
    filled = PROMPT + config.num_codes // 2 - amount.steps // 2

    def steps() -> None:
        cache: Any = transformers.DynamicCache(config=settings)
        shape = (rows, config.decoder.num_kv_heads, filled, config.decoder.head_dim)
        for layer in range(config.decoder.num_layers):
            keys = torch.zeros(shape, device=device, dtype=dtype)
            cache.update(keys, torch.zeros_like(keys), layer)
        x = start
        for _ in range(amount.steps):
            hidden = model(inputs_embeds=x, use_cache=True, **{cache_name: cache}).last_hidden_state[:, -1]
            logits = hand["head"](nn.functional.gelu(hand["up"](hidden))).float()
            cond, uncond = logits.chunk(2)
            mixed = guide(cond, uncond, _GUIDANCE)
            tokens = torch.multinomial(mixed.softmax(-1), 1)[:, 0].repeat(2)
            x = hand["align2"](nn.functional.gelu(hand["align"](hand["embed"](tokens))))[:, None]

    bench.measure(
        "transformers Llama loop",
        f"painting, a step of {rows} rows",
        steps,
        repeats=amount.repeats,
        per=amount.steps,
        items=batch,
        unit=" tokens/s",
        limit=limit,
        note=f"transformers {transformers.__version__}, {amount.steps} steps a run in the middle of a "
        "picture, with the making of the cache",
    )


def _janus_settings(transformers: Any, config: JanusConfig) -> Any:
    vision, vq, width = config.vision, config.vq, config.decoder.hidden_size
    return transformers.JanusConfig(
        text_config=_text_settings(config),
        vision_config={
            "hidden_size": vision.width,
            "num_hidden_layers": vision.layers,
            "num_attention_heads": vision.heads,
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "mlp_ratio": vision.mlp_ratio,
            "projection_dim": width,
            "depth": config.aligner_depth,
            "num_image_tokens": config.num_codes,
        },
        vq_config={
            "embed_dim": vq.code_dim,
            "num_embeddings": vq.codebook_size,
            "latent_channels": vq.z_channels,
            "base_channels": vq.ch,
            "channel_multiplier": list(vq.ch_mult),
            "num_res_blocks": vq.num_res_blocks,
            "projection_dim": width,
            "image_token_embed_dim": config.gen_head_width,
            "num_patches": config.grid[0],
        },
        tie_word_embeddings=False,
    )


def _bench_janus(
    bench: Bench,
    transformers: Any,
    config: JanusConfig,
    dtype: torch.dtype,
    batch: int,
    limit: float,
    amount: Amount,
) -> None:
    """`generate` in image mode. A step is the difference of a longer and a shorter run, so that the prompt
    does not count; whole pictures are timed where ours are."""
    settings = _janus_settings(transformers, config)
    model = _built(transformers.JanusForConditionalGeneration, settings, bench, dtype)
    tower = model.model.vision_model.config
    ids = torch.full((batch, PROMPT), _PAD + 1, device=bench.device)
    options = transformers.GenerationConfig(
        do_sample=True,
        guidance_scale=_GUIDANCE,
        bos_token_id=_BOS,
        pad_token_id=_PAD,
        max_length=PROMPT + config.num_codes,
        generation_kwargs={"boi_token_id": _BOI},
    )

    def picture(tokens: int) -> torch.Tensor:
        tower.num_image_tokens = tokens
        return model.generate(
            inputs=ids,
            attention_mask=torch.ones_like(ids),
            generation_mode="image",
            generation_config=options,
        )

    who, note = "transformers Janus", f"transformers {transformers.__version__}"
    if amount.whole:

        def whole() -> None:
            codes = picture(config.num_codes)
            for row in codes:
                model.decode_image_tokens(row[None])

        work = f"{batch} whole picture{'s' if batch > 1 else ''}, guidance {_GUIDANCE:g}"
        bench.measure(
            who,
            work,
            whole,
            repeats=1,
            items=batch,
            unit=" pictures/s",
            limit=limit * config.num_codes,
            note=note,
        )
        return
    shorter = bench.time(lambda: picture(1), repeats=amount.repeats)
    longer = bench.time(lambda: picture(1 + amount.steps), repeats=amount.repeats)
    each = [(b - a) / amount.steps for a, b in zip(shorter, longer, strict=True)]
    note += f", {amount.steps} steps of generate"
    work = f"painting, a step of {2 * batch} rows"
    bench.add(who, work, each, items=batch, unit=" tokens/s", limit=limit, note=note)
