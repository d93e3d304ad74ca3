"""What an engine says about itself to routers, once its model is loaded."""

from __future__ import annotations

from octavo.v1 import engine_pb2, types_pb2

from octavo_engine import messages
from octavo_engine.config import EngineConfig
from octavo_engine.validation import Validator


def engine_info(
    config: EngineConfig, ready: messages.Ready, validator: Validator, *, epoch: int, version: str
) -> engine_pb2.EngineInfo:
    """Return what the engine tells about itself."""
    model = types_pb2.ModelInfo(
        name=ready.model_name,
        revision=ready.model_revision,
        tokenizer_revision=ready.tokenizer_revision,
        max_model_len=ready.max_model_len,
        vocab_size=ready.vocab_size,
        page_size=ready.page_size,
        eos_token_ids=ready.eos_token_ids,
    )
    return engine_pb2.EngineInfo(
        engine_id=config.engine_id,
        epoch=epoch,
        model=model,
        num_pages=ready.num_pages,
        backend=ready.backend,
        device=ready.device,
        dtype=ready.dtype,
        numerics=ready.numerics,
        max_step_tokens=ready.max_step_tokens,
        max_sequences=ready.max_sequences,
        version=version,
        # Without a root nobody can name a page, so no router looks for one here.
        page_hash_root=validator.page_hash_root if ready.prefix_caching else b"",
    )
