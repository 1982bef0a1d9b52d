"""`ChatPipeline`: the methods that the pipelines of both families share, from conversations to answers."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, Protocol, Unpack, overload

import torch
from torch import Tensor

from ...tokenizers.text import TextTokenizer
from ..device import inference
from ..errors import PromptError
from ..image_fit import Fit
from ..image_io import ReadOptions
from ..image_source import as_image_list
from ..placement.loaded_pipeline import LoadedPipeline
from ..sampling.request import check_context
from ..special_tokens import PlainText, leading_space
from ..vocabulary import last_question
from .text_generation import (
    ChatModel,
    MoreTextOptions,
    Prompt,
    TextGenerationOptions,
    check_prefill_chunk,
    generate_ids,
    next_token_logits,
    resolve_seed,
    score_tokens,
    stream_text,
    text_head,
)

Messages = list[dict[str, Any]]
"""A conversation, in OpenAI's or the official form: see `blocks.chat.messages`."""


class ChatProcessor(Protocol):
    """The part of a family's processor that a pipeline uses."""

    image_token: str
    """The token that stands for an image in a text."""
    image_id: int

    def fit(self, num_images: int) -> Fit:
        """What fits an image of a conversation of `num_images` to the model; it can be pickled."""
        ...

    def chat_inputs(self, messages: Any, *, local_files: bool = True, exif: str = "apply") -> Any:
        """A conversation in the form that the model's `embed_prompts` takes, with token `ids` `[T]`."""
        ...


