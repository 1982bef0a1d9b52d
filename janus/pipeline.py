"""`JanusPipeline`: what people call. Checks its arguments, then hands on to painting and reading."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from ..blocks import answering
from ..blocks.answering import AnswerOptions, answer_seed
from ..blocks.checkpoint import list_tensors, load_weights
from ..blocks.device import resolve_device, resolve_dtype
from ..blocks.errors import OptionError, PromptError
from ..blocks.generation import check_context
from ..blocks.locate import locate
from ..blocks.pictures import as_list
from ..blocks.sampling import check_integer
from ..tokenizers.text import TextTokenizer
from . import painting, reading
from .config import read_config
from .keys import pick_key_map
from .model import JanusModel
from .options import PaintOptions, picture_seeds
from .processor import IMAGE_TAG, JanusProcessor, Prepared

Messages = list[dict[str, Any]]


class JanusPipeline:
    """A loaded Janus model with its tokenizer and processor. Make one with `from_pretrained`."""

    def __init__(self, model: JanusModel, tokenizer: TextTokenizer, processor: JanusProcessor, name: str) -> None:
        self.model, self.tokenizer, self.processor, self.name = model, tokenizer, processor, name

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        *,
        progress: bool = True,
    ) -> "JanusPipeline":
        """Load a model folder, a hub id or an embedded model (`janus-nano`).

        `device` None takes CUDA, else MPS, else the CPU; `dtype` None takes float32 on the CPU and
        bfloat16 on a GPU. `progress` shows a bar on stderr for loads of more than half a second.
        Raises `CheckpointError` (or its `ConfigError`) when the files are not a whole Janus model.
        """
        folder = locate(model)
        chosen_device = resolve_device(device)
        config, model_type = read_config(folder)
        entries = list_tensors(folder)
        with torch.device("meta"):
            network = JanusModel(config)
        tokenizer = TextTokenizer.from_folder(folder)
        processor = JanusProcessor.from_folder(
            folder, tokenizer, config.vision.image_size, config.vision.num_patches
        )
        load_weights(
            network,
            folder,
            pick_key_map(entries, model_type, config.tied),
            device=chosen_device,
            dtype=resolve_dtype(dtype, chosen_device),
            progress=progress,
            entries=entries,
        )
        return cls(network.eval(), tokenizer, processor, str(model))

    @property
    def device(self) -> torch.device:
        return self.model.gen_embed.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.gen_embed.weight.dtype

    def generate(
        self,
        prompt: str | Sequence[str],
        num_images_per_prompt: int = 1,
        seed: int | Sequence[int] | None = None,
        guidance_scale: float = PaintOptions.guidance_scale,
        temperature: float = PaintOptions.temperature,
        top_k: int = PaintOptions.top_k,
        top_p: float = PaintOptions.top_p,
        negative_prompt: str | None = None,
        output_type: Literal["pil", "codes"] = "pil",
        callback: painting.Callback | None = None,
    ) -> list[Image.Image] | Tensor:
        """Paint pictures: a list of PIL pictures, or their codes, int64 `[N, T]`; prompt-major.

        Picture j of each prompt has seed `seed + j`, or see `options.picture_seeds` for lists and None.
        A picture's settings are in its `info`. `top_k=0` samples from the whole codebook, as the
        reference does. `callback(step, total, codes)` follows the work; to stop it, raise from there.
        Raises `PromptError` or `OptionError`.
        """
        options = PaintOptions(guidance_scale, temperature, top_k, top_p, negative_prompt)
        check_integer("num_images_per_prompt", num_images_per_prompt, low=1)
        if output_type not in ("pil", "codes"):
            raise OptionError(f"output_type is {output_type!r}; accepted: 'pil' or 'codes'")
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if not prompts:
            raise PromptError("no prompt was given; accepted: a text or a list of at least one")
        seeds = picture_seeds(seed, len(prompts), num_images_per_prompt)
        cond, uncond = [], []
        for text in prompts:
            pair = self._prompt_ids(text, options)
            cond += [pair[0]] * num_images_per_prompt
            uncond += [pair[1]] * num_images_per_prompt
        codes = painting.paint(self.model, cond, uncond if options.guided else None, options, seeds, callback)
        if output_type == "codes":
            return codes
        pictures = painting.decode(self.model, codes)
        for index, picture in enumerate(pictures):
            picture.info.update(self._settings(prompts[index // num_images_per_prompt], seeds[index], options))
        return pictures

    def _prompt_ids(self, text: str, options: PaintOptions) -> tuple[Tensor, Tensor]:
        cond, uncond = self.processor.generation(text)
        if options.negative_prompt is not None:
            uncond = self.processor.generation(options.negative_prompt)[0]
        return cond, uncond

    def _settings(self, prompt: str, seed: int, options: PaintOptions) -> dict[str, str]:
        settings = {"prompt": prompt, "seed": str(seed), "model": self.name, "software": "Bifrons"}
        for field in ("guidance_scale", "temperature", "top_k", "top_p", "negative_prompt"):
            value = getattr(options, field)
            if value is not None:
                settings[field] = str(value)
        return settings

    def ask(
        self,
        images: Any,
        question: str,
        max_new_tokens: int = AnswerOptions.max_new_tokens,
        temperature: float = AnswerOptions.temperature,
        top_p: float = AnswerOptions.top_p,
        seed: int | None = None,
        stream: bool = False,
    ) -> str | Iterator[str]:
        """Answer a question about one picture or a list (paths, PIL pictures, bytes); none is allowed too.

        Returns the text, or with `stream` an iterator over its pieces.
        """
        if not isinstance(question, str) or not question.strip():
            raise PromptError(f"the question is {question!r}; accepted: a text that is not empty")
        if IMAGE_TAG in question:
            raise PromptError(f"the question holds the mark {IMAGE_TAG}; `ask` writes one per picture itself")
        pictures = as_list(images)
        content = f"{IMAGE_TAG}\n" * len(pictures) + question
        messages = [{"role": "user", "content": content, "images": pictures}]
        return self.chat(messages, max_new_tokens, temperature, top_p, seed, stream)

    def chat(
        self,
        messages: Messages,
        max_new_tokens: int = AnswerOptions.max_new_tokens,
        temperature: float = AnswerOptions.temperature,
        top_p: float = AnswerOptions.top_p,
        seed: int | None = None,
        stream: bool = False,
    ) -> str | Iterator[str]:
        """The assistant's next message in a conversation, in OpenAI's or the official form of messages."""
        options = AnswerOptions(max_new_tokens, temperature, top_p)
        prompt = self._prompt(messages, options.max_new_tokens)
        start = answer_seed(seed)
        if stream:
            return answering.stream_answer(self.model, self.tokenizer, prompt, options, start)
        return answering.answers(self.model, self.tokenizer, [prompt], options, [start])[0]

    def chat_batch(
        self,
        conversations: Sequence[Messages],
        max_new_tokens: int = AnswerOptions.max_new_tokens,
        temperature: float = AnswerOptions.temperature,
        top_p: float = AnswerOptions.top_p,
        seed: int | None = None,
    ) -> list[str]:
        """`chat` for several conversations in one batch; each gives what it gives alone with the same seed."""
        options = AnswerOptions(max_new_tokens, temperature, top_p)
        prepared = [self._prepare(messages, options.max_new_tokens) for messages in conversations]
        if not prepared:
            return []
        prompts = [reading.embed_prompt(self.model, one) for one in prepared]
        seeds = [answer_seed(seed) for _ in prompts]
        return answering.answers(self.model, self.tokenizer, prompts, options, seeds)

    def _prepare(self, messages: Messages, room: int) -> Prepared:
        prepared = self.processor.understanding(messages)
        check_context(len(prepared.ids), room, self.model.config.decoder.max_positions)
        return prepared

    def _prompt(self, messages: Messages, room: int) -> answering.Prompt:
        return reading.embed_prompt(self.model, self._prepare(messages, room))

    def encode_image(self, image: Any) -> Tensor:
        """VQ codes of a picture, int64 `[T]`, after the processor's resizing and padding to a square."""
        return painting.encode(self.model, self.processor.preprocess(image))

    def decode_codes(self, codes: Tensor | Sequence[int]) -> list[Image.Image]:
        """Pictures of codes `[T]` or `[N, T]`."""
        found = torch.as_tensor(codes)
        size, total = self.model.config.vq.codebook_size, self.model.config.num_codes
        if found.dtype.is_floating_point or found.dtype.is_complex or found.dtype == torch.bool:
            raise OptionError(f"codes are {found.dtype}; accepted: whole numbers")
        if found.ndim not in (1, 2) or found.shape[-1] != total or found.numel() == 0:
            raise OptionError(f"codes have shape {list(found.shape)}; accepted: [{total}] or [N, {total}]")
        if found.min() < 0 or found.max() >= size:
            raise OptionError(f"codes reach from {found.min()} to {found.max()}; accepted: 0 to {size - 1}")
        return painting.decode(self.model, found.long().reshape(-1, total))

    def next_logits(self, messages: Messages) -> Tensor:
        """Logits of the text head at the last prompt position, float32 `[vocabulary]`."""
        return answering.last_logits(self.model, self._prompt(messages, 0))

    def next_image_logits(self, prompt: str, guidance_scale: float = PaintOptions.guidance_scale) -> Tensor:
        """Guided logits of the first image token, float32 `[codebook]`."""
        options = PaintOptions(guidance_scale)
        cond, uncond = self._prompt_ids(prompt, options)
        return painting.first_image_logits(self.model, cond, uncond if options.guided else None, guidance_scale)

    def score_text(self, messages: Messages, answer: str) -> Tensor:
        """Log-probability of each token of `answer`, tokenised as it is written, after the prompt; float32 `[T]`."""
        if not isinstance(answer, str) or not answer:
            raise PromptError(f"the answer is {answer!r}; accepted: a text that is not empty")
        ids = torch.tensor(self.tokenizer.encode(answer, bos=False))
        return answering.score_answer(self.model, self._prompt(messages, len(ids)), ids)

    def score_image(self, prompt: str, codes: Tensor | Sequence[int]) -> Tensor:
        """Log-probability of each image token after the prompt, without guidance; float32 `[T]`."""
        found = torch.as_tensor(codes)
        size = self.model.config.vq.codebook_size
        if found.ndim != 1 or not len(found) or found.dtype.is_floating_point or found.min() < 0 or found.max() >= size:
            raise OptionError(f"codes have shape {list(found.shape)}; accepted: [T] whole numbers, 0 to {size - 1}")
        return painting.score_codes(self.model, self.processor.generation(prompt)[0], found.long())
