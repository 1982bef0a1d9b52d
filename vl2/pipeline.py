"""`VL2Pipeline`: answers questions about images and locates things in them."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, overload

import torch
from PIL import Image
from torch import Tensor

from ..blocks.chat.text_generation import TextGenerationOptions
from ..blocks.checkpoints.hub import ModelFolder
from ..blocks.checkpoints.key_mapping import check_counts
from ..blocks.checkpoints.reader import list_tensors
from ..blocks.device import plain_torch
from ..blocks.errors import PictureError, PromptError, check_integer
from ..blocks.image_io import open_image
from ..blocks.image_source import as_image_list
from ..blocks.placement.arguments import open_pretrained, pick_dtype
from ..blocks.placement.auto_device_map import MaxMemory
from ..blocks.placement.device_map import DeviceMap
from ..blocks.placement.loaded_pipeline import Source
from ..blocks.placement.loading import LoadOptions, load_model
from ..blocks.placement.tensor_parallel import split_config
from ..text.completion import CompletionPipeline
from ..tokenizers.text import TextTokenizer
from .config import parse_config
from .grounding import Box, Grounding, draw_boxes, parse_grounding
from .model import VL2Model
from .processor import VL2Processor
from .prompts import GROUNDING, example_prompt, locate_prompt
from .weight_names import keep_float32, key_map, official_tensors

CAPTION_PROMPT = "Describe this image."
_EXAMPLE_COLOUR = (255, 0, 0)


class VL2Pipeline(CompletionPipeline):
    """A DeepSeek-VL2 model with its tokenizer and processor. Load one with `from_pretrained`.

    Answers include the special tokens of grounding (`<|ref|>`, `<|det|>`), which `ground` parses.
    """

    model: VL2Model
    processor: VL2Processor
    keeps_special_tokens = True
    keep_float32 = staticmethod(keep_float32)
    adapter_key_maps = (key_map, lambda key: key_map(f"language.{key}"))

    @classmethod
    @plain_torch()
    def from_pretrained(
        cls,
        model: str | Path | ModelFolder,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        *,
        quantize: str | None = None,
        max_tiles: int | None = None,
        device_map: DeviceMap | None = None,
        max_memory: MaxMemory | None = None,
        capture: bool | None = None,
        progress: bool | None = None,
        tensor_parallel: int | None = None,
        revision: str | None = None,
        **more: Any,
    ) -> "VL2Pipeline":
        """Load a DeepSeek-VL2 model.

        Args:
            model: a model folder, a hub id (`deepseek-ai/deepseek-vl2-tiny`) or an embedded one (`vl2-nano`).
            max_tiles: allow all resolutions of at most this many local tiles, in place of the folder's list
                (up to 9 tiles). The paper uses 18 for InfographicVQA.
            device, dtype, quantize, device_map, max_memory, capture, progress, tensor_parallel: where and how
                the weights are loaded, described in `bifrons.blocks.placement.device_map.LoadOptions`.
            revision, more: as in `JanusPipeline.from_pretrained`.

        Raises:
            CheckpointError: the files are not a complete VL2 model (ConfigError: their settings).
            OptionError: an argument is not accepted, or the weights exceed the free memory.
        """
        if max_tiles is not None:
            check_integer("max_tiles", max_tiles, low=1)
        folder, more = open_pretrained(model, revision, more)
        config = parse_config(folder.config)
        entries = list_tensors(folder.path)
        check_counts(entries, config.counts, folder.config.where)
        config = split_config(config, tensor_parallel)
        with torch.device("meta"):
            network = VL2Model(config)
        tokenizer = TextTokenizer.from_folder(folder.path, config.decoder.vocab_size)
        processor = VL2Processor.from_folder(folder.path, tokenizer, config)
        if max_tiles is not None:
            processor.allow_tiles(max_tiles)
        dtype = pick_dtype(dtype, more, entries.values())
        where = (device, dtype, quantize, device_map, max_memory)
        options = LoadOptions(*where, capture, progress, tensor_parallel)
        load_model(network, folder, key_map, options, keep_float32=keep_float32, entries=entries)
        pipe = cls(network, tokenizer, processor, folder.name)
        pipe.source = Source(folder, {**asdict(options), "max_tiles": max_tiles, "progress": False})
        return pipe

    def tensors_to_save(self, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The names and tensors in the files of a parameter: experts are stored one by one."""
        return official_tensors(name, tensor)

    def ground(
        self,
        images: Any,
        question: str,
        max_new_tokens: int = TextGenerationOptions.max_new_tokens,
        *,
        prefill_chunk: int | None = None,
        exif: str = "apply",
    ) -> Grounding:
        """A greedy `ask` whose answer is parsed into text, boxes and malformed pieces.

        Boxes are in pixels of the last image, the one to which the official prompts refer, upright unless
        `exif` is `ignore`. Raises the errors
        of `ask`, and `PictureError` without an image.
        """
        opened = [open_image(source, exif=exif) for source in as_image_list(images)]
        if not opened:
            raise PictureError("there is no picture to find things in; accepted: one picture or a list")
        messages = self.question_messages(opened, question)
        answer = self.chat(messages, max_new_tokens, prefill_chunk=prefill_chunk)
        return parse_grounding(answer, opened[-1].size)

    def locate(
        self,
        image: Any,
        phrase: str | None = None,
        max_new_tokens: int = TextGenerationOptions.max_new_tokens,
        *,
        example: tuple[Any, Box | Sequence[int]] | None = None,
        exif: str = "apply",
    ) -> list[Box]:
        """Find what a phrase names, or objects like an example, in an image.

        Args:
            image: in any form of `ask`.
            phrase: what to find, such as `the giraffe at the back`. With an example it is the optional name
                of the example's object.
            max_new_tokens: the largest number of tokens in the answer.
            example: another image, and a box (or x1, y1, x2, y2 in its pixels) around such an object.
            exif: `apply` turns images upright as their EXIF says; `ignore` reads them as the reference does.

        Returns:
            Boxes in pixels of `image`, upright if EXIF is applied. Malformed pieces of the answer are
            dropped; `ground` reports them.

        Raises:
            PromptError: neither a phrase nor an example is given, or the example's box is not in its image.
            PictureError: an image can't be read.
        """
        if phrase is not None and (not isinstance(phrase, str) or not phrase.strip()):
            raise PromptError(f"the phrase is {phrase!r}; accepted: a text that is not empty")
        if example is None:
            if phrase is None:
                raise PromptError("there is nothing to locate; accepted: a phrase, an example or both")
            return list(self.ground(image, locate_prompt(phrase), max_new_tokens, exif=exif).boxes)
        # As in the official demo, the object is framed in red in the first of two images.
        framed = _frame_example(*example, exif)
        return list(self.ground([framed, image], example_prompt(phrase), max_new_tokens, exif=exif).boxes)

    @overload
    def caption(
        self, image: Any, grounded: Literal[False] = ..., max_new_tokens: int = ..., *, exif: str = ...
    ) -> str: ...

    @overload
    def caption(
        self, image: Any, grounded: Literal[True], max_new_tokens: int = ..., *, exif: str = ...
    ) -> Grounding: ...

    def caption(
        self,
        image: Any,
        grounded: bool = False,
        max_new_tokens: int = TextGenerationOptions.max_new_tokens,
        *,
        exif: str = "apply",
    ) -> str | Grounding:
        """Describe an image.

        Returns the text, or with `grounded` a `Grounding`, which also has boxes for the things it names.
        Raises `PictureError` and `OptionError`.
        """
        if grounded:
            return self.ground(image, GROUNDING + CAPTION_PROMPT, max_new_tokens, exif=exif)
        return self.ask(image, CAPTION_PROMPT, max_new_tokens, exif=exif)


def _frame_example(source: Any, box: Box | Sequence[int], exif: str) -> Image.Image:
    """The example's image with the box outlined."""
    image = open_image(source, exif=exif)
    corners = box.pixels if isinstance(box, Box) else tuple(box)
    if len(corners) != 4:
        raise PromptError(f"the example's box is {box!r}; accepted: a Box or x1, y1, x2, y2")
    x1, y1, x2, y2 = corners
    if not (0 <= x1 < x2 <= image.width and 0 <= y1 < y2 <= image.height):
        raise PromptError(f"the example's box {corners} is not inside its picture of {image.size} pixels")
    return draw_boxes(image, [Box("", x1, y1, x2, y2)], labels=False, colour=_EXAMPLE_COLOUR)
