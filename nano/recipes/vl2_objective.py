"""The losses that `vl2-nano` is trained by: the tokens of answers, and what its image tokens show.

A picture goes through the vision encoder once a step, whatever number of rows ask about it.

P pictures, V views of each, B rows about them, L tokens of a row, M learned ones, F features of a row's
pictures, D decoder width, K slots, S side of a tile in pixels; 4 is x0, y0, x1, y1.
"""

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...blocks.model.context import ForwardContext
from ...blocks.model.moe import MoE
from ...learn.objectives import balance_loss, compute_all_experts
from ...learn.pool import ExamplePool
from ...learn.pretraining import Objective
from ..world.catalog import PAINTS
from .vision import LABELS, NO_SLOT, NOTHING, normalize, patch_losses
from .vl2_rows import FIRST_TILE, FULL_WEIGHT, SHAPES
from .vl2_spec import VIEWS

WEIGHTS = {"ask": 1.0, "first": 1.0, "point": 1.0, "two": 0.7, "shown": 0.3, "patches": 0.1, "balance": 0.02}
"""Weights of the losses: of each kind of rows, of what image tokens show in the middle of the decoder, of
what patches show after the vision encoder, and of experts that are not used alike."""
BINS = 64
"""Classes of a coordinate of a box in the picture, from edge to edge."""

