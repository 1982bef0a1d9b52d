"""The text tokenizer: a thin, exact layer over the `tokenizer.json` of a model folder.

The file is read with Hugging Face's `tokenizers`, and never through transformers' tokenizer classes: since
version 5 they rebuild the pre-tokenizer of folders that call themselves Llama and lose every space of
DeepSeek's byte-level vocabularies (transformers issue 45488).

Ids are always looked up by name in the tokenizer that was loaded. Two releases of one family number the same
name differently, and the library renumbers the added tokens when it loads a file.
"""

from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from ..blocks.errors import ConfigError, PromptError
from ..blocks.json_config import read_json

BOS = "<｜begin▁of▁sentence｜>"
EOS = "<｜end▁of▁sentence｜>"
PAD = "<｜▁pad▁｜>"

_DEFAULT_NAMES = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD}
_REPLACEMENT = "\ufffd"


def read_settings(path: Path) -> dict[str, Any]:
    """The JSON object in a settings file that a model folder may lack: an empty dict then.

    Raises ConfigError when the file is there and can't be read, or holds something else than an object.
    """
    return read_json(path) if path.exists() else {}


def _special_names(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """Names of the bos, eos and pad tokens; a null or absent entry falls through to the next source."""
    names = {}
    sources = (read_settings(folder / "special_tokens_map.json"), config)
    for key, default in _DEFAULT_NAMES.items():
        name = default
        for source in sources:
            value = source.get(key)
            if isinstance(value, dict):
                value = value.get("content")
            if value is None:
                continue
            if not isinstance(value, str) or not value:
                raise ConfigError(f"{key} in {folder} must be a name or an object with 'content': {value!r}")
            name = value
            break
        names[key] = name
    return names


class TextTokenizer:
    """Text to ids and back, as the official processors do it.

    Special tokens that are written out in a text (`<|User|>`, `<image>` ...) become their single ids,
    wherever they come from: the official demos rely on it.
    """

    def __init__(self, hf: Tokenizer, *, names: dict[str, str], add_bos: bool, origin: str) -> None:
        # A file may carry truncation or padding from its training; either would change a prompt in silence.
        hf.no_truncation()
        hf.no_padding()
        self.hf = hf
        self.add_bos = add_bos
        self.origin = origin
        self._names = names
        self._special_ids: frozenset[int] | None = None

    @classmethod
    def from_folder(cls, folder: str | PathLike[str]) -> "TextTokenizer":
        """Read `tokenizer.json`, `tokenizer_config.json` and `special_tokens_map.json` of a model folder.

        Only the first must be there. Without `add_bos_token` in the config a BOS is added: that is the
        default of `LlamaTokenizerFast` in transformers 4.46, which the official code runs on.
        Raises ConfigError when a file is missing or damaged.
        """
        folder = Path(folder)
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise ConfigError(f"{folder} has no tokenizer.json; a model folder must hold one")
        try:
            hf = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception for every kind of damage
            raise ConfigError(f"{path} can't be read as a tokenizer: {error}") from error
        config = read_settings(folder / "tokenizer_config.json")
        add_bos = config.get("add_bos_token", True)
        if not isinstance(add_bos, bool):
            raise ConfigError(f"add_bos_token in {folder} must be true or false, not {add_bos!r}")
        return cls(hf, names=_special_names(folder, config), add_bos=add_bos, origin=str(folder))

    def encode(self, text: str, bos: bool | None = None) -> list[int]:
        """Ids of a text, with one BOS id in front if `bos` (None: as the tokenizer's config says).

        Raises PromptError for something that is not text, or that no UTF-8 can hold (lone surrogates).
        """
        if not isinstance(text, str):
            raise PromptError(f"a text must be a str, not {type(text).__name__}")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise PromptError(f"the text is not valid Unicode: {error}") from error
        ids = self.hf.encode(text, add_special_tokens=False).ids
        use_bos = self.add_bos if bos is None else bos
        return [self.bos_id, *ids] if use_bos else ids

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Text of ids; bytes that are not UTF-8 become U+FFFD, ids beyond the vocabulary become nothing."""
        return self.hf.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens)

    def has(self, name: str) -> bool:
        """Whether the vocabulary has a token of exactly this name."""
        return self.hf.token_to_id(name) is not None

    def token_id(self, name: str) -> int:
        """Id of the token of exactly this name. Raises ConfigError if there is none."""
        found = self.hf.token_to_id(name)
        if found is None:
            raise ConfigError(f"the tokenizer of {self.origin} has no token {name!r}")
        return found

    def add_special(self, name: str) -> int:
        """Id of a special token, which is appended to the vocabulary only if it isn't there yet."""
        if not self.has(name):
            self.hf.add_special_tokens([AddedToken(name, normalized=False, special=True)])
            self._special_ids = None
        return self.token_id(name)

    def is_special(self, token_id: int) -> bool:
        """Whether `decode` leaves this id out when it skips special tokens."""
        if self._special_ids is None:
            added = self.hf.get_added_tokens_decoder()
            self._special_ids = frozenset(i for i, token in added.items() if token.special)
        return token_id in self._special_ids

    @property
    def bos_id(self) -> int:
        return self.token_id(self._names["bos_token"])

    @property
    def eos_id(self) -> int:
        return self.token_id(self._names["eos_token"])

    @property
    def pad_id(self) -> int:
        return self.token_id(self._names["pad_token"])

    @property
    def vocab_size(self) -> int:
        """Tokens of the vocabulary, added ones included (models often have more embedding rows)."""
        return self.hf.get_vocab_size(with_added_tokens=True)


class StreamDecoder:
    """Ids in, text out as soon as it is certain: `push` each id, then `flush` once.

    The pieces joined are `decode` of all the ids (byte-level vocabularies, which all of these models have).
    Trailing U+FFFD are held back, since the next id may complete the character. Only the ids since the last
    certain place, and those of one piece before it as context, are decoded each time: the cost of an id does
    not grow with the length of the answer.
    """

    def __init__(self, tokenizer: TextTokenizer, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._context: list[int] = []
        self._pending: list[int] = []

    def push(self, token_id: int) -> str:
        """Take one id; return the text that became certain (often one token's, sometimes "")."""
        token_id = int(token_id)
        if self._tokenizer.hf.id_to_token(token_id) is None:
            return ""
        if self._skip and self._tokenizer.is_special(token_id):
            return ""
        self._pending.append(token_id)
        piece = self._new_text()
        if piece.endswith(_REPLACEMENT):
            return ""
        self._context, self._pending = self._pending, []
        return piece

    def extend(self, ids: Sequence[int]) -> str:
        """`push` for several ids."""
        return "".join(self.push(i) for i in ids)

    def flush(self) -> str:
        """The text held back (broken characters as U+FFFD). The decoder is then as new."""
        piece = self._new_text() if self._pending else ""
        self._context, self._pending = [], []
        return piece

    def _new_text(self) -> str:
        before = self._tokenizer.decode(self._context, self._skip)
        return self._tokenizer.decode(self._context + self._pending, self._skip)[len(before) :]
