"""Latent attention over a pool of slots against its definition; in Triton's interpreter where there is no
GPU."""

import pytest
import torch

pytest.importorskip("triton")
from bifrons.blocks.kernels import mla_decode as module
from bifrons.blocks.model.context import LatentConfig
from bifrons.blocks.model.layers import rotary_table, rotate_pairs

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (
    (torch.float32, torch.bfloat16) if DEVICE == "cpu" else (torch.float32, torch.bfloat16, torch.float16)
)
SMALL, RELEASED = LatentConfig(kv_rank=24, nope_dim=12, rope_dim=8, value_dim=10), LatentConfig()
SPAN = 256


class Layer:
    """A layer's weights, and the projected inputs of sequences."""

    def __init__(self, latent: LatentConfig, heads: int, dtype: torch.dtype, lengths: list[int]) -> None:
        torch.manual_seed(0)
        self.latent, self.heads, self.dtype = latent, heads, dtype
        outputs = heads * (latent.nope_dim + latent.value_dim)
        self.norm = torch.rand(latent.kv_rank).to(DEVICE, dtype) + 0.5
        self.weight = (torch.randn(outputs, latent.kv_rank) / latent.kv_rank**0.5).to(DEVICE, dtype)
        self.width = heads * latent.query_dim
        total = self.width + latent.kv_rank + latent.rope_dim
        self.inputs = [torch.randn(length, total).to(DEVICE, dtype) for length in lengths]
        self.rotary = tuple(
            x[0] for x in rotary_table(torch.arange(SPAN, device=DEVICE)[None], latent.rope_dim, 1e4)
        )

    def pool(self, slots: int) -> torch.Tensor:
        shape = slots, self.latent.kv_rank + self.latent.rope_dim
        return torch.full(shape, torch.nan, dtype=self.dtype, device=DEVICE)

    def attend(self, pool, tokens, starts, span=SPAN, **options):
        """`tokens`: pairs of a sequence and a position."""
        both = torch.stack([self.inputs[sequence][position] for sequence, position in tokens])
        places = [position for _, position in tokens], [starts[sequence] for sequence, _ in tokens]
        return module.attend_pooled(
            both[:, : self.width],
            both[:, self.width :],
            pool,
            *(torch.tensor(numbers, device=DEVICE) for numbers in places),
            self.rotary,
            (self.norm, 1e-6),
            self.weight,
            nope_dim=self.latent.nope_dim,
            span=span,
            **options,
        )

    def expected(self, sequence: int) -> torch.Tensor:
        """Outputs of all positions of a sequence, from per-head keys and values in float64."""
        latent, both = self.latent, self.inputs[sequence].double()
        length = len(both)
        q = both[:, : self.width].unflatten(-1, (self.heads, -1)).transpose(0, 1)
        q_nope, q_rope = q.split((latent.nope_dim, latent.rope_dim), dim=-1)
        x, k_rope = both[:, self.width :].split((latent.kv_rank, latent.rope_dim), dim=-1)
        table = tuple(part[None, :length].double() for part in self.rotary)
        q_rope, k_rope = (
            rotate_pairs(part.cpu()[None], tuple(t.cpu() for t in table))[0].to(DEVICE)
            for part in (q_rope, k_rope[None])
        )
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.norm.double()
        weight = self.weight.double().unflatten(0, (self.heads, -1))
        k_nope, value = (x @ weight.transpose(1, 2)).split((latent.nope_dim, latent.value_dim), dim=-1)
        scores = (q_nope @ k_nope.transpose(1, 2) + q_rope @ k_rope.transpose(1, 2)) * latent.query_dim**-0.5
        mask = torch.ones(length, length, dtype=torch.bool, device=DEVICE).tril()
        weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
        return (weights @ value).transpose(0, 1).flatten(1)


