"""Roofline floors: the least time, or the highest rate, that a workload allows on ceilings measured in the same run.

A step reads the weights once and the keys and values of every sequence once, and computes its products. With

    W   bytes of the weights that a step reads: all layers and the head (a tied head is the embedding table, read once;
        an untied embedding table is not counted: a step reads a few of its rows)
    P   parameters of the layers' products; P_head those of the head
    KV  bytes of keys and values of one token: layers * 2 * kv_heads * head_dim * bytes of a number
    A   FLOPs of attention for one pair of a query and a key: layers * 4 * heads * head_dim
    BW  the higher of the measured copy and read bandwidths;  G  the measured rate of a large bf16 product

the floor of

    a decode step of B sequences with C tokens of context each   max(W / BW, 2 (P + P_head) B / G)
                                                                 + max(B C KV / BW, B C A / G)
    computing T prompt tokens, of which S sample and which pair  max(W / BW, 2 (P T + P_head S) / G)
    with N keys in all                                           + A N / G

A workload's floor is the sum over its steps: prompts first, then decode steps at the mean context. Prompts and decodes are
taken one after the other; an engine that computed one batch's products in the shadow of another's memory reads could in
theory pass this. Shared prefixes are computed once, and read once a step for all sequences that share them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

from octavo.workloads import DECODE_OUTPUTS, Workload

# A batch of the engine holds so many sequences by default.
_MAX_SEQUENCES: Final = 256
_BFLOAT16_BYTES: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """What a device reaches: bytes per second of a copy (read + written) and of a read, FLOP/s of a bf16 product.

    Floors are made of what it reaches in a burst. `sustained_flop_s` is told beside them: a card at its power limit computes
    long workloads at that rate. None: not measured.
    """

    copy_bytes_s: float
    read_bytes_s: float
    gemm_flop_s: float
    sustained_flop_s: float | None = None

    @property
    def bandwidth(self) -> float:
        """Bytes per second."""
        return max(self.copy_bytes_s, self.read_bytes_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """What the floors need to know of a model; letters as in the module's text."""

    layer_params: int  # P
    head_params: int  # P_head
    weight_bytes: int  # W
    kv_bytes: int  # KV
    pair_flops: int  # A

    @classmethod
    def of(cls, config: Mapping[str, Any], number_bytes: int = _BFLOAT16_BYTES) -> Self:
        """Return the sizes that a config.json describes.

        Args:
            config: the parsed file.
            number_bytes: bytes of a number in weights and pages.
        """
        hidden, layers = config["hidden_size"], config["num_hidden_layers"]
        heads = config["num_attention_heads"]
        kv_heads = config.get("num_key_value_heads") or heads
        head_dim = config.get("head_dim") or hidden // heads
        attention = hidden * head_dim * (2 * heads + 2 * kv_heads)
        layer_params = layers * (attention + 3 * hidden * config["intermediate_size"])
        head_params = hidden * config["vocab_size"]
        return cls(
            layer_params=layer_params,
            head_params=head_params,
            weight_bytes=(layer_params + head_params) * number_bytes,
            kv_bytes=layers * 2 * kv_heads * head_dim * number_bytes,
            pair_flops=layers * 4 * heads * head_dim,
        )


class Roofline:
    """Floors of one model on one device."""

    def __init__(self, model: ModelSize, ceilings: Ceilings) -> None:
        self._model = model
        self._ceilings = ceilings

    def step_s(self, batch: int, kv_tokens: float, pairs: float | None = None) -> float:
        """Return the floor of a decode step in seconds.

        Args:
            batch: sequences.
            kv_tokens: tokens whose keys and values are read, of all sequences together; a shared one counts once.
            pairs: pairs of a query and a key; as many as kv_tokens if nothing is shared.
        """
        model, ceilings = self._model, self._ceilings
        flops = 2 * (model.layer_params + model.head_params) * batch
        products = max(model.weight_bytes / ceilings.bandwidth, flops / ceilings.gemm_flop_s)
        attention_flops = model.pair_flops * (kv_tokens if pairs is None else pairs)
        attention = max(kv_tokens * model.kv_bytes / ceilings.bandwidth, attention_flops / ceilings.gemm_flop_s)
        return products + attention

    def prompts_s(self, tokens: int, samples: int, pairs: int) -> float:
        """Return the floor of computing prompt tokens in seconds; letters T, S and N of the module's text."""
        model, ceilings = self._model, self._ceilings
        flops = 2 * (model.layer_params * tokens + model.head_params * samples)
        products = max(model.weight_bytes / ceilings.bandwidth, flops / ceilings.gemm_flop_s)
        return products + model.pair_flops * pairs / ceilings.gemm_flop_s

    def floors(self, workload: Workload) -> dict[str, float]:
        """Return the best possible value of each metric of a workload that has one, in the metric's unit."""
        return _FLOORS[workload.kind](self, workload.sizes) if workload.kind in _FLOORS else {}

    def batch_s(self, count: int, prompt_len: int, output_len: int) -> float:
        """Return the floor of `count` requests of one shape that run together, in seconds."""
        prompts = self.prompts_s(count * prompt_len, count, count * _pairs(prompt_len))
        return prompts + (output_len - 1) * self.step_s(count, count * (prompt_len + output_len / 2))


