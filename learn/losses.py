"""The losses of supervised fine-tuning.

B rows, L tokens of a row's prompt or conversation, X positions of the longest row, T image tokens of a
picture, D decoder width, N learned tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ..blocks.chat.inputs import ChatInputs
from ..janus.model import JanusModel
from .examples import Example, PaintExample, ReadExample

KINDS = ("image", "text")
"""The losses: of image codes, and of the tokens of answers."""


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

    @property
    def counts(self) -> dict[str, int]:
        """Learned tokens by loss."""
        image = 0 if self.codes is None else self.codes.numel()
        return {"image": image, "text": int(self.learned.sum())}


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

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The summed cross-entropy of the batch's learned tokens by loss, float32 scalars; 0 without any."""
        losses = {kind: _loss(*found) for kind, found in self.logits(batch).items()}
        zero = next(iter(losses.values())).new_zeros(())
        return {kind: losses.get(kind, zero) for kind in KINDS}

    def logits(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """The logits `[N, V]` that predict the batch's learned tokens `[N]`, and these, by loss."""
        rows, prompt_lengths = self._embed(batch)
        hidden_BXD = self.model.decoder(pad_sequence(rows, batch_first=True))
        # A padded position follows all others of its row, so that none of them attends to it.
        starts = torch.arange(len(rows), device=hidden_BXD.device) * hidden_BXD.shape[1]
        hidden = hidden_BXD.flatten(0, 1)
        found: dict[str, tuple[Tensor, Tensor]] = {}
        painted = 0
        if batch.codes is not None:
            codes = batch.codes.to(hidden.device)
            painted, count = codes.shape
            last = starts[:painted] + prompt_lengths[:painted].to(hidden.device) - 1
            positions = last[:, None] + torch.arange(count, device=hidden.device)
            found["image"] = self.model.image_logits(hidden[positions.flatten()]), codes.flatten()
        if batch.inputs:
            lengths = batch.lengths[painted:]
            targets = batch.learned.nonzero()[:, 0]
            ids = batch.ids[len(batch.ids) - sum(lengths) :]
            row = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
            first = torch.tensor(lengths).cumsum(0) - torch.tensor(lengths)
            offset = targets - first[row[targets]] - 1  # what predicts a token is the one before it
            positions = starts[painted:][row[targets].to(hidden.device)] + offset.to(hidden.device)
            found["text"] = self.model.text_logits(hidden[positions]), ids[targets].to(hidden.device)
        return found

    def _embed(self, batch: Batch) -> tuple[list[Tensor], Tensor]:
        """The rows' embeddings `[X_i, D]`, a picture's codes but the last behind its prompt, and the lengths
        of their prompts."""
        model, device = self.model, self.model.decoder.device
        x = model.embed_text(batch.ids.to(device))
        if batch.inputs and any(bool(one.image_mask.any()) for one in batch.inputs):
            masks = torch.cat([one.image_mask for one in batch.inputs])
            positions = masks.nonzero()[:, 0] + len(batch.ids) - len(masks)
            x = x.index_copy(0, positions.to(device), model.image_embeddings(batch.inputs).to(x.dtype))
        rows = list(x.split(list(batch.lengths)))
        if batch.codes is not None:
            assert isinstance(model, JanusModel)
            embedded = model.embed_codes(batch.codes[:, :-1].to(device)).to(x.dtype)
            for number, codes in enumerate(embedded):
                rows[number] = torch.cat((rows[number], codes))
        return rows, torch.tensor(batch.lengths)


def _loss(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    return F.cross_entropy(logits_NV.float(), targets_N, reduction="sum")
