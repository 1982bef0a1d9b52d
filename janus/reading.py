"""Reading: conversations with pictures to text.

B conversations, T prompt tokens, A answer tokens, D decoder width, N pictures, P tokens of a picture.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..blocks.generation import check_context, generate
from ..blocks.sampling import sample
from ..tokenizers.text import StreamDecoder, TextTokenizer
from .model import JanusModel
from .options import AnswerOptions
from .processor import Prepared


def embed_prompt(model: JanusModel, prepared: Prepared) -> Tensor:
    """Text embeddings `[T, D]` with the pictures' embeddings in the places that the mask marks."""
    weight = model.decoder.embed_tokens.weight
    x_TD = model.embed_text(prepared.ids.to(weight.device))
    if len(prepared.pixels):
        pixels = prepared.pixels.to(weight.device, weight.dtype)
        x_TD[prepared.image_mask.to(weight.device)] = model.embed_pictures(pixels).flatten(0, 1)
    return x_TD


@torch.no_grad()
def answer_steps(
    model: JanusModel,
    conversations: Sequence[Prepared],
    options: AnswerOptions,
    seeds: Sequence[int],
    eos_id: int,
) -> Iterator[list[int | None]]:
    """Yield the next token of every conversation, None for those that have ended, until all have."""
    longest = max(len(prepared.ids) for prepared in conversations)
    check_context(longest, options.max_new_tokens, model.config.decoder.max_positions)
    rows = [embed_prompt(model, prepared) for prepared in conversations]
    seeds_B = torch.tensor(seeds, dtype=torch.long, device=rows[0].device)

    def choose(hidden: Tensor, step: int) -> Tensor:
        steps_B = torch.full_like(seeds_B, step)
        return sample(model.text_logits(hidden), options.sampling, seeds_B, steps_B)

    ended = [False] * len(rows)
    for tokens in generate(model.decoder, rows, choose, model.embed_text, options.max_new_tokens):
        step: list[int | None] = []
        for row, token in enumerate(tokens.tolist()):
            ended[row] = ended[row] or token == eos_id
            step.append(None if ended[row] else token)
        if all(ended):
            return
        yield step


def answers(
    model: JanusModel,
    tokenizer: TextTokenizer,
    conversations: Sequence[Prepared],
    options: AnswerOptions,
    seeds: Sequence[int],
) -> list[str]:
    """The whole answer to each conversation, stripped of the space that the template leaves to it."""
    ids: list[list[int]] = [[] for _ in conversations]
    for step in answer_steps(model, conversations, options, seeds, tokenizer.eos_id):
        for row, token in zip(ids, step, strict=True):
            if token is not None:
                row.append(token)
    return [tokenizer.decode(row).strip() for row in ids]


def stream_answer(
    model: JanusModel, tokenizer: TextTokenizer, prepared: Prepared, options: AnswerOptions, seed: int
) -> Iterator[str]:
    """Pieces of one answer as they are written; together they are what `answers` returns, bar its last strip."""
    decoder, started = StreamDecoder(tokenizer), False
    steps = answer_steps(model, [prepared], options, [seed], tokenizer.eos_id)
    pieces = (decoder.push(step[0]) for step in steps if step[0] is not None)
    for source in (pieces, (decoder.flush() for _ in range(1))):
        for piece in source:
            piece = piece if started else piece.lstrip()
            started = started or bool(piece)
            if piece:
                yield piece


@torch.no_grad()
def last_logits(model: JanusModel, prepared: Prepared) -> Tensor:
    """Logits of the text head at the last prompt position, float32 `[vocabulary]`."""
    check_context(len(prepared.ids), 0, model.config.decoder.max_positions)
    hidden = model.decoder(embed_prompt(model, prepared)[None])[0, -1]
    return model.text_logits(hidden).float().cpu()


@torch.no_grad()
def score_answer(model: JanusModel, prepared: Prepared, answer_A: Tensor) -> Tensor:
    """Log-probability of each answer token after the prompt, float32 `[A]`."""
    answer = answer_A.to(model.decoder.embed_tokens.weight.device)
    check_context(len(prepared.ids), len(answer), model.config.decoder.max_positions)
    inputs = torch.cat((embed_prompt(model, prepared), model.embed_text(answer[:-1])))
    hidden = model.decoder(inputs[None])[0, len(prepared.ids) - 1 :]
    scores = model.text_logits(hidden).float().log_softmax(-1)
    return scores.gather(1, answer[:, None])[:, 0].cpu()
