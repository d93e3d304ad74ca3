"""Sampling: the kernels choose what the reference chooses, and the reference draws from the right distribution."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from octavo_kernels import philox, reference, sampling
from unit.kernels.paged_batch import DEVICE, ON_GPU

VOCAB = 128_256 if ON_GPU else 5003  # more than one chunk, and no multiple of 4


@dataclass(frozen=True)
class Parameters:
    """How one row is sampled."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    position: int = 0

    @staticmethod
    def columns(rows: list[Parameters]) -> list[torch.Tensor]:
        types = {"top_k": torch.int32, "seed": torch.int64, "position": torch.int64}
        return [
            torch.tensor([getattr(row, name) for row in rows], dtype=types.get(name, torch.float32), device=DEVICE)
            for name in Parameters.__dataclass_fields__
        ]


def draw(logits: torch.Tensor, rows: list[Parameters]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Run the kernels: ids, logprobs, and the thresholds that they leave in the workspace."""
    ids = torch.full((len(rows),), -1, dtype=torch.int64, device=DEVICE)
    logprobs = torch.full((len(rows),), torch.nan, device=DEVICE)
    workspace = torch.full((sampling.sample_workspace_size(*logits.shape),), torch.nan, device=DEVICE)
    sampling.sample(logits.to(DEVICE), *Parameters.columns(rows), ids, logprobs, workspace)
    return ids.cpu(), logprobs.cpu(), workspace.view(len(rows), -1)[:, 0].cpu()


def draw_reference(logits: torch.Tensor, rows: list[Parameters]) -> tuple[torch.Tensor, torch.Tensor]:
    ids, logprobs = torch.full((len(rows),), -1), torch.full((len(rows),), torch.nan)
    reference.sample(logits.cpu(), *(x.cpu() for x in Parameters.columns(rows)), ids, logprobs)
    return ids, logprobs


ROWS = [
    Parameters(temperature=0.0, top_k=5, top_p=0.5),
    Parameters(seed=1),
    Parameters(temperature=0.7, top_k=20, seed=-(2**63), position=2**31),
    Parameters(temperature=1.3, top_p=0.9, seed=2**63 - 1, position=9),
    Parameters(temperature=2.0, min_p=0.05, seed=4),
    Parameters(temperature=0.9, top_k=50, top_p=0.8, min_p=0.02, seed=5, position=1),
    Parameters(top_k=1, seed=6),
    Parameters(top_p=0.0, seed=7),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_kernel_chooses_the_ids_of_the_reference(dtype: torch.dtype) -> None:
    logits = (torch.randn(len(ROWS), VOCAB) * 3).to(dtype)
    logits[:, 7] = -torch.inf
    ids, logprobs, _ = draw(logits, ROWS)
    expected_ids, expected_logprobs = draw_reference(logits, ROWS)
    assert ids.tolist() == expected_ids.tolist()
    torch.testing.assert_close(logprobs, expected_logprobs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logprobs, logits.float().log_softmax(-1)[range(len(ROWS)), ids], atol=1e-4, rtol=1e-4)


def test_kernel_keeps_the_ids_that_a_sort_keeps() -> None:
    logits = (torch.randn(len(ROWS), 1001) * 2).round()  # whole numbers: ties everywhere
    logits[:, 100:110] = -torch.inf
    _, _, thresholds = draw(logits, ROWS)
    for row, parameters, threshold in zip(logits, ROWS, thresholds, strict=True):
        if parameters.temperature > 0:
            values = row * (1 / torch.tensor(parameters.temperature))
            expected = kept_by_sorting(values, parameters.top_k, parameters.top_p, parameters.min_p)
            assert torch.equal(values >= threshold, expected), parameters
        else:
            assert threshold == -torch.inf


def test_rows_with_more_survivors_than_candidates_are_searched_whole(monkeypatch) -> None:
    monkeypatch.setattr(sampling, "_CANDIDATES", 64)
    rows = [
        Parameters(top_p=0.9, seed=1),
        Parameters(top_p=0.6, min_p=0.3, seed=2),
        Parameters(top_k=500, seed=3),
        Parameters(top_k=500, top_p=0.7, seed=4),
        Parameters(temperature=50.0, min_p=0.95, seed=5),
    ]
    smooth = torch.randn(len(rows), 1001)
    for logits in (smooth, smooth.round(), torch.zeros_like(smooth)):  # no ties, many ties, one tie of all
        ids, _, thresholds = draw(logits, rows)
        assert ids.tolist() == draw_reference(logits, rows)[0].tolist()
        for row, parameters, threshold in zip(logits, rows, thresholds, strict=True):
            values = row * (1 / torch.tensor(parameters.temperature))
            expected = kept_by_sorting(values, parameters.top_k, parameters.top_p, parameters.min_p)
            assert torch.equal(values >= threshold, expected), parameters


@settings(deadline=None, max_examples=60)
@given(
    values=st.lists(st.integers(-6, 6), min_size=1, max_size=40),
    top_k=st.integers(0, 45),
    top_p=st.floats(0.0625, 1.0, width=32),
    min_p=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
)
def test_reference_keeps_the_ids_that_a_sort_keeps(values, top_k, top_p, min_p) -> None:
    tensor = torch.tensor(values, dtype=torch.float32)
    expected = kept_by_sorting(tensor, top_k, top_p, min_p)
    assert torch.equal(tensor >= reference.sampling_threshold(tensor, top_k, top_p, min_p), expected)


def kept_by_sorting(values: torch.Tensor, top_k: int, top_p: float, min_p: float) -> torch.Tensor:
    """Which values [V] survive, one rule after the other, by sorting in fp64."""
    values = values.double()
    kept = torch.ones(len(values), dtype=torch.bool)
    if top_k > 0:
        kept &= values >= values.sort(descending=True).values[min(top_k, len(values)) - 1]
    if top_p < 1:
        weights = torch.where(kept, (values - values.max()).exp(), 0.0)
        above = torch.stack([weights[values > value].sum() for value in values])
        kept &= (above < top_p * weights.sum()) | (values == values.max())
    if min_p > 0:
        kept &= values.float() >= values.float().max() + torch.tensor(min_p).log()
    return kept


@pytest.mark.parametrize("draw_rows", [draw, draw_reference])
def test_a_row_does_not_depend_on_its_batch(draw_rows) -> None:
    logits = torch.randn(len(ROWS), 1500) * 3
    ids, logprobs = draw_rows(logits, ROWS)[:2]
    for row in (0, 1, 5):
        alone_ids, alone_logprobs = draw_rows(logits[row : row + 1], ROWS[row : row + 1])[:2]
        assert torch.equal(alone_ids, ids[row : row + 1])
        assert torch.equal(alone_logprobs, logprobs[row : row + 1])


@pytest.mark.parametrize("draw_rows", [draw, draw_reference])
def test_lowest_id_wins_a_tie(draw_rows) -> None:
    logits = torch.zeros(2, 4500)
    logits[0, [300, 4200]] = 5.0
    greedy = [Parameters(temperature=0.0)] * 2
    ids, logprobs = draw_rows(logits, greedy)[:2]
    assert ids.tolist() == [300, 0]
    assert torch.allclose(logprobs[1], torch.tensor(1 / 4500).log())


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of the interpreter
@pytest.mark.parametrize("is_whole", [True, False], ids=["all of them", "some of them"])
@pytest.mark.parametrize("draw_rows", [draw, draw_reference])
def test_logits_that_are_no_numbers_give_some_id_and_concern_no_other_row(draw_rows, is_whole: bool) -> None:
    logits = torch.randn(2 * len(ROWS), VOCAB)
    rows = [row for row in ROWS for _ in range(2)]
    expected_ids, expected_logprobs = draw_rows(logits, rows)[:2]
    logits[::2, slice(None) if is_whole else slice(3, None, 700)] = torch.nan
    ids, logprobs = draw_rows(logits, rows)[:2]
    assert ((ids >= 0) & (ids < VOCAB)).all()
    assert torch.equal(ids[1::2], expected_ids[1::2])
    assert torch.equal(logprobs[1::2], expected_logprobs[1::2])


def test_rows_may_be_strided() -> None:
    logits, rows = torch.randn(2, 2, 600)[:, 1], [Parameters(seed=1), Parameters(top_k=9)]
    assert draw(logits, rows)[0].tolist() == draw(logits.contiguous(), rows)[0].tolist()


@pytest.mark.parametrize("temperature", [0.2, 1.0, 30.0])
def test_reference_draws_the_highest_value_plus_noise(temperature: float) -> None:
    """The reference looks at few ids only; that never changes the winner."""
    rows = [Parameters(temperature=temperature, seed=n, position=3) for n in range(20)]
    logits = torch.randn(len(rows), 700) * 6
    scores = logits * (1 / torch.tensor(temperature)) + torch.stack(
        [philox.gumbel(n, 3, 700) for n in range(len(rows))]
    )
    assert draw_reference(logits, rows)[0].tolist() == scores.argmax(-1).tolist()


def test_reference_draws_from_the_softmax() -> None:
    num_draws = 2000
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0, 0.5, -3.0, 1.5, -torch.inf])
    rows = [Parameters(temperature=1.4, seed=11, position=n) for n in range(num_draws)]
    assert_drawn_from(draw_reference(logits.expand(num_draws, -1), rows)[0], (logits / 1.4).softmax(-1))


def test_reference_draws_from_the_truncated_softmax() -> None:
    num_draws = 2000
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0, 0.5, -3.0, 1.5, -torch.inf])
    rows = [Parameters(top_k=4, seed=n) for n in range(num_draws)]
    kept = torch.where(logits >= 0.5, logits, -torch.inf)
    assert_drawn_from(draw_reference(logits.expand(num_draws, -1), rows)[0], kept.softmax(-1))


def test_kernel_draws_from_the_softmax() -> None:
    num_draws = 50_000 if ON_GPU else 60
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0, 0.5, -3.0, 1.5, -torch.inf])
    rows = [Parameters(seed=3, position=n) for n in range(num_draws)]
    ids = draw(logits.expand(num_draws, -1).contiguous(), rows)[0]
    if ON_GPU:
        assert_drawn_from(ids, logits.softmax(-1))
    else:  # too slow for statistics: draw by draw what the reference draws
        assert torch.equal(ids, draw_reference(logits.expand(num_draws, -1), rows)[0])


def assert_drawn_from(ids: torch.Tensor, probabilities: torch.Tensor) -> None:
    counts = ids.bincount(minlength=len(probabilities)).double()
    possible = probabilities > 0
    assert (counts[~possible] == 0).all()
    expected = probabilities[possible].double() * len(ids)
    chi_square = ((counts[possible] - expected) ** 2 / expected).sum()
    assert chi_square < 27.9  # 1 in 10,000 at 6 degrees of freedom, less for fewer


@pytest.mark.parametrize(
    ("index", "bad", "message"),
    [
        (0, torch.zeros(8), "logits: 1 axes"),
        (0, torch.zeros(1, 8, dtype=torch.float64), "logits: dtype"),
        (1, torch.zeros(2), "temperature: shape"),
        (2, torch.zeros(1), "top_k: dtype"),
        (5, torch.zeros(1, dtype=torch.int32), "seed: dtype"),
        (7, torch.zeros(1, dtype=torch.int32), "out_ids: dtype"),
        (9, torch.zeros(3), "workspace: 3 elements"),
    ],
)
def test_launcher_names_the_argument_that_is_wrong(index, bad, message) -> None:
    real, whole = torch.zeros(1), torch.zeros(1, dtype=torch.int64)
    arguments = [torch.zeros(1, 8), real, torch.zeros(1, dtype=torch.int32), real, real, whole, whole, whole, real]
    arguments.append(torch.zeros(100))
    arguments[index] = bad
    with pytest.raises(ValueError, match=message):
        sampling.sample(*arguments)
