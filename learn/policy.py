"""What a model draws, by the engine, and the log-probabilities of that under the model and its reference.

P prompts, G samples of each, T image tokens of a picture, N tokens of several samples one after another.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..blocks.chat.text_generation import TextGenerationOptions, generate_ids
from ..blocks.device import check_finite, inference_on
from ..blocks.engine.runners import MAX_ROWS
from ..blocks.engine.scheduler import Scheduler
from ..blocks.graphs.cuda_graphs import uses_cuda_graphs
from ..blocks.sampling.request import SamplingParams
from ..text.pipeline import TextPipeline
from ..text.prompts import THINK
from ..tokenizers.vq.model import to_uint8
from .examples import Example, PaintExample, ReadExample
from .grpo_loss import drawn_from, kept_tokens, log_probabilities
from .losses import Batch, TrainingModel, collate
from .reference import Reference, logits_of
from .reward import Prompt

PICTURES_AT_ONCE = 16
"""Pictures that are decoded together."""


@dataclass(frozen=True)
class Samples:
    """`count` samples of each of some prompts, prompt-major: what is learned from, and what is rewarded (PIL
    pictures, or answers)."""

    count: int
    examples: list[Example]
    outputs: list[Any]


def paint(pipe: Any, prompts: Sequence[Prompt], seeds: Sequence[int], sampling: SamplingParams) -> Samples:
    """Pictures of prompts, one for each seed."""
    texts, count = [prompt["prompt"] for prompt in prompts], len(seeds) // len(prompts)
    codes_NT = pipe.generate(
        texts,
        count,
        seeds,
        1.0 if sampling.guidance_scale is None else sampling.guidance_scale,
        sampling.temperature,
        sampling.top_k,
        sampling.top_p,
        output_type="codes",
        progress=False,
    )
    ids = [pipe.processor.generation_ids(text)[0] for text in texts]
    examples = [PaintExample(ids[number // count], codes) for number, codes in enumerate(codes_NT)]
    return Samples(count, list(examples), decode(pipe, codes_NT))


def decode(pipe: Any, codes_NT: Tensor) -> list[Image.Image]:
    """The pictures of codes, several at once: quicker than `decode_codes`, and not always the same bits."""
    model, decoder = pipe.model, pipe.model.decoder
    with inference_on(pipe.device, decoder):
        parts = [model.decode_codes(part) for part in codes_NT.to(pipe.device).split(PICTURES_AT_ONCE)]
        pixels = check_finite(torch.cat(parts), "the image's pixels", decoder.dtype)
        return list(map(Image.fromarray, to_uint8(pixels).cpu().numpy()))


def answer(
    pipe: Any, prompts: Sequence[Prompt], seeds: Sequence[int], sampling: SamplingParams, max_new_tokens: int
) -> Samples:
    """Answers to conversations, one for each seed. The end token is learned where an answer has ended.

    What is rewarded begins with `<think>` where the prompt has opened a thought.
    """
    count = len(seeds) // len(prompts)
    options = TextGenerationOptions(
        max_new_tokens, sampling.temperature, sampling.top_p, top_k=sampling.top_k
    )
    inputs = [pipe.processor.chat_inputs(prompt["messages"]) for prompt in prompts for _ in range(count)]
    tokenizer = pipe.tokenizer
    with inference_on(pipe.device, pipe.model.decoder):
        embedded = pipe.model.embed_prompts(inputs[::count])
        rows = [prompt for prompt in embedded for _ in range(count)]
        answers = generate_ids(pipe.model, rows, options, seeds, tokenizer.eos_id)
    examples: list[Example] = []
    for one, ids in zip(inputs, answers, strict=True):
        drawn = torch.tensor([*ids, *([tokenizer.eos_id] if len(ids) < max_new_tokens else [])])
        learned = torch.cat((torch.zeros(len(one.ids)), torch.ones(len(drawn)))).bool()
        mask = torch.cat((one.image_mask, torch.zeros(len(drawn), dtype=torch.bool)))
        whole = replace(one, ids=torch.cat((one.ids, drawn)), image_mask=mask)
        examples.append(ReadExample(whole, learned))
    texts = [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in answers]
    if isinstance(pipe, TextPipeline):
        opened = [pipe.processor.in_thought(one.ids.tolist()) for one in inputs]
        texts = [f"{THINK}\n{text}" if o else text for text, o in zip(texts, opened, strict=True)]
    return Samples(count, examples, texts)


def uses_more_rows(pipe: Any, rows: int) -> bool:
    """Whether the engine would run fewer rows at once by its graphs."""
    return uses_cuda_graphs(pipe.model.decoder) and rows > MAX_ROWS


def make_room(pipe: Any, rows: int, positions: int) -> None:
    """Let the engine run that many rows of positions at once, as far as half of the free memory goes."""
    decoder = pipe.model.decoder
    rows += rows // 6  # pictures don't get an eighth of them
    decoder.scheduler = Scheduler(decoder, rows=rows, context=positions, sharing=2)


class Policy:
    """Log-probabilities of samples under a model in training, and under its `reference`.

    With `conditional` log-probabilities are those of the conditional row alone, not of the guided
    distribution that samples are drawn from.
    """

    reference: Reference

    def __init__(self, pipe: Any, sampling: SamplingParams, conditional: bool = False) -> None:
        self.pipe, self.model = pipe, TrainingModel(pipe.model)
        self.sampling = replace(sampling, guidance_scale=None) if conditional else sampling

    def log_probs(self, examples: Sequence[Example], with_reference: bool) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities `[N]` of the samples' tokens, and those under the reference.

        Both are among the tokens that the model's own filters keep.
        """
        logits_NV, tokens_N = self._logits(partial(logits_of, self.model), examples)
        kept_NV = kept_tokens(logits_NV, tokens_N, self.sampling)
        found_N = log_probabilities(logits_NV, tokens_N, kept_NV)
        if not with_reference:
            return found_N, None
        with torch.no_grad():
            logits_NV, _ = self._logits(self.reference.logits, examples)
            return found_N, log_probabilities(logits_NV, tokens_N, kept_NV)

    def _logits(
        self, logits: Callable[[Batch], tuple[Tensor, Tensor]], examples: Sequence[Example]
    ) -> tuple[Tensor, Tensor]:
        uncond_NV = None
        if self.sampling.guidance_scale is not None:
            with torch.no_grad():
                uncond_NV = logits(self._batch(examples, dropped=True))[0]
        cond_NV, tokens_N = logits(self._batch(examples, dropped=False))
        return drawn_from(cond_NV, uncond_NV, self.sampling), tokens_N

    def _batch(self, examples: Sequence[Example], dropped: bool) -> Batch:
        return collate(examples, getattr(self.pipe.processor, "pad_id", 0), [dropped] * len(examples))
