"""Counter-based random numbers: noise that is a function of (seed, step) alone.

A stateful generator would tie a row's numbers to its place in the batch and to the device. Here each number
is computed from its coordinates by plain tensor operations, so it is the same on every device, in every batch
and inside a captured graph.

B rows.
"""

import threading

import torch
from torch import Tensor

# Philox-4x32: multipliers and key increments of Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1,
# 2, 3", table 2, with the ten rounds that the paper recommends.
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_WORD = 0xFFFFFFFF
_REMEMBERED = 1 << 20  # numbers of noise, 4 MiB


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Philox-4x32-10: four random words for a counter and a key.

    Words are int64 tensors of values 0 to 2**32 - 1; their shapes are broadcast.
    """
    c0, c1, c2, c3 = (word.clone() for word in torch.broadcast_tensors(*counter))
    k0, k1 = key
    for _ in range(_ROUNDS):
        # int64 products wrap modulo 2**64, so no bit is lost. What a word has above its 32 bits is masked
        # before it is multiplied.
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        torch.bitwise_right_shift(product1, 32, out=c0).bitwise_xor_(c1).bitwise_xor_(k0).bitwise_and_(_WORD)
        torch.bitwise_right_shift(product0, 32, out=c2).bitwise_xor_(c3).bitwise_xor_(k1).bitwise_and_(_WORD)
        c1, c3 = product1, product0
        k0, k1 = (k0 + _INCREMENTS[0]) & _WORD, (k1 + _INCREMENTS[1]) & _WORD
    return c0, c1 & _WORD, c2, c3 & _WORD


class _Recent(threading.local):
    """Rows of noise that the calling thread has computed on the CPU, by seed, step and width."""

    def __init__(self) -> None:
        self.rows: dict[tuple[int, int, int], Tensor] = {}


_recent = _Recent()


def exponential_noise(seeds_B: Tensor, steps_B: Tensor, width: int) -> Tensor:
    """Samples of the unit exponential distribution, float32 `[B, width]`; a row depends on its seed and step
    only.

    `seeds_B` and `steps_B` are int64; a seed is any 64-bit number. Small values, which decide the exponential
    race in `sampling.draw`, are precise down to 2**-33. On the CPU the last rows are remembered: passes with
    drafts draw for the same steps again and again.
    """
    seeds_B, steps_B = torch.broadcast_tensors(seeds_B, steps_B)
    if seeds_B.device.type != "cpu" or not len(seeds_B):
        return _noise(seeds_B, steps_B, width)
    keys = [(seed, step, width) for seed, step in zip(seeds_B.tolist(), steps_B.tolist(), strict=True)]
    if missing := list(dict.fromkeys(key for key in keys if key not in _recent.rows)):
        seeds, steps, _ = torch.tensor(missing).unbind(1)
        _recent.rows |= zip(missing, _noise(seeds, steps, width), strict=True)
    noise_BV = torch.stack([_recent.rows[key] for key in keys])
    for key in list(_recent.rows)[: -max(1, _REMEMBERED // max(1, width))]:
        del _recent.rows[key]
    return noise_BV


def _noise(seeds_B: Tensor, steps_B: Tensor, width: int) -> Tensor:
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
