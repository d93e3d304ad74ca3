"""Choose the next token of each row: greedy, or a seeded draw from the truncated softmax, without sorting.

Two launches, whose grids depend on shapes only:

1. `_summarize_chunk` reads the logits once, a chunk of ids a program: log-sum-exp of the raw logits, and the best of
   logits / temperature + Gumbel noise (Gumbel-max; the noise is that of `philox`). A row that truncates draws nothing
   yet: its chunks leave the highest value of each group of 32 ids.
2. `_finish_row` merges a row's chunks in order. A row that truncates first searches the groups' highest values for a cut
   that everything that survives lies above, collects the few ids above it (its candidates), and searches and draws
   among those.

The second launch alone knows about top_k, top_p and min_p, so rows without them pay nothing for rows with them.
"""

import torch

from octavo_kernels.arguments import FLOATS, check_tensor, check_vector
from octavo_kernels.arithmetic import cdiv, next_power_of_2
from octavo_kernels.launch import launch
from octavo_kernels.overlap import early_launch
from octavo_kernels.sampling_kernels import _finish_row, _summarize_chunk

# Ids a program of the first launch reads. A row's sums must not depend on the batch, so nothing here does.
_CHUNK = 2048
_CHUNK_WARPS = 4
_GROUP = 32
# Most candidates of a row: one tile. A row with more, whose probabilities are nearly flat, is searched as a whole.
_CANDIDATES = 4096
# The second launch works on a row with one program: many warps keep enough loads in flight.
_ROW_TILE = 8192
_ROW_WARPS = 16
# A row's record in the workspace: the threshold, then _FIELDS words a chunk, the highest value of each group, a list of
# groups, the candidates' values and their ids.
_HEADER = 4
_FIELDS = 4


def sample_workspace_size(batch: int, vocab_size: int) -> int:
    """Return how many fp32 elements `sample` needs as its workspace."""
    return batch * _record_size(vocab_size)


def _record_size(vocab_size: int) -> int:
    num_chunks = cdiv(vocab_size, _CHUNK)
    num_groups = num_chunks * (_CHUNK // _GROUP)
    return int(_HEADER + _FIELDS * num_chunks + 2 * num_groups + 2 * _num_candidates(num_chunks))


def _num_candidates(num_chunks: int) -> int:
    return min(_CANDIDATES, num_chunks * _CHUNK)


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
    workspace: torch.Tensor,
) -> None:
    """Choose one id a row; `reference.sample` states the rules of truncation and of ties, which are the same here.

    Args:
        logits: [B, V] fp32, fp16 or bf16; rows may be strided; -inf is allowed except for a whole row. A row with NaN gets
            any id.
        temperature: [B] fp32; 0 means greedy, and then the other parameters do not matter.
        top_k: [B] int32; 0 means off.
        top_p: [B] fp32; 1 means off.
        min_p: [B] fp32, least probability relative to the highest; 0 means off.
        seed: [B] int64.
        position: [B] int64, absolute position of the token to be chosen.
        out_ids: [B] int64, written.
        out_logprobs: [B] fp32, written: log-softmax of the raw logits (no temperature, no truncation) at the id.
        workspace: fp32, at least `sample_workspace_size` elements; its contents do not matter.
    """
    if logits.ndim != 2:
        raise ValueError(f"logits: {logits.ndim} axes, expected [B, V]")
    batch, vocab_size = logits.shape
    device = logits.device
    check_tensor("logits", logits, (batch, vocab_size), FLOATS, device)
    check_vector("temperature", temperature, batch, torch.float32, device)
    check_vector("top_k", top_k, batch, torch.int32, device)
    check_vector("top_p", top_p, batch, torch.float32, device)
    check_vector("min_p", min_p, batch, torch.float32, device)
    check_vector("seed", seed, batch, torch.int64, device)
    check_vector("position", position, batch, torch.int64, device)
    check_vector("out_ids", out_ids, batch, torch.int64, device)
    check_vector("out_logprobs", out_logprobs, batch, torch.float32, device)
    size = sample_workspace_size(batch, vocab_size)
    check_vector("workspace", workspace, workspace.numel(), torch.float32, device)
    if workspace.numel() < size:
        raise ValueError(f"workspace: {workspace.numel()} elements, expected at least {size}")
    if batch == 0:
        return
    num_chunks = cdiv(vocab_size, _CHUNK)
    parameters = (temperature, top_k, top_p, min_p, seed, position)
    layout = (vocab_size, logits.stride(0), _record_size(vocab_size))
    constants = {"GROUP": _GROUP, "HEADER": _HEADER, "FIELDS": _FIELDS, **early_launch()}
    launch(
        _summarize_chunk,
        (num_chunks, batch),
        logits,
        *parameters,
        workspace,
        *layout,
        CHUNK=_CHUNK,
        num_warps=_CHUNK_WARPS,
        **constants,
    )
    launch(
        _finish_row,
        (batch,),
        logits,
        *parameters,
        workspace,
        out_ids,
        out_logprobs,
        *layout,
        NUM_CHUNKS=num_chunks,
        CHUNKS_PAD=next_power_of_2(num_chunks),
        NUM_GROUPS=num_chunks * (_CHUNK // _GROUP),
        GROUPS_PAD=next_power_of_2(num_chunks * (_CHUNK // _GROUP)),
        CANDIDATES=_num_candidates(num_chunks),
        TILE=_ROW_TILE,
        num_warps=_ROW_WARPS,
        **constants,
    )
