"""Every operation of this package in plain PyTorch: the specification of the Triton kernels, and the CPU engine's backend.

Signatures equal those of the Triton launchers: outputs are preallocated and filled, workspaces are accepted and ignored.
Attention and norms compute in fp32, or in fp64 where an input is fp64. Letters: T tokens, B sequences, Hq query heads,
Hk key/value heads, G = Hq / Hk, D head dimension, P pages, PAGE tokens a page, V vocabulary.
"""

import math

import torch

from octavo_kernels import philox

_SUM_BLOCK = 1024


def rope_qknorm_write(
    qkv: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    cos_sin: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    q_out: torch.Tensor,
    q_weight: torch.Tensor | None = None,
    k_weight: torch.Tensor | None = None,
    eps: float = 1e-6,
) -> None:
    """Split QKV, normalise and rotate Q and K, write K and V to their slots and Q to `q_out`.

    Rotation is NeoX style (halves, not pairs); the optional per-head RMSNorm of Q and K is that of Qwen3.

    Args:
        qkv: [T, (Hq + 2 Hk) * D].
        positions: [T] int64, a row of `cos_sin` for each token.
        slots: [T] int64, page_id * PAGE + offset; -1 writes no K and V.
        cos_sin: [max_position, D] fp32, a row is cos(D/2) followed by sin(D/2).
        k: [P, Hk, PAGE, D] view of the pool, written.
        v: the same for values, written.
        q_out: [T, Hq, D], written.
        q_weight: [D] weight of the norm of Q, or None for no norm.
        k_weight: [D] weight of the norm of K, or None for no norm.
        eps: added to the mean square.
    """
    num_heads, head_dim = q_out.shape[1:]
    num_kv_heads, page_size = k.shape[1:3]
    heads = qkv.view(qkv.shape[0], num_heads + 2 * num_kv_heads, head_dim)
    query, key, value = heads.split([num_heads, num_kv_heads, num_kv_heads], dim=1)
    if q_weight is not None:
        query = _normalised(query, q_weight, eps)
    if k_weight is not None:
        key = _normalised(key, k_weight, eps)
    cos, sin = cos_sin[positions][:, None, :].chunk(2, dim=-1)  # [T, 1, D/2] each
    q_out.copy_(_rotated(query, cos, sin))
    written = slots >= 0
    pages, offsets = slots[written] // page_size, slots[written] % page_size
    k[pages, :, offsets] = _rotated(key, cos, sin)[written].to(k.dtype)
    v[pages, :, offsets] = value[written].to(v.dtype)


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    low, high = _wide(x).chunk(2, dim=-1)
    return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1)


def paged_decode(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    block_table: torch.Tensor,
    seq_lens: torch.Tensor,
    out: torch.Tensor,
    workspace: torch.Tensor | None = None,
    *,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    sinks: torch.Tensor | None = None,
    chunk: int = 512,
    lse: torch.Tensor | None = None,
) -> None:
    """Attend with one query token a sequence: `paged_extend` with B query lengths of 1.

    Args:
        q: [B, Hq, D].
        k: [P, Hk, PAGE, D] view of the pool.
        v: the same for values.
        block_table: [B, max_pages] int32.
        seq_lens: [B] int32, tokens in the pages, the query's own included; 0 gives zeros and an lse of -inf.
        out: [B, Hq, D], written.
        workspace: ignored here.
        scale: factor of the scores.
        window: newest tokens that a query sees, itself included; 0 means all.
        softcap: scores become softcap * tanh(score / softcap); 0 means off.
        sinks: [Hq] fp32, one more score a head that takes part in the softmax and has no value.
        chunk: ignored here.
        lse: [B, Hq] fp32, written if given: natural logarithm of the softmax denominator, the sink included.
    """
    del workspace, chunk
    cu_q = torch.arange(q.shape[0] + 1, dtype=torch.int32, device=q.device)
    _attend(q, k, v, block_table, cu_q, seq_lens, out, lse, scale=scale, window=window, softcap=softcap, sinks=sinks)


