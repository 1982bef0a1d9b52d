"""`CompletionPipeline`: what every pipeline does with plain texts, which it goes on from."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal, Unpack, overload

import torch

from ..blocks.chat.pipeline import ChatPipeline
from ..blocks.chat.text_generation import (
    MoreTextOptions,
    TextGenerationOptions,
    generate_ids,
    resolve_seed,
    stream_text,
)
from ..blocks.device import inference
from ..blocks.errors import PromptError
from ..blocks.sampling.request import check_context


class CompletionPipeline(ChatPipeline):
    """A `ChatPipeline` that also goes on from texts without the form of a conversation."""

    def plain_inputs(self, ids: Sequence[int]) -> Any:
        """What the model's `embed_prompts` takes for the token ids of a text without pictures. Raises
        `PromptError`."""
        rows, mark = self.model.decoder.config.vocab_size, self.processor.image_token
        if not ids:
            raise PromptError("it is empty; accepted: at least one token")
        if max(ids) >= rows:
            raise PromptError(f"it has the token {max(ids)}; the model has {rows:,}")
        if self.processor.image_id in ids:
            raise PromptError(f"it has the mark {mark}; pictures are for chats (/v1/chat/completions)")
        mask = torch.zeros(len(ids), dtype=torch.bool)
        return replace(self._text_inputs(), ids=torch.tensor(ids), image_mask=mask, continues=True)

    def _text_inputs(self) -> Any:
        """The inputs of any text without pictures."""
        return self.processor.chat_inputs([{"role": "user", "content": "x"}])

    @overload
    def complete(
        self, prompt: str, max_new_tokens: int = ..., temperature: float | None = ...,
        top_p: float | None = ..., seed: int | None = ..., stream: Literal[False] = ...,
        **options: Unpack[MoreTextOptions],
    ) -> str: ...  # fmt: skip

    @overload
    def complete(
        self, prompt: str, max_new_tokens: int = ..., temperature: float | None = ...,
        top_p: float | None = ..., seed: int | None = ..., *, stream: Literal[True],
        **options: Unpack[MoreTextOptions],
    ) -> Iterator[str]: ...  # fmt: skip

    @inference
    def complete(
        self,
        prompt: str,
        max_new_tokens: int = TextGenerationOptions.max_new_tokens,
        temperature: float | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        stream: bool = False,
        **options: Unpack[MoreTextOptions],
    ) -> str | Iterator[str]:
        """The text that follows a prompt, as it is: no template, special tokens in the prompt count.

        Arguments are those of `chat`; `temperature` and `top_p` of None are the folder's own. Raises
        `PromptError` if the prompt is empty, has the mark of a picture or is too long, and `OptionError`.
        """
        if not isinstance(prompt, str) or not prompt:
            raise PromptError(f"the prompt is {prompt!r}; accepted: a text that is not empty")
        sampling = (
            self.temperature if temperature is None else temperature,
            self.top_p if top_p is None else top_p,
        )
        chosen = TextGenerationOptions.of(max_new_tokens, *sampling, **options)
        start, tokenizer, skip = resolve_seed(seed), self.tokenizer, not self.keeps_special_tokens
        inputs = self.plain_inputs(tokenizer.encode(prompt))
        check_context(len(inputs.ids), chosen.max_new_tokens, self.model.decoder.config.max_positions)
        self.warn_of_unknown_words([prompt], "reading")
        prompts = self.model.embed_prompts([inputs])
        if stream:
            return stream_text(self.model, tokenizer, prompts[0], chosen, start, skip)
        (answer,) = generate_ids(self.model, prompts, chosen, [start], tokenizer.eos_id, tokenizer.vocabulary)
        return tokenizer.decode(answer, skip)
