"""Passes over packed tokens with latent attention, against the plain decoder; in Triton's interpreter where
there is no GPU."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false

import pytest
import torch

pytest.importorskip("triton")
from bifrons.blocks.engine.prefill import decode, prefill
from bifrons.blocks.graphs.cuda_graphs import CudaGraphCapturer
from bifrons.blocks.graphs.fused_weights import fuse_weights
from bifrons.blocks.graphs.kv_pool import SCRATCH, KVPool
from bifrons.blocks.graphs.packed_decoder import PackedDecoder, TokenSlots, import_kernels
from bifrons.blocks.kernels import dispatch, gemv, pdl
from bifrons.blocks.kernels.rmsnorm_swiglu import add_norm
from bifrons.blocks.model.context import DecoderConfig, LatentConfig
from bifrons.blocks.model.decoder import Decoder
from bifrons.blocks.model.moe import MoEConfig
from bifrons.blocks.model.quantized_weight import QuantizedWeight
from torch import Tensor, nn

from ...models import quantize_model

pytestmark = pytest.mark.usefixtures("few_blocks")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SLOTS = 96
FP8 = pytest.mark.skipif(
    DEVICE.type == "cuda" and torch.cuda.get_device_capability() < (8, 9), reason="its kernels want Ada"
)
KINDS = [None, "int8", "int4", pytest.param("fp8", marks=FP8)]
cuda = pytest.mark.skipif(DEVICE.type == "cpu", reason="needs a GPU")


def made_decoder(latent: LatentConfig, kind: str | None = None, layers: int = 1, **sizes: int) -> Decoder:
    torch.manual_seed(0)
    config = DecoderConfig(
        vocab_size=10,
        hidden_size=sizes.get("width", 64),
        intermediate_size=64,
        num_layers=layers,
        num_heads=sizes.get("heads", 3),
        max_positions=512,
        latent=latent,
        moe=MoEConfig(sizes.get("experts", 4), 2, sizes.get("inner", 32), num_shared=2, first_dense=1),
    )
    whole = nn.Module()
    whole.decoder = Decoder(config).requires_grad_(False).to(DEVICE)
    if kind is not None:
        quantize_model(whole, kind)
    return whole.decoder


def plain_steps(decoder: Decoder, prompts: list[Tensor], news: Tensor, monkeypatch) -> list[Tensor]:
    cache = decoder.new_cache(len(prompts), SLOTS)
    with monkeypatch.context() as patch:
        patch.setattr(dispatch, "device_has_kernels", lambda device: False)
        prefill(decoder, prompts, cache)
        return [decode(decoder, new[:, None], cache)[:, 0] for new in news]


def places(positions: list[int], starts: list[int], prefill: bool) -> TokenSlots:
    return TokenSlots(*torch.tensor([positions, starts], device=DEVICE), SLOTS, prefill)


def packed_steps(decoder: Decoder, prompts: list[Tensor], news: Tensor, monkeypatch) -> list[Tensor]:
    """The steps by `PackedDecoder`, after prompts that it reads too."""
    packed = PackedDecoder(decoder, import_kernels())
    pool = KVPool(decoder, SLOTS * len(prompts))
    starts = [SCRATCH + SLOTS * row for row in range(len(prompts))]
    with monkeypatch.context() as patch:
        patch.setattr(dispatch, "device_has_kernels", lambda device: True)
        patch.setattr(dispatch, "supports_float8", lambda device: True)
        block = packed.kernels.attention_prefill.PREFILL_BLOCK
        pieces, at = [], ([], [])
        for start, prompt in zip(starts, prompts, strict=True):
            padding = -len(prompt) % block
            pieces += [prompt, prompt.new_zeros(padding, prompt.shape[1])]
            at[0].extend([*range(len(prompt)), *[0] * padding])
            at[1].extend([start] * len(prompt) + [0] * padding)
        packed.forward(torch.cat(pieces), places(*at, prefill=True), pool)
        found = []
        for step, new in enumerate(news):
            positions = [len(prompt) + step for prompt in prompts]
            found.append(packed.forward(new, places(positions, starts, prefill=False), pool))
    return found


def counted(monkeypatch) -> list[int]:
    """Outputs of each product that is launched."""
    widths, launch = [], gemv.linear
    monkeypatch.setattr(
        gemv, "linear", lambda x, weight, *bias: widths.append(len(weight.codes)) or launch(x, weight, *bias)
    )
    return widths


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("q_rank", [None, 20])
def test_passes_are_those_of_the_plain_decoder(q_rank, kind, monkeypatch):
    check_passes(3, q_rank, kind, 1, monkeypatch)


def test_passes_through_experts_are_those_of_the_plain_decoder(monkeypatch):
    check_passes(1, None, "int4", 2, monkeypatch)


def check_passes(rows, q_rank, kind, layers, monkeypatch):
    decoder = made_decoder(LatentConfig(16, q_rank, 12, 8, 10), kind, layers)
    prompts = [torch.randn(length, 64).to(DEVICE) for length in (33, 3, 1)[:rows]]
    news = torch.randn(2, rows, 64).to(DEVICE)
    wanted = plain_steps(decoder, prompts, news, monkeypatch)
    fuse_weights(decoder)
    widths = counted(monkeypatch)
    found = packed_steps(decoder, prompts, news, monkeypatch)
    torch.testing.assert_close(torch.stack(found), torch.stack(wanted), rtol=1e-3, atol=1e-4)
    joined = (q_rank or 3 * 20) + 16 + 8
    assert widths.count(joined) == (1 + len(news)) * len(decoder.layers)
    assert 16 + 8 not in widths


def test_projections_of_two_kinds_are_two_products(monkeypatch):
    decoder = made_decoder(LatentConfig(16, None, 12, 8, 10))
    attention = decoder.layers[0].self_attn
    weight = QuantizedWeight("int8", tuple(attention.q_proj.weight.shape))
    for leaf, tensor in weight.encode(attention.q_proj.weight).items():
        setattr(weight, leaf, tensor)
    attention.q_proj = weight
    prompts, news = [torch.randn(4, 64).to(DEVICE)] * 2, torch.randn(1, 2, 64).to(DEVICE)
    wanted = plain_steps(decoder, prompts, news, monkeypatch)
    fuse_weights(decoder)
    widths = counted(monkeypatch)
    found = packed_steps(decoder, prompts, news, monkeypatch)
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-3, atol=1e-4)
    assert 60 in widths
    assert 60 + 24 not in widths


def test_norm_of_a_view():
    both = torch.randn(3, 100).to(DEVICE)
    gain = torch.rand(40).to(DEVICE)
    one, other = both[:, :40], both[:, 40:80]
    _, found = add_norm(one, None, gain, 1e-6)
    assert found.is_contiguous()
    assert torch.equal(found, add_norm(one.contiguous(), None, gain, 1e-6)[1])
    assert torch.equal(add_norm(one, other, gain, 1e-6)[0], one + other)


@cuda
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 5, 12])
@pytest.mark.parametrize("q_rank", [None, 256])
def test_kernels_that_overlap_compute_the_same_bits(q_rank, rows, kind, monkeypatch):
    """Steps of released sizes, recorded with and without overlap, at other positions each time."""
    latent = LatentConfig(q_rank=q_rank)
    decoder = made_decoder(latent, kind, 6, width=2048, heads=16, experts=64, inner=1408).to(torch.bfloat16)
    fuse_weights(decoder)
    news = torch.randn(40, rows, 2048, device=DEVICE, dtype=torch.bfloat16)
    found = []
    for overlaps in (False, True):
        monkeypatch.setattr(pdl, "ENABLED", overlaps)
        packed, pool = PackedDecoder(decoder, import_kernels()), KVPool(decoder, SLOTS * rows)
        starts = [SCRATCH + SLOTS * row for row in range(rows)]
        slots, x, out = places([*range(rows)], starts, False), news[0].clone(), torch.empty_like(news[0])
        replay = CudaGraphCapturer(torch.device("cuda", torch.cuda.current_device()))(
            lambda: packed.forward(x, slots, pool, out)  # noqa: B023
        )
        hidden = []
        for new in news:
            x.copy_(new)
            replay()
            slots.positions_N.add_(1)
            hidden.append(out.clone())
        found.append(torch.stack(hidden))
    assert torch.isfinite(found[0]).all()
    assert torch.equal(*found)
