"""Counter-based random numbers: noise that depends on (seed, step) alone.

A generator with a state would tie a row's numbers to its place in the batch and to the device. Here
each number is a function of its coordinates, in plain tensor operations, so that it is the same on
every device, in every batch and inside a captured graph.
"""

import torch
from torch import Tensor

# Philox-4x32: multipliers and key increments of Salmon et al. 2011, "Parallel Random Numbers: As Easy
# as 1, 2, 3", table 2; ten rounds is the paper's recommended (crush-resistant) count.
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_WORD = 0xFFFFFFFF


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Philox-4x32-10. Words are int64 tensors holding 0 .. 2**32 - 1 and broadcast; four words come back."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # int64 products wrap modulo 2**64, which keeps all 64 bits: shift and mask give the true halves.
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        high0, low0 = (product0 >> 32) & _WORD, product0 & _WORD
        high1, low1 = (product1 >> 32) & _WORD, product1 & _WORD
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _INCREMENTS[0]) & _WORD, (k1 + _INCREMENTS[1]) & _WORD
    return c0, c1, c2, c3


def exponential_noise(seeds_B: Tensor, steps_B: Tensor, width: int) -> Tensor:
    """Independent unit exponentials, float32 `[B, width]`; a row depends on its seed and step only.

    Precise for small values, which decide a race: down to 2**-33. `seeds` and `steps` are int64,
    the seeds any 64-bit number.
    """
    # Whole stretches of 32: the last numbers of a tensor may be computed otherwise, in the last bit.
    blocks = torch.arange(-(-width // 32) * 8, dtype=torch.long, device=seeds_B.device)[None]
    seeds, steps = seeds_B[:, None], steps_B[:, None]
    zero = torch.zeros_like(blocks)
    words = philox(
        (blocks, steps & _WORD, (steps >> 32) & _WORD, zero), (seeds & _WORD, (seeds >> 32) & _WORD)
    )
    bits = torch.stack(words, dim=-1).flatten(1)
    uniform = ((bits.float() + 0.5) * 2.0**-32).clamp(max=1 - 2.0**-24)
    return -torch.log1p(-uniform)[:, :width]