ATTENTION = [SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""Attention with a mask on CUDA, the fastest first: 0.5 and 1.0 to 1.5 ms on an H200 for a layer's rows."""

_MIDDLE = 3  # layers after which image tokens say what they show; the others let text attend to that
_SIZES = (NOTHING + 1, len(PAINTS), 4 * BINS)


def row_mask(conversations_BL: Tensor) -> Tensor:
    """Which tokens a token attends to: those of its conversation and those that all share, up to itself;
    bool [B, 1, L, L]."""
    places = torch.arange(conversations_BL.shape[1], device=conversations_BL.device)
    asked, seen = conversations_BL[:, :, None], conversations_BL[:, None]
    return (((seen == 0) | (seen == asked)) & (places <= places[:, None]))[:, None]


def place_features(x_BLD: Tensor, features_BFD: Tensor, sources_BL: Tensor) -> Tensor:
    """Rows of text with the features of pictures where `sources` says. As a product with rows of one 1, whose
    gradients are a product too: sums into places that many tokens share would take longer."""
    numbers = torch.arange(features_BFD.shape[1], device=x_BLD.device)
    chosen_BLF = (sources_BL[..., None] == numbers).to(features_BFD.dtype)
    text_BL1 = (sources_BL < 0)[..., None]
    return torch.where(text_BL1, x_BLD, (chosen_BLF @ features_BFD).to(x_BLD.dtype))


def coordinate_loss(logits_N4C: Tensor, places_N4: Tensor) -> Tensor:
    """Mean cross-entropy [N] of four coordinates in 0..1 with the two classes on either side, by nearness."""
    at = places_N4.clamp(0, 1) * (logits_N4C.shape[-1] - 1)
    low = at.floor().clamp(max=logits_N4C.shape[-1] - 2)
    log_probs = logits_N4C.log_softmax(-1)
    pair = torch.stack((low, low + 1), dim=-1).long()
    shares = torch.stack((1 - (at - low), at - low), dim=-1)
    return -(log_probs.gather(-1, pair) * shares).sum(-1).mean(-1)


class TrainedLayer(nn.Module):
    """A layer of a decoder that also returns how alike its experts are used (`balance_loss`; 0 without any).
    Layers that added it to a list in a hook would each be compiled anew."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x_BLD: Tensor, context: ForwardContext) -> tuple[Tensor, Tensor]:
        layer = self.layer
        x_BLD = x_BLD + layer.self_attn(layer.input_layernorm(x_BLD), context)
        normed_BLD, mlp = layer.post_attention_layernorm(x_BLD), layer.mlp
        if not isinstance(mlp, MoE):
            return x_BLD + mlp(normed_BLD).to(x_BLD.dtype), x_BLD.new_zeros((), dtype=torch.float32)
        normed_ND = normed_BLD.flatten(0, 1)
        scores_NE = mlp.gate.scores(normed_ND)
        experts_NK, weights_NK = mlp.gate.select_experts(scores_NE)
        out_BLD = mlp.experts(normed_ND, experts_NK, weights_NK).view_as(x_BLD)
        if mlp.shared_experts is not None:
            out_BLD = out_BLD + mlp.shared_experts(normed_BLD)
        # Norms with weights in float32 make float32, which the sums of layers are not to become.
        return x_BLD + out_BLD.to(x_BLD.dtype), balance_loss(scores_NE, experts_NK)


class ConversationObjective(Objective):
    """A DeepSeek-VL2 in float32, all of which is trained, and a pool of `vl2_data`, of which `pairs`
    are drawn at a step. Products are computed in `dtype`."""

    def __init__(
        self, model: Any, pool: ExamplePool, pairs: int, dtype: torch.dtype = torch.bfloat16
    ) -> None:
        super().__init__()
        self.loss_weights, self.pool, self.pairs, self.dtype = WEIGHTS, pool, pairs, dtype
        self.model = model.requires_grad_(True).train()
        compute_all_experts(model)
        self._layers = [TrainedLayer(layer) for layer in model.decoder.layers]
        config = model.config
        self.patch_head = nn.Linear(config.vision.width, sum(LABELS))
        self.token_head = nn.Linear(config.decoder.hidden_size, sum(_SIZES))
        for head in (self.patch_head, self.token_head):
            nn.init.normal_(head.weight, std=0.02)
            nn.init.zeros_(head.bias)
            head.to(model.decoder.device)

    def compiled(self) -> Iterable[nn.Module]:
        return [*self._layers, *self.model.vision.blocks]

    def begin_step(self, progress: float) -> bool:
        self.pool.refresh()
        return False

    def losses(self) -> dict[str, Tensor]:
        device, drawn = self.pool.device, self.pool.draw(self.pairs)
        with torch.autocast(device.type, self.dtype, cache_enabled=False):
            return self._losses(named(drawn))

    def _losses(self, drawn: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
        pictures = drawn["pictures"]
        patches_PVNC, features_PFD = self._encode(pictures["tiles"])
        predicted = self.patch_head(patches_PVNC).float().split(LABELS, dim=-1)
        seen = patch_losses(predicted, pictures)
        found = {"wrong": seen.pop("wrong"), "misread": seen.pop("misread")}
        found["patches"] = torch.stack([*seen.values()]).sum()
        balances: list[Tensor] = []
        for name, shape in SHAPES.items():
            rows = drawn[name]
            # Rows of a picture follow one another, and those of a pair have both pictures.
            features = features_PFD if shape.rows > 1 else features_PFD.unflatten(0, (-1, 2)).flatten(1, 2)
            each = len(rows["ids"]) // len(features)
            hidden_BLD, middle_BLD, balance = self._decode(rows, features.repeat_interleave(each, 0))
            balances.append(balance)
            found[name] = self._answers(hidden_BLD, rows)
            if name == "ask":
                found |= self._shown(middle_BLD, rows["sources"], pictures, each)
        found["balance"] = torch.stack(balances).mean()
        return found

    def _encode(self, tiles_PV3SS: Tensor) -> tuple[Tensor, Tensor]:
        """Features of patches [P, V, N, C], and of the image tokens of pictures [P, F, D]."""
        model, count = self.model, len(tiles_PV3SS)
        side = model.config.vision.image_size // model.config.vision.patch_size
        patches = model.vision(normalize(tiles_PV3SS.flatten(0, 1)))
        tokens = model.projector(patches.unflatten(1, (side, side)))
        return patches.unflatten(0, (count, -1)), tokens.unflatten(0, (count, -1)).flatten(1, 3)

    def _decode(self, rows: Mapping[str, Tensor], features_BFD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden states after the last layer and in the middle, [B, L, D], and the loss of experts that are
        not used alike."""
        model, decoder = self.model, self.model.decoder
        marks_2D = torch.stack((model.image_newline, model.view_seperator)).to(features_BFD.dtype)
        features_BFD = torch.cat((marks_2D.expand(len(features_BFD), -1, -1), features_BFD), dim=1)
        text_BLD = model.embed_text(rows["ids"].long()).to(features_BFD.dtype)
        x_BLD = place_features(text_BLD, features_BFD, rows["sources"])
        positions = rows["positions"].long()
        table, mask = decoder.config.rotary_table(positions), row_mask(rows["conversations"])
        context, middle_BLD = ForwardContext(positions, table, mask, None), x_BLD
        balances = []
        with sdpa_kernel(ATTENTION, set_priority=True) if x_BLD.is_cuda else nullcontext():
            for number, layer in enumerate(self._layers):
                x_BLD, balance = layer(x_BLD, context)
                balances.append(balance)
                if number < _MIDDLE:
                    middle_BLD = x_BLD
        return decoder.norm(x_BLD), middle_BLD, torch.stack(balances).mean()

    def _answers(self, hidden_BLD: Tensor, rows: Mapping[str, Tensor]) -> Tensor:
        """The mean cross-entropy of learned tokens, by their weights."""
        before_BM1 = rows["before"].long()[..., None]
        hidden_BMD = hidden_BLD.gather(1, before_BM1.expand(-1, -1, hidden_BLD.shape[-1]))
        logits = self.model.text_logits(hidden_BMD.flatten(0, 1)).float()
        weights = rows["weights"].flatten().float() / FULL_WEIGHT
        loss = F.cross_entropy(logits, rows["targets"].flatten().long(), reduction="none")
        return (loss * weights).sum() / weights.sum().clamp(min=1)

    def _shown(
        self, middle_BLD: Tensor, sources_BL: Tensor, pictures: Mapping[str, Tensor], each: int
    ) -> dict[str, Tensor]:
        """The loss of what image tokens show: thing, color and box in the picture; and `far`, the mean
        distance of the boxes' coordinates, in sides of the picture."""
        slots_BF = _token_slots(pictures["slot"]).repeat_interleave(each, 0)
        place_BL = sources_BL.long() - FIRST_TILE
        slots_BL = slots_BF.gather(1, place_BL.clamp(min=0)).masked_fill(place_BL < 0, NO_SLOT)
        kind_BK, color_BK, box_BK4 = (
            pictures[name].repeat_interleave(each, 0) for name in ("kind", "color", "place")
        )
        kind, color, box = self.token_head(middle_BLD).float().flatten(0, 1).split(_SIZES, dim=-1)
        true_box = box_BK4.float().gather(1, slots_BL[..., None].expand(-1, -1, 4)).flatten(0, 1)
        is_image, is_thing = ((x.flatten()).float() for x in (place_BL >= 0, slots_BL < NO_SLOT))
        images, shown = is_image.sum().clamp(min=1), is_thing.sum().clamp(min=1)
        of_kind = F.cross_entropy(kind, kind_BK.long().gather(1, slots_BL).flatten(), reduction="none")
        of_color = F.cross_entropy(color, color_BK.long().gather(1, slots_BL).flatten(), reduction="none")
        logits_N4C = box.unflatten(-1, (4, BINS))
        of_box = coordinate_loss(logits_N4C, true_box)
        middles = logits_N4C.detach().argmax(-1) / (BINS - 1)
        distance = (middles - true_box).abs().mean(-1)
        return {
            "shown": (of_kind * is_image).sum() / images + ((of_color + of_box) * is_thing).sum() / shown,
            "far": (distance * is_thing).sum() / shown,
        }


def named(drawn: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """What a pool gives, by kind and name, with all rows and pictures one after another."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in drawn.items():
        kind, key = name.split(".")
        found.setdefault(kind, {})[key] = tensor.flatten(0, 1)
    return found


def _token_slots(slot_PVN: Tensor) -> Tensor:
    """The slot that an image token of 2 x 2 patches shows, the first of them: int64 [P, VIEWS tokens]."""
    side = round(slot_PVN.shape[-1] ** 0.5)
    squares = slot_PVN.view(-1, VIEWS, side // 2, 2, side // 2, 2)
    return squares.amin((3, 5)).flatten(1).long()
