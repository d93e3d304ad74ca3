"""Sampling and the small kernels on a CUDA device, at full size: repeatability, distribution, survivors."""

from __future__ import annotations

import pytest
import torch
from octavo_kernels import activation, norm, reference, sampling
from octavo_kernels.launch import interpreted
from octavo_kernels.rope_write import rope_qknorm_write

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available() or interpreted(), reason="needs a CUDA device"),
]

VOCAB = 151_936
# temperature, top_k, top_p, min_p
KINDS = {
    "greedy": (0.0, 0, 1.0, 0.0),
    "temperature": (0.8, 0, 1.0, 0.0),
    "top_k": (0.8, 50, 1.0, 0.0),
    "large top_k": (0.8, 20_000, 1.0, 0.0),
    "top_p": (0.8, 0, 0.9, 0.0),
    "nearly all of top_p": (1.0, 0, 0.9999, 0.0),
    "top_k and top_p": (0.8, 40, 0.9, 0.0),
    "min_p": (0.8, 0, 1.0, 0.05),
    "all": (1.2, 100, 0.95, 0.01),
}


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(7)


def columns(kinds: list[str]) -> list[torch.Tensor]:
    types = (torch.float32, torch.int32, torch.float32, torch.float32)
    values = zip(*(KINDS[kind] for kind in kinds), strict=True)
    return [torch.tensor(column, dtype=dtype, device="cuda") for column, dtype in zip(values, types, strict=True)]


def draw(logits: torch.Tensor, parameters: list[torch.Tensor], seeds: torch.Tensor, positions: torch.Tensor):
    """Return ids, logprobs and thresholds, on the device."""
    batch = len(logits)
    ids = torch.full((batch,), -1, device="cuda")
    logprobs = torch.full((batch,), torch.nan, device="cuda")
    size = sampling.sample_workspace_size(*logits.shape)
    workspace = torch.full((size,), torch.nan, device="cuda")
    sampling.sample(logits, *parameters, seeds, positions, ids, logprobs, workspace)
    return ids, logprobs, workspace.view(batch, -1)[:, 0]


def rows_of(kinds: list[str], repeats: int) -> tuple[list[str], list[torch.Tensor], torch.Tensor, torch.Tensor]:
    names = kinds * repeats
    counter = torch.arange(len(names), device="cuda")
    return names, columns(names), counter * 7919, counter % 5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("deviation", [1.0, 3.0, 8.0])
def test_kernels_choose_the_ids_of_the_reference(dtype: torch.dtype, deviation: float) -> None:
    names, parameters, seeds, positions = rows_of(list(KINDS), 4)
    logits = (torch.randn(len(names), VOCAB, device="cuda") * deviation).to(dtype)
    logits[:, 3::1000] = -torch.inf
    ids, logprobs, _ = draw(logits, parameters, seeds, positions)
    expected_ids, expected_logprobs = torch.full((len(names),), -1), torch.empty(len(names))
    on_cpu = [x.cpu() for x in (*parameters, seeds, positions)]
    reference.sample(logits.cpu(), *on_cpu, expected_ids, expected_logprobs)
    assert ids.tolist() == expected_ids.tolist()
    torch.testing.assert_close(logprobs.cpu(), expected_logprobs, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("deviation", [1.0, 3.0])
def test_survivors_are_those_of_a_sort(deviation: float) -> None:
    """bf16 logits: thousands of ties."""
    names, parameters, seeds, positions = rows_of(list(KINDS), 2)
    logits = (torch.randn(len(names), VOCAB, device="cuda") * deviation).to(torch.bfloat16)
    logits[:, 5::7] = -torch.inf
    _, _, thresholds = draw(logits, parameters, seeds, positions)
    for row, name in enumerate(names):
        temperature, top_k, top_p, min_p = KINDS[name]
        if temperature > 0:
            values = logits[row].float() * (1 / parameters[0][row])
            kept = values >= thresholds[row]
            # Sums of probabilities in float32: an id on the very edge of the nucleus may fall on either side.
            least, most = (
                survivors_by_sorting(values, top_k, top_p * factor, min_p) for factor in (1 - 1e-5, 1 + 1e-5)
            )
            assert bool((kept | ~least).all() and (most | ~kept).all()), name


def survivors_by_sorting(values: torch.Tensor, top_k: int, top_p: float, min_p: float) -> torch.Tensor:
    kept = torch.ones_like(values, dtype=torch.bool)
    ordered, order = values.double().sort(descending=True)
    if top_k > 0:
        kept &= values >= ordered[top_k - 1]
    if top_p < 1:
        weights = torch.where(kept[order], (ordered - ordered[0]).exp(), 0.0)
        distinct, group = torch.unique_consecutive(ordered, return_inverse=True)
        masses = torch.zeros_like(distinct).index_add_(0, group, weights)
        above = masses.cumsum(0) - masses
        survives = (above < top_p * weights.sum())[group]
        kept[order] = kept[order] & survives
    if min_p > 0:
        kept &= values >= values.max() + torch.tensor(min_p, device=values.device).log()
    return kept


def test_twenty_runs_agree_bit_for_bit() -> None:
    names, parameters, seeds, positions = rows_of(list(KINDS), 8)
    logits = (torch.randn(len(names), VOCAB, device="cuda") * 2).to(torch.bfloat16)
    first = draw(logits, parameters, seeds, positions)
    for _ in range(20):
        for have, want in zip(draw(logits, parameters, seeds, positions), first, strict=True):
            assert torch.equal(have, want)


def test_a_row_alone_equals_the_row_in_its_batch() -> None:
    names, parameters, seeds, positions = rows_of(list(KINDS), 3)
    logits = (torch.randn(len(names), VOCAB, device="cuda") * 2).to(torch.bfloat16)
    together = draw(logits, parameters, seeds, positions)
    for row in range(len(names)):
        one = slice(row, row + 1)
        alone = draw(logits[one], [x[one] for x in parameters], seeds[one], positions[one])
        for have, want in zip(alone, together, strict=True):
            assert torch.equal(have, want[one]), names[row]


@pytest.mark.parametrize("kind", ["temperature", "top_k", "top_p"])
def test_draws_follow_the_truncated_softmax(kind: str) -> None:
    num_draws, batch = 100_000, 10_000
    temperature, _, top_p, _ = KINDS[kind]
    top_k = 4 if kind == "top_k" else 0
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0, 0.5, -3.0, 1.5, -torch.inf], device="cuda")
    values = logits / temperature
    kept = survivors_by_sorting(values.float(), top_k, top_p, 0.0)
    probabilities = torch.where(kept, values, -torch.inf).softmax(-1).double()
    counts = torch.zeros(len(logits), dtype=torch.float64, device="cuda")
    for first in range(0, num_draws, batch):
        parameters = columns([kind] * batch)
        parameters[1].fill_(top_k)
        seeds, positions = torch.full((batch,), 11, device="cuda"), first + torch.arange(batch, device="cuda")
        ids = draw(logits.expand(batch, -1).contiguous(), parameters, seeds, positions)[0]
        counts += ids.bincount(minlength=len(logits))
    possible = probabilities > 0
    assert (counts[~possible] == 0).all()
    expected = probabilities[possible] * num_draws
    assert ((counts[possible] - expected) ** 2 / expected).sum() < 27.9  # 1 in 10,000 at 6 degrees of freedom


