"""The random numbers: published answers, range, and what they may depend on."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from octavo_kernels import philox
from octavo_kernels.gumbel import gumbel, gumbel_at
from unit.kernels.paged_batch import DEVICE


# The known answers that Random123 publishes for philox4x32 with 10 rounds: counter, key, result.
@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_known_answers(counter, key, expected) -> None:
    words = philox.philox4x32(tuple(torch.tensor(word) for word in counter), key)
    assert tuple(int(word) for word in words) == expected


def test_uniform_stays_inside_the_open_interval() -> None:
    extremes = philox.uniform(torch.tensor([0, 2**32 - 1]))
    assert 0 < extremes[0] < extremes[1] < 1
    low, high = philox._gumbel_of(torch.tensor([0, 2**32 - 1]))
    assert philox.MIN_GUMBEL < low < high < philox.MAX_GUMBEL


@pytest.mark.parametrize("seed", [0, -1, 2**63 - 1, -(2**63), 123456789012])
def test_noise_of_some_ids_equals_noise_of_all(seed: int) -> None:
    ids = torch.tensor([0, 1, 5, 998, 1000])
    assert torch.equal(philox.gumbel_at(seed, 7, ids), philox.gumbel(seed, 7, 1001)[ids])


def test_noise_depends_on_both_words_of_the_seed_and_on_the_position() -> None:
    draws = [philox.gumbel(seed, position, 8) for seed, position in ((1, 0), (1 + 2**32, 0), (2, 0), (1, 1))]
    assert len({tuple(draw.tolist()) for draw in draws}) == len(draws)


def test_noise_is_gumbel_distributed() -> None:
    noise = philox.gumbel(3, 5, 100_000).double()
    assert abs(noise.mean() - 0.5772) < 0.02
    assert abs(noise.var() - 1.6449) < 0.04


@triton.jit
def _write_noise(out_ptr, seed_ptr, position_ptr, COUNT: tl.constexpr):  # noqa: N803 - a constexpr
    blocks = tl.arange(0, COUNT // 4).to(tl.uint32)
    ids = tl.arange(0, COUNT)
    seed, position = tl.load(seed_ptr), tl.load(position_ptr)
    tl.store(out_ptr + ids, gumbel(seed, position, blocks, COUNT))
    tl.store(out_ptr + COUNT + ids, gumbel_at(seed, position, ids))


@pytest.mark.parametrize("seed", [0, -1, 2**63 - 1, 123456789012])
@pytest.mark.parametrize("position", [0, 4095, 2**31])
def test_kernel_draws_the_noise_of_the_reference(seed: int, position: int) -> None:
    out = torch.empty(2, 256, device=DEVICE)
    _write_noise[(1,)](out, torch.tensor([seed], device=DEVICE), torch.tensor([position], device=DEVICE), 256)
    torch.testing.assert_close(out[0].cpu(), philox.gumbel(seed, position, 256), rtol=2e-6, atol=2e-6)
    assert torch.equal(out[0], out[1])
