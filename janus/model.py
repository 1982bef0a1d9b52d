"""Janus (Chen et al. 2025, "Janus-Pro"): one decoder that reads images through SigLIP and generates them as
codes of a VQ image tokenizer.

T positions, D decoder width, N images, P patches of an image, S image side in pixels, V text vocabulary,
C codebook size. Module names are those of the official checkpoints.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..blocks.chat.inputs import ChatInputs, normalized_pixels
from ..blocks.chat.text_generation import Prompt, embed_conversations
from ..blocks.errors import OptionError
from ..blocks.graphs.graphed_module import run_graphed
from ..blocks.model.decoder import Decoder
from ..blocks.model.layers import Linear, MlpProjector
from ..blocks.model.missing_parts import missing_part
from ..blocks.model.siglip import IMAGES_AT_ONCE, SiglipConfig, build_siglip
from ..tokenizers.vq.model import VQModel
from .config import JanusConfig

Parts = Literal["all", "paint", "read"]
"""The parts to load: `paint` leaves out the vision encoder (SigLIP), the text head and the image tokenizer's
encoder; `read` leaves out the image tokenizer, the image embedding and the image head."""


def check_parts(parts: str) -> Parts:
    """The `parts` option, checked. Raises `OptionError`."""
    if parts not in get_args(Parts):
        raise OptionError(f"parts is {parts!r}; accepted: {', '.join(get_args(Parts))}")
    return parts  # type: ignore[return-value]


class VisionModel(nn.Module):
    """SigLIP: pixels `[N, 3, S, S]` -> features `[N, P, width]`."""

    def __init__(self, config: SiglipConfig) -> None:
        super().__init__()
        self.vision_tower = build_siglip(config)

    def forward(self, pixels_N3SS: Tensor) -> Tensor:
        return self.vision_tower(pixels_N3SS)


class ImageHead(nn.Module):
    """Hidden states -> logits over the codebook: linear, exact GELU, linear."""

    def __init__(self, config: JanusConfig) -> None:
        super().__init__()
        self.output_mlp_projector = Linear(config.decoder.hidden_size, config.gen_head_width)
        self.vision_head = Linear(config.gen_head_width, config.vq.codebook_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.vision_head(F.gelu(self.output_mlp_projector(x)))


class LanguageModel(nn.Module):
    """The decoder and, if `reads`, the text head."""

    def __init__(self, config: JanusConfig, *, reads: bool = True) -> None:
        super().__init__()
        self.model = Decoder(config.decoder)
        width, vocabulary = config.decoder.hidden_size, config.decoder.vocab_size
        no_head = missing_part("the text head", "paint", "read")
        self.lm_head = Linear(width, vocabulary, bias=False) if reads else no_head


class JanusModel(nn.Module):
    """The modules of a Janus checkpoint, with the methods that generation calls."""

    per_image_modules = ("vision_model", "aligner", "gen_vision_model")
    """Modules that run once per image, not once per token, and so are offloaded first."""

    def __init__(self, config: JanusConfig, parts: Parts = "all") -> None:
        super().__init__()
        self.config, self.parts = config, parts
        width, code_dim = config.decoder.hidden_size, config.vq.code_dim
        no_vision = missing_part("what reads pictures", parts, "read")
        no_image = missing_part("what paints", parts, "paint")
        reads, paints = parts != "paint", parts != "read"
        self.vision_model = VisionModel(config.vision) if reads else no_vision
        vision_width = config.vision.width
        self.aligner = MlpProjector(vision_width, width, config.aligner_depth) if reads else no_vision
        self.gen_vision_model = VQModel(config.vq, encodes=reads) if paints else no_image
        self.gen_aligner = MlpProjector(code_dim, width, config.gen_aligner_depth) if paints else no_image
        self.gen_head = ImageHead(config) if paints else no_image
        book = torch.randn(config.vq.codebook_size, code_dim)
        self.gen_embed = nn.Embedding.from_pretrained(book, freeze=False) if paints else no_image
        self.language_model = LanguageModel(config, reads=reads)

    @property
    def decoder(self) -> Decoder:
        return self.language_model.model

    def embed_text(self, ids: Tensor) -> Tensor:
        """Text ids `[...]` -> embeddings `[..., D]`."""
        return self.decoder.embed_tokens(ids)

    def embed_images(self, pixels_N3SS: Tensor) -> Tensor:
        """Pixels in -1..1 -> embeddings of the images' tokens `[N, P, D]`; on CUDA as a captured graph."""
        modules = (self.vision_model, self.aligner)
        return run_graphed(self, self.decoder, modules, self._encode_vision, pixels_N3SS)

    def _encode_vision(self, pixels_N3SS: Tensor) -> Tensor:
        return self.aligner(self.vision_model(pixels_N3SS))

    def embed_prompts(self, inputs: Sequence[ChatInputs]) -> list[Prompt]:
        """Conversations, embedded: their text, with image embeddings at the image tokens."""
        return embed_conversations(self, inputs, self.image_embeddings)

    def image_embeddings(self, inputs: Sequence[ChatInputs]) -> Tensor:
        """Embeddings of all images of some conversations, in order, `[n, D]`."""
        pixels = normalized_pixels(inputs, self.decoder.device).to(self.decoder.dtype)
        return torch.cat([self.embed_images(chunk) for chunk in pixels.split(IMAGES_AT_ONCE)]).flatten(0, 1)

    def decode_codes(self, codes_NT: Tensor) -> Tensor:
        """Image codes -> pixels `[N, 3, S, S]`, about -1..1; on CUDA in half precision by a captured graph,
        one image at a time."""
        vq = self.gen_vision_model
        if not vq.uses_fused():
            return self._decode_vq(codes_NT)
        images = codes_NT.split(1)
        return torch.cat([run_graphed(vq, self.decoder, (vq,), self._decode_vq, codes) for codes in images])

    def _decode_vq(self, codes_NT: Tensor) -> Tensor:
        return self.gen_vision_model.decode(codes_NT, self.config.grid)

    def embed_codes(self, codes: Tensor) -> Tensor:
        """Image codes `[...]` -> embeddings `[..., D]`, the decoder's inputs for generated image tokens."""
        return self.gen_aligner(self.gen_embed(codes))

    def text_logits(self, hidden: Tensor) -> Tensor:
        """Hidden states `[..., D]` -> logits over the vocabulary `[..., V]`."""
        return self.language_model.lm_head(hidden)

    def image_logits(self, hidden: Tensor) -> Tensor:
        """Hidden states `[..., D]` -> logits over the codebook `[..., C]`."""
        return self.gen_head(hidden)
