"""`VL2Pipeline`: what people call. Checks arguments, then hands on to reading, answering and grounding."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..blocks.chat.image_io import open_image
from ..blocks.chat.pipeline import ChatPipeline, Messages
from ..blocks.chat.text_generation import Prompt, TextGenerationOptions
from ..blocks.checkpoints.hub import ModelFolder, open_model
from ..blocks.engine.generate import check_context
from ..blocks.engine.sampling_params import check_integer
from ..blocks.errors import PictureError, PromptError
from ..blocks.placement.auto_device_map import MaxMemory
from ..blocks.placement.device_map import DeviceMap
from ..blocks.placement.loading import LoadOptions, load_model
from ..tokenizers.text import TextTokenizer
from .config import parse_config
from .grounding import Box, Grounding, draw_boxes, parse_grounding
from .model import VL2Model
from .processor import VL2Processor
from .prompts import GROUNDING, example_prompt, locate_prompt
from .weight_names import keep_float32, key_map

CAPTION_PROMPT = "Describe this image."
_EXAMPLE_COLOUR = (255, 0, 0)


class VL2Pipeline(ChatPipeline):
    """A loaded DeepSeek-VL2 model with its tokenizer and processor. Make one with `from_pretrained`.

    Answers show the marks of places (`<|ref|>`, `<|det|>`); `ground` reads them.
    """

    keeps_special_tokens = True

    def __init__(self, model: VL2Model, tokenizer: TextTokenizer, processor: VL2Processor, name: str) -> None:
        self.model: VL2Model = model
        self.tokenizer, self.processor, self.name = tokenizer, processor, name

    @classmethod
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
        progress: bool = True,
    ) -> "VL2Pipeline":
        """Load a model folder, a hub id or an embedded model (`vl2-nano`).

        `device` None takes CUDA, else MPS, else the CPU; `dtype` None takes float32 on the CPU and
        bfloat16 on a GPU. `quantize` keeps the decoder's weights, experts included, in `int8`, `int4` or
        `fp8`, quantized one by one as they are read; a folder that holds them so needs no word of it.
        `max_tiles` replaces the folder's resolutions by all of at most so many local tiles (the paper takes
        18 for InfographicVQA). On CUDA, steps of answering are captured as graphs, once for each number of
        rows, and the reading of prompts and tiles for lengths and numbers that come again; with `capture`
        false every operation is launched by itself, which is slower but needs no preparation.
        `device_map` spreads the weights over several devices. `"auto"` fills the GPUs one after the other and
        leaves the rest in the machine's memory, from where each layer is moved to a GPU for the time of its
        work; `"balanced"` fills the GPUs alike; a dict says where modules go (as
        `{"": 0, "vision": "cpu"}`). `max_memory` is what weights may take where (as
        `{0: "20GiB", "cpu": "60GiB"}`); by default 0.8 of each GPU's free memory and all that is free of the
        machine's. Steps of a model that is spread are not captured.
        `progress` shows a bar on stderr for loads of more than half a second. Raises
        `CheckpointError` (or its `ConfigError`) when the files are no whole VL2 model, and `OptionError`
        before anything is loaded where the weights exceed the free memory.
        """
        if max_tiles is not None:
            check_integer("max_tiles", max_tiles, low=1)
        folder = open_model(model)
        config = parse_config(folder.config)
        with torch.device("meta"):
            network = VL2Model(config)
        tokenizer = TextTokenizer.from_folder(folder.path)
        processor = VL2Processor.from_folder(folder.path, tokenizer, config)
        if max_tiles is not None:
            processor.allow_tiles(max_tiles)
        options = LoadOptions(device, dtype, quantize, device_map, max_memory, capture, progress)
        load_model(network, folder, key_map, options, keep_float32=keep_float32)
        return cls(network, tokenizer, processor, folder.name)

    @property
    def device(self) -> torch.device:
        return self.model.decoder.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.decoder.dtype

    @property
    def image_placeholder(self) -> str:
        return self.processor.image_token

    def prompts(
        self, conversations: Sequence[Messages], room: int, *, local_files: bool = True
    ) -> list[Prompt]:
        read = self.processor.chat_inputs
        prepared = [read(messages, local_files=local_files) for messages in conversations]
        for one in prepared:
            check_context(len(one.ids), room, self.model.config.decoder.max_positions)
        return [self.model.embed_prompt(one) for one in prepared]

    def ground(
        self,
        images: Any,
        question: str,
        max_new_tokens: int = TextGenerationOptions.max_new_tokens,
        *,
        prefill_chunk: int | None = None,
    ) -> Grounding:
        """`ask`, greedy, with the answer read as text, boxes and malformed pieces.

        Boxes are in pixels of the last picture, which is where the official prompts look for things.
        """
        messages = self.question_messages(images, question)
        pictures = [open_image(source) for source in messages[0]["images"]]
        if not pictures:
            raise PictureError("there is no picture to find things in; accepted: one picture or a list")
        messages[0]["images"] = pictures
        answer = self.chat(messages, max_new_tokens, prefill_chunk=prefill_chunk)
        assert isinstance(answer, str)
        return parse_grounding(answer, pictures[-1].size)

    def locate(
        self,
        image: Any,
        phrase: str | None = None,
        max_new_tokens: int = TextGenerationOptions.max_new_tokens,
        *,
        example: tuple[Any, Box | Sequence[int]] | None = None,
    ) -> list[Box]:
        """Boxes, in pixels, of what the phrase names (`the giraffe at the back`).

        With `example`, a picture and a box (or x1, y1, x2, y2 in its pixels), boxes in `image` of things like
        what that box holds; the phrase may then say what it is, or be left out. Malformed pieces of the
        answer are left out here; `ground` tells them.
        """
        if phrase is not None and (not isinstance(phrase, str) or not phrase.strip()):
            raise PromptError(f"the phrase is {phrase!r}; accepted: a text that is not empty")
        if example is None:
            if phrase is None:
                raise PromptError("there is nothing to locate; accepted: a phrase, an example or both")
            return list(self.ground(image, locate_prompt(phrase), max_new_tokens).boxes)
        # The example is shown as the official demo shows it: framed in red in the first of two pictures.
        marked = _frame(*example)
        return list(self.ground([marked, image], example_prompt(phrase), max_new_tokens).boxes)

    def caption(
        self, image: Any, grounded: bool = False, max_new_tokens: int = TextGenerationOptions.max_new_tokens
    ) -> str | Grounding:
        """A description of a picture; with `grounded` as a `Grounding`: text, and a box for what it names."""
        if grounded:
            return self.ground(image, GROUNDING + CAPTION_PROMPT, max_new_tokens)
        answer = self.ask(image, CAPTION_PROMPT, max_new_tokens)
        assert isinstance(answer, str)
        return answer


def _frame(picture: Any, box: Box | Sequence[int]) -> Image.Image:
    opened = open_image(picture)
    corners = box.pixels if isinstance(box, Box) else tuple(box)
    if len(corners) != 4:
        raise PromptError(f"the example's box is {box!r}; accepted: a Box or x1, y1, x2, y2")
    x1, y1, x2, y2 = corners
    if not (0 <= x1 < x2 <= opened.width and 0 <= y1 < y2 <= opened.height):
        raise PromptError(f"the example's box {corners} is not inside its picture of {opened.size} pixels")
    return draw_boxes(opened, [Box("", x1, y1, x2, y2)], labels=False, colour=_EXAMPLE_COLOUR)
