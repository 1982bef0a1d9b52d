"""The losses of supervised fine-tuning.

B rows, L tokens of a row's prompt or conversation, X positions of the longest row, T image tokens of a
picture, D decoder width, N learned tokens.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from ..blocks.chat.inputs import ChatInputs
from ..janus.model import JanusModel
from .examples import Example, PaintExample, ReadExample

KINDS = ("image", "text")
"""The losses: of image codes, and of the tokens of answers."""
PARTS = {
    "image": ("gen_embed.", "gen_aligner.", "gen_head."),
    "text": ("language_model.lm_head.", "language.lm_head."),
    "pictures": ("aligner.", "projector.", "image_newline", "view_seperator"),
}
"""What only some batches use: those for painting, with answers, with pictures to read; by its parameters."""
_LOGITS = 1 << 27
"""Logits that are held at a time, 512 MiB in float32."""


@dataclass(frozen=True)
class Batch:
    """Rows that are computed together: those for painting, then those for reading.

    `ids` int64 holds the tokens of all rows one after another, `lengths` how many each row has. `codes` int64
    is `[B, T]` of the rows for painting. Of those for reading, `inputs` hold the images and `learned`, bool,
    says which of their tokens are learned.
    """

    ids: Tensor
    lengths: Sequence[int]
    codes: Tensor | None
    inputs: Sequence[ChatInputs]
    learned: Tensor

    def pinned(self) -> "Batch":
        """The batch in memory from which a GPU copies without being waited for."""
        codes = None if self.codes is None else self.codes.pin_memory()
        return replace(self, ids=self.ids.pin_memory(), codes=codes)

    @property
    def counts(self) -> dict[str, int]:
        """Learned tokens by loss."""
        image = 0 if self.codes is None else self.codes.numel()
        return {"image": image, "text": int(self.learned.sum())}

    @property
    def amounts(self) -> dict[str, int]:
        """The tokens that each of `PARTS` works on: those learned by loss, and those of pictures to read."""
        return self.counts | {"pictures": sum(int(one.image_mask.sum()) for one in self.inputs)}


def collate(examples: Sequence[Example], pad_id: int, dropped: Sequence[bool]) -> Batch:
    """The batch of some examples, in no particular order.

    Where `dropped`, a prompt's tokens between the first (BOS) and the last (start of the image) are replaced
    by `pad_id`: the row of classifier-free guidance without a condition, exactly as it is generated from.
    """
    paint: list[PaintExample] = []
    read: list[ReadExample] = []
    for example, drop in zip(examples, dropped, strict=True):
        if isinstance(example, ReadExample):
            read.append(example)
        elif drop:
            ids = example.ids.clone()
            ids[1:-1] = pad_id
            paint.append(PaintExample(ids, example.codes))
        else:
            paint.append(example)
    rows = [*(one.ids for one in paint), *(one.inputs.ids for one in read)]
    codes = torch.stack([one.codes for one in paint]) if paint else None
    learned = torch.cat([one.learned for one in read]) if read else torch.zeros(0, dtype=torch.bool)
    return Batch(torch.cat(rows), [len(row) for row in rows], codes, [one.inputs for one in read], learned)


class TrainingModel(nn.Module):
    """A model of either family with its losses as one module, as distributed training needs it."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, used: Collection[str] = ()) -> dict[str, Tensor]:
        """The summed cross-entropy of the batch's learned tokens by loss, float32 scalars; 0 without any.

        `used` names the `PARTS` that any process uses in this step: those that this batch doesn't use get
        gradients of zero, so that all processes have gradients of the same parameters.
        """
        losses = {kind: self._loss(kind, *found) for kind, found in self._states(batch).items()}
        zero = next(iter(losses.values())).new_zeros(())
        losses = {kind: losses.get(kind, zero) for kind in KINDS}
        if missing := self._parameters_of(part for part in used if not batch.amounts[part]):
            losses["image"] = _ZeroGradients.apply(losses["image"], *missing)  # type: ignore[assignment]
        return losses

    def logits(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """The logits `[N, V]` that predict the batch's learned tokens `[N]`, and these, by loss."""
        states = self._states(batch)
        return {kind: (self._head(kind)(hidden), tokens) for kind, (hidden, tokens) in states.items()}

    def _head(self, kind: str) -> Callable[[Tensor], Tensor]:
        return self.model.image_logits if kind == "image" else self.model.text_logits

    def _states(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """The hidden states `[N, D]` that predict the batch's learned tokens `[N]`, and these, by loss."""
        rows, prompt_lengths = self._embed(batch)
        hidden_BXD = self.model.decoder(pad_sequence(rows, batch_first=True))
        # A padded position follows all others of its row, so that none of them attends to it.
        starts = torch.arange(len(rows), device=hidden_BXD.device) * hidden_BXD.shape[1]
        hidden = hidden_BXD.flatten(0, 1)
        found: dict[str, tuple[Tensor, Tensor]] = {}
        painted = 0
        if batch.codes is not None:
            codes = batch.codes.to(hidden.device, non_blocking=True)
            painted, count = codes.shape
            last = starts[:painted] + prompt_lengths[:painted].to(hidden.device) - 1
            positions = last[:, None] + torch.arange(count, device=hidden.device)
            found["image"] = hidden[positions.flatten()], codes.flatten()
        if batch.inputs:
            lengths = batch.lengths[painted:]
            targets = batch.learned.nonzero()[:, 0]
            ids = batch.ids[len(batch.ids) - sum(lengths) :]
            row = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
            first = torch.tensor(lengths).cumsum(0) - torch.tensor(lengths)
            offset = targets - first[row[targets]] - 1  # what predicts a token is the one before it
            positions = starts[painted:][row[targets].to(hidden.device)] + offset.to(hidden.device)
            found["text"] = hidden[positions], ids[targets].to(hidden.device)
        return found

    def _loss(self, kind: str, hidden_ND: Tensor, targets_N: Tensor) -> Tensor:
        """The summed cross-entropy of a head's logits, of which a part is held at a time."""
        head, config = self._head(kind), self.model.config
        rows = max(1, _LOGITS // (config.vq.codebook_size if kind == "image" else config.decoder.vocab_size))

        def loss(hidden_ND: Tensor, targets_N: Tensor) -> Tensor:
            return F.cross_entropy(head(hidden_ND).float(), targets_N, reduction="sum")

        if len(hidden_ND) <= rows:
            return loss(hidden_ND, targets_N)
        parts: Any = zip(hidden_ND.split(rows), targets_N.split(rows), strict=True)
        return torch.stack([checkpoint(loss, *part, use_reentrant=False) for part in parts]).sum()

    def _parameters_of(self, parts: Iterable[str]) -> list[nn.Parameter]:
        prefixes = tuple(prefix for part in parts for prefix in PARTS[part])
        named = self.model.named_parameters() if prefixes else ()
        return [p for name, p in named if name.startswith(prefixes) and p.requires_grad]

    def _embed(self, batch: Batch) -> tuple[list[Tensor], Tensor]:
        """The rows' embeddings `[X_i, D]`, a picture's codes but the last behind its prompt, and the lengths
        of their prompts."""
        model, device = self.model, self.model.decoder.device
        x = model.embed_text(batch.ids.to(device, non_blocking=True))
        if batch.amounts["pictures"]:
            masks = torch.cat([one.image_mask for one in batch.inputs])
            positions = masks.nonzero()[:, 0] + len(batch.ids) - len(masks)
            x = x.index_copy(0, positions.to(device), model.image_embeddings(batch.inputs).to(x.dtype))
        rows = list(x.split(list(batch.lengths)))
        if batch.codes is not None:
            assert isinstance(model, JanusModel)
            codes = batch.codes.to(device, non_blocking=True)
            embedded = model.embed_codes(codes[:, :-1]).to(x.dtype)
            for number, row in enumerate(embedded):
                rows[number] = torch.cat((rows[number], row))
        return rows, torch.tensor(batch.lengths)


class _ZeroGradients(Function):
    """Its first argument, with gradients of zero for the others."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, *unused: Tensor) -> Tensor:
        ctx.unused = unused
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        return grads[0], *(torch.zeros_like(tensor) for tensor in ctx.unused)
