"""Text tokenizer: a thin wrapper of Hugging Face's `tokenizers` for the `tokenizer.json` of a model folder.

The tokenizer classes of transformers are not used: since version 5 they rebuild the pre-tokenizer of folders
declared as Llama, which loses all spaces with DeepSeek's byte-level vocabularies (transformers issue 45488).

Token ids are always looked up by name in the loaded tokenizer: releases of the same model family assign
different ids to the same token, and the library renumbers added tokens when it loads a file.
"""

import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from ..blocks.errors import ConfigError, PromptError, is_name
from ..blocks.json_config import read_json, shown
from ..blocks.special_tokens import PieceEncoder, PlainText
from ..blocks.token_masks import TokenVocabulary
from ..blocks.tokenizer_file import library_errors, read_tokenizer
from ..blocks.vocabulary import respell

BOS = "<｜begin▁of▁sentence｜>"
EOS = "<｜end▁of▁sentence｜>"
PAD = "<｜▁pad▁｜>"

_DEFAULT_NAMES = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD}
_REPLACEMENT = "\ufffd"


def read_settings(path: Path) -> dict[str, Any]:
    """The JSON object in an optional settings file of a model folder; empty if the file doesn't exist.

    Raises ConfigError if the file can't be read or holds anything but an object.
    """
    return read_json(path) if os.path.lexists(path) else {}


