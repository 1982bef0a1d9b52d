"""Which tokens an answer of a given form may go on with: bit masks, computed by the library llguidance.

A model's `TokenVocabulary` compiles a format's grammar; an `OutputMatcher` follows one answer, and holds the
mask of the tokens that may come next. Generation draws from these alone.

N answers, V rows of the model's embedding, W = ceil(V / 32) words of a mask.
"""

import json
import math
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from random import Random
from typing import NoReturn

import numpy as np
import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from tokenizers import Tokenizer
from torch import Tensor

from .device import upload
from .errors import OptionError
from .json_config import shown

LIMITS = LLParserLimits(
    initial_lexer_fuel=1_000_000,  # about 20 ms of compiling a regular expression
    step_lexer_fuel=200_000,  # about 14 ms of one mask
    step_max_items=50_000,  # about 3 ms of one mask
    max_lexer_states=20_000,  # 2 kB each
    max_grammar_size=100_000,
    verbose_errors=False,
)
"""What compiling and the masks of one format may cost."""
_CACHED = 16  # compiled formats of a vocabulary
_SHOWN = 300
_SPARE = 4  # tokens that may be left when an answer is ended
_DIRECT = 256  # tokens of an end in which others are tried then
_CLOSING = '}]",0123456789ntf-[{'
"""Characters in the order in which they shorten JSON: ends, then short values, then what opens more."""


