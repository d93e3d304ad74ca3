from __future__ import annotations

import hashlib
import json

import pytest
from octavo.workloads import Workload, parse, uniform

# Digests of the token ids that the peers were measured on.
DIGESTS = {
    "throughput": "c89dea348cba2a7c",
    "single_stream": "862696d152fa1037",
    "steady_batch": "5dc535f0a886a282",
    "prefill": "79a0d99beaeac196",
    "shared_prefix": "97ea4767a7f5443e",
}


def digest(workload: Workload) -> str:
    jobs = [(job.prompt, job.max_tokens) for job in workload.jobs()]
    return hashlib.sha256(json.dumps(jobs).encode()).hexdigest()[:16]


@pytest.mark.parametrize("name", DIGESTS)
def test_a_workload_has_the_token_ids_that_peers_were_measured_on(name: str) -> None:
    assert digest(parse(name)) == DIGESTS[name]


def test_sizes_left_out_take_their_defaults() -> None:
    assert parse("decode:8").name == "decode:8:1024"
    assert parse("throughput").name == "throughput:512:100:1024"
    assert parse("start").name == "start"


@pytest.mark.parametrize("name", ["decoding", "decode:1:2:3", "decode:x", "decode:0", "decode:-1", "start:1", ""])
def test_a_wrong_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"workload|sizes|positive"):
        parse(name)


def test_jobs_have_the_sizes_of_the_name() -> None:
    jobs = parse("shared_prefix:2:3:10:4:5").jobs()
    assert len(jobs) == 6
    assert {len(job.prompt) for job in jobs} == {14}
    assert {job.max_tokens for job in jobs} == {5}
    assert len({tuple(job.prompt[:10]) for job in jobs}) == 2
    assert len({tuple(job.prompt) for job in jobs}) == 6


def test_a_small_vocabulary_bounds_the_ids() -> None:
    for name in ("decode:2:50", "throughput:3:10:20", "shared_prefix:2:2:8:4:4", "serve:2:9:3", "start"):
        assert all(10 <= token_id < 64 for job in parse(name).jobs(64) for token_id in job.prompt)


def test_seeds_make_prompts_differ() -> None:
    first, second = (uniform(count=1, prompt_len=8, output_len=1, seed=seed) for seed in (1, 2))
    assert first != second