def _pairs(tokens: int, cached: int = 0) -> int:
    """Return the pairs of a query and a key in computing `tokens` after `cached` ones, each seeing all before it."""
    return tokens * cached + tokens * (tokens + 1) // 2


def _single_stream(roofline: Roofline, sizes: Mapping[str, int]) -> dict[str, float]:
    seconds = roofline.batch_s(1, sizes["prompt_len"], sizes["output_len"])
    return {"out_tok_s": sizes["output_len"] / seconds}


def _decode(roofline: Roofline, sizes: Mapping[str, int]) -> dict[str, float]:
    few, many = DECODE_OUTPUTS
    # The step of output token t (from 1) reads the prompt and t - 1 outputs; t goes from few + 1 to many.
    context = sizes["context"] + (few + many - 1) / 2
    return {"ms_per_step": 1e3 * roofline.step_s(sizes["batch"], sizes["batch"] * context)}


def _steady_batch(roofline: Roofline, sizes: Mapping[str, int]) -> dict[str, float]:
    return {"seconds": roofline.batch_s(sizes["count"], sizes["prompt_len"], sizes["output_len"])}


def _prefill(roofline: Roofline, sizes: Mapping[str, int]) -> dict[str, float]:
    count, prompt_len = sizes["count"], sizes["prompt_len"]
    return {"in_tok_s": count * prompt_len / roofline.batch_s(count, prompt_len, 1)}


def _shared_prefix(roofline: Roofline, sizes: Mapping[str, int]) -> dict[str, float]:
    groups, prefix, suffix, outputs = (sizes[key] for key in ("groups", "prefix_len", "suffix_len", "output_len"))
    count = groups * sizes["per_group"]
    prompts = roofline.prompts_s(
        groups * prefix + count * suffix, count, groups * _pairs(prefix) + count * _pairs(suffix, prefix)
    )
    own = suffix + outputs / 2
    step = roofline.step_s(count, groups * prefix + count * own, count * (prefix + own))
    return {"seconds": prompts + (outputs - 1) * step}


def _throughput(roofline: Roofline, sizes: Mapping[str, int]) -> dict[str, float]:
    jobs = Workload("throughput", dict(sizes)).jobs()
    prompts: Sequence[int] = [len(job.prompt) for job in jobs]
    outputs: Sequence[int] = [job.max_tokens for job in jobs]
    steps = max(*outputs, -(-sum(outputs) // _MAX_SEQUENCES))
    # Each output token but the first, which its prompt gives, reads the prompt and the outputs before it.
    kv_tokens = sum((output - 1) * (prompt + output / 2) for prompt, output in zip(prompts, outputs, strict=True))
    batch = max(1, sum(outputs) // steps)
    seconds = roofline.prompts_s(sum(prompts), len(jobs), sum(map(_pairs, prompts)))
    seconds += steps * roofline.step_s(batch, kv_tokens / steps)
    return {"out_tok_s": sum(outputs) / seconds}


def _serve(roofline: Roofline, sizes: Mapping[str, int]) -> dict[str, float]:
    concurrency, prompt_len, output_len = (sizes[key] for key in ("concurrency", "prompt_len", "output_len"))
    seconds = roofline.batch_s(concurrency, prompt_len, output_len)
    step_s = roofline.step_s(concurrency, concurrency * (prompt_len + output_len / 2))
    floors = {"out_tok_s": concurrency * output_len / seconds, "itl_ms_p50": 1e3 * step_s}
    if concurrency == 1:  # with more, the order of prompts decides
        floors["ttft_ms_p50"] = 1e3 * roofline.prompts_s(prompt_len, 1, _pairs(prompt_len))
    return floors


_FLOORS: Final[dict[str, Callable[[Roofline, Mapping[str, int]], dict[str, float]]]] = {
    "single_stream": _single_stream,
    "decode": _decode,
    "steady_batch": _steady_batch,
    "prefill": _prefill,
    "shared_prefix": _shared_prefix,
    "throughput": _throughput,
    "serve": _serve,
}
