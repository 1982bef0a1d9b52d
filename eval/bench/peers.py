"""The same work by transformers, in the same process and with random weights of the same sizes.

Two peers: `JanusForConditionalGeneration.generate`, and a plain loop around `LlamaModel`.

B images, R = 2 B rows, D decoder width.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from ...blocks.sampling.sampling import guide
from ...janus.config import JanusConfig
from ..optional_packages import quiet
from .configs import fill_random
from .measure import Bench
from .workloads import PROMPT, Amount

_BOS, _BOI, _PAD = 1, 2, 3  # any ids do: the weights are random
_GUIDANCE_SCALE = 5.0


@dataclass(frozen=True)
class PeerWork:
    """What both peers measure: `batch` guided images of a model of these sizes. `limit` is seconds a step."""

    bench: Bench
    transformers: Any
    config: JanusConfig
    dtype: torch.dtype
    batch: int
    limit: float
    amount: Amount

    @property
    def rows(self) -> int:
        """Decoder rows: a conditional and an unconditional one for each image."""
        return 2 * self.batch

    @property
    def version(self) -> str:
        """The peer's name and release, for notes."""
        return f"transformers {self.transformers.__version__}"


def bench_peers(
    bench: Bench, config: JanusConfig, dtype: torch.dtype, batch: int, limit: float, amount: Amount
) -> list[str]:
    """Measure both peers, one after the other. `limit` is that of one step, in seconds.

    Returns a message for each peer that failed in its own code (transformers 5.17's `generate` does, at its
    cache).
    """
    import transformers  # takes seconds: only here

    failures: list[str] = []
    work = PeerWork(bench, transformers, config, dtype, batch, limit, amount)
    with quiet(transformers), torch.no_grad():
        for name, bench_peer in (("Llama", _bench_llama), ("Janus", _bench_janus)):
            try:
                bench_peer(work)
            except (TypeError, AttributeError, ValueError) as error:
                failures.append(f"{work.version} {name} did not run: {type(error).__name__}: {error}")
    return failures


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
def uninitialized(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Modules are built on the device, in the dtype, with uninitialized weights."""
    from transformers.initialization import no_init_weights

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with no_init_weights(), device:
            yield
    finally:
        torch.set_default_dtype(before)


def random_peer(work: PeerWork, model_class: Any, settings: Any) -> Any:
    """A model of transformers with random weights; its buffers (rotary tables) stay what they are."""
    with uninitialized(work.bench.device, work.dtype):
        model = model_class(settings)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    fill_random(
        model, work.bench.device, work.dtype, {name: buffer.dtype for name, buffer in buffers.items()}
    )
    for name, buffer in buffers.items():
        model.get_buffer(name).copy_(buffer)
    return model.eval()


def _bench_llama(work: PeerWork) -> None:
    """Steps of `LlamaModel` with its dynamic cache, then head, guidance, a draw and the next embedding."""
    amount = work.amount
    work.bench.measure(
        "transformers Llama loop",
        f"painting, a step of {work.rows} rows",
        _llama_loop(work),
        repeats=amount.repeats,
        per=amount.steps,
        items=work.batch,
        unit=" tokens/s",
        limit=work.limit,
        note=f"{work.version}, {amount.steps} steps a run in the middle of a picture, with the making of the "
        "cache",
    )


def _llama_loop(work: PeerWork) -> Callable[[], None]:
    config, device, dtype = work.config, work.bench.device, work.dtype
    settings = work.transformers.LlamaConfig(**_text_settings(config), attn_implementation="sdpa")
    model = random_peer(work, work.transformers.LlamaModel, settings)
    image_head = _image_head(config).to(device, dtype)
    start_R1D = torch.randn(work.rows, 1, config.decoder.hidden_size, device=device).to(dtype)
    # The argument was renamed between releases of transformers 5.
    cache_name = "cache" if "cache" in signature(model.forward).parameters else "past_key_values"
    filled = PROMPT + config.num_codes // 2 - work.amount.steps // 2

    def steps() -> None:
        cache: Any = work.transformers.DynamicCache(config=settings)
        shape = (work.rows, config.decoder.num_kv_heads, filled, config.decoder.head_dim)
        for layer in range(config.decoder.num_layers):
            keys = torch.zeros(shape, device=device, dtype=dtype)
            cache.update(keys, torch.zeros_like(keys), layer)
        x_R1D = start_R1D
        for _ in range(work.amount.steps):
            outputs = model(inputs_embeds=x_R1D, use_cache=True, **{cache_name: cache})
            x_R1D = _next_embedding(image_head, outputs.last_hidden_state[:, -1])

    return steps


def _image_head(config: JanusConfig) -> nn.ModuleDict:
    """Layers of the sizes of Janus's generation head, embedding and aligner."""
    width, codes = config.decoder.hidden_size, config.vq
    return nn.ModuleDict(
        {
            "up": nn.Linear(width, config.gen_head_width),
            "head": nn.Linear(config.gen_head_width, codes.codebook_size),
            "embed": nn.Embedding(codes.codebook_size, codes.code_dim),
            "align": nn.Linear(codes.code_dim, width),
            "align2": nn.Linear(width, width),
        }
    )


def _next_embedding(head: nn.ModuleDict, hidden_RD: Tensor) -> Tensor:
    """Guided draw of one code per image and its embedding, `[R, 1, D]`."""
    gelu = nn.functional.gelu
    logits = head["head"](gelu(head["up"](hidden_RD))).float()
    conditional, unconditional = logits.chunk(2)
    guided = guide(conditional, unconditional, _GUIDANCE_SCALE)
    tokens = torch.multinomial(guided.softmax(-1), 1)[:, 0].repeat(2)
    return head["align2"](gelu(head["align"](head["embed"](tokens))))[:, None]


def janus_settings(transformers: Any, config: JanusConfig) -> Any:
    """transformers' config of a model of these sizes."""
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


def _bench_janus(work: PeerWork) -> None:
    """`generate` in image mode: whole images where ours are, else steps.

    A step is the difference between a longer and a shorter run, so that the prompt does not count.
    """
    bench, amount, codes = work.bench, work.amount, work.config.num_codes
    model = random_peer(
        work, work.transformers.JanusForConditionalGeneration, janus_settings(work.transformers, work.config)
    )
    generate = _janus_generate(work, model)

    def whole() -> None:
        for row in generate(codes):
            model.decode_image_tokens(row[None])

    if amount.whole:
        plural = "s" if work.batch > 1 else ""
        bench.measure(
            "transformers Janus",
            f"{work.batch} whole picture{plural}, guidance {_GUIDANCE_SCALE:g}",
            whole,
            repeats=1,
            items=work.batch,
            unit=" pictures/s",
            limit=work.limit * codes,
            note=work.version,
        )
        return
    shorter = bench.time(lambda: generate(1), repeats=amount.repeats)
    longer = bench.time(lambda: generate(1 + amount.steps), repeats=amount.repeats)
    bench.add(
        "transformers Janus",
        f"painting, a step of {work.rows} rows",
        [(b - a) / amount.steps for a, b in zip(shorter, longer, strict=True)],
        items=work.batch,
        unit=" tokens/s",
        limit=work.limit,
        note=f"{work.version}, {amount.steps} steps of generate",
    )


def _janus_generate(work: PeerWork, model: Any) -> Callable[[int], Tensor]:
    """A function from a number of image tokens to the generated codes `[B, tokens]`."""
    ids = torch.full((work.batch, PROMPT), _PAD + 1, device=work.bench.device)
    options = work.transformers.GenerationConfig(
        do_sample=True,
        guidance_scale=_GUIDANCE_SCALE,
        bos_token_id=_BOS,
        pad_token_id=_PAD,
        max_length=PROMPT + work.config.num_codes,
        generation_kwargs={"boi_token_id": _BOI},
    )

    def generate(tokens: int) -> Tensor:
        model.model.vision_model.config.num_image_tokens = tokens
        return model.generate(
            inputs=ids,
            attention_mask=torch.ones_like(ids),
            generation_mode="image",
            generation_config=options,
        )

    return generate