def paged_extend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    block_table: torch.Tensor,
    cu_q: torch.Tensor,
    seq_lens: torch.Tensor,
    out: torch.Tensor,
    workspace: torch.Tensor | None = None,
    *,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    sinks: torch.Tensor | None = None,
    lse: torch.Tensor | None = None,
    max_q_len: int | None = None,
    causal: bool = True,
) -> None:
    """Attend causally with the newest q_len tokens of each sequence; all keys and values are already in pages.

    Args:
        q: [T, Hq, D], sequences one after the other; rows from cu_q[B] on are padding and stay untouched.
        k: [P, Hk, PAGE, D] view of the pool.
        v: the same for values.
        block_table: [B, max_pages] int32.
        cu_q: [B + 1] int32, prefix sums of the query lengths.
        seq_lens: [B] int32, tokens in the pages, the new ones included.
        out: [T, Hq, D], written.
        workspace: ignored here.
        scale: factor of the scores.
        window: newest tokens that a query sees, itself included; 0 means all.
        softcap: scores become softcap * tanh(score / softcap); 0 means off.
        sinks: [Hq] fp32, one more score a head that takes part in the softmax and has no value.
        lse: [T, Hq] fp32, written if given: natural logarithm of the softmax denominator, the sink included.
        max_q_len: ignored here.
        causal: if false, every query sees all keys: a prefix that the queries of many requests share.
    """
    del workspace, max_q_len
    _attend(
        q,
        k,
        v,
        block_table,
        cu_q,
        seq_lens,
        out,
        lse,
        scale=scale,
        window=window,
        softcap=softcap,
        sinks=sinks,
        causal=causal,
    )


