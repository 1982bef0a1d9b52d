"""`bench_training`: how fast a model of a released size is fine-tuned to paint, beside the card's peak and
the same work by transformers and PEFT, all with random weights.

FLOPs of a token: 6 N + 6 L T D in full and 4 N + 6 L T D for LoRA, whose frozen weights need no gradient; N
weights of the decoder's layers and the image head, L layers, T positions of a row (attention is causal: half
of T squared), D decoder width. Recomputation is not counted.

R rows of a step, P positions of a prompt.
"""

import gc
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...blocks.device import release_cached_memory, resolve_dtype
from ...blocks.errors import OptionError, check_integer
from ...janus.config import JanusConfig
from ...learn.adapters import LoraOptions
from ...learn.distributed import world
from ...learn.examples import PaintExample
from ...learn.sft import SftOptions, SftRun
from ..optional_packages import quiet
from .configs import pick_config
from .measure import Bench, Line, machine
from .peers import PeerWork, janus_settings, random_peer
from .pipelines import random_pipeline
from .workloads import Amount

PEAKS = {"H100": 989e12, "H200": 989e12, "GH200": 989e12, "A100": 312e12, "B200": 2250e12, "L40S": 362e12}
"""Dense bfloat16 FLOP/s of cards, by NVIDIA's datasheets."""
PROMPT = 32
MODES = ("full", "lora")
DEFAULT_ROWS = {("1b", "full"): 16, ("1b", "lora"): 16, ("7b", "full"): 8, ("7b", "lora"): 8}
_STEPS = 4  # of a run


@dataclass(frozen=True)
class TrainBenchOptions:
    """What to measure: steps of `rows` rows on each process. `layers` None is all.

    Raises `OptionError` for a value outside its range.
    """

    size: str = "1b"
    mode: str = "full"
    rows: int | None = None
    layers: int | None = None
    repeats: int = 3
    recompute: bool = False
    peers: bool = False
    dtype: str | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise OptionError(f"mode is {self.mode!r}; accepted: {', '.join(MODES)}")
        if self.rows is not None:
            check_integer("rows", self.rows, 1, 4096)
        check_integer("repeats", self.repeats, low=1)
        if self.peers and world() > 1:
            raise OptionError("peers are measured on one process; accepted: no --peers with several")

    @property
    def rows_of_step(self) -> int:
        """Rows of a step on each process."""
        return self.rows or DEFAULT_ROWS.get((self.size, self.mode), 4)


