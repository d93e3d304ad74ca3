"""Counter-based random numbers: the noise of a token depends on (seed, position, vocabulary id) and on nothing else.

Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011) maps a 128-bit counter
and a 64-bit key to four 32-bit words without any state. Sampling uses

    key = (seed mod 2**32, seed div 2**32)    counter = (id // 4, position, 0, 0)    word of an id = lane id % 4

so a request draws the same noise whatever batch, row or step it is in, and again after a preemption. This file is the
specification, written in int64 PyTorch; `sampling.py` holds the same formula in Triton.
"""

import torch

Words = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]

ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF

# Bounds of the Gumbel noise below: -log(-log(u)) at the smallest and at the largest u that `uniform` returns.
MIN_GUMBEL = -3.14
MAX_GUMBEL = 16.64


def philox4x32(counter: Words, key: tuple[int, int], rounds: int = ROUNDS) -> Words:
    """Encrypt counters: four words in, four words out.

    Args:
        counter: four int64 tensors of one shape, each value in [0, 2**32).
        key: two words in [0, 2**32).
        rounds: 10 for Philox4x32-10.

    Returns:
        Four int64 tensors of that shape, each value in [0, 2**32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        # The 64-bit product wraps into the sign bit; the masks below read its two words back unsigned.
        product0 = c0 * _MULTIPLIERS[0]
        product1 = c2 * _MULTIPLIERS[1]
        c0 = (product1 >> 32 & _MASK) ^ c1 ^ k0
        c1 = product1 & _MASK
        c2 = (product0 >> 32 & _MASK) ^ c3 ^ k1
        c3 = product0 & _MASK
        k0 = (k0 + _KEY_STEPS[0]) & _MASK
        k1 = (k1 + _KEY_STEPS[1]) & _MASK
    return c0, c1, c2, c3


def uniform(words: torch.Tensor) -> torch.Tensor:
    """Map 32-bit words (int64 tensor) to fp32 numbers strictly inside (0, 1): (word + 1/2) / 2**32."""
    # fp32 rounds the highest words up to 1, whose Gumbel value would be infinite.
    return ((words.to(torch.float32) + 0.5) * 2.0**-32).clamp_(max=1.0 - 2.0**-24)


def gumbel(seed: int, position: int, num_ids: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Return the Gumbel noise of the ids 0 .. num_ids-1 at one position of one request: [num_ids] fp32."""
    blocks = torch.arange((num_ids + 3) // 4, dtype=torch.int64, device=device)
    words = torch.stack(_words(seed, position, blocks), dim=-1).flatten()
    return _gumbel_of(words[:num_ids])


def gumbel_at(seed: int, position: int, ids: torch.Tensor) -> torch.Tensor:
    """Return the Gumbel noise of some ids (int64 [N]) at one position of one request: [N] fp32."""
    words = torch.stack(_words(seed, position, ids // 4), dim=-1)
    return _gumbel_of(words.gather(-1, (ids % 4)[:, None])[:, 0])


def _words(seed: int, position: int, blocks: torch.Tensor) -> Words:
    zero = torch.zeros_like(blocks)
    key = (seed & _MASK, seed >> 32 & _MASK)
    return philox4x32((blocks, torch.full_like(blocks, position & _MASK), zero, zero), key)


def _gumbel_of(words: torch.Tensor) -> torch.Tensor:
    return uniform(words).log_().neg_().log_().neg_()
