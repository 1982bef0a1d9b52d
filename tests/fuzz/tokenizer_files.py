"""The kind `tokenizers`: changed and made-up `tokenizer.json` files, loaded, encoded and decoded with."""

import json
import random
from pathlib import Path
from typing import Any, NamedTuple

from bifrons.blocks.errors import BifronsError
from bifrons.tokenizers.text import StreamDecoder, TextTokenizer
from cases import Kind
from commands import JANUS, VL2, link_folder, run_command, warm_up
from mutate import WORDS, mutate_bytes, mutate_json
from tokenizer_parts import other_part

TEXTS = (
    "What is red?",
    "<|User|>: hi\n\n<|Assistant|>:",
    "a" * 6000,
    "a" * 3000 + "!",
    " " * 3000,
    "ab" * 2000 + "\n",
    "\u0301" * 2000,
    "\ufdfa" * 1500,
    "日本語 🎨 é\0\t\r\n",
    "9" * 3000,
    "<image_placeholder><｜▁pad▁｜>",
    "\U000e0001\ufeff\u200d",
)


class Case(NamedTuple):
    """A model folder, and a text to encode."""

    folder: Path
    text: str


def build(rng: random.Random, folder: Path) -> Case:
    """A model's folder with a damaged `tokenizer.json`."""
    family = rng.choice((JANUS, VL2))
    content = json.loads((family / "tokenizer.json").read_text(encoding="utf-8"))
    makers = (*[_anywhere] * 2, *[other_part] * 4, *[_model] * 2, _vocabulary, *[_added] * 2, _file)
    changed = rng.choice(makers)(rng, content)
    model = link_folder(family, folder / "model", "tokenizer.json")
    data = changed if isinstance(changed, bytes) else json.dumps(changed).encode("utf-8", "surrogatepass")
    (model / "tokenizer.json").write_bytes(data)
    return Case(model, rng.choice(TEXTS))


def read(case: Case) -> None:
    """Load the tokenizer alone and use it, then use it with its model."""
    refusal: BifronsError | None = None
    try:
        tokenizer = TextTokenizer.from_folder(case.folder)
        ids = tokenizer.encode(case.text)
        decoder = StreamDecoder(tokenizer)
        pieces = [decoder.push(token) for token in [*ids[:200], *range(0, 800, 7), 2**31, 10**9]]
        assert all(isinstance(piece, str) for piece in (*pieces, decoder.flush()))
        for skip in (True, False):
            tokenizer.decode(range(900), skip)
    except BifronsError as error:
        refusal = error
    for text in (case.text[:60], "hello"):
        try:
            run_command(
                "ask",
                text.replace("\0", " "),
                "-m",
                case.folder,
                "--eager",
                "--device",
                "cpu",
                "--max-new-tokens",
                3,
            )
        except BifronsError as error:
            refusal = error
    if refusal is not None:
        raise refusal


def _anywhere(rng: random.Random, content: Any) -> bytes:
    """Changes at random places, few of which are in the vocabulary."""
    vocabulary, merges = content["model"].pop("vocab"), content["model"].pop("merges")
    text = mutate_json(rng, content)
    try:
        changed = json.loads(text)
        if isinstance(changed.get("model"), dict):
            changed["model"].setdefault("vocab", vocabulary)
            changed["model"].setdefault("merges", merges)
    except (ValueError, RecursionError, AttributeError):
        return text
    return json.dumps(changed).encode("utf-8", "surrogatepass")


def _file(rng: random.Random, content: Any) -> bytes:
    """The whole text changed as bytes or as JSON."""
    data = json.dumps(content).encode()
    return mutate_bytes(rng, data, len(data)) if rng.random() < 0.5 else mutate_json(rng, content)