class ChatPipeline(LoadedPipeline):
    """Answers in conversations about images: a model with its tokenizer and processor.

    `name` is the path, hub id or embedded name that the model was loaded by.
    """

    model: ChatModel
    processor: ChatProcessor
    keeps_special_tokens = False
    """Whether answers include special tokens, which may carry meaning (boxes)."""
    temperature, top_p = TextGenerationOptions.temperature, TextGenerationOptions.top_p
    """What commands and the server sample with if they are told nothing."""

    def __init__(
        self, model: ChatModel, tokenizer: TextTokenizer, processor: ChatProcessor, name: str
    ) -> None:
        self.model, self.tokenizer, self.processor, self.name = model, tokenizer, processor, name

    @inference
    def prompts(
        self, conversations: Sequence[Messages], max_new_tokens: int, **reading: Unpack[ReadOptions]
    ) -> list[Prompt]:
        """Conversations as embedded prompts. Raises `PromptError` if `max_new_tokens` don't fit after one."""
        inputs = [self.processor.chat_inputs(messages, **reading) for messages in conversations]
        for one in inputs:
            check_context(len(one.ids), max_new_tokens, self.model.decoder.config.max_positions)
        return self.model.embed_prompts(inputs)

    def question_messages(self, images: Any, question: str) -> Messages:
        """The conversation of `ask`: the images, then the question."""
        if not isinstance(question, str) or not question.strip():
            raise PromptError(f"the question is {question!r}; accepted: a text that is not empty")
        if question.startswith(f"{self.processor.image_token}\n"):
            token = self.processor.image_token
            raise PromptError(f"the question begins with {token}; `ask` writes one per picture itself")
        parts = [{"type": "image", "image": image} for image in as_image_list(images)]
        return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]

    @overload
    def ask(
        self, images: Any, question: str, max_new_tokens: int = ..., temperature: float = ...,
        top_p: float = ..., seed: int | None = ..., stream: Literal[False] = ..., *, exif: str = ...,
        **options: Unpack[MoreTextOptions],
    ) -> str: ...  # fmt: skip

    @overload
    def ask(
        self, images: Any, question: str, max_new_tokens: int = ..., temperature: float = ...,
        top_p: float = ..., seed: int | None = ..., *, stream: Literal[True], exif: str = ...,
        **options: Unpack[MoreTextOptions],
    ) -> Iterator[str]: ...  # fmt: skip

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
        exif: str = "apply",
        **options: Unpack[MoreTextOptions],
    ) -> str | Iterator[str]:
        """Answer a question about images.

        Args:
            images: an image, a list of images, or None; each a path, bytes, an open file, a `data:` URL,
                base64, a PIL image, an array or a tensor: see `bifrons.blocks.image_io.open_image`.
            question: the text. Image tokens are put before it; the names of special tokens in it are text.
            max_new_tokens, temperature, top_p, seed, stream, exif, options: as in `chat`.

        Returns:
            The answer, or with `stream` an iterator over its pieces.

        Raises:
            PromptError, PictureError, OptionError: as in `chat`.
        """
        messages = self.question_messages(images, question)
        return self.chat(
            messages, max_new_tokens, temperature, top_p, seed, stream=stream, exif=exif, **options
        )

    @overload
    def chat(
        self, messages: Messages, max_new_tokens: int = ..., temperature: float = ..., top_p: float = ...,
        seed: int | None = ..., stream: Literal[False] = ..., *, local_files: bool = ..., exif: str = ...,
        **options: Unpack[MoreTextOptions],
    ) -> str: ...  # fmt: skip

    @overload
    def chat(
        self, messages: Messages, max_new_tokens: int = ..., temperature: float = ..., top_p: float = ...,
        seed: int | None = ..., *, stream: Literal[True], local_files: bool = ..., exif: str = ...,
        **options: Unpack[MoreTextOptions],
    ) -> Iterator[str]: ...  # fmt: skip

    def chat(
        self,
        messages: Messages,
        max_new_tokens: int = TextGenerationOptions.max_new_tokens,
        temperature: float = TextGenerationOptions.temperature,
        top_p: float = TextGenerationOptions.top_p,
        seed: int | None = None,
        stream: bool = False,
        *,
        local_files: bool = True,
        exif: str = "apply",
        **options: Unpack[MoreTextOptions],
    ) -> str | Iterator[str]:
        """The assistant's next message in a conversation.

        Args:
            messages: the conversation, in OpenAI's or the official form of messages; see
                `bifrons.blocks.chat.messages`. From a last message of the assistant the answer goes on.
            max_new_tokens: the largest number of tokens in the answer.
            temperature: 0 is greedy.
            top_p: sample from the smallest set of most likely tokens with this total probability; 1 is all.
            seed: None is random. An answer depends on its seed, not on other conversations in a batch.
            stream: return an iterator over pieces of the answer.
            local_files: False refuses paths of local files as images: for messages from a network.
            exif: `apply` turns images upright as their EXIF says; `ignore` reads them as the reference does.
            json_schema: a dict, a JSON text or a pydantic model class; the answer is JSON that is valid
                against it, on one line. `choices`: the answer is one of these texts. `regex`: it matches this
                regular expression. Any other form is an `output_format`. An answer that `max_new_tokens`
                cuts off matches none.
            options: the other fields of `TextGenerationOptions`: `top_k`, `min_p`, `logit_bias`, penalties.

        Returns:
            The answer, or with `stream` an iterator over its pieces.

        Raises:
            PromptError: the conversation is malformed or too long for the context.
            PictureError: an image can't be read.
            OptionError: an option is outside its range, or an output format isn't supported.
        """
        limits = (max_new_tokens, temperature, top_p)
        reading = ReadOptions(local_files=local_files, exif=exif)
        if not stream:
            return self.chat_batch([messages], *limits, seed, **reading, **options)[0]
        chosen, start = TextGenerationOptions.of(*limits, **options), resolve_seed(seed)
        (prompt,) = self.prompts([messages], chosen.max_new_tokens, **reading)
        self.warn_of_unknown_words([last_question(messages)], "reading")
        return stream_text(self.model, self.tokenizer, prompt, chosen, start, not self.keeps_special_tokens)

    @inference
    def chat_batch(
        self,
        conversations: Sequence[Messages],
        max_new_tokens: int = TextGenerationOptions.max_new_tokens,
        temperature: float = TextGenerationOptions.temperature,
        top_p: float = TextGenerationOptions.top_p,
        seed: int | Sequence[int] | None = None,
        *,
        local_files: bool = True,
        exif: str = "apply",
        **options: Unpack[MoreTextOptions],
    ) -> list[str]:
        """`chat` for several conversations in one batch; each answer is that of `chat` with that seed, or its
        own of a list."""
        chosen = TextGenerationOptions.of(max_new_tokens, temperature, top_p, **options)
        tokenizer, given = self.tokenizer, seed if isinstance(seed, Sequence) else [seed] * len(conversations)
        seeds = [resolve_seed(own) for _, own in zip(conversations, given, strict=True)]
        prompts = self.prompts(conversations, chosen.max_new_tokens, local_files=local_files, exif=exif)
        if not prompts:
            return []
        self.warn_of_unknown_words(map(last_question, conversations), "reading")
        answers = generate_ids(self.model, prompts, chosen, seeds, tokenizer.eos_id, tokenizer.vocabulary)
        texts = [tokenizer.decode(ids, not self.keeps_special_tokens) for ids in answers]
        if chosen.output_format:
            return texts
        pairs = zip(texts, prompts, strict=True)
        return [text.rstrip() if prompt.continues else text.strip() for text, prompt in pairs]

    @inference
    def next_logits(
        self, messages: Messages, *, prefill_chunk: int | None = None, exif: str = "apply"
    ) -> Tensor:
        """Logits of the text head at the last prompt position, float32 `[vocabulary]` on the CPU.

        Arguments and errors are those of `chat`.
        """
        chunk = check_prefill_chunk(prefill_chunk)
        return next_token_logits(self.model, self.prompts([messages], 0, exif=exif)[0], chunk)

    @inference
    def score_text(self, messages: Messages, answer: str, *, exif: str = "apply") -> Tensor:
        """Log-probability of each token of an answer after a conversation, float32 `[T]` on the CPU.

        T tokens: `answer` is plain text, without a special token before or after it. `chat` leaves out the
        white space around an answer: where the model begins answers with it (Janus), it is put back, so that
        an answer scores as it was drawn. An answer that begins with white space is taken as it is. Raises
        `PromptError` if it is empty, and the errors of `chat` for `messages`.
        """
        if not isinstance(answer, str) or not answer:
            raise PromptError(f"the answer is {answer!r}; accepted: a text that is not empty")
        (prompt,) = self.prompts([messages], 0, exif=exif)
        if not prompt.continues and not answer[0].isspace():
            logits = next_token_logits(self.model, prompt)
            answer = leading_space(logits, self.tokenizer.decode) + answer
        ids = torch.tensor(self.tokenizer.encode(PlainText(answer), bos=False))
        return score_tokens(self.model.decoder, text_head(self.model), prompt.embeddings_TD, ids)
