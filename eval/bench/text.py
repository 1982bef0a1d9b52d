"""What is measured of text models: steps and first tokens of answers, and transformers' loop beside them."""

import gc
from typing import Any

import torch
from torch import nn

from ...blocks.chat.text_generation import text_head
from ...blocks.device import release_cached_memory
from ...blocks.engine.generate import Sequences
from ...blocks.json_config import Section
from ...blocks.sampling.request import SamplingParams
from ...text.config import parse_config
from ...text.model import TextModel
from ..optional_packages import quiet
from .configs import fill_random
from .measure import Bench, step_bytes
from .peers import uninitialized
from .windows import bench_drafts
from .workloads import Amount, bench_answers

PROMPT = 128
"""Tokens of a prompt."""


def _head(model: TextModel) -> nn.Module:
    return model.decoder.embed_tokens if model.lm_head is None else model.lm_head


@torch.no_grad()
def bench_text(bench: Bench, model: TextModel, batch: int, bandwidth: float, amount: Amount) -> None:
    """Measure a text model: steps of answers, what drafts cost, and first tokens."""
    decoder = model.decoder
    line = bench_answers(bench, model, _head(model), batch, PROMPT, bandwidth, amount)
    bench_drafts(bench, model, batch, PROMPT, line.seconds, amount.repeats)
    prompt = torch.randint(0, decoder.config.vocab_size, (PROMPT,), device=bench.device)

    def first() -> None:
        prompts = [[model.embed_text(prompt)] for _ in range(batch)]
        Sequences(text_head(model), prompts, SamplingParams(0.0), range(batch), 1).run_all(decoder)

    work = f"first token, {batch} prompt{'s' if batch > 1 else ''} of {PROMPT} tokens"
    # Prompts of a length are captured the second time they come up.
    bench.measure("bifrons", work, first, repeats=max(2, amount.repeats // 2), warmup=2)


@torch.no_grad()
def bench_text_peer(
    bench: Bench,
    settings: dict[str, Any],
    layers: int | None,
    dtype: torch.dtype,
    batch: int,
    bandwidth: float,
    amount: Amount,
) -> None:
    """Measure the same steps by a plain loop around transformers' model with its cache: the likeliest token
    goes in again."""
    import transformers  # takes seconds: only here

    gc.collect()
    release_cached_memory(bench.device)
    given = {**settings, **({} if layers is None else {"num_hidden_layers": layers})}
    with quiet(transformers):
        config = transformers.AutoConfig.for_model(**given)
        with uninitialized(bench.device, dtype):
            model: Any = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    fill_random(model, bench.device, dtype, {name: buffer.dtype for name, buffer in buffers.items()})
    for name, buffer in buffers.items():
        model.get_buffer(name).copy_(buffer)
    model.eval()
    ids = torch.randint(0, config.vocab_size, (batch, PROMPT), device=bench.device)
    state: dict[str, Any] = {}

    def start() -> None:
        state["cache"] = transformers.DynamicCache(config=config)
        state["token"] = model(ids, past_key_values=state["cache"]).logits[:, -1:].argmax(-1)

    def steps() -> None:
        for _ in range(amount.steps):
            state["token"] = model(state["token"], past_key_values=state["cache"]).logits.argmax(-1)

    with torch.device("meta"):  # of plain weights, which the peer reads
        plain = TextModel(parse_config(Section(given, "config"))).to(dtype)
    slots = PROMPT + amount.steps / 2
    limit = step_bytes(plain.decoder, [_head(plain)], batch, slots) / bandwidth
    times = []
    for _ in range(1 + amount.repeats):
        start()
        times += [bench.time(steps, repeats=1, warmup=0)[0] / amount.steps]
    work = f"answering, a step of {batch} conversation{'s' if batch > 1 else ''}"
    note = f"{type(model).__name__} of transformers {transformers.__version__}, {amount.steps} steps a run"
    bench.add("transformers loop", work, times[1:], items=batch, unit=" tokens/s", limit=limit, note=note)
