"""`JanusPipeline`: what people call. Checks its arguments, then hands on to painting and reading."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from ..blocks.chat.pipeline import ChatPipeline, Messages
from ..blocks.chat.text_generation import Prompt
from ..blocks.checkpoints.hub import ModelFolder, open_model
from ..blocks.checkpoints.reader import list_tensors
from ..blocks.engine.generate import check_context
from ..blocks.engine.sampling_params import check_integer
from ..blocks.errors import OptionError, PromptError
from ..blocks.placement.auto_device_map import MaxMemory
from ..blocks.placement.device_map import DeviceMap
from ..blocks.placement.loading import LoadOptions, load_model
from ..tokenizers.text import TextTokenizer
from . import image_generation
from .config import parse_config, read_guidance_scale
from .image_generation import ImageGenerationOptions, image_seeds
from .model import JanusModel, Parts, check_parts
from .processor import JanusProcessor
from .weight_names import pick_key_map


class JanusPipeline(ChatPipeline):
    """A loaded Janus model with its tokenizer and processor. Make one with `from_pretrained`."""

    def __init__(
        self,
        model: JanusModel,
        tokenizer: TextTokenizer,
        processor: JanusProcessor,
        name: str,
        guidance_scale: float = ImageGenerationOptions.guidance_scale,
    ) -> None:
        self.model: JanusModel = model
        self.tokenizer, self.processor, self.name = tokenizer, processor, name
        self.guidance_scale = guidance_scale
        """What `generate` takes when nothing is said: 5.0, or what the model's own files recommend."""

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path | ModelFolder,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        *,
        quantize: str | None = None,
        parts: Parts = "all",
        device_map: DeviceMap | None = None,
        max_memory: MaxMemory | None = None,
        capture: bool | None = None,
        progress: bool = True,
    ) -> "JanusPipeline":
        """Load a model folder, a hub id or an embedded model (`janus-nano`).

        `device` None takes CUDA, else MPS, else the CPU; `dtype` None takes float32 on the CPU and
        bfloat16 on a GPU. `quantize` keeps the decoder's weights in `int8`, `int4` or `fp8`, quantized one by
        one as they are read; a folder that holds them so needs no word of it. `parts` loads only what
        painting (`paint`) or answering (`read`) takes; what needs the rest is then an `OptionError`. On CUDA,
        steps of painting and answering are captured as graphs, once for each number of rows, and the reading
        of prompts and pictures for lengths and numbers that come again; with `capture` false every operation
        is launched by itself, which is slower but needs no preparation. `progress` shows a bar on stderr for
        loads of more than half a second.
        `device_map` spreads the weights over several devices. `"auto"` fills the GPUs one after the other and
        leaves the rest in the machine's memory, from where each layer is moved to a GPU for the time of its
        work; `"balanced"` fills the GPUs alike; a dict says where modules go (as
        `{"": 0, "vision_model": "cpu"}`). `max_memory` is what weights may take where (as
        `{0: "20GiB", "cpu": "60GiB"}`); by default 0.8 of each GPU's free memory and all that is free of the
        machine's. Steps of a model that is spread are not captured.
        Raises `CheckpointError` (or its `ConfigError`) when the files are not a whole Janus model, and
        `OptionError` before anything is loaded where the weights exceed the free memory.
        """
        folder = open_model(model)
        config, model_type = parse_config(folder.config)
        entries = list_tensors(folder.path)
        with torch.device("meta"):
            network = JanusModel(config, check_parts(parts))
        tokenizer = TextTokenizer.from_folder(folder.path)
        processor = JanusProcessor.from_folder(
            folder.path, tokenizer, config.vision.image_size, config.vision.num_patches
        )
        options = LoadOptions(device, dtype, quantize, device_map, max_memory, capture, progress)
        key_map = pick_key_map(entries, model_type, config.tied)
        load_model(network, folder, key_map, options, entries=entries)
        guidance_scale = read_guidance_scale(folder.path)
        if guidance_scale is None:
            return cls(network, tokenizer, processor, folder.name)
        return cls(network, tokenizer, processor, folder.name, guidance_scale)

    @property
    def device(self) -> torch.device:
        return self.model.decoder.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.decoder.dtype

    def generate(
        self,
        prompt: str | Sequence[str],
        num_images_per_prompt: int = 1,
        seed: int | Sequence[int] | None = None,
        guidance_scale: float | None = None,
        temperature: float = ImageGenerationOptions.temperature,
        top_k: int = ImageGenerationOptions.top_k,
        top_p: float = ImageGenerationOptions.top_p,
        negative_prompt: str | None = None,
        output_type: Literal["pil", "codes"] = "pil",
        callback: image_generation.Callback | None = None,
    ) -> list[Image.Image] | Tensor:
        """Paint pictures: a list of PIL pictures, or their codes, int64 `[N, T]`; prompt-major.

        Picture j of each prompt has seed `seed + j`, or see `image_seeds` for lists and None.
        `guidance_scale` None is the model's own: 5.0, but less for the embedded one (`self.guidance_scale`).
        A picture's settings are in its `info`. `top_k=0` samples from the whole codebook, as the
        reference does. `callback(step, total, codes)` follows the work; to stop it, raise from there.
        Raises `PromptError` or `OptionError`.
        """
        scale = self.guidance_scale if guidance_scale is None else guidance_scale
        options = ImageGenerationOptions(scale, temperature, top_k, top_p, negative_prompt)
        check_integer("num_images_per_prompt", num_images_per_prompt, low=1)
        if output_type not in ("pil", "codes"):
            raise OptionError(f"output_type is {output_type!r}; accepted: 'pil' or 'codes'")
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if not prompts:
            raise PromptError("no prompt was given; accepted: a text or a list of at least one")
        seeds = image_seeds(seed, len(prompts), num_images_per_prompt)
        cond, uncond = [], []
        for text in prompts:
            pair = self._prompt_ids(text, options)
            cond += [pair[0]] * num_images_per_prompt
            uncond += [pair[1]] * num_images_per_prompt
        uncond = uncond if options.guided else None
        codes = image_generation.paint(self.model, cond, uncond, options, seeds, callback)
        if output_type == "codes":
            return codes
        pictures = image_generation.decode(self.model, codes)
        for index, picture in enumerate(pictures):
            text = prompts[index // num_images_per_prompt]
            picture.info.update(self._settings(text, seeds[index], options))
        return pictures

    def _prompt_ids(self, text: str, options: ImageGenerationOptions) -> tuple[Tensor, Tensor]:
        cond, uncond = self.processor.generation_ids(text)
        if options.negative_prompt is not None:
            uncond = self.processor.negative_ids(options.negative_prompt, cond)
        return cond, uncond

    def _settings(self, prompt: str, seed: int, options: ImageGenerationOptions) -> dict[str, str]:
        settings = {"prompt": prompt, "seed": str(seed), "model": self.name, "software": "Bifrons"}
        for field in ("guidance_scale", "temperature", "top_k", "top_p", "negative_prompt"):
            value = getattr(options, field)
            if value is not None:
                settings[field] = str(value)
        return settings

    @property
    def image_placeholder(self) -> str:
        return self.processor.image_tag

    def prompts(
        self, conversations: Sequence[Messages], room: int, *, local_files: bool = True
    ) -> list[Prompt]:
        read = self.processor.chat_inputs
        prepared = [read(messages, local_files=local_files) for messages in conversations]
        for one in prepared:
            check_context(len(one.ids), room, self.model.config.decoder.max_positions)
        return [self.model.embed_prompt(one) for one in prepared]

    def encode_image(self, image: Any) -> Tensor:
        """VQ codes of a picture, int64 `[T]`, after the processor's resizing and padding to a square."""
        return image_generation.encode(self.model, self.processor.preprocess(image))

    def decode_codes(self, codes: Tensor | Sequence[int]) -> list[Image.Image]:
        """Pictures of codes `[T]` or `[N, T]`."""
        found, total = self._codes(codes), self.model.config.num_codes
        if found.ndim not in (1, 2) or found.shape[-1] != total:
            raise OptionError(f"codes have shape {list(found.shape)}; accepted: [{total}] or [N, {total}]")
        return image_generation.decode(self.model, found.reshape(-1, total))

    def _codes(self, codes: Tensor | Sequence[int]) -> Tensor:
        """Codes as int64, checked to be whole numbers within the codebook."""
        size = self.model.config.vq.codebook_size
        try:
            found = torch.as_tensor(codes)
        except (TypeError, ValueError, RuntimeError) as error:
            raise OptionError(f"codes are no array of whole numbers: {error}") from error
        if found.dtype.is_floating_point or found.dtype.is_complex or found.dtype == torch.bool:
            raise OptionError(f"codes are {found.dtype}; accepted: whole numbers")
        if found.numel() == 0:
            raise OptionError("there are no codes; accepted: at least one")
        if found.min() < 0 or found.max() >= size:
            raise OptionError(f"codes reach from {found.min()} to {found.max()}; accepted: 0 to {size - 1}")
        return found.long()

    def next_image_logits(
        self, prompt: str, guidance_scale: float = ImageGenerationOptions.guidance_scale
    ) -> Tensor:
        """Guided logits of the first image token, float32 `[codebook]`."""
        options = ImageGenerationOptions(guidance_scale)
        cond, uncond = self._prompt_ids(prompt, options)
        return image_generation.next_image_logits(
            self.model, cond, uncond if options.guided else None, guidance_scale
        )

    def score_image(self, prompt: str, codes: Tensor | Sequence[int]) -> Tensor:
        """Log-probability of each image token after the prompt, without guidance; float32 `[T]`."""
        found = self._codes(codes)
        if found.ndim != 1:
            raise OptionError(f"codes have shape {list(found.shape)}; accepted: [T]")
        return image_generation.score_image_codes(self.model, self.processor.generation_ids(prompt)[0], found)