class TokenVocabulary:
    """The tokens of a model as formats need them, read at the first use. It may be shared by threads."""

    def __init__(self, tokenizer: Tokenizer, rows: int, eos_id: int) -> None:
        """`rows` is that of the model's embedding, which may be larger than the tokenizer's vocabulary."""
        self._tokenizer, self.rows, self.eos_id = tokenizer, rows, eos_id
        self._lock = threading.Lock()
        self._tokens: LLTokenizer | None = None
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()
        self.plain_W = np.zeros(-(-rows // 32), dtype=np.int32)
        """The tokens that are no special ones, and the end token."""
        self.characters: dict[str, int] = {}
        """The tokens of single printable ASCII characters."""
        self.brackets: frozenset[int] = frozenset()
        """The tokens that may open a list or an object."""

    def __reduce__(self) -> tuple[type["TokenVocabulary"], tuple[Tokenizer, int, int]]:
        return TokenVocabulary, (self._tokenizer, self.rows, self.eos_id)

    def compile(self, description: str, source: str) -> LLMatcher:
        """A matcher in its first state. Compiling takes up to a second; the last formats are remembered."""
        with self._lock, library_errors(description):
            if self._tokens is None:
                self._tokens = self._read()
            matcher = self._compiled.get(source)
            if matcher is None:
                matcher = LLMatcher(self._tokens, source, log_level=0, limits=LIMITS)
                if matcher.is_error():
                    refuse(description, matcher.get_error())
                self._compiled[source] = matcher
            self._compiled.move_to_end(source)
            if len(self._compiled) > _CACHED:
                self._compiled.popitem(last=False)
            return matcher.deep_copy()

    def _read(self) -> LLTokenizer:
        content = json.loads(self._tokenizer.to_str())
        content["post_processor"] = None
        vocabulary, special = content["model"]["vocab"], set[int]()
        for token in content["added_tokens"]:
            if token["special"]:
                # Under another name: a text that spells a special token is nothing but text.
                special.add(token["id"])
                name, token["content"] = token["content"], f"\0{token['id']}"
                if name in vocabulary:
                    vocabulary[token["content"]] = vocabulary.pop(name)
        tokens = LLTokenizer(json.dumps(content), n_vocab=self.rows, eos_token=self.eos_id)
        texts = {token: tokens.decode_bytes([token]) for token in range(self.rows)}
        ids = {text: token for token, text in texts.items()}
        self.characters = {chr(c): ids[bytes([c])] for c in range(32, 127) if bytes([c]) in ids}
        self.brackets = frozenset(token for token, text in texts.items() if b"{" in text or b"[" in text)
        if missing := "".join(chr(code) for code in range(32, 127) if chr(code) not in self.characters):
            raise OptionError(
                f"this model's vocabulary can't spell {shown(missing)}, so it can't write answers of a given "
                "format; accepted: a vocabulary with a token for each byte"
            )
        bits = np.ones(32 * len(self.plain_W), dtype=np.uint8)
        bits[[*(special - {self.eos_id}), *range(self.rows, len(bits))]] = 0
        self.plain_W = np.packbits(bits, bitorder="little").view("<i4").astype(np.int32)
        return tokens


class OutputMatcher:
    """Holds one answer to a format, token by token. Used by one thread at a time.

    So that `max_new_tokens` doesn't cut an answer off, a short way to end it is looked for from time to time,
    and taken when hardly more tokens are left: strings end, lists and optional properties get no more
    entries.
    """

    def __init__(
        self, description: str, source: str, vocabulary: TokenVocabulary, max_new_tokens: int
    ) -> None:
        """Arguments are those of `OutputFormat.matcher`."""
        self._description, self._vocabulary, self._left = description, vocabulary, max_new_tokens
        self._matcher = vocabulary.compile(description, source)
        self._ending: list[int] = []
        """The rest of the answer, last token first, once there are tokens for no more."""
        self._end_length, self._growth, self._look_at = 0, 0, max_new_tokens
        self.mask_W = np.zeros_like(vocabulary.plain_W)
        """Bit `i % 32` of word `i // 32` says whether token `i` may come next; int32 `[W]`. The end token may
        if the answer is complete."""
        self._update()

    def accept(self, token: int) -> bool:
        """Add a token to the answer, and update the mask; returns whether the answer is complete and can't go
        on. Raises `OptionError` if the next mask is too expensive to compute."""
        with library_errors(self._description):
            self._matcher.consume_token(token)
            self._left -= 1
            if token in self._vocabulary.brackets:
                self._look_at = self._left
            if self._matcher.is_stopped() and not self._matcher.is_error():
                return True
        self._update()
        return False

    def masks(self, drafts: Sequence[int]) -> list[np.ndarray]:
        """The masks of the next token and of those after each draft; after one that is not allowed, any."""
        ahead, masks = copy(self), [self.mask_W]
        ahead._matcher, ahead._ending = self._matcher.deep_copy(), list(self._ending)
        for draft in drafts:
            ahead.mask_W = masks[-1].copy()
            try:
                if not ahead.mask_W[draft // 32] >> draft % 32 & 1 or ahead.accept(draft):
                    break
            except OptionError:  # too expensive, perhaps after a wrong draft only
                break
            masks.append(ahead.mask_W)
        return masks + masks[-1:] * (1 + len(drafts) - len(masks))

    def _update(self) -> None:
        with library_errors(self._description):
            if not self._ending and self._left <= self._look_at:
                self._look_for_end()
            if self._ending:
                token = self._ending.pop()
                self.mask_W[:] = 0
                self.mask_W[token // 32] = np.int32(np.uint32(1 << token % 32).view(np.int32))
                return
            self._matcher.unsafe_compute_mask_ptr(self.mask_W.ctypes.data, self.mask_W.nbytes)
            if self._matcher.is_error():
                refuse(self._description, self._matcher.get_error())
        self.mask_W &= self._vocabulary.plain_W
        if not self.mask_W.any():
            refuse(self._description, "this model's vocabulary can't spell what it asks for")

    def _look_for_end(self) -> None:
        """Decide whether to end the answer, and if not, when to look again: at the latest when half of the
        tokens are used that it might take beyond its end."""
        tokens = self._short_end()
        if tokens is None:
            self._look_at = self._left // 2
            return
        self._growth = max(self._growth, len(tokens) - self._end_length if self._end_length else 0)
        self._end_length = len(tokens)
        spare = self._left - len(tokens) - self._growth - _SPARE
        self._look_at = self._left - max(1, spare // 2)
        if spare <= 0:
            self._ending = tokens[::-1]

    def _short_end(self) -> list[int] | None:
        """Tokens that complete the answer, few but not the fewest; None if none were found that fit."""
        matcher, tokens, mask_W = self._matcher.deep_copy(), [], np.zeros_like(self.mask_W)
        random = Random(0)
        while len(tokens) <= self._left:
            if matcher.is_accepting():
                return tokens if matcher.is_stopped() else [*tokens, self._vocabulary.eos_id]
            forced = matcher.compute_ff_tokens()
            if not forced:
                matcher.unsafe_compute_mask_ptr(mask_W.ctypes.data, mask_W.nbytes)
                mask_W &= self._vocabulary.plain_W
                forced = [self._closing_token(mask_W, random if len(tokens) > _DIRECT else None)]
            tokens += forced
            if not matcher.consume_tokens(forced):
                return None
        return None

    def _closing_token(self, mask_W: np.ndarray, random: Random | None) -> int:
        """The token that most likely brings the answer to its end; a `random` one if it did not."""
        allowed = np.flatnonzero(np.unpackbits(mask_W.view(np.uint8), bitorder="little")).tolist()
        if random is not None or not allowed:
            return random.choice(allowed) if random is not None and allowed else self._vocabulary.eos_id
        characters, found = self._vocabulary.characters, set(allowed)
        if characters[" "] in found and characters['"'] in found:  # within a string
            return characters['"']
        return next((characters[c] for c in _CLOSING if characters[c] in found), allowed[0])


def apply_masks(logits_NV: Tensor, masks_NW: Tensor) -> Tensor:
    """Logits with -inf for tokens whose bit in a mask of `OutputMatcher` is 0."""
    bits = torch.arange(32, dtype=torch.int32, device=masks_NW.device)
    allowed = ((masks_NW[:, :, None] >> bits) & 1).flatten(1)[:, : logits_NV.shape[1]]
    return logits_NV.masked_fill(allowed == 0, -math.inf)


def stack_masks(masks: Sequence[np.ndarray], device: torch.device) -> Tensor:
    """Masks of N draws on a device, int32 `[N, W]`."""
    return upload(torch.from_numpy(np.stack(masks)), device)


@contextmanager
def library_errors(description: str) -> Iterator[None]:
    """Turn what the library raises, panics of its Rust code included, into an `OptionError`."""
    try:
        yield
    except OptionError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        refuse(description, str(error))


def refuse(description: str, reason: str) -> NoReturn:
    """Raise the `OptionError` of a format, with the reason on one line of a bearable length."""
    line = " ".join(reason.split())
    line = line if len(line) <= _SHOWN else f"{line[:_SHOWN]}..."
    raise OptionError(f"{description} can't be used as an output format: {line}")