@pytest.mark.parametrize("num_rows", [1, 33, 256])
def test_norms_and_activation_repeat_and_equal_the_reference(num_rows: int) -> None:
    x, residual = (torch.randn(num_rows, 4096, device="cuda").to(torch.bfloat16) for _ in range(2))
    weight, gate_up = torch.randn(4096, device="cuda").to(torch.bfloat16), torch.cat([x, residual], dim=1)
    for op, arguments in ((norm.rmsnorm, (weight,)), (activation.silu_mul, ())):
        source = x if arguments else gate_up
        outs = [torch.empty_like(x) for _ in range(3)]
        options = (1e-6,) if arguments else ()
        for out in outs[:2]:
            op(source, *arguments, out, *options)
        getattr(reference, op.__name__)(source, *arguments, outs[2], *options)
        assert torch.equal(outs[0], outs[1])
        torch.testing.assert_close(outs[0], outs[2], atol=2e-2, rtol=2e-2)
    sums = [residual.clone() for _ in range(2)]
    outs = [torch.empty_like(x) for _ in range(2)]
    for op, total, out in zip((norm, reference), sums, outs, strict=True):
        op.add_rmsnorm(x, total, weight, out, 1e-6)
    assert torch.equal(sums[0], sums[1])
    torch.testing.assert_close(outs[0], outs[1], atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize(("heads", "normed"), [(16, True), (16, False), (32, False), (40, True)])
def test_rope_gives_a_token_the_same_bits_alone_and_among_many(heads, normed) -> None:
    tokens, kv_heads, dim, page_size = 700, 8, 128, 16
    pool = torch.zeros(64, 2, kv_heads, page_size, dim, device="cuda", dtype=torch.bfloat16)
    qkv = torch.randn(tokens, (heads + 2 * kv_heads) * dim, device="cuda").to(torch.bfloat16)
    angles = torch.rand(tokens, dim, device="cuda")
    weights = [torch.rand(dim, device="cuda").to(torch.bfloat16) for _ in range(2)] if normed else []
    positions = torch.randperm(tokens, device="cuda")
    slots = torch.randperm(64 * page_size, device="cuda")[:tokens]

    def written(rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        pages = torch.zeros_like(pool)
        q = torch.full((len(qkv[rows]), heads, dim), torch.nan, device="cuda", dtype=torch.bfloat16)
        rope_qknorm_write(qkv[rows], positions[rows], slots[rows], angles, pages[:, 0], pages[:, 1], q, *weights)
        return q, pages

    q, pages = written(slice(None))
    for index in (0, 1, 350, 699):
        own_q, own_pages = written(slice(index, index + 1))
        assert torch.equal(own_q[0], q[index])
        page, place = divmod(int(slots[index]), page_size)
        assert torch.equal(own_pages[page, :, :, place], pages[page, :, :, place])


@pytest.mark.parametrize("is_whole", [True, False], ids=["all of them", "some of them"])
def test_logits_that_are_no_numbers_give_some_id_and_concern_no_other_row(is_whole: bool) -> None:
    names, parameters, seeds, positions = rows_of([kind for kind in KINDS for _ in range(2)], 1)
    logits = torch.randn(len(names), VOCAB, device="cuda")
    expected_ids, expected_logprobs, _ = draw(logits, parameters, seeds, positions)
    logits[::2, slice(None) if is_whole else slice(3, None, 700)] = torch.nan
    ids, logprobs, _ = draw(logits, parameters, seeds, positions)
    assert ((ids >= 0) & (ids < VOCAB)).all()
    assert torch.equal(ids[1::2], expected_ids[1::2])
    assert torch.equal(logprobs[1::2], expected_logprobs[1::2])
