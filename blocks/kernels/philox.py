"""Counter-based random numbers: noise that is a function of (seed, step) alone.

A stateful generator would tie a row's numbers to its place in the batch and to the device. Here each number
is computed from its coordinates by plain tensor operations, so it is the same on every device, in every batch
and inside a captured graph.

B rows.
"""

import torch
from torch import Tensor

# Philox-4x32: multipliers and key increments of Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1,
# 2, 3", table 2, with the ten rounds that the paper recommends.
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_WORD = 0xFFFFFFFF


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Philox-4x32-10: four random words for a counter and a key.

    Words are int64 tensors of values 0 to 2**32 - 1; their shapes are broadcast.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # int64 products wrap modulo 2**64, so no bit is lost: shift and mask give the true halves.
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        high0, low0 = (product0 >> 32) & _WORD, product0 & _WORD
        high1, low1 = (product1 >> 32) & _WORD, product1 & _WORD
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _INCREMENTS[0]) & _WORD, (k1 + _INCREMENTS[1]) & _WORD
    return c0, c1, c2, c3


def exponential_noise(seeds_B: Tensor, steps_B: Tensor, width: int) -> Tensor:
    """Samples of the unit exponential distribution, float32 `[B, width]`; a row depends on its seed and step
    only.

    `seeds_B` and `steps_B` are int64; a seed is any 64-bit number. Small values, which decide the exponential
    race in `sampling.draw`, are precise down to 2**-33.
    """
    # Computed in multiples of 32: vectorized loops may differ in the last bit for a tensor's last numbers.
    blocks = torch.arange(-(-width // 32) * 8, dtype=torch.long, device=seeds_B.device)[None]
    seeds, steps = seeds_B[:, None], steps_B[:, None]
    zero = torch.zeros_like(blocks)
    words = philox(
        (blocks, steps & _WORD, (steps >> 32) & _WORD, zero), (seeds & _WORD, (seeds >> 32) & _WORD)
    )
    bits = torch.stack(words, dim=-1).flatten(1)
    uniform = ((bits.float() + 0.5) * 2.0**-32).clamp(max=1 - 2.0**-24)
    return -torch.log1p(-uniform)[:, :width]
