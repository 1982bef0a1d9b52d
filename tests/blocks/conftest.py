"""Fixtures for tests of `blocks`: small models and checkpoints, and conditions for tests of kernels and of
bitwise equality."""

# pyright: reportArgumentType=false

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from bifrons.blocks.checkpoints.reader import TensorReader, list_tensors
from bifrons.blocks.errors import CheckpointError
from bifrons.blocks.model.context import DecoderConfig, LatentConfig
from bifrons.blocks.model.decoder import Decoder
from bifrons.blocks.model.layers import Linear
from bifrons.blocks.model.moe import MoEConfig
from torch import Tensor, nn

_VOCABULARY = 704
_WIDTHS = {"hidden_size": 96, "intermediate_size": 160, "num_heads": 4, "num_kv_heads": 4, "head_dim": 24}
_TINY = {"hidden_size": 32, "intermediate_size": 48, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2}
_TINY |= {"head_dim": 16}
"""For what Triton's interpreter runs, where a layer takes seconds."""
_LATENT = LatentConfig(kv_rank=32, nope_dim=24, rope_dim=16, value_dim=20)
_SOFTMAX = MoEConfig(12, 3, 48, 2, 1)
_NOAUX = MoEConfig(
    12, 3, 48, 2, 1, scoring="sigmoid", method="noaux_tc", num_groups=2, normalize=True, scale=2.0
)
SMALL_CONFIGS = {
    "dense": DecoderConfig(_VOCABULARY, num_layers=3, **_WIDTHS),
    "dense-wide": DecoderConfig(590, 384, 832, num_layers=4, num_heads=6, num_kv_heads=6, head_dim=64),
    "dense-tiny": DecoderConfig(_VOCABULARY, **_TINY),
    "experts": DecoderConfig(_VOCABULARY, num_layers=4, **_WIDTHS, moe=_SOFTMAX),
    "experts-tiny": DecoderConfig(_VOCABULARY, **_TINY | {"num_layers": 2}, moe=MoEConfig(4, 2, 16, 1, 1)),
    "latent": DecoderConfig(_VOCABULARY, num_layers=4, **_WIDTHS, latent=_LATENT, moe=_SOFTMAX),
    "latent-tiny": DecoderConfig(_VOCABULARY, **_TINY, latent=LatentConfig(16, None, 16, 8, 16)),
    "latent-noaux": DecoderConfig(_VOCABULARY, num_layers=4, **_WIDTHS, latent=_LATENT, moe=_NOAUX),
}
"""What the models of both families consist of: dense layers (Janus), experts, latent attention (VL2)."""