def assert_near(found, expected, dtype):
    assert torch.isfinite(found).all()
    bound = 8 * torch.finfo(dtype).eps + 1e-5
    assert (found.double() - expected).abs().max() < bound * expected.abs().max()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("latent", "heads"), [(LatentConfig(16, 20, 16, 16, 32), 3), (SMALL, 17), (RELEASED, 1)]
)
def test_prompts_and_steps_are_those_of_the_definition(latent, heads, dtype):
    lengths = [36, 3, 2]
    layer, starts = Layer(latent, heads, dtype, lengths), [64, 40, 4]
    pool = layer.pool(110)
    expected = [layer.expected(sequence) for sequence in range(3)]
    prompt = [(sequence, position) for sequence in range(3) for position in range(lengths[sequence] - 2)]
    found = layer.attend(pool, prompt, starts)
    assert_near(found, torch.stack([expected[sequence][position] for sequence, position in prompt]), dtype)
    for back in (2, 1):
        tokens = [(sequence, lengths[sequence] - back) for sequence in range(3)]
        found = layer.attend(pool, tokens, starts)
        assert_near(found, torch.stack([expected[s][position] for s, position in tokens]), dtype)
    assert torch.isnan(pool[: starts[2]]).all(), "only the tokens' slots are written"
    assert torch.isnan(pool[starts[0] + lengths[0] :]).all()


def test_a_token_does_not_depend_on_the_others_or_on_its_place():
    lengths = [67, 33, 3]
    layer = Layer(SMALL, 2, torch.bfloat16, lengths)
    prompt = [(sequence, position) for sequence in range(3) for position in range(lengths[sequence] - 1)]
    last = [(sequence, lengths[sequence] - 1) for sequence in range(3)]
    pool = layer.pool(256)
    layer.attend(pool, prompt, [0, 100, 150])
    together = layer.attend(pool, last, [0, 100, 150], span=128)
    moved = layer.pool(1000)
    layer.attend(moved, prompt, [600, 100, 0])
    reordered = layer.attend(moved, last[::-1], [600, 100, 0], span=256)
    assert torch.equal(reordered.flip(0), together)
    for token, row in zip(last, together, strict=True):
        assert torch.equal(layer.attend(pool, [token], [0, 100, 150], span=128)[0], row)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("latent", "heads"), [(SMALL, 3)] if DEVICE == "cpu" else [(SMALL, 3), (RELEASED, 16)]
)
def test_all_forms_give_the_same(latent, heads, dtype, monkeypatch):
    """Chunks by programs of their own or by one, projected at once or afterwards, tokens alone or by fours;
    in the interpreter up to rounding, as its products depend on the tiles."""
    layer, starts = Layer(latent, heads, dtype, [40]), [5]
    pool = layer.pool(64)
    prompt = layer.attend(pool, [(0, position) for position in range(40)], starts)
    slots = pool.clone()
    tokens = [(0, position) for position in range(32, 38)] + [(0, 38)] * 2  # what pads a block is not used
    forms = [prompt[32:38]]
    for programs, fused in [(1000, 1000), (1000, 0), (0, 0)]:
        monkeypatch.setattr(module, "MAX_SPLIT_PROGRAMS", programs)
        monkeypatch.setattr(module, "MAX_FUSED_TOKENS", fused)
        forms.append(layer.attend(pool, tokens, starts, span=64)[:6])
    for count in (2, 4):
        monkeypatch.setattr(module, "TOKENS", count)
        forms.append(layer.attend(pool, tokens, starts, block=8)[:6])
    rounding = 0 if DEVICE == "cuda" else 2 * torch.finfo(dtype).eps
    for form in forms[1:]:
        torch.testing.assert_close(form, forms[0], rtol=0, atol=rounding * prompt.abs().max().item())
    assert torch.equal(pool.nan_to_num(), slots.nan_to_num())


def test_padding_of_a_block_is_not_read():
    """Tokens that pad a block lie elsewhere, at later positions, among slots that hold no numbers."""
    layer = Layer(SMALL, 2, torch.bfloat16, [64])
    tokens = [(0, position) for position in range(9)]
    pool = layer.pool(300)
    expected = layer.attend(pool, tokens, [100])
    padded = [layer.inputs[0][position] for position in range(9)] + [layer.inputs[0][60]] * 23
    layer.inputs.append(torch.stack(padded))
    both, pool = layer.inputs[1], layer.pool(300)
    pool[200:] = 0
    positions = torch.tensor([*range(9), *range(60, 83)], device=DEVICE)
    starts = torch.tensor([100] * 9 + [200] * 23, device=DEVICE)
    found = module.attend_pooled(
        both[:, : layer.width], both[:, layer.width :], pool, positions, starts, layer.rotary,
        (layer.norm, 1e-6), layer.weight, nope_dim=layer.latent.nope_dim, span=SPAN, block=32,
    )  # fmt: skip
    assert torch.isfinite(found[:9]).all()
    torch.testing.assert_close(found[:9], expected, rtol=0, atol=0.02)
