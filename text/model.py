"""The text models: a decoder and a head over its vocabulary (DeepSeek-AI 2024, "DeepSeek-V3 Technical
Report"; DeepSeek-AI 2025, "DeepSeek-R1").

T positions, D decoder width, V vocabulary. Module names are those of the checkpoints.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..blocks.chat.text_generation import Prompt, embed_conversations
from ..blocks.kernels.batch_invariant import linear
from ..blocks.model.decoder import Block, Decoder
from ..blocks.model.layers import Linear, RMSNorm
from .ahead import AheadDrafts
from .config import TextConfig


class AheadLayer(nn.Module):
    """Multi-token prediction (DeepSeek-V3, sec. 2.2): from a position's hidden state and the next token's
    embedding one more layer computes the hidden state that predicts the token after it."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        width, eps = config.decoder.hidden_size, config.decoder.rms_norm_eps
        self.enorm, self.hnorm = RMSNorm(width, eps), RMSNorm(width, eps)
        self.eh_proj = Linear(2 * width, width, bias=False)
        self.block = Block(config.decoder, config.decoder.num_layers)
        self.block.self_attn.layer = 0  # in a cache of its own
        self.norm = RMSNorm(width, eps)

    def joined(self, next_BTD: Tensor, hidden_BTD: Tensor) -> Tensor:
        """The input of the layer's block: embeddings of the next tokens and hidden states, `[B, T, D]`."""
        return self.eh_proj(torch.cat((self.enorm(next_BTD), self.hnorm(hidden_BTD)), dim=-1))


class TextModel(nn.Module):
    """The modules of a text model's checkpoint, with the methods that generation calls."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config.decoder)
        sizes = config.decoder.hidden_size, config.decoder.vocab_size
        self.lm_head = None if config.tied else Linear(*sizes, bias=False)
        self.ahead = AheadLayer(config) if config.predicts_ahead else None
        self.model.ahead = () if self.ahead is None else (self.ahead,)

    @property
    def decoder(self) -> Decoder:
        return self.model

    @property
    def drafts(self) -> AheadDrafts | None:
        """How the next tokens are guessed, where the layer for it is there."""
        return None if self.ahead is None else AheadDrafts(self)

    def embed_text(self, ids: Tensor) -> Tensor:
        """Text ids `[...]` -> embeddings `[..., D]`."""
        return self.model.embed_tokens(ids)

    def embed_prompts(self, inputs: Sequence[Any]) -> list[Prompt]:
        """Conversations, embedded; there are no images in them."""
        return embed_conversations(self, inputs, _no_images)

    def text_logits(self, hidden: Tensor) -> Tensor:
        """Hidden states `[..., D]` -> logits over the vocabulary `[..., V]`."""
        if self.lm_head is None:
            return linear(hidden, self.model.embed_tokens.weight)
        return self.lm_head(hidden)


def _no_images(inputs: Sequence[Any]) -> Tensor:
    raise AssertionError("a text model's inputs have no image tokens")
