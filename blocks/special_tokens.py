"""Texts of people among texts with special tokens: in the former their names are text like any other."""

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import accumulate, groupby

from tokenizers import Tokenizer
from torch import Tensor


class PlainText(str):
    """A text of people, in which the names of special tokens are text like any other."""


def strip_pieces(pieces: Sequence[str]) -> list[str]:
    """The pieces of a text without white space around the whole."""
    filled = [index for index, piece in enumerate(pieces) if piece.strip()]
    stripped = list(pieces[filled[0] : filled[-1] + 1]) if filled else []
    if stripped:
        stripped[0] = type(stripped[0])(stripped[0].lstrip())
        stripped[-1] = type(stripped[-1])(stripped[-1].rstrip())
    return stripped


def leading_space(logits_V: Tensor, decode: Callable[[list[int]], str]) -> str:
    """The white space with which a model begins its text, given the logits of the first token: that of the
    likeliest such token if together they are likelier than all others; else none."""
    likeliest = logits_V.softmax(-1).topk(min(100, len(logits_V)))
    texts = [decode([token]) for token in likeliest.indices.tolist()]
    spaces = [text[: len(text) - len(text.lstrip())] for text in texts]
    share = sum(p for p, space in zip(likeliest.values.tolist(), spaces, strict=True) if space)
    return next(filter(None, spaces)) if share > 0.5 else ""


class PieceEncoder:
    """Encodes texts in pieces with a tokenizer, whose special tokens must not change any more.

    Those are the tokens that it calls special, other added ones in angle brackets, and those with `names`.
    """

    def __init__(self, hf: Tokenizer, names: Iterable[str]) -> None:
        added = {token.content: token.special for token in hf.get_added_tokens_decoder().values()}
        marks = {name for name, special in added.items() if special or name[0] + name[-1] == "<>"}
        ids = (hf.token_to_id(name) for name in marks.union(names))
        self.hf, self.special = hf, frozenset(i for i in ids if i is not None)
        self.plain = self._without_special_tokens()

    def _without_special_tokens(self) -> Tokenizer:
        """A tokenizer with the same vocabulary that takes special tokens for text."""
        plain = Tokenizer(self.hf.model)  # which both share
        for part in ("normalizer", "pre_tokenizer"):
            if (value := getattr(self.hf, part)) is not None:
                setattr(plain, part, value)
        added = sorted(self.hf.get_added_tokens_decoder().items())  # in order, so that their ids are the same
        for special, run in groupby(added, lambda entry: entry[0] in self.special):
            (plain.add_special_tokens if special else plain.add_tokens)([token for _, token in run])
        plain.encode_special_tokens = True
        return plain

    def encode(self, pieces: Sequence[str], allowed: Collection[int]) -> list[int]:
        """Ids of the joined pieces. Special tokens count if they are `allowed` or not in a `PlainText`."""
        whole = "".join(pieces)
        encoding = self.hf.encode(whole, add_special_tokens=False)
        special, plain = self.special, [isinstance(piece, PlainText) for piece in pieces]
        if special.isdisjoint(encoding.ids):
            return encoding.ids
        ends = list(accumulate(map(len, pieces)))
        tokens = [pair for pair in zip(encoding.ids, encoding.offsets, strict=True) if pair[0] in special]
        meant = [(i, span) for i, span in tokens if i in allowed or not plain[bisect_right(ends, span[0])]]
        if len(meant) == len(tokens):
            return encoding.ids
        ids, place = [], 0
        for token, (start, end) in meant:
            ids += [*self._encode_plain(whole[place:start]), token]
            place = end
        return ids + self._encode_plain(whole[place:])

    def _encode_plain(self, text: str) -> list[int]:
        ids = self.plain.encode(text, add_special_tokens=False).ids
        if self.special.isdisjoint(ids):
            return ids
        # The vocabulary itself can make a special token of its characters: none of them alone does.
        return [token for one in text for token in self.plain.encode(one, add_special_tokens=False).ids]
