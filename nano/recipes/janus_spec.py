"""What `janus-nano` is: its configs in the official schema with the extensions for small models, and its
prompts as token ids, exactly as the pipeline makes them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...blocks.chat.messages import Turn
from ...blocks.model.siglip import SiglipConfig
from ...janus.processor import JanusProcessor
from ...janus.prompts import IMAGE_TOKEN, SYSTEM_PROMPT, Template
from ...tokenizers.text import TextTokenizer
from ...tokenizers.vq.model import VQConfig
from .datasets import CAPTION_REQUESTS
from .pictures import SIDE
from .tokenizer import corpus, train_tokenizer, write_files, write_vocabulary

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

HIDDEN, VISION_WIDTH, CODEBOOK, CODE_DIM = 384, 192, 2048, 8
_MAX_POSITIONS = 2048

GUIDANCE_SCALE = 2.5
"""The scale of its best images: at Janus-Pro's 5 it overdoes what the prompt says and leaves its world."""


def vq_config() -> VQConfig:
    """The image tokenizer: 8 pixels a code, so 256 codes an image."""
    return VQConfig(CODEBOOK, CODE_DIM, ch=32, ch_mult=(1, 1, 2, 4), z_channels=64, num_res_blocks=1)


def tower_config() -> SiglipConfig:
    """The vision tower: patches of 16 pixels, so 64 tokens an image."""
    return SiglipConfig(image_size=SIDE, patch_size=16, width=VISION_WIDTH, layers=4, heads=3, mlp_ratio=4)


def _image_generation_config() -> dict[str, Any]:
    vq = vq_config()
    return {
        "gen_aligner_config": _projector("gen_aligner", CODE_DIM),
        "gen_head_config": {
            "cls": "vision_head",
            "model_type": "gen_head",
            "params": {"image_token_embed": HIDDEN, "image_token_size": CODEBOOK, "n_embed": HIDDEN},
        },
        "gen_vision_config": {
            "cls": "VQ-16",
            "model_type": "gen_vision",
            "params": {
                "image_token_size": CODEBOOK,
                "n_embed": CODE_DIM,
                "ch": vq.ch,
                "ch_mult": list(vq.ch_mult),
                "z_channels": vq.z_channels,
                "num_res_blocks": vq.num_res_blocks,
            },
        },
    }


def _projector(kind: str, width: int) -> dict[str, Any]:
    params = {"depth": 2, "input_dim": width, "n_embed": HIDDEN, "projector_type": "mlp_gelu"}
    return {"cls": "MlpProjector", "model_type": kind, "params": params}


def janus_config(vocab_size: int) -> dict[str, Any]:
    """`config.json` of janus-nano."""
    tower = tower_config()
    return {
        "architectures": ["MultiModalityCausalLM"],
        "model_type": "multi_modality",
        "torch_dtype": "bfloat16",
        "aligner_config": _projector("aligner", VISION_WIDTH),
        **_image_generation_config(),
        "language_config": {
            "hidden_size": HIDDEN,
            "intermediate_size": 832,
            "max_position_embeddings": _MAX_POSITIONS,
            "model_type": "llama",
            "num_attention_heads": 6,
            "num_hidden_layers": 8,
            "num_key_value_heads": 6,
            "torch_dtype": "bfloat16",
            "vocab_size": vocab_size,
        },
        "vision_config": {
            "cls": "CLIPVisionTower",
            "model_type": "vision",
            "params": {
                "image_size": SIDE,
                "model_name": "siglip_nano_patch16_128",
                "select_feature": "same",
                "select_layer": -1,
                "width": tower.width,
                "layers": tower.layers,
                "heads": tower.heads,
                "patch_size": tower.patch_size,
                "mlp_ratio": tower.mlp_ratio,
            },
        },
    }


def processor_configs() -> dict[str, dict[str, Any]]:
    """The other JSON files of a Janus folder, by name."""
    bos, eos, pad = SPECIAL_TOKENS[:3]
    return {
        "generation_config.json": {"guidance_scale": GUIDANCE_SCALE},
        "processor_config.json": {
            "add_special_token": False,
            "ignore_id": -100,
            "image_tag": "<image_placeholder>",
            "mask_prompt": True,
            "num_image_tokens": (SIDE // 16) ** 2,
            "processor_class": "VLChatProcessor",
            "sft_format": "deepseek",
        },
        "preprocessor_config.json": {
            "background_color": [127, 127, 127],
            "do_normalize": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_processor_type": "VLMImageProcessor",
            "image_size": SIDE,
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
    write_files(folder, tokenizer, janus_config(tokenizer.get_vocab_size()), processor_configs())
    texts = list(corpus(0, 3000))  # sentences, questions and answers in turn
    write_vocabulary(folder, texts[::3], [*CAPTION_REQUESTS, *texts[1::3]])


class PaintEncoder:
    """A sentence -> token ids of its whole image generation prompt."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = TextTokenizer.from_folder(folder)
        self.template = Template.for_tokenizer(self.tokenizer)

    def __call__(self, sentence: str) -> list[int]:
        return self.tokenizer.encode(self.template.generation_prompt(sentence))


class TurnEncoder:
    """Questions and answers about one image -> token ids and, for each, whether the loss is on it.

    The loss is on the answers and the end-of-sentence tokens after them. `image_places` is where the
    image's tokens stand, the same in every conversation.
    """

    def __init__(self, folder: Path) -> None:
        self.tokenizer = TextTokenizer.from_folder(folder)
        self.processor = JanusProcessor.from_folder(folder, self.tokenizer, SIDE, (SIDE // 16) ** 2)
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
