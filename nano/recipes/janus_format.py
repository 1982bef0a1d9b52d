"""Between recipe and checkpoint: prompts as ids, exactly as the pipeline makes them, and the folder."""

import json
from collections.abc import Sequence
from pathlib import Path

from ...blocks.chat.messages import Turn
from ...janus.processor import JanusProcessor
from ...janus.prompts import IMAGE_TOKEN, SYSTEM_PROMPT, Template
from ...tokenizers.text import TextTokenizer
from .janus_spec import SIDE, SPECIAL_TOKENS, janus_config, processor_configs
from .tokenizer import train_tokenizer


def write_folder(folder: Path) -> None:
    """Everything of a janus-nano folder but its weights; the same files at every call."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(SPECIAL_TOKENS, [SYSTEM_PROMPT + "\n\n"])
    tokenizer.save(str(folder / "tokenizer.json"))
    files = {"config.json": janus_config(tokenizer.get_vocab_size()), **processor_configs()}
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


class PaintEncoder:
    """Sentence -> ids of its whole painting prompt."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = TextTokenizer.from_folder(folder)
        self.template = Template.for_tokenizer(self.tokenizer)

    def __call__(self, sentence: str) -> list[int]:
        return self.tokenizer.encode(self.template.generation_prompt(sentence))


class TurnEncoder:
    """Questions and answers about one picture -> ids and, for each, whether the loss is on it.

    The loss is on the answers and the ends of sentence after them. `image_at` is where the picture's tokens
    begin, the same in every conversation.
    """

    def __init__(self, folder: Path) -> None:
        self.tokenizer = TextTokenizer.from_folder(folder)
        self.processor = JanusProcessor.from_folder(folder, self.tokenizer, SIDE, (SIDE // 16) ** 2)
        self.image_at = self([("?", "?")])[0].index(self.processor.image_id)

    def __call__(self, turns: Sequence[tuple[str, str]]) -> tuple[list[int], list[bool]]:
        template, said = self.processor.template, []
        ids: list[int] = []
        learn: list[bool] = []
        for index, (question, answer) in enumerate(turns):
            said.append(Turn("user", f"{IMAGE_TOKEN}\n{question}" if index == 0 else question))
            prompt = self.processor.expand(
                self.tokenizer.encode(template.chat_prompt(said))
            ).tolist()
            reply = [*self.tokenizer.encode(f" {answer}", bos=False), self.tokenizer.eos_id]
            assert prompt[: len(ids)] == ids, "a turn changed the tokens before it"
            learn += [False] * (len(prompt) - len(ids)) + [True] * len(reply)
            ids = prompt + reply
            said.append(Turn("assistant", answer))
        return ids, learn
