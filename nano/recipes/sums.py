"""Sums of three digits, which a tiny language model of new weights learns to work out in a thought.

`python -m bifrons.nano.recipes.sums FOLDER` writes the model's folder without weights, texts to begin with
(`bifrons train sft --from-scratch`), questions whose answers alone are known, to train on by rewards
(`bifrons train grpo`), and others to measure with (`bifrons eval math`).
"""

import argparse
import json
from collections.abc import Iterable
from itertools import accumulate, product
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from tokenizers import AddedToken

from ...text.prompts import ASSISTANT, THINK, THINK_END, USER
from ...tokenizers.text import BOS, EOS
from .tokenizer import build_tokenizer, write_files

MODEL = "model"
"""The folder of `config.json` and `tokenizer.json`."""
FILES = {"texts": "texts.jsonl", "questions": "questions.jsonl", "test": "test.jsonl"}
DIGITS = 3
"""Of a sum."""
TEST = 200
"""Sums to measure with; all others are trained on."""
FORM = r"<think>\n(\S+\n)+</think>\n\d+"
"""Of answers that think first: for the reward `format:`."""
VOCABULARY = 272
"""Size of the learned vocabulary, the 256 bytes included, special tokens not."""


class Sum(NamedTuple):
    """Digits to add."""

    digits: tuple[int, ...]

    @property
    def total(self) -> int:
        """What they come to."""
        return sum(self.digits)

    @property
    def question(self) -> str:
        """What is asked."""
        return f"{' + '.join(map(str, self.digits))} = ?"

    @property
    def thought(self) -> str:
        """The sum, digit by digit: an addition a line."""
        totals = list(accumulate(self.digits))
        steps = zip(totals, self.digits[1:], totals[1:], strict=False)
        return "".join(f"{before}+{digit}={after}\n" for before, digit, after in steps)

    def reply(self, thinks: bool) -> str:
        """The answer after a thought, or after none."""
        return f"{THINK}\n{self.thought if thinks else ''}{THINK_END}\n{self.total}"

    def row(self, reply: str | None = None) -> dict[str, Any]:
        """A conversation with this reply; without one, the question and its answer."""
        asked = {"role": "user", "content": self.question}
        if reply is None:
            return {"messages": [asked], "answer": str(self.total)}
        return {"messages": [asked, {"role": "assistant", "content": reply}]}


def shuffled_sums(seed: int) -> list[Sum]:
    """All sums of `DIGITS` digits in a random order."""
    sums = [Sum(digits) for digits in product(range(10), repeat=DIGITS)]
    Random(seed).shuffle(sums)
    return sums


def write_model(folder: Path, sums: Iterable[Sum]) -> None:
    """Write the files of a model of 0.7 M parameters but its weights; the tokenizer is learned from sums."""
    texts = [text for one in sums for text in (one.question, one.reply(thinks=True))]
    tokenizer = build_tokenizer(texts, (BOS, EOS, USER, ASSISTANT), VOCABULARY)
    tokenizer.add_tokens([AddedToken(mark, normalized=False) for mark in (THINK, THINK_END)])
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
    }
    write_files(folder, tokenizer, config, {})


def write_all(folder: Path, seed: int = 1) -> None:
    """Write the model's folder and the files of `FILES`. Half of the texts think first."""
    sums = shuffled_sums(seed)
    trained, tested = sums[TEST:], sums[:TEST]
    write_model(folder / MODEL, trained)
    rows = {
        "texts": [one.row(one.reply(thinks)) for one in trained for thinks in (True, False)],
        "questions": [one.row() for one in trained],
        "test": [one.row() for one in tested],
    }
    for name, file in FILES.items():
        lines = "".join(json.dumps(row) + "\n" for row in rows[name])
        (folder / file).write_text(lines, encoding="utf-8")


def main() -> None:
    """Command line: write the files."""
    parser = argparse.ArgumentParser(description="Write sums, and a tiny model to learn them.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    write_all(args.folder, args.seed)


if __name__ == "__main__":
    main()
