"""What the compiler makes of every kernel for an H100 (sm_90): registers, spills, shared memory and instructions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from unit.kernels import compile_cases

MAX_SHARED_BYTES = 227 * 1024

# The first test pays for compiling all kernels: half a minute on two idle cores, more on busy ones.
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def told() -> list[dict]:
    """What is told of all cases, compiled once in a process in which kernels are not interpreted."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    root = Path(compile_cases.__file__).parents[3]
    paths = [str(root / "tests"), str(root / "kernels"), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    command = [sys.executable, compile_cases.__file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def compiled(told: list[dict]) -> dict[str, list[dict]]:
    """The kernels of each case."""
    kernels: dict[str, list[dict]] = {}
    for kernel in told:
        if "case" in kernel:
            kernels.setdefault(kernel["case"], []).append(kernel)
    return kernels


def test_every_case_compiles(compiled) -> None:
    assert set(compiled) == {name for name, _ in compile_cases.cases()}


def test_what_is_compiled_ahead_is_not_launched_there_and_not_compiled_again(told: list[dict]) -> None:
    before_and_after_all_were_compiled = [0, 0]
    launched = [fact["launched_ahead"] for fact in told if "launched_ahead" in fact]
    assert launched == before_and_after_all_were_compiled
    assert [fact["compiled_late"] for fact in told if "compiled_late" in fact] == [[]]


def test_a_kernel_compiled_ahead_is_the_one_that_its_launch_would_compile(told: list[dict]) -> None:
    assert [fact["same_kernels"] for fact in told if "same_kernels" in fact] == [True]


def test_compiling_ahead_concerns_its_own_thread_alone(told: list[dict]) -> None:
    assert [fact["launched_beside"] for fact in told if "launched_beside" in fact] == [1]


def test_a_kernel_that_does_not_compile_ahead_leaves_the_others_as_they_are(told: list[dict]) -> None:
    assert [fact["broken"] for fact in told if "broken" in fact] == ["CompilationError"]
    assert [fact["launched_after_a_failure"] for fact in told if "launched_after_a_failure" in fact] == [3]


def test_what_is_needed_first_is_ready_while_other_kernels_are_still_compiled(told: list[dict]) -> None:
    [facts] = [fact["compile_ahead"] for fact in told if "compile_ahead" in fact]
    assert facts["ready_first"] == facts["launched"] > 0
    assert facts["late"] == []
    assert facts["ended"]
    assert facts["broken"] == "CompilationError"  # told to whoever asks for the rest


def test_what_was_launched_once_is_launched_the_same_again(told: list[dict]) -> None:
    again = [fact["launched_again"] for fact in told if "launched_again" in fact]
    assert len(again) > 50
    assert all(again)


def test_a_kernel_is_compiled_anew_for_what_it_is_specialized_for_and_for_nothing_else(told: list[dict]) -> None:
    compiled = {fact["form"]: fact["compiled"] for fact in told if "form" in fact}
    reused = {"first", "more rows than before", "the first again"}
    assert len(compiled) > len(reused)
    assert {name for name, count in compiled.items() if count == 0} == reused, compiled


def test_no_kernel_spills_what_its_loop_needs(compiled) -> None:
    for kernel in all_kernels(compiled):
        counts = kernel["instructions"]
        spills = kernel["spill_bytes"], counts.get("LDL", 0), counts.get("STL", 0)
        # Exact chunks keep two states in registers, all 255 of them. A few words more than fit cost less than tiles of 128
        # rows, of which a multiprocessor takes one (measured on an H200: 5 % slower).
        has_two_states = kernel["name"] == "_extend_blocks" and "d128" in kernel["case"] and "exact" in kernel["case"]
        allowed = (16, 4, 4) if has_two_states else (0, 0, 0)
        assert spills <= allowed, kernel


def test_every_kernel_fits_into_shared_memory(compiled) -> None:
    for kernel in all_kernels(compiled):
        assert kernel["shared_bytes"] <= MAX_SHARED_BYTES, kernel


# Registers a thread: 168 let three programs of 128 threads share a multiprocessor, 128 four, 64 eight.
@pytest.mark.parametrize(
    ("name", "limit"),
    [("_plan_decode", 64), ("merge_chunks", 64), ("_rope_write_groups", 64), ("_merge_states", 64),
     ("_rmsnorm_rows", 64), ("_silu_mul_columns", 64), ("_copy_words", 64), ("_summarize_chunk", 96),
     ("_finish_row", 128), ("_penalize_chunk", 96), ("_take_row", 64)],
)  # fmt: skip
def test_registers_stay_within_the_limit(compiled, name: str, limit: int) -> None:
    registers = {kernel["case"]: kernel["registers"] for kernel in all_kernels(compiled) if kernel["name"] == name}
    assert registers
    assert max(registers.values()) <= limit, registers


def test_two_decode_programs_share_a_multiprocessor(compiled) -> None:
    for kernel in all_kernels(compiled):
        if kernel["name"] == "_decode_chunks" and "d256" not in kernel["case"]:
            assert 2 * kernel["shared_bytes"] <= MAX_SHARED_BYTES, kernel
            assert 2 * 32 * kernel["warps"] * kernel["registers"] <= 65536, kernel


def test_three_fast_decode_programs_share_a_multiprocessor(compiled) -> None:
    for case in ("decode d128 g4 page16", "decode d128 g4 page16 plan"):
        kernel = next(kernel for kernel in compiled[case] if kernel["name"] == "_decode_chunks")
        assert kernel["registers"] <= 168, kernel
        assert 3 * kernel["shared_bytes"] <= MAX_SHARED_BYTES, kernel


@pytest.mark.parametrize("tile", ["", " tile"])
@pytest.mark.parametrize("case", ["extend d128 g4 page16 exact", "extend d128 g4 page16", "extend d128 g4 page64"])
def test_extend_runs_on_warp_group_tensor_cores(compiled, case: str, tile: str) -> None:
    [kernel] = compiled[case + tile]
    assert kernel["name"] == ("_extend_blocks" if tile else "_extend_items")
    assert kernel["instructions"]["HGMMA"] > 0
    assert kernel["instructions"].get("HMMA", 0) == 0
    # Fences and waits around the loop; if the compiler serialized the products, each would have two of its own.
    assert kernel["instructions"]["WARPGROUP"] < kernel["instructions"]["HGMMA"]


@pytest.mark.parametrize(
    ("case", "name"),
    [("d64 g8 page16", "_extend_blocks"), ("d128 g5 page16", "_extend_items"), ("d256 g2 page16", "_extend_blocks"),
     ("d128 g4 page16 fp32", "_extend_blocks"), ("d128 g4 page16 window softcap sinks", "_extend_blocks")],
)  # fmt: skip
def test_plain_chunks_of_usual_heads_have_a_kernel_of_their_own(compiled, case: str, name: str) -> None:
    [kernel] = compiled[f"extend {case}"]
    assert kernel["name"] == name
    assert ("UTMALDG" in kernel["instructions"]) == (name == "_extend_items")


def test_products_run_on_warp_group_tensor_cores_that_do_not_wait_for_each_other(compiled) -> None:
    products = [kernel for kernel in all_kernels(compiled) if kernel["name"].startswith("_product_")]
    assert products
    for kernel in products:
        counts = kernel["instructions"]
        if "fp32" not in kernel["case"]:
            assert counts.get("HMMA", 0) == 0, kernel
            # A handful of fences and waits around the loop; serialized, each instruction has two of its own.
            assert 4 >= counts["WARPGROUP"] < 2 * counts["HGMMA"], kernel


@pytest.mark.parametrize("shape", ["d64 g8", "d128 g4"])
def test_decode_loads_wide_and_asynchronously(compiled, shape: str) -> None:
    kernel = compiled[f"decode {shape} page16"][0]
    counts = kernel["instructions"]
    assert counts["LDGSTS"] > 0
    # Narrow loads are block-table entries, four a tile and stage; narrow K or V loads would be 64 or more.
    assert kernel["narrow_loads"] <= 24
    assert counts["LDG"] <= 4


def all_kernels(compiled) -> list[dict]:
    return [kernel for kernels in compiled.values() for kernel in kernels]
