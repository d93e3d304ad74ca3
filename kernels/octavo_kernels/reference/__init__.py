"""Every operation of this package in plain PyTorch: the specification of the kernels, and how the CPU engine samples.

Signatures equal those of the Triton launchers: outputs are preallocated and filled, workspaces are accepted and ignored.
Letters: T tokens, B sequences, Hq query heads, Hk key/value heads, G = Hq / Hk, D head dimension, P pages, PAGE tokens a
page, V vocabulary.
"""

from octavo_kernels.reference.activation import silu_mul
from octavo_kernels.reference.attention import merge_states, paged_attention_reference, paged_decode, paged_extend
from octavo_kernels.reference.norm import add_rmsnorm, rmsnorm
from octavo_kernels.reference.pages import copy_pages, gather_pages, scatter_pages
from octavo_kernels.reference.penalties import penalize, take_penalized
from octavo_kernels.reference.rope_write import rope_qknorm_write
from octavo_kernels.reference.sampling import sample, sampling_threshold

__all__ = [
    "add_rmsnorm",
    "copy_pages",
    "gather_pages",
    "merge_states",
    "paged_attention_reference",
    "paged_decode",
    "paged_extend",
    "penalize",
    "rmsnorm",
    "rope_qknorm_write",
    "sample",
    "sampling_threshold",
    "scatter_pages",
    "silu_mul",
    "take_penalized",
]