def _special_token_names(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """Names of the bos, eos and pad tokens, from the first of `special_tokens_map.json`, `config` and the
    defaults that has a non-null entry."""
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
            if not is_name(value) or not value:
                raise ConfigError(
                    f"{key} in {folder} must be a name or an object with 'content': {shown(value)}"
                )
            name = value
            break
        names[key] = name
    return names


class TextTokenizer:
    """Encodes and decodes text exactly as the official processors do.

    Special tokens spelled out in a text (`<|User|>`, `<image>` ...) are encoded to their single ids, on which
    the official demos rely, but not in a `PlainText`: there only those of `allowed` are.
    """

    def __init__(
        self, hf: Tokenizer, *, names: dict[str, str], add_bos: bool, origin: str, rows: int | None = None
    ) -> None:
        # `tokenizer.json` may enable truncation or padding, which would silently change prompts.
        hf.no_truncation()
        hf.no_padding()
        self.hf = hf
        self.add_bos = add_bos
        self.origin = origin
        self.rows = rows
        self.allowed: frozenset[int] = frozenset()
        """Ids of special tokens that people may write."""
        self._names = names

    @classmethod
    def from_folder(cls, folder: str | PathLike[str], rows: int | None = None) -> "TextTokenizer":
        """Load `tokenizer.json` and, if they exist, `tokenizer_config.json` and `special_tokens_map.json`.

        `add_bos_token` defaults to true, as in `LlamaTokenizerFast` of transformers 4.46, which the official
        code uses. Raises ConfigError if `tokenizer.json` is missing, if any of the files is invalid, or if
        an id is beyond the `rows` of the model's embedding.
        """
        folder = Path(folder)
        path = folder / "tokenizer.json"
        if not os.path.isfile(path):
            raise ConfigError(f"{folder} has no tokenizer.json; a model folder must hold one")
        hf = read_tokenizer(path, rows)
        respell(hf, folder)
        config = read_settings(folder / "tokenizer_config.json")
        add_bos = config.get("add_bos_token", True)
        if not isinstance(add_bos, bool):
            raise ConfigError(f"add_bos_token in {folder} must be true or false, not {shown(add_bos)}")
        return cls(
            hf, names=_special_token_names(folder, config), add_bos=add_bos, origin=str(folder), rows=rows
        )

    def encode(self, text: str | Sequence[str], bos: bool | None = None) -> list[int]:
        """Token ids of a text, preceded by a BOS id if `bos` (by default, if the tokenizer's config says so).

        The text may be given in pieces, which are encoded as one. Raises PromptError for anything but a str,
        and for lone surrogates, which UTF-8 can't encode.
        """
        pieces: Any = text if isinstance(text, list | tuple) else [text]
        for piece in pieces:
            if not isinstance(piece, str):
                raise PromptError(f"a text must be a str, not {type(piece).__name__}")
        whole = "".join(pieces)
        try:
            whole.encode("utf-8")
        except UnicodeEncodeError as error:
            raise PromptError(f"the text is not valid Unicode: {error}") from error
        with library_errors(f"the tokenizer of {self.origin} failed"):
            if any(isinstance(piece, PlainText) for piece in pieces):
                ids = self._encoder.encode(pieces, self.allowed)
            else:
                ids = self.hf.encode(whole, add_special_tokens=False).ids
        use_bos = self.add_bos if bos is None else bos
        return [self.bos_id, *ids] if use_bos else ids

    @cached_property
    def _encoder(self) -> PieceEncoder:
        return PieceEncoder(self.hf, self._names.values())

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Text of token ids. Invalid UTF-8 becomes U+FFFD; ids outside the vocabulary are ignored."""
        with library_errors(f"the tokenizer of {self.origin} failed"):
            return self.hf.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens)

    def has(self, name: str) -> bool:
        """Whether the vocabulary has a token with exactly this name."""
        return self.hf.token_to_id(name) is not None

    def token_id(self, name: str) -> int:
        """Id of the token with exactly this name. Raises ConfigError if there is none."""
        token_id = self.hf.token_to_id(name)
        if token_id is None:
            raise ConfigError(f"the tokenizer of {self.origin} has no token {name!r}")
        return token_id

    def add_special(self, name: str) -> int:
        """Id of a special token, added to the vocabulary if missing. Raises ConfigError if no row is left."""
        if not self.has(name):
            self.hf.add_special_tokens([AddedToken(name, normalized=False, special=True)])
            for cached in ("_encoder", "_dropped", "vocabulary"):
                self.__dict__.pop(cached, None)
        token_id = self.token_id(name)
        if self.rows is not None and token_id >= self.rows:
            raise ConfigError(f"the token {name!r} has id {token_id}, beyond the {self.rows} embeddings")
        return token_id

    def is_special(self, token_id: int) -> bool:
        """Whether `decode` drops this id with `skip_special_tokens`."""
        return token_id in self._dropped

    @cached_property
    def _dropped(self) -> frozenset[int]:
        return frozenset(i for i, token in self.hf.get_added_tokens_decoder().items() if token.special)

    @property
    def bos_id(self) -> int:
        return self.token_id(self._names["bos_token"])

    @property
    def eos_id(self) -> int:
        return self.token_id(self._names["eos_token"])

    @property
    def pad_id(self) -> int:
        return self.token_id(self._names["pad_token"])

    @cached_property
    def vocabulary(self) -> TokenVocabulary:
        """The tokens as output formats need them."""
        return TokenVocabulary(self.hf, self.rows or self.vocab_size, self.eos_id)

    @property
    def vocab_size(self) -> int:
        """Size of the vocabulary with added tokens; models often have more embedding rows."""
        return self.hf.get_vocab_size(with_added_tokens=True)


class StreamDecoder:
    """Incremental detokenizer: `push` each token id, then `flush` once.

    The concatenated pieces equal `decode` of all ids (for byte-level vocabularies, which all these models
    have). Text that ends in U+FFFD is held back, since the next id may complete the character. Each call
    decodes only the pending ids and those of the previous piece as context, so the cost per token does not
    grow with the length of the text.
    """

    def __init__(self, tokenizer: TextTokenizer, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._context: list[int] = []
        self._pending: list[int] = []

    def push(self, token_id: int) -> str:
        """Add one token id; returns the text that is now final, possibly empty."""
        return self.extend((token_id,))

    def extend(self, ids: Iterable[int]) -> str:
        """Add token ids; returns the text that is now final. Fewer, longer calls cost less."""
        known = self._tokenizer.hf.id_to_token
        new = [i for i in map(int, ids) if known(i) is not None]
        if self._skip:
            new = [i for i in new if not self._tokenizer.is_special(i)]
        self._pending += new
        piece = self._new_text() if new else ""
        if piece.endswith(_REPLACEMENT):
            return ""
        if new:
            self._context, self._pending = self._pending, []
        return piece

    def flush(self) -> str:
        """Return the pending text, with incomplete characters as U+FFFD, and reset the decoder."""
        piece = self._new_text() if self._pending else ""
        self._context, self._pending = [], []
        return piece

    def _new_text(self) -> str:
        """Text of the pending ids after their context."""
        context = self._tokenizer.decode(self._context, self._skip)
        return self._tokenizer.decode(self._context + self._pending, self._skip)[len(context) :]
