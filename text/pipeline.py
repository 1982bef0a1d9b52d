"""`TextPipeline`: answers in conversations and goes on from texts."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, Unpack, overload

import torch
from torch import Tensor

from ..blocks.chat.pipeline import Messages
from ..blocks.chat.text_generation import MoreTextOptions, TextGenerationOptions
from ..blocks.checkpoints.hub import ModelFolder
from ..blocks.checkpoints.key_mapping import check_counts, without_parts
from ..blocks.checkpoints.reader import list_tensors
from ..blocks.device import plain_torch
from ..blocks.placement.arguments import open_pretrained, pick_dtype
from ..blocks.placement.auto_device_map import MaxMemory
from ..blocks.placement.device_map import DeviceMap
from ..blocks.placement.loaded_pipeline import Source
from ..blocks.placement.loading import LoadOptions, load_model
from ..blocks.placement.tensor_parallel import split_config
from ..blocks.structured_output import OutputFormat
from ..tokenizers.text import TextTokenizer
from .completion import CompletionPipeline
from .config import parse_config, read_sampling
from .model import TextModel
from .processor import TextProcessor, text_inputs
from .prompts import read_chat_format
from .thinking import ThoughtFormat, thought_format
from .weight_names import keep_float32, key_map, pick_key_map, stored_tensors


class TextOptions(MoreTextOptions, total=False):
    """The options of `chat` and `complete` that are given by name."""

    max_thinking_tokens: int | None


class TextPipeline(CompletionPipeline):
    """A text model of DeepSeek's family with its tokenizer. Load one with `from_pretrained`.

    A model that reasons answers with its thought, `</think>` and the answer: `split_thought` parts them.
    `temperature` and `top_p` of None are those of the folder's `generation_config.json`, else 0 and 1.
    """

    model: TextModel
    processor: TextProcessor
    keep_float32 = staticmethod(keep_float32)
    adapter_key_maps = (key_map,)

    @classmethod
    @plain_torch()
    def from_pretrained(
        cls,
        model: str | Path | ModelFolder,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        *,
        quantize: str | None = None,
        device_map: DeviceMap | None = None,
        max_memory: MaxMemory | None = None,
        capture: bool | None = None,
        progress: bool | None = None,
        tensor_parallel: int | None = None,
        revision: str | None = None,
        **more: Any,
    ) -> "TextPipeline":
        """Load a text model: `model_type` qwen2, llama, deepseek_v2 or deepseek_v3.

        Args:
            model: a model folder or a hub id (`deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B`).
            device, dtype, quantize, device_map, max_memory, capture, progress, tensor_parallel: where and how
                the weights are loaded, described in `bifrons.blocks.placement.device_map.LoadOptions`.
                Weights in blocks of fp8 (V3, R1) are dequantized, or with `quantize="fp8"` stay so.
            revision, more: as in `JanusPipeline.from_pretrained`.

        Raises:
            CheckpointError: the files are not a complete text model (ConfigError: their settings).
            OptionError: an argument is not accepted, or the weights exceed the free memory.
        """
        folder, more = open_pretrained(model, revision, more)
        config = parse_config(folder.config)
        entries = list_tensors(folder.path)
        config = parse_config(folder.config, entries)
        check_counts(entries, config.counts, folder.config.where)
        config, divided = split_config(config, tensor_parallel), tensor_parallel not in (None, 1)
        config = replace(config, predicts_ahead=config.predicts_ahead and not divided)
        with torch.device("meta"):
            network = TextModel(config)
        tokenizer = TextTokenizer.from_folder(folder.path, config.decoder.vocab_size)
        form = read_chat_format(folder.path, tokenizer, config.model_type)
        defaults = read_sampling(folder.path)
        dtype = pick_dtype(dtype, more, entries.values())
        where = (device, dtype, quantize, device_map, max_memory)
        options = LoadOptions(*where, capture, progress, tensor_parallel)
        names = pick_key_map(config.decoder.num_layers, config.tied)
        names = without_parts(names, ["ahead."] if divided else [])  # of which ranks hold no part
        load_model(network, folder, names, options, keep_float32=keep_float32, entries=entries)
        pipe = cls(network, tokenizer, TextProcessor(tokenizer, form, folder.name), folder.name)
        pipe.temperature, pipe.top_p = defaults
        pipe.source = Source(folder, {**asdict(options), "progress": False})
        return pipe

    @property
    def thinks(self) -> bool:
        """Whether answers begin with a thought, which their prompts open."""
        return self.processor.form is not None and self.processor.form.thinks

    def tensors_to_save(self, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The names and tensors in the files of a parameter."""
        return stored_tensors(name, tensor, self.model.config.decoder.num_layers)

    @overload
    def ask(
        self, images: Any, question: str, max_new_tokens: int = ..., temperature: float | None = ...,
        top_p: float | None = ..., seed: int | None = ..., stream: Literal[False] = ...,
        *, exif: str = ..., **options: Unpack[TextOptions],
    ) -> str: ...  # fmt: skip

    @overload
    def ask(
        self, images: Any, question: str, max_new_tokens: int = ..., temperature: float | None = ...,
        top_p: float | None = ..., seed: int | None = ..., *, stream: Literal[True], exif: str = ...,
        **options: Unpack[TextOptions],
    ) -> Iterator[str]: ...  # fmt: skip

    def ask(
        self,
        images: Any,
        question: str,
        max_new_tokens: int = TextGenerationOptions.max_new_tokens,
        temperature: float | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        stream: bool = False,
        *,
        exif: str = "apply",
        **options: Unpack[TextOptions],
    ) -> str | Iterator[str]:
        """`chat` with one question; `images` must be None or empty."""
        limits = (max_new_tokens, temperature, top_p, seed)
        messages = self.question_messages(images, question)
        if stream:
            return self.chat(messages, *limits, stream=True, **options)
        return self.chat(messages, *limits, **options)

    @overload
    def chat(
        self, messages: Messages, max_new_tokens: int = ..., temperature: float | None = ...,
        top_p: float | None = ..., seed: int | None = ..., stream: Literal[False] = ...,
        *, local_files: bool = ..., exif: str = ..., **options: Unpack[TextOptions],
    ) -> str: ...  # fmt: skip

    @overload
    def chat(
        self, messages: Messages, max_new_tokens: int = ..., temperature: float | None = ...,
        top_p: float | None = ..., seed: int | None = ..., *, stream: Literal[True],
        local_files: bool = ..., exif: str = ..., **options: Unpack[TextOptions],
    ) -> Iterator[str]: ...  # fmt: skip

    def chat(
        self,
        messages: Messages,
        max_new_tokens: int = TextGenerationOptions.max_new_tokens,
        temperature: float | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        stream: bool = False,
        *,
        local_files: bool = True,
        exif: str = "apply",
        **options: Unpack[TextOptions],
    ) -> str | Iterator[str]:
        """The assistant's next message in a conversation, as in `ChatPipeline.chat`, but for:

        Args:
            temperature, top_p: None is the folder's own.
            local_files, exif: about pictures, of which there are none.
            max_thinking_tokens: the thought is ended after so many tokens. An output format holds for what
                follows the thought.

        Raises `PromptError` for a picture, and for a model that has no known form of conversations.
        """
        if not stream:
            return self.chat_batch([messages], max_new_tokens, temperature, top_p, seed, **options)[0]
        sampling = self._sampling(temperature, top_p)
        chosen = self._chosen(options, self._in_thought(messages))
        pieces = super().chat(messages, max_new_tokens, *sampling, seed, stream=True, **chosen)
        return pieces if not _is_free(chosen) else _without_leading_space(pieces)

    def chat_batch(
        self,
        conversations: Sequence[Messages],
        max_new_tokens: int = TextGenerationOptions.max_new_tokens,
        temperature: float | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        *,
        local_files: bool = True,
        exif: str = "apply",
        **options: Unpack[TextOptions],
    ) -> list[str]:
        """`chat` for several conversations in one batch; each answer is that of `chat` with that seed."""
        sampling = self._sampling(temperature, top_p)
        states = {self._in_thought(messages) for messages in conversations}
        if len(states) > 1:  # some go on from an answer
            alone = (self.chat(m, max_new_tokens, *sampling, seed, **options) for m in conversations)
            return list(alone)
        chosen = self._chosen(options, *states)
        texts = super().chat_batch(conversations, max_new_tokens, *sampling, seed, **chosen)
        return [text.strip() for text in texts] if _is_free(chosen) else texts

    def _text_inputs(self) -> Any:
        return text_inputs([], continues=True)  # a folder without a known form of conversations has them too

    def _sampling(self, temperature: float | None, top_p: float | None) -> tuple[float, float]:
        return (
            self.temperature if temperature is None else temperature,
            self.top_p if top_p is None else top_p,
        )

    def _in_thought(self, messages: Messages) -> bool:
        return self.processor.in_thought(self.processor.chat_inputs(messages).ids.tolist())

    def _chosen(self, options: TextOptions, in_thought: bool = False) -> MoreTextOptions:
        """The options with an output format that knows of the thought."""
        given: dict[str, Any] = dict(options)
        limit = given.pop("max_thinking_tokens", None)
        forms = {name: given.pop(name, None) for name in ("json_schema", "choices", "regex")}
        answer = TextGenerationOptions.of(
            output_format=given.pop("output_format", None), **forms
        ).output_format
        return {**given, "output_format": thought_format(self.tokenizer, in_thought, limit, answer)}  # type: ignore[return-value]


def _is_free(options: MoreTextOptions) -> bool:
    """Whether the only form is that of a thought, so that the text is stripped as any other."""
    form: OutputFormat | None = options.get("output_format")
    return isinstance(form, ThoughtFormat) and form.answer is None


def _without_leading_space(pieces: Iterator[str]) -> Iterator[str]:
    started = False
    for piece in pieces:
        piece = piece if started else piece.lstrip()
        started = started or bool(piece)
        if piece:
            yield piece
