"""The counter-based generator against the published vectors, and its noise."""

# pyright: reportArgumentType=false

import torch
from bifrons.blocks.kernels.philox import exponential_noise, philox

WORD = 0xFFFFFFFF


def words(*values: int) -> tuple[torch.Tensor, ...]:
    return tuple(torch.tensor([value]) for value in values)


def test_known_answers() -> None:
    """Philox-4x32-10 vectors of Random123's kat_vectors: zeros, ones, and digits of pi."""
    cases = [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((WORD,) * 4, (WORD, WORD), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ]
    for counter, key, expected in cases:
        assert tuple(int(word) for word in philox(words(*counter), words(*key))) == expected


def test_a_row_depends_on_its_seed_and_step_only() -> None:
    seeds, steps = torch.tensor([5, 2**63 - 1, 5, 6]), torch.tensor([0, 1, 0, 0])
    noise = exponential_noise(seeds, steps, 1001)
    assert noise.shape == (4, 1001)
    assert torch.equal(noise[0], noise[2])
    assert not torch.equal(noise[0], noise[3])
    assert torch.equal(exponential_noise(seeds[1:2], steps[1:2], 1001)[0], noise[1])
    assert torch.equal(exponential_noise(seeds[:1], steps[:1], 10)[0], noise[0, :10])


def test_noise_is_exponential() -> None:
    noise = exponential_noise(torch.arange(100), torch.zeros(100, dtype=torch.long), 10_000).double()
    assert noise.min() > 0
    assert abs(noise.mean() - 1) < 0.005  # five standard errors of a million draws
    assert abs(noise.var() - 1) < 0.015
    assert abs((noise < 0.01).double().mean() - 0.00995) < 0.0005
