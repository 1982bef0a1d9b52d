"""`VL2Pipeline`: answers questions about images and locates things in them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..blocks.chat.image_io import open_image
from ..blocks.chat.pipeline import ChatPipeline
from ..blocks.chat.text_generation import TextGenerationOptions
from ..blocks.checkpoints.hub import ModelFolder, open_model
from ..blocks.errors import PictureError, PromptError, check_integer
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
    """A DeepSeek-VL2 model with its tokenizer and processor. Load one with `from_pretrained`.

    Answers show the special tokens of grounding (`<|ref|>`, `<|det|>`); `ground` parses them.
    """

    model: VL2Model
    processor: VL2Processor
    keeps_special_tokens = True

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
        """Load a DeepSeek-VL2 model.

        Args:
            model: a model folder, a hub id (`deepseek-ai/deepseek-vl2-tiny`) or an embedded one (`vl2-nano`).
            device: None takes CUDA, else MPS, else the CPU.
            dtype: None takes bfloat16 on a GPU and float32 on the CPU.
            quantize: `int8`, `int4` or `fp8` quantizes the weights of the decoder and its experts as they are
                read. A folder of quantized weights is loaded as it is.
            max_tiles: allow all resolutions of at most so many local tiles, in place of the folder's list (of
                up to 9). The paper takes 18 for InfographicVQA.
            device_map: spreads the weights over devices. `auto` fills one GPU after the other and leaves
                the rest in CPU memory, from where each layer is moved to a GPU to compute; `balanced` fills
                all GPUs equally; a dict places modules: `{"": 0, "vision": "cpu"}`.
            max_memory: what weights may take per device, with a `device_map`: `{0: "20GiB", "cpu": "60GiB"}`.
                By default 0.8 of each GPU's free memory and all of the CPU's.
            capture: on CUDA, None captures decoding steps as graphs, once per number of rows, and prompts and
                tiles of recurring sizes; False launches each operation, which is slower but needs no
                preparation. Models on several devices are never captured.
            progress: show a bar on stderr if loading takes more than half a second.

        Raises:
            CheckpointError: the files are not a complete VL2 model (ConfigError: their settings).
            OptionError: an argument is not accepted, or the weights exceed the free memory.
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

    def ground(
        self,
        images: Any,
        question: str,
        max_new_tokens: int = TextGenerationOptions.max_new_tokens,
        *,
        prefill_chunk: int | None = None,
    ) -> Grounding:
        """`ask`, greedy, with the answer parsed into text, boxes and malformed pieces.

        Boxes are in pixels of the last image, which is where the official prompts look for things. Raises
        what `ask` raises, and `PictureError` without an image.
        """
        messages = self.question_messages(images, question)
        opened = [open_image(source) for source in messages[0]["images"]]
        if not opened:
            raise PictureError("there is no picture to find things in; accepted: one picture or a list")
        messages[0]["images"] = opened
        answer = self.chat(messages, max_new_tokens, prefill_chunk=prefill_chunk)
        assert isinstance(answer, str)
        return parse_grounding(answer, opened[-1].size)

    def locate(
        self,
        image: Any,
        phrase: str | None = None,
        max_new_tokens: int = TextGenerationOptions.max_new_tokens,
        *,
        example: tuple[Any, Box | Sequence[int]] | None = None,
    ) -> list[Box]:
        """Find what a phrase names, or what looks like an example, in an image.

        Args:
            image: a path, bytes, a `data:` URL or a PIL image.
            phrase: what to find, such as `the giraffe at the back`. With an example it may say what that is,
                or be left out.
            max_new_tokens: the answer ends after so many tokens, if not before.
            example: another image and a box (or x1, y1, x2, y2 in its pixels) around what to find more of.

        Returns:
            Boxes in pixels of `image`. Malformed pieces of the answer are left out; `ground` has them.

        Raises:
            PromptError: neither a phrase nor an example is given, or the example's box is not in its image.
            PictureError: an image can't be read.
        """
        if phrase is not None and (not isinstance(phrase, str) or not phrase.strip()):
            raise PromptError(f"the phrase is {phrase!r}; accepted: a text that is not empty")
        if example is None:
            if phrase is None:
                raise PromptError("there is nothing to locate; accepted: a phrase, an example or both")
            return list(self.ground(image, locate_prompt(phrase), max_new_tokens).boxes)
        # As in the official demo: the object is framed in red in the first of two images.
        framed = _frame_example(*example)
        return list(self.ground([framed, image], example_prompt(phrase), max_new_tokens).boxes)

    def caption(
        self, image: Any, grounded: bool = False, max_new_tokens: int = TextGenerationOptions.max_new_tokens
    ) -> str | Grounding:
        """Describe an image.

        Returns the text; with `grounded` a `Grounding`, which has boxes of the things that the text names.
        Raises `PictureError` and `OptionError`.
        """
        if grounded:
            return self.ground(image, GROUNDING + CAPTION_PROMPT, max_new_tokens)
        answer = self.ask(image, CAPTION_PROMPT, max_new_tokens)
        assert isinstance(answer, str)
        return answer


def _frame_example(source: Any, box: Box | Sequence[int]) -> Image.Image:
    """The example's image with the box outlined."""
    image = open_image(source)
    corners = box.pixels if isinstance(box, Box) else tuple(box)
    if len(corners) != 4:
        raise PromptError(f"the example's box is {box!r}; accepted: a Box or x1, y1, x2, y2")
    x1, y1, x2, y2 = corners
    if not (0 <= x1 < x2 <= image.width and 0 <= y1 < y2 <= image.height):
        raise PromptError(f"the example's box {corners} is not inside its picture of {image.size} pixels")
    return draw_boxes(image, [Box("", x1, y1, x2, y2)], labels=False, colour=_EXAMPLE_COLOUR)
