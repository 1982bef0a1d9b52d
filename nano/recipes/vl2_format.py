"""Between recipe and checkpoint: conversations as ids, exactly as the pipeline makes them, and the folder."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

from ...blocks.chat.messages import Turn
from ...tokenizers.text import TextTokenizer
from ...vl2.config import read_config
from ...vl2.processor import VL2Processor
from ...vl2.prompts import IMAGE, encode_turns
from ...vl2.tiles import num_image_tokens
from ..world.pairs import sample_comparison, sample_pair
from ..world.phrases import NOT_THERE, describe_with_boxes, sample_search
from ..world.questions import sample_question, sample_scene
from .tokenizer import train_tokenizer
from .vl2_spec import SPECIAL_TOKENS, TILES, processor_configs, vl2_config


def _spoken(seed: int, texts: int) -> Iterator[str]:
    """What stands in conversations: answers without a space before them, phrases, boxes, two pictures."""
    rng = Random(seed)
    for _ in range(texts):
        scene = sample_scene(rng)
        yield sample_question(scene, rng).answer
        yield sample_search(scene, rng).phrase
        comparison = sample_comparison(*sample_pair(rng), rng)
        yield comparison.text
        yield comparison.answer


def write_folder(folder: Path) -> None:
    """Everything of a vl2-nano folder but its weights; the same files at every call."""
    folder.mkdir(parents=True, exist_ok=True)
    box = describe_with_boxes(sample_scene(Random(0)))
    tokenizer = train_tokenizer(SPECIAL_TOKENS, [NOT_THERE, box, ":", *_spoken(1, 300)], repeats=20)
    tokenizer.save(str(folder / "tokenizer.json"))
    files = {"config.json": vl2_config(tokenizer.get_vocab_size()), **processor_configs()}
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


class ConversationEncoder:
    """Turns about one or two square pictures -> ids and, for each, whether the loss is on it.

    The loss is on the answers and the ends of sentence after them. The pictures stand before the first
    question; `places` says where the tokens of each begin, the same in every conversation.
    """

    def __init__(self, folder: Path) -> None:
        self.tokenizer = TextTokenizer.from_folder(folder)
        config = read_config(folder)
        self.processor = VL2Processor.from_folder(folder, self.tokenizer, config)
        self.tokens = num_image_tokens((TILES, TILES), config.tile_side)
        ids, _ = self([("?", "?")], 2)
        first = ids.index(self.processor.image_id)
        self.places = (first, ids.index(self.processor.image_id, first + self.tokens))

    def __call__(self, turns: Sequence[tuple[str, str]], pictures: int) -> tuple[list[int], list[bool]]:
        said: list[Turn] = []
        ids: list[int] = []
        learn: list[bool] = []
        for index, (question, answer) in enumerate(turns):
            marks = f"{IMAGE}\n" * pictures if index == 0 else ""
            said.append(Turn("user", marks + question))
            stretches = encode_turns(self.tokenizer, said)
            prompt = stretches[0]
            for stretch in stretches[1:]:
                prompt = prompt + [self.processor.image_id] * self.tokens + stretch
            reply = [*self.tokenizer.encode(answer, bos=False), self.tokenizer.eos_id]
            assert prompt[: len(ids)] == ids, "a turn changed the tokens before it"
            learn += [False] * (len(prompt) - len(ids)) + [True] * len(reply)
            ids = prompt + reply
            said.append(Turn("assistant", answer))
        return ids, learn
