"""`JanusPipeline`: generates images and answers questions about images."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, overload

import torch
from PIL import Image
from torch import Tensor

from ..blocks.checkpoints.hub import ModelFolder
from ..blocks.checkpoints.key_mapping import check_counts
from ..blocks.checkpoints.reader import list_tensors
from ..blocks.device import inference, plain_torch
from ..blocks.errors import OptionError
from ..blocks.generated_image import GeneratedImage, GeneratedImages
from ..blocks.generation_step import Callback, followed
from ..blocks.image_codes import check_codes
from ..blocks.image_prompts import NegativePrompt, Seed, image_seeds, negative_prompts, prompt_list
from ..blocks.placement.arguments import open_pretrained, pick_dtype
from ..blocks.placement.auto_device_map import MaxMemory
from ..blocks.placement.device_map import DeviceMap
from ..blocks.placement.loaded_pipeline import Source
from ..blocks.placement.loading import LoadOptions, load_model
from ..blocks.placement.tensor_parallel import split_config
from ..blocks.speculate import Speculate
from ..text.completion import CompletionPipeline
from ..tokenizers.text import TextTokenizer
from . import image_generation
from .config import parse_config, read_guidance_scale
from .convert import original_files
from .image_generation import ImageGenerationOptions, image_info
from .model import JanusModel, Parts, check_parts
from .processor import JanusProcessor
from .weight_names import original_keys, pick_key_map, transformers_keys


class JanusPipeline(CompletionPipeline):
    """A Janus model with its tokenizer and processor. Load one with `from_pretrained`."""

    model: JanusModel
    processor: JanusProcessor
    adapter_key_maps = (original_keys, transformers_keys, lambda key: original_keys(f"language_model.{key}"))

    def __init__(
        self,
        model: JanusModel,
        tokenizer: TextTokenizer,
        processor: JanusProcessor,
        name: str,
        guidance_scale: float | None = None,
    ) -> None:
        super().__init__(model, tokenizer, processor, name)
        self.guidance_scale = (
            ImageGenerationOptions.guidance_scale if guidance_scale is None else guidance_scale
        )
        """The default of `generate`: the model's recommended scale, else 5.0."""

    @classmethod
    @plain_torch()
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
        progress: bool | None = None,
        tensor_parallel: int | None = None,
        revision: str | None = None,
        **more: Any,
    ) -> "JanusPipeline":
        """Load a Janus model.

        Args:
            model: a model folder, a hub id (`deepseek-ai/Janus-Pro-1B`) or an embedded model (`janus-nano`).
            parts: load only what generating images (`paint`) or answering (`read`) needs. Methods that need
                other parts then raise an OptionError.
            device, dtype, quantize, device_map, max_memory, capture, progress, tensor_parallel: where and how
                the weights are loaded, described in `bifrons.blocks.placement.device_map.LoadOptions`.
            revision: a branch, tag or commit of the hub's model.
            more: arguments of transformers (`torch_dtype`, `token`, `cache_dir`, `local_files_only`), which
                are honoured, change nothing (`trust_remote_code`: no code is run) or are refused by name.

        Raises:
            CheckpointError: the files are not a complete Janus model (ConfigError: their settings).
            OptionError: an argument is not accepted, or the weights exceed the free memory.
        """
        folder, more = open_pretrained(model, revision, more)
        config, model_type = parse_config(folder.config)
        entries = list_tensors(folder.path)
        check_counts(entries, config.counts, folder.config.where)
        config = split_config(config, tensor_parallel)
        with torch.device("meta"):
            network = JanusModel(config, check_parts(parts))
        tokenizer = TextTokenizer.from_folder(folder.path, config.decoder.vocab_size)
        processor = JanusProcessor.from_folder(
            folder.path, tokenizer, config.vision.image_size, config.vision.num_patches
        )
        dtype = pick_dtype(dtype, more, entries.values())
        where = (device, dtype, quantize, device_map, max_memory)
        options = LoadOptions(*where, capture, progress, tensor_parallel)
        load_model(network, folder, pick_key_map(entries, model_type, config.tied), options, entries=entries)
        pipe = cls(network, tokenizer, processor, folder.name, read_guidance_scale(folder.path))
        pipe.source = Source(folder, {**asdict(options), "parts": parts, "progress": False})
        return pipe

    def files_to_save(self, src: Path, dtype: str) -> dict[str, dict[str, Any]]:
        """The JSON files to write in place of those in `src`, in the original format."""
        if self.source is None or self.source.folder.config.get("model_type") != "janus":
            return super().files_to_save(src, dtype)
        return original_files(src, self.model.config, dtype)

    def __call__(self, prompt: str | Sequence[str], *args: Any, **options: Any) -> GeneratedImages:
        """`generate` as a pipeline of diffusers is called: the images are `pipe(prompt).images`."""
        return GeneratedImages(self.generate(prompt, *args, **options))

    @overload
    def generate(
        self, prompt: str | Sequence[str], num_images_per_prompt: int = ..., seed: Seed = ...,
        guidance_scale: float | None = ..., temperature: float = ..., top_k: int = ..., top_p: float = ...,
        negative_prompt: NegativePrompt = ..., output_type: Literal["pil"] = ...,
        callback: Callback | None = ..., progress: bool | None = ..., speculate: Speculate = ...,
    ) -> list[Image.Image]: ...  # fmt: skip

    @overload
    def generate(
        self, prompt: str | Sequence[str], num_images_per_prompt: int = ..., seed: Seed = ...,
        guidance_scale: float | None = ..., temperature: float = ..., top_k: int = ..., top_p: float = ...,
        negative_prompt: NegativePrompt = ..., *, output_type: Literal["codes"],
        callback: Callback | None = ..., progress: bool | None = ..., speculate: Speculate = ...,
    ) -> Tensor: ...  # fmt: skip

    @inference
    def generate(
        self,
        prompt: str | Sequence[str],
        num_images_per_prompt: int = 1,
        seed: Seed = None,
        guidance_scale: float | None = None,
        temperature: float = ImageGenerationOptions.temperature,
        top_k: int = ImageGenerationOptions.top_k,
        top_p: float = ImageGenerationOptions.top_p,
        negative_prompt: NegativePrompt = None,
        output_type: Literal["pil", "codes"] = "pil",
        callback: Callback | None = None,
        progress: bool | None = None,
        speculate: Speculate = "auto",
    ) -> list[Image.Image] | Tensor:
        """Generate images from text.

        Args:
            prompt, num_images_per_prompt: a text, or a list of texts; the number of images of each.
            seed: 0 to 2**64 - 1; image j of each prompt has seed `seed + j`. A list has one per prompt or
                image; None is random. An image depends on its seed, not on the other images in the call.
            guidance_scale: classifier-free guidance; 1 is none, None is `self.guidance_scale`.
            temperature: 0 always takes the likeliest image token; 1 draws them as the model was trained to.
            top_k, top_p: draw from this many likeliest tokens, or from those of this total probability.
            negative_prompt: a text to guide away from, in place of the unconditional one; or one per prompt.
            output_type: `pil` for images, `codes` for their image tokens.
            callback: `callback(step, total, codes)` after each step, which it may stop by an exception;
                `step.preview()` gives the images so far.
            progress: a progress bar on stderr; None is on a terminal and in a notebook only.
            speculate: how many codes a step may check, 2 to 64, or False; the images are the same.

        Returns:
            N images with their settings in `info`, or T codes of each, int64 `[N, T]`; prompt by prompt.

        Raises:
            PromptError, OptionError: an argument is not accepted, or a needed part was not loaded.
        """
        if output_type not in ("pil", "codes"):
            raise OptionError(f"output_type is {output_type!r}; accepted: 'pil' or 'codes'")
        prompts = prompt_list(prompt)
        negative = negative_prompts(negative_prompt, len(prompts))
        rest = (self.guidance_scale if guidance_scale is None else guidance_scale, temperature, top_k, top_p)
        options = [ImageGenerationOptions(*rest, text, speculate) for text in negative]
        seeds = image_seeds(seed, len(prompts), num_images_per_prompt)
        self.warn_of_unknown_words([*prompts, *filter(None, negative)], "painting")
        with followed(callback, len(seeds) * self.model.config.num_codes, progress) as report:
            codes, infos = self._generate_codes(prompts, seeds, options, report)
        if output_type == "codes":
            return codes
        return list(map(GeneratedImage.of, image_generation.decode_images(self.model, codes), infos))

    def _generate_codes(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        options: Sequence[ImageGenerationOptions],
        callback: Callback | None,
    ) -> tuple[Tensor, Iterable[dict[str, Any]]]:
        """Codes of the images of each prompt, whose options differ in their negative prompts alone, and their
        settings, which are computed when they are read."""
        count = len(seeds) // len(prompts)
        images = [pair for pair in zip(prompts, options, strict=True) for _ in range(count)]
        ids = [self.processor.generation_ids(text, own.negative_prompt) for text, own in images]
        cond, uncond = zip(*ids, strict=True)
        guided = uncond if options[0].guided else None
        codes, steps = image_generation.generate_codes(self.model, cond, guided, options[0], seeds, callback)
        rest = zip(images, seeds, steps, strict=True)
        return codes, ({**image_info(self, text, seed, own), "steps": n} for (text, own), seed, n in rest)

    @inference
    def encode_image(self, image: Any, *, exif: str = "apply") -> Tensor:
        """The image tokenizer's codes of an image, int64 `[T]`.

        `image` has any form of `ask`; it is turned upright unless `exif` is `ignore`, then resized and padded
        to a square.
        Raises `PictureError`, and `OptionError` if the image tokenizer was not loaded.
        """
        return image_generation.encode_pixels(self.model, self.processor.preprocess(image, exif))

    @inference
    def decode_codes(self, codes: Tensor | Sequence[int]) -> list[Image.Image]:
        """The images of codes `[T]` or `[N, T]`. Raises `OptionError` for codes of other shapes or values."""
        total = self.model.config.num_codes
        checked = check_codes(codes, self.model.config.vq.codebook_size)
        if checked.ndim not in (1, 2) or checked.shape[-1] != total:
            raise OptionError(f"codes have shape {list(checked.shape)}; accepted: [{total}] or [N, {total}]")
        return image_generation.decode_images(self.model, checked.reshape(-1, total))

    @inference
    def next_image_logits(self, prompt: str, guidance_scale: float | None = None) -> Tensor:
        """Guided logits of the first image token after a prompt, float32 `[codebook]` on the CPU.

        `guidance_scale` is that of `generate`. Raises `PromptError` and `OptionError`.
        """
        options = ImageGenerationOptions(self.guidance_scale if guidance_scale is None else guidance_scale)
        cond, uncond = self.processor.generation_ids(prompt)
        return image_generation.next_image_logits(
            self.model, cond, uncond if options.guided else None, options.guidance_scale
        )

    @inference
    def score_image(self, prompt: str, codes: Tensor | Sequence[int]) -> Tensor:
        """Log-probability of each image token after a prompt, without guidance; float32 `[T]` on the CPU.

        It is meant for codes that were generated, `generate(..., output_type="codes")`. Codes that
        `encode_image` makes of a picture are others: of the codes of a generated one about a quarter survive
        decoding and encoding, and such codes can score worse than codes drawn uniformly.
        Raises `PromptError`, and `OptionError` for codes that are not `[T]` or outside the codebook.
        """
        checked = check_codes(codes, self.model.config.vq.codebook_size)
        if checked.ndim != 1:
            raise OptionError(f"codes have shape {list(checked.shape)}; accepted: [T]")
        cond, _ = self.processor.generation_ids(prompt)
        return image_generation.score_image_codes(self.model, cond, checked)
