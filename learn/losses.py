"""The losses of supervised fine-tuning.

B rows, P of them for painting, L tokens of the longest prompt or conversation, X positions of the longest
row with its codes, T image tokens of a picture, F features of a row's pictures, D decoder width, N learned
tokens.
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
    "pictures": ("aligner.", "projector.", "image_newline", "view_seperator", "vision_model.", "vision."),
}
"""What only some batches use: those for painting, with answers, with pictures to read; by its parameters."""
_LOGITS = 1 << 27
"""Logits that are held at a time, 512 MiB in float32."""


@dataclass(frozen=True)
class Batch:
    """Rows that are computed together: those for painting, then those for reading.

    `ids` int64 `[B, L]` holds their tokens, padded at the right, and `lengths` int64 `[B]` how many of each
    count. `codes` int64 `[P, T]` are of the rows for painting. Of those for reading, `pictures` int64 `[M]`
    are the places of images' tokens in `ids` as one row of B x L, and `inputs` holds the images, or `pixels`
    float `[I, V, 3, S, S]`: V views of each of I images, as the model's processor makes them. `learned` int64
    `[N]` are the places that predict the `targets` int64 `[N]`, of which -100 is not learned. `dropped` bool
    `[P]` says whose prompts are padding. `width` is X. Of the last `replayed` rows for painting the
    model's own distribution before training is learned; see `PaintExample`.
    """

    ids: Tensor
    lengths: Tensor
    width: int
    codes: Tensor | None = None
    learned: Tensor | None = None
    targets: Tensor | None = None
    pictures: Tensor | None = None
    inputs: Sequence[ChatInputs] = ()
    pixels: Tensor | None = None
    dropped: Tensor | None = None
    replayed: int = 0

    def pinned(self) -> "Batch":
        """The batch in memory from which a GPU copies without being waited for."""
        return self._each(Tensor.pin_memory)

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device, which is not waited for."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **{name: change(value) for name, value in tensors.items()})

    def of_replayed(self) -> "Batch":
        """The `replayed` rows alone."""
        assert self.codes is not None
        rows = slice(len(self.codes) - self.replayed, len(self.codes))
        return Batch(self.ids[rows], self.lengths[rows], self.width, self.codes[rows])

    @property
    def counts(self) -> dict[str, int]:
        """Learned tokens by loss."""
        image = 0 if self.codes is None else self.codes.numel()
        return {"image": image, "text": 0 if self.targets is None else len(self.targets)}

    @property
    def amounts(self) -> dict[str, int]:
        """The tokens that each of `PARTS` works on: those learned by loss, and those of pictures to read."""
        return self.counts | {"pictures": 0 if self.pictures is None else len(self.pictures)}


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
            paint.append(replace(example, ids=ids))
        else:
            paint.append(example)
    paint.sort(key=lambda one: one.replayed)
    ids = pad_sequence([*(one.ids for one in paint), *(one.inputs.ids for one in read)], batch_first=True)
    lengths = torch.tensor([*(len(one.ids) for one in paint), *(len(one.inputs.ids) for one in read)])
    codes = torch.stack([one.codes for one in paint]) if paint else None
    width = ids.shape[1]
    if codes is not None:
        width = max(width, int(lengths[: len(paint)].max()) + codes.shape[1] - 1)
    batch = Batch(ids, lengths, width, codes, replayed=sum(one.replayed for one in paint))
    if not read:
        return batch
    before = len(paint) * ids.shape[1]
    learned = pad_sequence([one.learned for one in read], batch_first=True)
    learned = F.pad(learned, (0, ids.shape[1] - learned.shape[1])).flatten().nonzero()[:, 0] + before
    masks = pad_sequence([one.inputs.image_mask for one in read], batch_first=True)
    pictures = F.pad(masks, (0, ids.shape[1] - masks.shape[1])).flatten().nonzero()[:, 0] + before
    return replace(
        batch,
        learned=learned - 1,  # what predicts a token is the one before it
        targets=ids.flatten()[learned],
        pictures=pictures,
        inputs=[one.inputs for one in read],
    )


class TrainingModel(nn.Module):
    """A model of either family with its losses as one module, as distributed training needs it."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, batch: Batch, used: Collection[str] = (), before_NV: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The summed cross-entropy of the batch's learned tokens by loss, float32 scalars; 0 without any.

        Of replayed rows it is the divergence from `before_NV`, the logits of their codes before training.
        `used` names the `PARTS` that any process uses in this step: those that this batch doesn't use get
        gradients of zero, so that all processes have gradients of the same parameters.
        """
        losses: dict[str, Tensor] = {}
        for kind, (hidden_ND, targets_N) in self._states(batch).items():
            replayed = 0 if before_NV is None or kind != "image" else len(before_NV)
            learned = len(hidden_ND) - replayed
            losses[kind] = self._loss(kind, hidden_ND[:learned], targets_N[:learned])
            if before_NV is not None and replayed:
                losses[kind] = losses[kind] + divergence(before_NV, self._head(kind)(hidden_ND[learned:]))
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
        batch = batch.to(self.model.decoder.device)
        hidden = self.model.decoder(self._embed(batch)).flatten(0, 1)
        found: dict[str, tuple[Tensor, Tensor]] = {}
        if batch.codes is not None:
            before = self._places_of_codes(batch, batch.codes) - 1
            found["image"] = hidden.index_select(0, before), batch.codes.flatten()
        if batch.learned is not None and batch.targets is not None:
            found["text"] = hidden.index_select(0, self._places(batch, batch.learned)), batch.targets
        return found

    @staticmethod
    def _places_of_codes(batch: Batch, codes: Tensor) -> Tensor:
        """Where codes `[P, K]` stand behind their prompts, in all positions as one row of B x X: `[P K]`."""
        rows, count = codes.shape
        starts = torch.arange(rows, device=codes.device) * batch.width + batch.lengths[:rows]
        return (starts[:, None] + torch.arange(count, device=codes.device)).flatten()

    @staticmethod
    def _places(batch: Batch, places: Tensor) -> Tensor:
        """Places in rows of L tokens, in rows of X."""
        return places + places // batch.ids.shape[1] * (batch.width - batch.ids.shape[1])

    def _loss(self, kind: str, hidden_ND: Tensor, targets_N: Tensor) -> Tensor:
        """The summed cross-entropy of a head's logits, of which a part is held at a time."""
        head, config = self._head(kind), self.model.config
        rows = max(1, _LOGITS // (config.vq.codebook_size if kind == "image" else config.decoder.vocab_size))

        def loss(hidden_ND: Tensor, targets_N: Tensor) -> Tensor:
            return F.cross_entropy(head(hidden_ND).float(), targets_N, reduction="sum")

        if len(hidden_ND) <= rows:
            return loss(hidden_ND, targets_N)
        parts: Any = zip(hidden_ND.split(rows), targets_N.split(rows), strict=True)
        return torch.stack(
            [checkpoint(loss, *part, use_reentrant=False, preserve_rng_state=False) for part in parts]
        ).sum()

    def _parameters_of(self, parts: Iterable[str]) -> list[nn.Parameter]:
        prefixes = tuple(prefix for part in parts for prefix in PARTS[part])
        named = self.model.named_parameters() if prefixes else ()
        return [p for name, p in named if name.startswith(prefixes) and p.requires_grad]

    def _embed(self, batch: Batch) -> Tensor:
        """The rows' embeddings `[B, X, D]`, a picture's codes but the last behind its prompt."""
        model = self.model
        x = model.embed_text(batch.ids)
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        # A padded position follows all others of its row, so that none of them attends to it.
        x = F.pad(x, (0, 0, 0, batch.width - x.shape[1]))
        shape, x = x.shape, x.flatten(0, 1)
        if batch.pictures is not None and len(batch.pictures):
            x = x.index_copy(0, self._places(batch, batch.pictures), self._embed_pictures(batch).to(x.dtype))
        if batch.codes is not None:
            assert isinstance(model, JanusModel)
            codes = batch.codes[:, :-1]
            embedded = model.embed_codes(codes).flatten(0, 1).to(x.dtype)
            x = x.index_copy(0, self._places_of_codes(batch, codes), embedded)
        return x.view(shape)

    def _embed_pictures(self, batch: Batch) -> Tensor:
        """Embeddings `[M, D]` of the images' tokens, in order."""
        if batch.pixels is None:
            return self.model.image_embeddings(batch.inputs)
        views, pixels = batch.pixels.shape[1], batch.pixels.flatten(0, 1)
        if isinstance(self.model, JanusModel):
            return self.model.embed_images(pixels).flatten(0, 1)
        side = round((views - 1) ** 0.5)  # the local tiles of a square image
        return self.model.arrange(
            self.model.embed_tiles(pixels).unflatten(0, (-1, views)), (side, side)
        ).flatten(0, 1)


def divergence(before_NV: Tensor, now_NV: Tensor) -> Tensor:
    """The summed Kullback-Leibler divergence of the distributions of logits from those before: a float32
    scalar."""
    before_NV, now_NV = before_NV.float().log_softmax(-1), now_NV.float().log_softmax(-1)
    return F.kl_div(now_NV, before_NV, reduction="sum", log_target=True)


class _ZeroGradients(Function):
    """Its first argument, with gradients of zero for the others."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, *unused: Tensor) -> Tensor:
        ctx.unused = unused
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        return grads[0], *(torch.zeros_like(tensor) for tensor in ctx.unused)
