"""`ChatPipeline`: the methods that the pipelines of both families share: text from conversations."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ...tokenizers.text import TextTokenizer
from ..engine.sampling_params import check_integer
from ..errors import PromptError
from .image_io import as_image_list
from .text_generation import (
    ChatModel,
    Prompt,
    TextGenerationOptions,
    generate_texts,
    next_token_logits,
    resolve_seed,
    score_answer_ids,
    stream_text,
)

Messages = list[dict[str, Any]]


class ChatPipeline(ABC):
    """Answers about pictures. A family says how a conversation becomes a `Prompt`, and the rest follows.

    `temperature=0` is greedy. `repetition_penalty` above 1 makes tokens that were there before less likely,
    those of the prompt included. `prefill_chunk` bounds how many positions of a prompt are computed at once,
    which saves memory and changes nothing else.
    """

    model: ChatModel
    tokenizer: TextTokenizer
    keeps_special_tokens: bool = False
    """Whether answers show special tokens, because they mean something there (boxes)."""

    @property
    @abstractmethod
    def image_placeholder(self) -> str:
        """What stands for a picture in a text."""

    @abstractmethod
    def prompts(
        self, conversations: Sequence[Messages], room: int, *, local_files: bool = True
    ) -> list[Prompt]:
        """Conversations as the model reads them. `PromptError` where less than `room` tokens are left."""

    def question(self, images: Any, text: str) -> Messages:
        """The conversation of `ask`: for each picture a mark and a newline, then the text."""
        if not isinstance(text, str) or not text.strip():
            raise PromptError(f"the question is {text!r}; accepted: a text that is not empty")
        if self.image_placeholder in text:
            raise PromptError(
                f"the question holds {self.image_placeholder}; `ask` writes one per picture itself"
            )
        pictures = as_image_list(images)
        content = f"{self.image_placeholder}\n" * len(pictures) + text
        return [{"role": "user", "content": content, "images": pictures}]

    def ask(
        self,
        images: Any,
        question: str,
        max_new_tokens: int = TextGenerationOptions.max_new_tokens,
        temperature: float = TextGenerationOptions.temperature,
        top_p: float = TextGenerationOptions.top_p,
        seed: int | None = None,
        stream: bool = False,
        *,
        repetition_penalty: float = TextGenerationOptions.repetition_penalty,
        prefill_chunk: int | None = None,
    ) -> str | Iterator[str]:
        """Answer a question about one picture or a list (paths, PIL pictures, bytes); none is allowed too.

        Returns the text, or with `stream` an iterator over its pieces.
        """
        return self.chat(
            self.question(images, question),
            max_new_tokens,
            temperature,
            top_p,
            seed,
            stream,
            repetition_penalty=repetition_penalty,
            prefill_chunk=prefill_chunk,
        )

    def chat(
        self,
        messages: Messages,
        max_new_tokens: int = TextGenerationOptions.max_new_tokens,
        temperature: float = TextGenerationOptions.temperature,
        top_p: float = TextGenerationOptions.top_p,
        seed: int | None = None,
        stream: bool = False,
        *,
        repetition_penalty: float = TextGenerationOptions.repetition_penalty,
        prefill_chunk: int | None = None,
        local_files: bool = True,
    ) -> str | Iterator[str]:
        """The assistant's next message in a conversation, in OpenAI's or the official form of messages.

        With `local_files` false, messages name no files of this machine: for requests from a network.
        """
        options = TextGenerationOptions(max_new_tokens, temperature, top_p, repetition_penalty)
        start, chunk = resolve_seed(seed), check_chunk(prefill_chunk)
        prompts = self.prompts([messages], options.max_new_tokens, local_files=local_files)
        skip = not self.keeps_special_tokens
        if stream:
            return stream_text(
                self.model,
                self.tokenizer,
                prompts[0],
                options,
                start,
                skip_special_tokens=skip,
                prefill_chunk=chunk,
            )
        return generate_texts(
            self.model,
            self.tokenizer,
            prompts,
            options,
            [start],
            skip_special_tokens=skip,
            prefill_chunk=chunk,
        )[0]

    def chat_batch(
        self,
        conversations: Sequence[Messages],
        max_new_tokens: int = TextGenerationOptions.max_new_tokens,
        temperature: float = TextGenerationOptions.temperature,
        top_p: float = TextGenerationOptions.top_p,
        seed: int | None = None,
        *,
        repetition_penalty: float = TextGenerationOptions.repetition_penalty,
        prefill_chunk: int | None = None,
        local_files: bool = True,
    ) -> list[str]:
        """`chat` for several conversations in one batch; each gives what it gives alone with that seed."""
        options = TextGenerationOptions(max_new_tokens, temperature, top_p, repetition_penalty)
        chunk = check_chunk(prefill_chunk)
        prompts = self.prompts(conversations, options.max_new_tokens, local_files=local_files)
        if not prompts:
            return []
        seeds = [resolve_seed(seed) for _ in prompts]
        return generate_texts(
            self.model,
            self.tokenizer,
            prompts,
            options,
            seeds,
            skip_special_tokens=not self.keeps_special_tokens,
            prefill_chunk=chunk,
        )

    def next_logits(self, messages: Messages, *, prefill_chunk: int | None = None) -> Tensor:
        """Logits of the text head at the last prompt position, float32 `[vocabulary]`."""
        chunk = check_chunk(prefill_chunk)
        return next_token_logits(self.model, self.prompts([messages], 0)[0], chunk)

    def score_text(self, messages: Messages, answer: str) -> Tensor:
        """Log-probability of each token of `answer`, tokenised as it is, after the prompt: float32 `[T]`."""
        if not isinstance(answer, str) or not answer:
            raise PromptError(f"the answer is {answer!r}; accepted: a text that is not empty")
        ids = torch.tensor(self.tokenizer.encode(answer, bos=False))
        return score_answer_ids(self.model, self.prompts([messages], len(ids))[0], ids)


def check_chunk(prefill_chunk: int | None) -> int | None:
    return None if prefill_chunk is None else check_integer("prefill_chunk", prefill_chunk, low=1)
