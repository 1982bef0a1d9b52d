"""What `janus-nano` is: its configs in the official schema with the extensions for small models, and its
prompts as token ids, exactly as the pipeline makes them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...blocks.chat.messages import Turn
from ...blocks.model.context import DecoderConfig
from ...blocks.model.siglip import SiglipConfig
from ...janus.config import JanusConfig, read_config
from ...janus.convert import original_config
from ...janus.processor import JanusProcessor
from ...janus.prompts import IMAGE_TOKEN, SYSTEM_PROMPT, Template
from ...tokenizers.text import TextTokenizer
from ...tokenizers.vq.config import VQConfig
from .tokenizer import asked, sentences, train_tokenizer, write_files, write_vocabulary

SPECIAL_TOKENS = (
    "<｜begin▁of▁sentence｜>",
    "<｜end▁of▁sentence｜>",
    "<｜▁pad▁｜>",
    "<begin_of_image>",
    "<end_of_image>",
    "<image_placeholder>",
    "<|User|>",
    "<|Assistant|>",
)
"""Of Janus-Pro's tokenizer; ids follow the learned vocabulary."""
SIDE = 192
"""Side of a picture in pixels."""
GUIDANCE_SCALE = 1.5
"""The scale of its best images: at Janus-Pro's 5 it overdoes what the prompt says and leaves its world."""
UNASKED = ("sign", "says")
"""Kinds of questions that it is not trained on: words on signs are too small for its patches."""

_HIDDEN, _MAX_POSITIONS = 512, 2048


def vq_config() -> VQConfig:
    """The image tokenizer: 8 pixels a code, so 576 codes an image."""
    sizes = {"ch": 32, "ch_mult": (1, 2, 4, 8), "z_channels": 64, "num_res_blocks": 1, "norm_groups": 4}
    return VQConfig(8192, 8, **sizes, patch_width=256)


def tower_config() -> SiglipConfig:
    """The vision tower: patches of 16 pixels, so 144 tokens an image."""
    return SiglipConfig(image_size=SIDE, patch_size=16, width=256, layers=6, heads=4, mlp_ratio=4)


def janus_config(vocab_size: int) -> JanusConfig:
    """The architecture."""
    decoder = DecoderConfig(
        vocab_size,
        hidden_size=_HIDDEN,
        intermediate_size=1408,
        num_layers=10,
        num_heads=8,
        num_kv_heads=8,
        head_dim=_HIDDEN // 8,
        max_positions=_MAX_POSITIONS,
    )
    return JanusConfig(tower_config(), decoder, vq_config(), gen_head_width=_HIDDEN)


def processor_configs(side: int, num_patches: int, guidance_scale: float) -> dict[str, dict[str, Any]]:
    """The other JSON files of a Janus folder, by name."""
    bos, eos, pad = SPECIAL_TOKENS[:3]
    return {
        "generation_config.json": {"guidance_scale": guidance_scale},
        "processor_config.json": {
            "add_special_token": False,
            "ignore_id": -100,
            "image_tag": IMAGE_TOKEN,
            "mask_prompt": True,
            "num_image_tokens": num_patches,
            "processor_class": "VLChatProcessor",
            "sft_format": "deepseek",
        },
        "preprocessor_config.json": {
            "background_color": [127, 127, 127],
            "do_normalize": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_processor_type": "VLMImageProcessor",
            "image_size": side,
            "image_std": [0.5, 0.5, 0.5],
            "min_size": 14,
            "processor_class": "VLChatProcessor",
            "rescale_factor": 0.00392156862745098,
        },
        "special_tokens_map.json": {"bos_token": bos, "eos_token": eos, "pad_token": pad},
        "tokenizer_config.json": {
            "add_bos_token": True,
            "bos_token": bos,
            "clean_up_tokenization_spaces": False,
            "eos_token": eos,
            "model_max_length": _MAX_POSITIONS,
            "pad_token": pad,
            "tokenizer_class": "LlamaTokenizer",
            "unk_token": None,
        },
    }


def write_folder(folder: Path) -> None:
    """Write everything of a janus-nano folder but its weights; the same files at every call."""
    tokenizer = train_tokenizer(SPECIAL_TOKENS, [SYSTEM_PROMPT + "\n\n"])
    config, tower = janus_config(tokenizer.get_vocab_size()), tower_config()
    files = processor_configs(SIDE, tower.num_patches, GUIDANCE_SCALE)
    write_files(folder, tokenizer, original_config(config, "bfloat16"), files)
    write_vocabulary(folder, sentences(0, 8000), asked(UNASKED))


def write_once(folder: Path) -> None:
    """`write_folder`, unless the folder has been written."""
    if not (folder / "vocabulary.json").exists():
        write_folder(folder)


class PaintEncoder:
    """A sentence -> token ids of its whole image generation prompt."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = TextTokenizer.from_folder(folder)
        self.template = Template.for_tokenizer(self.tokenizer)

    def __call__(self, sentence: str) -> list[int]:
        return self.tokenizer.encode(self.template.generation_prompt(sentence))

    def answered(self, sentence: str, answer: str) -> tuple[list[int], list[bool]]:
        """The same prompt with a text in place of the image, and whether the loss is on a token."""
        prompt = self(sentence)[:-1]
        reply = [*self.tokenizer.encode(f" {answer}", bos=False), self.tokenizer.eos_id]
        return prompt + reply, [False] * len(prompt) + [True] * len(reply)


class TurnEncoder:
    """Questions and answers about one image -> token ids and, for each, whether the loss is on it.

    The loss is on the answers and the end-of-sentence tokens after them. `image_places` is where the
    image's tokens stand, the same in every conversation.
    """

    def __init__(self, folder: Path) -> None:
        self.tokenizer = TextTokenizer.from_folder(folder)
        tower = read_config(folder)[0].vision
        self.processor = JanusProcessor.from_folder(
            folder, self.tokenizer, tower.image_size, tower.num_patches
        )
        ids, _ = self([("?", "?")])
        self.image_places = [place for place, token in enumerate(ids) if token == self.processor.image_id]

    def __call__(self, turns: Sequence[tuple[str, str]]) -> tuple[list[int], list[bool]]:
        template = self.processor.template
        history: list[Turn] = []
        ids: list[int] = []
        learn: list[bool] = []
        for index, (question, answer) in enumerate(turns):
            history.append(Turn("user", (f"{IMAGE_TOKEN}\n" if index == 0 else "", question)))
            prompt = self.processor.expand(self.tokenizer.encode(template.chat_prompt(history))).tolist()
            reply = [*self.tokenizer.encode(f" {answer}", bos=False), self.tokenizer.eos_id]
            assert prompt[: len(ids)] == ids, "a turn changed the tokens before it"
            learn += [False] * (len(prompt) - len(ids)) + [True] * len(reply)
            ids = prompt + reply
            history.append(Turn("assistant", (answer,)))
        return ids, learn