class SmallModel(nn.Module):
    """A decoder with a text head."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.decoder = Decoder(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)

    def embed_text(self, ids: Tensor) -> Tensor:
        return self.decoder.embed_tokens(ids)

    def text_logits(self, hidden: Tensor) -> Tensor:
        return self.lm_head(hidden)


class SmallImageModel(SmallModel):
    """Has an image head too."""

    num_codes = 36
    """Codes of an image."""

    def __init__(self, config: DecoderConfig, codebook_size: int = 2048) -> None:
        super().__init__(config)
        self.code_embedding = nn.Embedding(codebook_size, config.hidden_size)
        self.code_head = Linear(config.hidden_size, codebook_size, bias=False)

    def embed_codes(self, codes: Tensor) -> Tensor:
        return self.code_embedding(codes)

    def image_logits(self, hidden: Tensor) -> Tensor:
        return self.code_head(hidden)


@torch.no_grad()
def _draw_weights(model: nn.Module) -> None:
    """Matrices that keep the scale of what they multiply, embeddings of half of it, norms near 1."""
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        if name.endswith("bias"):
            weight.copy_(0.05 * noise)
        elif weight.ndim == 1:
            weight.copy_(1 + 0.1 * noise)
        else:
            weight.copy_(noise * (0.5 if "embed" in name else weight.shape[-1] ** -0.5))


@pytest.fixture(scope="session")
def draw_weights() -> Callable[[nn.Module], None]:
    """`draw_weights(model)` sets all weights to random values, the same every time."""
    return _draw_weights


@pytest.fixture(scope="session")
def small_model() -> Callable[..., SmallModel]:
    """`small_model(name, device="cpu", dtype=torch.float32)`: a new model of `SMALL_CONFIGS`, the same
    weights every time; dense ones have an image head. On the meta device the weights have no values."""

    def make(name: str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> SmallModel:
        kind = SmallImageModel if name.startswith("dense") else SmallModel
        with torch.device("meta" if device == "meta" else "cpu"):
            model = kind(SMALL_CONFIGS[name])
            if device != "meta":
                _draw_weights(model)
        model.eval().requires_grad_(False).to(device, dtype)
        for name, parameter in model.named_parameters():
            if name.endswith("e_score_correction_bias"):
                parameter.data = parameter.data.float()  # as loaded checkpoints keep it
        return model

    return make


@pytest.fixture(scope="session")
def measured_processor(bitwise_products: bool) -> None:
    """Skips on other processors than those on which bitwise equality of products was measured."""
    if not bitwise_products:
        pytest.skip("which products agree in every bit was measured on processors with AVX-512")


@pytest.fixture
def few_blocks(monkeypatch):
    """No gradients; and in the interpreter, where every program takes time, larger and fewer programs."""
    from bifrons.blocks.kernels import moe_decode, moe_router  # need Triton

    if not torch.cuda.is_available():
        tile = moe_decode.Tile(64, 128, 4, 2)
        for name in ("TILES", "QUANTIZED_TILES"):
            monkeypatch.setattr(moe_decode, name, dict.fromkeys(moe_decode.TILES, (tile, tile)))
        monkeypatch.setattr(moe_router, "BLOCK_EXPERTS", 16)
    with torch.no_grad():
        yield


State = dict[str, Tensor]


@pytest.fixture
def state() -> State:
    """Tensors of several dtypes and shapes."""
    return {
        "a.weight": torch.arange(12.0).view(3, 4),
        "b": torch.arange(5, dtype=torch.int64),
        "c": torch.tensor(2.5, dtype=torch.bfloat16),
        "none": torch.zeros(0, 4),
        "flag": torch.tensor([True, False, True]),
    }


@pytest.fixture
def odd_state(state: State) -> State:
    """With tensors that share a storage, are transposed, expanded, or parameters."""
    base = torch.arange(100.0, dtype=torch.bfloat16)
    odd = OrderedDict(state)
    odd["slice"] = base[10:30]
    odd["transposed"] = base[40:90].view(5, 10).t()
    odd["expanded"] = base[3:6, None].expand(3, 4)
    odd["param"] = nn.Parameter(torch.randn(2, 3))
    return odd


@pytest.fixture
def assert_holds() -> Callable[[Path, State], None]:
    """`assert_holds(folder, state)`: the folder's tensors, read one by one, are those of `state`."""

    def check(folder: Path, state: State) -> None:
        entries = list_tensors(folder)
        assert entries.keys() == state.keys()
        with TensorReader() as reader:
            for name, entry in entries.items():
                assert (entry.shape, entry.dtype) == (tuple(state[name].shape), state[name].dtype)
                tensor = reader.read(entry)
                assert tensor.is_contiguous()
                assert tensor.dtype == state[name].dtype
                assert torch.equal(tensor, state[name])

    return check


@pytest.fixture
def assert_refused() -> Callable[..., None]:
    """`assert_refused(folder, *words)`: listing the tensors is an error that holds the words."""

    def check(folder: Path, *words: str) -> None:
        with pytest.raises(CheckpointError) as caught:
            list_tensors(folder)
        for word in words:
            assert word in str(caught.value)

    return check