@dataclass(frozen=True)
class Work:
    """What both sides measure."""

    bench: Bench
    options: TrainBenchOptions
    config: JanusConfig
    dtype: torch.dtype

    @property
    def positions(self) -> int:
        """Positions of a row: its prompt, and its codes but the last."""
        return PROMPT + self.config.num_codes - 1

    @property
    def flops(self) -> float:
        """FLOPs of a step on each process."""
        decoder, head = self.config.decoder, self.config.gen_head_width
        width, kv = decoder.hidden_size, decoder.num_kv_heads * decoder.head_dim
        attention = 2 * width * (decoder.num_heads * decoder.head_dim + kv)
        layers = decoder.num_layers * (attention + 3 * width * decoder.intermediate_size)
        weights = layers + width * head + head * self.config.vq.codebook_size
        factor = 6 if self.options.mode == "full" else 4
        a_token = factor * weights + 6 * decoder.num_layers * self.positions * width
        return a_token * self.options.rows_of_step * self.positions

    def measure(self, who: str, step: Callable[[], object], note: str) -> None:
        """Time steps, several in a run without a pause."""

        def run() -> None:
            for _ in range(_STEPS):
                step()

        times = [seconds / _STEPS for seconds in self.bench.time(run, repeats=self.options.repeats)]
        tokens = self.options.rows_of_step * self.positions * world()
        if (peak := peak_flops(self.bench.device)) is not None:
            share = self.flops / sorted(times)[len(times) // 2] / peak
            note += f"; {share:.1%} of the card's {peak / 1e12:,.0f} TFLOP/s in bfloat16"
        work = f"{self.options.size} {self.options.mode}, a step of {tokens:,} tokens"
        self.bench.add(who, work, times, items=tokens, unit=" tokens/s", limit=None, note=note)


def peak_flops(device: torch.device) -> float | None:
    """Dense bfloat16 FLOP/s of a card by its datasheet, None if it isn't known."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((peak for card, peak in PEAKS.items() if card in name), None)


def bench_training(
    options: TrainBenchOptions, device: torch.device, on_line: Callable[[Line], object]
) -> dict[str, Any]:
    """Measure; `on_line` gets each line when it is there. Returns everything, ready for JSON."""
    config = pick_config("janus", options.size, options.layers)
    assert isinstance(config, JanusConfig)
    work = Work(Bench(device, on_line), options, config, resolve_dtype(options.dtype, device))
    report: dict[str, Any] = {"machine": machine(device), "options": vars(options), "processes": world()}
    _bench_ours(work)
    if options.peers:
        gc.collect()
        release_cached_memory(device)
        _bench_peer(work)
        ours, peer = work.bench.lines
        report["times_faster"] = round(peer.seconds / ours.seconds, 2)
    report["lines"] = [line.as_json() for line in work.bench.lines]
    return report


def _bench_ours(work: Work) -> None:
    options, config = work.options, work.config
    pipe = random_pipeline(config, work.bench.device, work.dtype, None)
    ids_RP, codes_RT = _rows(work)
    examples: Any = [PaintExample(ids, codes) for ids, codes in zip(ids_RP, codes_RT, strict=True)]
    lora = LoraOptions() if options.mode == "lora" else None
    rows, steps = options.rows_of_step, (options.repeats + 1) * _STEPS
    chosen = SftOptions(
        steps, rows * world(), rows, unconditional=0.0, lora=lora, recompute=options.recompute
    )
    with tempfile.TemporaryDirectory() as folder:
        run = SftRun(pipe, [examples], [1.0], chosen, Path(folder))
        note = "all weights in float32" if lora is None else f"LoRA of rank {lora.rank}"
        work.measure("bifrons", lambda: run.take_step(run.batches(run.step)), note)


def _bench_peer(work: Work) -> None:
    """transformers' Janus as its users train it: weights in float32 under autocast, or PEFT's LoRA on those
    in `dtype`, SDPA, fused AdamW."""
    import transformers  # takes seconds: only here

    with quiet(transformers):
        step = _peer_step(work, transformers)
        import peft

        lora = work.options.mode == "lora"
        note = f"transformers {transformers.__version__}" + (f", PEFT {peft.__version__}" if lora else "")
        work.measure("transformers", step, note)


def _peer_step(work: Work, transformers: Any) -> Callable[[], None]:
    from peft import LoraConfig, get_peft_model

    options, device = work.options, work.bench.device
    is_full = options.mode == "full"
    dtype = torch.float32 if is_full else work.dtype
    needs = PeerWork(work.bench, transformers, work.config, dtype, 1, 0.0, Amount(1, 1, False))
    settings = janus_settings(transformers, work.config)
    settings._attn_implementation = "sdpa"
    model = random_peer(needs, transformers.JanusForConditionalGeneration, settings)
    model.train().requires_grad_(False)
    language = model.model.language_model
    if options.recompute:
        language.gradient_checkpointing_enable({"use_reentrant": False})
    if is_full:
        for part in (language, model.model.generation_embeddings, model.model.generation_aligner):
            part.requires_grad_(True)
        model.model.generation_head.requires_grad_(True)
    else:
        targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # PEFT calls transformers
            language = get_peft_model(language, LoraConfig(r=16, lora_alpha=32, target_modules=targets))
    trained = [p for p in (*model.parameters(), *language.parameters()) if p.requires_grad]
    trained = list(dict.fromkeys(trained))
    is_cuda = device.type == "cuda"
    optimizer = torch.optim.AdamW(trained, lr=2e-5, betas=(0.9, 0.95), weight_decay=0.05, fused=is_cuda)
    ids_RP, codes_RT = (rows.to(device) for rows in _rows(work))

    def step() -> None:
        with torch.autocast(device.type, work.dtype, enabled=work.dtype != torch.float32):
            embedded = model.prepare_embeddings_for_image_generation(codes_RT[:, :-1])
            inputs = torch.cat((model.get_input_embeddings()(ids_RP), embedded), dim=1)
            hidden = language(inputs_embeds=inputs, use_cache=False).last_hidden_state[:, PROMPT - 1 :]
            logits = model.model.generation_head(hidden)
            loss = F.cross_entropy(logits.float().flatten(0, 1), codes_RT.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _rows(work: Work) -> tuple[Tensor, Tensor]:
    """Prompts `[R, P]` and codes `[R, T]`, random."""
    rows, generator = work.options.rows_of_step, torch.Generator().manual_seed(0)
    ids = torch.randint(4, work.config.decoder.vocab_size, (rows, PROMPT), generator=generator)
    shape = (rows, work.config.num_codes)
    return ids, torch.randint(0, work.config.vq.codebook_size, shape, generator=generator)
