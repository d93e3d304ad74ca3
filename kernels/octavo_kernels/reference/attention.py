"""Attention over pages, and the merge of two attentions over different keys."""

import torch

from octavo_kernels.reference.precision import widened


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
        q: [T, Hq, D], sequences one after the other; `out` keeps what it has before row cu_q[0] and from cu_q[B] on.
        k: [P, Hk, PAGE, D] view of the pool.
        v: the same for values.
        block_table: [B, max_pages] int32.
        cu_q: [B + 1] int32, the first row of each sequence, and the end of the last one.
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
        The output [T, Hq, D] and the lse [T, Hq], both in `dtype`; zeros and -inf in rows of no sequence.
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
            widened(q[start:stop]),
            keys,
            values,
            sinks=sinks,
            scale=scale,
            window=window,
            softcap=softcap,
            causal=causal,
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
    out.copy_(weight_a * widened(out_a) + weight_b * widened(out_b))
    if lse is not None:
        lse.copy_(merged)
