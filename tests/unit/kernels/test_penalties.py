"""Penalties: the kernels give the bits of the reference, and the reference those of transformers and of the formula."""

from __future__ import annotations

import pytest
import torch
from octavo_kernels import penalties, reference
from unit.kernels.paged_batch import DEVICE, ON_GPU

VOCAB = 128_256 if ON_GPU else 2500  # more than one chunk, and no multiple of it
# frequency, presence, repetition
ROWS = [(0.0, 0.0, 1.0), (0.7, 0.0, 1.0), (0.0, -1.3, 1.0), (0.0, 0.0, 1.7), (-2.0, 2.0, 0.3), (0.1, 0.2, 100.0)]
NUM_SLOTS = len(ROWS) + 2


def columns(device: torch.device) -> list[torch.Tensor]:
    """Return slots, which are not the rows' numbers, and the three penalties."""
    slots = torch.arange(len(ROWS), 0, -1, device=device)
    return [slots, *(torch.tensor(column, device=device) for column in zip(*ROWS, strict=True))]


def tallies_of_random_texts() -> torch.Tensor:
    counts = torch.randint(0, 40, (NUM_SLOTS, VOCAB)) * (torch.rand(NUM_SLOTS, VOCAB) < 0.3)
    return (2 * counts + (torch.rand(NUM_SLOTS, VOCAB) < 0.2)).to(torch.int32)


def penalized(module, logits: torch.Tensor, tallies: torch.Tensor, device: torch.device) -> torch.Tensor:
    out = torch.full(logits.shape, torch.nan, dtype=torch.float32, device=device)
    module.penalize(logits.to(device), tallies.to(device), *columns(device), out)
    return out.cpu()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_kernel_gives_the_bits_of_the_reference(dtype: torch.dtype) -> None:
    logits, tallies = (torch.randn(len(ROWS), VOCAB) * 5).to(dtype), tallies_of_random_texts()
    logits[:, 7] = -torch.inf
    out = penalized(penalties, logits, tallies, DEVICE)
    assert torch.equal(out, penalized(reference, logits, tallies, torch.device("cpu")))
    assert (out[:, 7] == -torch.inf).all()
    assert torch.equal(out[0], logits[0].float())


def test_reference_takes_what_the_formula_says() -> None:
    logits = torch.tensor([[3.0, -3.0, 0.5, 1.0]])
    # In the prompt and three times in the output; in the prompt only; nowhere; twice in the output.
    tallies = torch.tensor([[2 * 3 + 1, 1, 0, 2 * 2]], dtype=torch.int32)
    out = torch.empty(1, 4)
    columns = [torch.tensor([value]) for value in (0.25, 0.5, 2.0)]
    reference.penalize(logits, tallies, torch.zeros(1, dtype=torch.int64), *columns, out)
    assert out.tolist() == [[1.5 - 0.75 - 0.5, -6.0, 0.5, 0.5 - 0.5 - 0.5]]


def test_reference_repeats_the_processor_of_transformers() -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    tokens = torch.randint(0, VOCAB, (1, 300))
    logits = torch.randn(1, VOCAB) * 4
    tally = torch.zeros(1, VOCAB, dtype=torch.int32)
    tally[0, tokens[0, :200]] = 1
    tally[0].index_add_(0, tokens[0, 200:], torch.full((100,), 2, dtype=torch.int32))
    out, off = torch.empty(1, VOCAB), torch.zeros(1)
    reference.penalize(logits, tally, torch.zeros(1, dtype=torch.int64), off, off, torch.tensor([1.3]), out)
    assert torch.equal(out, RepetitionPenaltyLogitsProcessor(1.3)(tokens, logits.clone()))


@pytest.mark.parametrize("module", [penalties, reference])
def test_rows_with_penalties_take_their_ids_and_count_them(module) -> None:
    logits, tallies = torch.randn(len(ROWS), VOCAB), tallies_of_random_texts()
    plain, drawn = logits.argmax(-1), torch.randint(0, VOCAB, (len(ROWS),))
    expected = logits.log_softmax(-1)
    before = tallies.clone()
    device = DEVICE if module is penalties else torch.device("cpu")
    ids, logprobs = plain.to(device), expected[range(len(ROWS)), plain].to(device)
    counted = tallies.to(device)
    module.take_penalized(logits.to(device), drawn.to(device), counted, *columns(device), ids, logprobs)
    taken = torch.cat([plain[:1], drawn[1:]])
    assert ids.tolist() == taken.tolist()
    torch.testing.assert_close(logprobs.cpu(), expected[range(len(ROWS)), taken], atol=2e-5, rtol=0)
    slots = columns(torch.device("cpu"))[0]
    before[slots[1:], drawn[1:]] += 2
    assert torch.equal(counted.cpu(), before)


@pytest.mark.parametrize(
    ("index", "bad", "message"),
    [
        (0, torch.zeros(8), "logits: 1 axes"),
        (1, torch.zeros(2, 7, dtype=torch.int32), "tallies: shape"),
        (1, torch.zeros(2, 8, dtype=torch.int16), "tallies: dtype"),
        (2, torch.zeros(1, dtype=torch.int32), "slots: dtype"),
        (3, torch.zeros(2), "frequency: shape"),
        (5, torch.zeros(1, dtype=torch.float64), "repetition: dtype"),
        (6, torch.zeros(1, 8, dtype=torch.bfloat16), "out: dtype"),
    ],
)
def test_launcher_names_the_argument_that_is_wrong(index: int, bad: torch.Tensor, message: str) -> None:
    arguments = [
        torch.zeros(1, 8), torch.zeros(2, 8, dtype=torch.int32), torch.zeros(1, dtype=torch.int64),
        torch.zeros(1), torch.zeros(1), torch.ones(1), torch.zeros(1, 8),
    ]  # fmt: skip
    arguments[index] = bad
    with pytest.raises(ValueError, match=message):
        penalties.penalize(*arguments)