def _model(rng: random.Random, content: Any) -> Any:
    """Another model or other settings of it, with the same vocabulary or parts of it."""
    vocabulary: dict[str, int] = content["model"]["vocab"]
    pairs = [[token, -float(number)] for token, number in vocabulary.items()]
    unknown = rng.choice((None, "<unk>", "a", "!"))
    what = rng.randrange(5)
    if what == 0:
        model: dict[str, Any] = {"type": "WordLevel", "vocab": vocabulary, "unk_token": unknown or "<unk>"}
    elif what == 1:
        model = {"type": "WordPiece", "vocab": vocabulary, "unk_token": unknown or "<unk>"}
        model |= {
            "continuing_subword_prefix": rng.choice(("##", "", "é")),
            "max_input_chars_per_word": rng.choice((0, 9, 10**9)),
        }
    elif what == 2:
        model = {
            "type": "Unigram",
            "unk_id": rng.choice((None, 0, 10**6)),
            "vocab": rng.choice((pairs, [], pairs[:1])),
        }
        model["byte_fallback"] = rng.choice((True, False))
    else:
        changes = {
            "dropout": (0.5, 1.0, 2.0, -1.0),
            "unk_token": (unknown, "<missing>"),
            "byte_fallback": (True,),
        }
        changes |= {
            "fuse_unk": (True,),
            "ignore_merges": (True,),
            "merges": ([], [["a"]], ["a b c"], [["zz", "q"]]),
        }
        changes |= {
            "continuing_subword_prefix": ("##", "é" * 99),
            "end_of_word_suffix": ("</w>", "x" * 9999),
            "type": ("BPE", None),
        }
        names = rng.sample(sorted(changes), rng.choice((1, 2)))
        model = content["model"] | {name: rng.choice(changes[name]) for name in names}
    return content | {"model": model}


def _vocabulary(rng: random.Random, content: Any) -> Any:
    """Ids and tokens that are gone, far out or doubled, and merges that don't fit."""
    model = content["model"]
    vocabulary: dict[str, Any] = model["vocab"]
    tokens = list(vocabulary)
    for _ in range(rng.choice((1, 3, 40))):
        token = rng.choice(tokens)
        what = rng.randrange(5)
        if what == 0:
            vocabulary.pop(token, None)
        elif what == 1:
            vocabulary[token] = rng.choice(
                (-1, 2**31, 2**32 - 1, 2**32, 703, 704, 5000, 10**6, 1.5, "1", None)
            )
        elif what == 2:
            vocabulary[rng.choice(WORDS)] = rng.randrange(900)
        elif what == 3:
            vocabulary[token] = vocabulary.get(rng.choice(tokens), 0)
        else:
            merge = rng.choice(
                (["a", "b"], "a b", ["", ""], ["\ud800", "a"], [], 5, "ab", "a  b", ["a" * 999, "b"])
            )
            model["merges"].insert(rng.randrange(len(model["merges"]) + 1), merge)
    return content


def _added(rng: random.Random, content: Any) -> Any:
    """Added tokens with other ids, contents or flags, missing or far too many."""
    added: list[Any] = content["added_tokens"]
    what = rng.randrange(5)
    if what == 0:
        del added[rng.randrange(len(added))]
    elif what == 1:
        added += [
            {**added[0], "id": 513 + number, "content": f"<t{number}>"}
            for number in range(rng.choice((3, 300, 3000)))
        ]
    else:
        token = rng.choice(added)
        values: dict[str, tuple[Any, ...]] = {
            "id": (-1, 0, 505, 703, 704, 10**6, 2**32 - 1, 2**40, "5", None),
            "content": ("", " ", "a", "e", "x" * 9999, "\ud800", "\x1b[31m", None, 5, "<|User|>"),
            **dict.fromkeys(
                ("single_word", "lstrip", "rstrip", "normalized", "special"), (True, False, None, 1)
            ),
        }
        for name in rng.sample(sorted(values), rng.choice((1, 1, 3))):
            token[name] = rng.choice(values[name])
    return content


TOKENIZERS = Kind("tokenizers", build, read, warm_up)