def paged_attention_reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    block_table: torch.Tensor,
    cu_q: torch.Tensor,
    seq_lens: torch.Tensor,
    *,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    sinks: torch.Tensor | None = None,
    causal: bool = True,
    dtype: torch.dtype = torch.float64,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute what `paged_extend` approximates, in `dtype` throughout.

    Returns:
        The output [T, Hq, D] and the lse [T, Hq], both in `dtype`; zeros and -inf in rows from cu_q[B] on.
    """
    out = torch.zeros(q.shape, dtype=dtype, device=q.device)
    lse = torch.full(q.shape[:2], -torch.inf, dtype=dtype, device=q.device)
    _attend(
        q.to(dtype),
        k,
        v,
        block_table,
        cu_q,
        seq_lens,
        out,
        lse,
        scale=scale,
        window=window,
        softcap=softcap,
        sinks=sinks,
        causal=causal,
    )
    return out, lse


def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    block_table: torch.Tensor,
    cu_q: torch.Tensor,
    seq_lens: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor | None,
    *,
    sinks: torch.Tensor | None,
    scale: float,
    window: int,
    softcap: float,
    causal: bool = True,
) -> None:
    page_size = k.shape[2]
    starts, lengths = cu_q.tolist(), seq_lens.tolist()
    for row, (start, stop, length) in enumerate(zip(starts[:-1], starts[1:], lengths, strict=True)):
        if start == stop:
            continue
        if length == 0:  # padding: no key to attend to
            out[start:stop] = 0
            if lse is not None:
                lse[start:stop] = -torch.inf
            continue
        pages = block_table[row, : -(-length // page_size)].long()
        # [Hk, length, D]: a page id picks [Hk, PAGE, D], and tokens of all pages then follow each other.
        keys = k[pages].transpose(0, 1).flatten(1, 2)[:, :length]
        values = v[pages].transpose(0, 1).flatten(1, 2)[:, :length]
        state = _attend_one(
            _wide(q[start:stop]), keys, values, sinks=sinks, scale=scale, window=window, softcap=softcap, causal=causal
        )
        out[start:stop] = state[0].to(out.dtype)
        if lse is not None:
            lse[start:stop] = state[1].to(lse.dtype)


def _attend_one(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    *,
    sinks: torch.Tensor | None,
    scale: float,
    window: int,
    softcap: float,
    causal: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend with one sequence's queries [N, Hq, D] to its keys and values [Hk, length, D]; return (out, lse)."""
    num_queries, num_heads, head_dim = q.shape
    num_kv_heads, length, _ = keys.shape
    grouped = q.view(num_queries, num_kv_heads, num_heads // num_kv_heads, head_dim)
    grouped = grouped.permute(1, 2, 0, 3).reshape(num_kv_heads, -1, head_dim)  # [Hk, G * N, D]
    scores = (grouped @ keys.to(q.dtype).transpose(1, 2)) * scale  # [Hk, G * N, length]
    if softcap > 0:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.view(num_heads, num_queries, length)
    query_pos = torch.arange(length - num_queries, length, device=q.device)[:, None]
    key_pos = torch.arange(length, device=q.device)[None, :]
    hidden = key_pos > (query_pos if causal else length)
    if window > 0:
        hidden |= key_pos <= query_pos - window
    scores = scores.masked_fill(hidden, -torch.inf)
    denominator = scores
    if sinks is not None:
        column = sinks.to(q.dtype)[:, None, None].expand(num_heads, num_queries, 1)
        denominator = torch.cat([scores, column], dim=-1)
    lse = torch.logsumexp(denominator, dim=-1)
    weights = torch.exp(scores - lse[..., None]).view(num_kv_heads, -1, length)
    out = (weights @ values.to(q.dtype)).view(num_heads, num_queries, head_dim)
    return out.transpose(0, 1), lse.T


def merge_states(
    out_a: torch.Tensor,
    lse_a: torch.Tensor,
    out_b: torch.Tensor,
    lse_b: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor | None = None,
) -> None:
    """Merge the attention of the same queries over two disjoint sets of keys.

    Args:
        out_a: [T, Hq, D], softmax-weighted values over the first set.
        lse_a: [T, Hq] fp32, its natural log-sum-exp; -inf for an empty set.
        out_b: the same over the second set.
        lse_b: the same over the second set.
        out: [T, Hq, D], written.
        lse: [T, Hq] fp32, written if given.
    """
    merged = torch.logaddexp(lse_a, lse_b)
    safe = merged.clamp(min=torch.finfo(merged.dtype).min)  # two empty sets: weights of 0, not NaN
    weight_a, weight_b = torch.exp(lse_a - safe)[..., None], torch.exp(lse_b - safe)[..., None]
    out.copy_(weight_a * _wide(out_a) + weight_b * _wide(out_b))
    if lse is not None:
        lse.copy_(merged)


def rmsnorm(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, eps: float) -> None:
    """Write weight * x / sqrt(mean(x**2) + eps), row by row.

    Args:
        x: [T, H].
        weight: [H].
        out: [T, H], written; may be `x`.
        eps: added to the mean square.
    """
    out.copy_(_normalised(x, weight, eps))


def add_rmsnorm(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, eps: float) -> None:
    """Add x to the residual in place, then normalise the sum: `rmsnorm(residual + x)`.

    Args:
        x: [T, H].
        residual: [T, H], becomes residual + x.
        weight: [H].
        out: [T, H], written; may be `x`.
        eps: added to the mean square.
    """
    residual.add_(x)
    out.copy_(_normalised(residual, weight, eps))


def _normalised(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    wide = _wide(x)
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return wide.to(x.dtype) * weight.to(x.dtype)  # rounded before the weight, as Hugging Face models do


def silu_mul(gate_up: torch.Tensor, out: torch.Tensor) -> None:
    """Write silu(gate) * up.

    Args:
        gate_up: [T, 2 I], a row is gate followed by up.
        out: [T, I], written.
    """
    gate, up = gate_up.chunk(2, dim=-1)
    out.copy_(torch.nn.functional.silu(_wide(gate)).to(gate.dtype) * up)


def copy_pages(kv: torch.Tensor, src: torch.Tensor, dst: torch.Tensor) -> None:
    """Copy whole pages inside the pool.

    Args:
        kv: [P, L, 2, Hk, PAGE, D], the pool (any shape that starts with P).
        src: [N] int32 page ids; -1 skips the entry.
        dst: [N] int32 page ids, all different and none of them a source.
    """
    wanted = src >= 0
    kv[dst[wanted].long()] = kv[src[wanted].long()]


def gather_pages(kv: torch.Tensor, page_ids: torch.Tensor, staging: torch.Tensor) -> None:
    """Copy pages of the pool to a contiguous buffer.

    Args:
        kv: [P, ...], the pool.
        page_ids: [N] int32; -1 leaves its entry of `staging` untouched.
        staging: [N, ...], written.
    """
    wanted = page_ids >= 0
    staging[wanted] = kv[page_ids[wanted].long()]


def scatter_pages(staging: torch.Tensor, page_ids: torch.Tensor, kv: torch.Tensor) -> None:
    """Copy a contiguous buffer back to pages of the pool.

    Args:
        staging: [N, ...].
        page_ids: [N] int32, all different; -1 skips the entry.
        kv: [P, ...], the pool, written.
    """
    wanted = page_ids >= 0
    kv[page_ids[wanted].long()] = staging[wanted]


def penalize(
    logits: torch.Tensor,
    tallies: torch.Tensor,
    slots: torch.Tensor,
    frequency: torch.Tensor,
    presence: torch.Tensor,
    repetition: torch.Tensor,
    out: torch.Tensor,
) -> None:
    """Write the logits with each row's penalties: repetition, then frequency, then presence.

    Args:
        logits: [B, V] fp32, fp16 or bf16; -inf stays -inf.
        tallies: [S, V] int32, by slot: 2 * (times in the output) + (1 if in the prompt).
        slots: [B] int64.
        frequency: [B] fp32; 0 means off.
        presence: [B] fp32; 0 means off.
        repetition: [B] fp32, above 0; 1 means off.
        out: [B, V] fp32, written.
    """
    values, words = logits.to(torch.float32), tallies[slots]
    counts = (words >> 1).to(torch.float32)
    frequency, presence, repetition = frequency[:, None], presence[:, None], repetition[:, None]
    repeated = torch.where(values > 0, values / repetition, values * repetition)
    values = torch.where(words > 0, repeated, values)
    values = values - frequency * counts
    out.copy_(values - torch.where(counts > 0, presence, 0.0))


def take_penalized(
    logits: torch.Tensor,
    penalized_ids: torch.Tensor,
    tallies: torch.Tensor,
    slots: torch.Tensor,
    frequency: torch.Tensor,
    presence: torch.Tensor,
    repetition: torch.Tensor,
    ids: torch.Tensor,
    logprobs: torch.Tensor,
) -> None:
    """Let rows with penalties have the ids drawn from penalized logits, and count these ids as output.

    Args:
        logits: [B, V] fp32, fp16 or bf16, without penalties.
        penalized_ids: [B] int64, drawn with penalties.
        tallies: [S, V] int32; a row's id is added to its slot's.
        slots: [B] int64; rows with penalties have slots of their own.
        frequency: [B] fp32; 0 means off.
        presence: [B] fp32; 0 means off.
        repetition: [B] fp32; 1 means off.
        ids: [B] int64, drawn without penalties; rows with penalties get theirs.
        logprobs: [B] fp32, log-softmax of `logits` at `ids`, before and after.
    """
    rows = torch.nonzero((frequency != 0) | (presence != 0) | (repetition != 1))[:, 0]
    plain, taken = ids[rows], penalized_ids[rows]
    logprobs[rows] += logits[rows, taken].to(torch.float32) - logits[rows, plain].to(torch.float32)
    ids[rows] = taken
    tallies[slots[rows], taken] += 2


def sample(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    seed: torch.Tensor,
    position: torch.Tensor,
    out_ids: torch.Tensor,
    out_logprobs: torch.Tensor,
    workspace: torch.Tensor | None = None,
) -> None:
    """Choose one id a row: the highest logit, or a draw from the truncated softmax.

    The draw is Gumbel-max: argmax of logits / temperature + noise, with the noise of `philox`, over the ids that
    survive temperature -> top_k -> top_p -> min_p. Ties:

    - argmax: the lowest id wins;
    - top_k keeps every id whose value is at least the k-th highest;
    - top_p keeps an id if the probability of all *strictly* higher values is below top_p, so ids of equal value stay
      or go together and the highest value always stays.

    Rows are computed one by one, so a row's result is bitwise independent of its neighbours.

    Args:
        logits: [B, V] fp32, fp16 or bf16; -inf is allowed except for a whole row.
        temperature: [B] fp32; 0 means greedy, and then the other parameters do not matter.
        top_k: [B] int32; 0 means off.
        top_p: [B] fp32; 1 means off.
        min_p: [B] fp32, least probability relative to the highest; 0 means off.
        seed: [B] int64.
        position: [B] int64, absolute position of the token to be chosen.
        out_ids: [B] int64, written.
        out_logprobs: [B] fp32, written: log-softmax of the raw logits (no temperature, no truncation) at the id.
        workspace: ignored here.
    """
    del workspace
    coldness = torch.where(temperature > 0, 1.0 / temperature, 0.0)  # kernels multiply too: the same last bit
    rows = zip(*(x.tolist() for x in (coldness, top_k, top_p, min_p, seed, position)), strict=True)
    for row, (factor, k, p, floor, row_seed, row_position) in enumerate(rows):
        raw = logits[row].to(torch.float32)
        chosen = raw.argmax() if factor == 0 else _draw(raw * factor, k, p, floor, row_seed, row_position)
        out_ids[row] = chosen
        top = raw.max()
        out_logprobs[row] = raw[chosen] - top - _sum((raw - top).exp()).log()


def _draw(values: torch.Tensor, k: int, p: float, floor: float, seed: int, position: int) -> torch.Tensor:
    """Return the id of the highest value + noise among the values [V] that survive truncation."""
    # An id further below the best one than the range of the noise can never win, truncated or not.
    least = values.max() - (philox.MAX_GUMBEL - philox.MIN_GUMBEL)
    ids = torch.nonzero(values >= torch.maximum(least, sampling_threshold(values, k, p, floor)))[:, 0]
    if len(ids) * 4 < len(values):
        noise = philox.gumbel_at(seed, position, ids)
    else:
        noise = philox.gumbel(seed, position, len(values), values.device)[ids]
    return ids[(values[ids] + noise).argmax()]


def sampling_threshold(values: torch.Tensor, k: int, p: float, floor: float) -> torch.Tensor:
    """Return the lowest value that survives top_k, then top_p, then min_p.

    Args:
        values: [V] fp32, logits / temperature.
        k: keep values from the k-th highest up; 0 means off.
        p: keep values whose strictly higher values hold less than this probability; 1 means off.
        floor: keep values of at least this probability relative to the highest; 0 means off.

    Returns:
        A scalar fp32 tensor, -inf if all survive.
    """
    lowest = values.new_tensor(-torch.inf)
    if 0 < k < len(values):
        lowest = values.topk(k).values[-1]
    if p < 1:
        lowest = torch.maximum(lowest, _top_p_threshold(values[values >= lowest], p))
    if floor > 0:
        lowest = torch.maximum(lowest, values.max() + math.log(floor))
    return lowest


def _top_p_threshold(values: torch.Tensor, p: float) -> torch.Tensor:
    """Return the highest value at which the probability of it and all higher ones reaches p."""
    total = _sum((values - values.max()).exp().double())
    # The nucleus is nearly always small: look at the highest values before sorting them all.
    for size in (min(1024, len(values)), len(values)):
        ordered = values.topk(size).values
        reached = (ordered - ordered[0]).exp().cumsum(0, dtype=torch.float64) >= p * total
        if reached[-1] or size == len(values):
            break
    reached[-1] = True  # rounding may leave the last sum just below p
    return ordered[reached.int().argmax()]


def _sum(values: torch.Tensor) -> torch.Tensor:
    """Return the sum of a vector in an order that depends on its length alone.

    torch splits the sum of one long vector between its threads; sums of many short rows it gives to threads whole.
    """
    padded = torch.nn.functional.pad(values, (0, -len(values) % _SUM_BLOCK))
    return padded.view(-1, _SUM_BLOCK).sum(dim=1).sum()


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x if x.dtype == torch.float64 else x.to(torch.float32)
