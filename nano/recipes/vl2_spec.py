"""What `vl2-nano` is: its configs in the official schema with the extension for small towers, and its
conversations as token ids, exactly as the pipeline makes them.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

from ...blocks.chat.messages import Turn
from ...blocks.model.siglip import SiglipConfig
from ...tokenizers.text import TextTokenizer
from ...vl2.config import read_config
from ...vl2.processor import VL2Processor
from ...vl2.prompts import IMAGE, encode_turns, example_prompt, locate_prompt
from ...vl2.tiles import num_image_tokens
from ..world.pairs import sample_comparison, sample_pair
from ..world.phrases import NO_MATCH, grounded_caption, sample_query
from ..world.questions import sample_question
from ..world.scene import sample_scene
from .things_tokenizer import CAPTION_REQUESTS, write_files
from .things_vl2_spec import MAX_POSITIONS, SPECIAL_TOKENS, official_config, processor_configs
from .tokenizer import train_tokenizer, write_vocabulary

TILE, TILES = 64, 2
"""Side of a tile in pixels, and local tiles along a side of the world's images."""

HIDDEN, VISION_WIDTH = 256, 128
_MAX_TILES = 4


def tower_config() -> SiglipConfig:
    """The vision tower: tiles of 64 pixels in patches of 8."""
    return SiglipConfig(
        image_size=TILE, patch_size=8, width=VISION_WIDTH, layers=4, heads=4, mlp_ratio=4.0, gelu_tanh=True
    )


def _language_config(vocab_size: int) -> dict[str, Any]:
    return {
        "bos_token_id": vocab_size - len(SPECIAL_TOKENS),
        "eos_token_id": vocab_size - len(SPECIAL_TOKENS) + 1,
        "first_k_dense_replace": 1,
        "hidden_size": HIDDEN,
        "intermediate_size": 512,
        "kv_lora_rank": 64,
        "max_position_embeddings": MAX_POSITIONS,
        "model_type": "deepseek_v2",
        "moe_intermediate_size": 160,
        "n_group": 1,
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "num_attention_heads": 4,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 6,
        "num_key_value_heads": 4,
        "q_lora_rank": None,
        "qk_nope_head_dim": 48,
        "qk_rope_head_dim": 16,
        "scoring_func": "softmax",
        "topk_group": 1,
        "topk_method": "greedy",
        "norm_topk_prob": False,
        "torch_dtype": "bfloat16",
        "use_mla": True,
        "v_head_dim": 48,
        "vocab_size": vocab_size,
    }


def vl2_config(vocab_size: int) -> dict[str, Any]:
    """`config.json` of vl2-nano."""
    return official_config(tower_config(), _MAX_TILES, _language_config(vocab_size))


def _conversation_texts(seed: int, texts: int) -> Iterator[str]:
    """Texts as they occur in conversations: answers without a space before them, phrases, comparisons."""
    rng = Random(seed)
    for _ in range(texts):
        scene = sample_scene(rng)
        yield sample_question(scene, rng).answer
        yield sample_query(scene, rng).phrase
        comparison = sample_comparison(*sample_pair(rng), rng)
        yield comparison.text
        yield comparison.answer


def _question_texts(seed: int, scenes: int) -> Iterator[str]:
    """What the model was trained to be asked: questions, phrases, comparisons and the official prompts."""
    rng = Random(seed)
    yield from (locate_prompt(""), example_prompt(None), *CAPTION_REQUESTS)
    for _ in range(scenes):
        scene = sample_scene(rng)
        yield sample_question(scene, rng).text
        yield sample_query(scene, rng).phrase
        yield sample_comparison(*sample_pair(rng), rng).text


def write_folder(folder: Path) -> None:
    """Write everything of a vl2-nano folder but its weights; the same files at every call."""
    box = grounded_caption(sample_scene(Random(0)))
    tokenizer = train_tokenizer(
        SPECIAL_TOKENS, [NO_MATCH, box, ":", *_conversation_texts(1, 300)], repeats=20
    )
    processors = processor_configs(tower_config(), _MAX_TILES)
    write_files(folder, tokenizer, vl2_config(tokenizer.get_vocab_size()), processors)
    write_vocabulary(folder, [], _question_texts(0, 3000))


class ConversationEncoder:
    """Turns about one or two square images -> token ids and, for each, whether the loss is on it.

    The loss is on the answers and the end-of-sentence tokens after them. The images come before the first
    question; `image_places` is where the tokens of two stand, the same in every conversation; those of one
    are the first `image_tokens`.
    """

    def __init__(self, folder: Path) -> None:
        self.tokenizer = TextTokenizer.from_folder(folder)
        config = read_config(folder)
        self.processor = VL2Processor.from_folder(folder, self.tokenizer, config)
        self.image_tokens = num_image_tokens((TILES, TILES), config.tile_side)
        ids, _ = self([("?", "?")], 2)
        self.image_places = [place for place, token in enumerate(ids) if token == self.processor.image_id]

    def __call__(self, turns: Sequence[tuple[str, str]], images: int) -> tuple[list[int], list[bool]]:
        history: list[Turn] = []
        ids: list[int] = []
        learn: list[bool] = []
        for index, (question, answer) in enumerate(turns):
            marks = f"{IMAGE}\n" * images if index == 0 else ""
            history.append(Turn("user", (marks + question,)))
            segments = encode_turns(self.tokenizer, history)
            prompt = segments[0]
            for segment in segments[1:]:
                prompt = prompt + [self.processor.image_id] * self.image_tokens + segment
            reply = [*self.tokenizer.encode(answer, bos=False), self.tokenizer.eos_id]
            assert prompt[: len(ids)] == ids, "a turn changed the tokens before it"
            learn += [False] * (len(prompt) - len(ids)) + [True] * len(reply)
            ids = prompt + reply
            history.append(Turn("assistant", (answer,)))
        return ids, learn
