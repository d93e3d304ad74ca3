"""Names of spans, span attributes, metrics, log events and metadata keys: constants only, one place for all units.

GenAI semantic conventions are used where one exists; everything else lives under ``octavo.``.
"""

from __future__ import annotations

from typing import Final

ERROR_DOMAIN: Final = "octavo"


class Metadata:
    """gRPC metadata keys."""

    REQUEST_ID: Final = "x-request-id"
    TENANT: Final = "x-tenant"
    TRACEPARENT: Final = "traceparent"


class Span:
    """Span names, in the order in which a request meets them."""

    CLIENT_GENERATE: Final = "client.generate"
    ROUTER_GENERATE: Final = "router.generate"
    ROUTER_TOKENIZE: Final = "router.tokenize"
    ROUTER_QUEUE: Final = "router.queue"
    ROUTER_ROUTE: Final = "router.route"
    ENGINE_GENERATE: Final = "engine.generate"
    ENGINE_QUEUE: Final = "engine.queue"
    ENGINE_PREFILL: Final = "engine.prefill"
    ENGINE_DECODE: Final = "engine.decode"


class Event:
    """Span event names."""

    FIRST_TOKEN: Final = "octavo.first_token"
    PREFILL_CHUNK: Final = "octavo.prefill_chunk"
    PREEMPTED: Final = "octavo.preempted"
    MOVED: Final = "octavo.moved"
    RESUMED: Final = "octavo.resumed"


class Attribute:
    """Span attribute names."""

    MODEL: Final = "gen_ai.request.model"
    OPERATION: Final = "gen_ai.operation.name"
    PROVIDER: Final = "gen_ai.provider.name"
    MAX_TOKENS: Final = "gen_ai.request.max_tokens"
    TEMPERATURE: Final = "gen_ai.request.temperature"
    TOP_P: Final = "gen_ai.request.top_p"
    TOP_K: Final = "gen_ai.request.top_k"
    SEED: Final = "gen_ai.request.seed"
    FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
    INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
    OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
    CACHED_TOKENS: Final = "gen_ai.usage.cache_read.input_tokens"
    REQUEST_ID: Final = "octavo.request_id"
    TENANT: Final = "octavo.tenant"
    ENGINE_ID: Final = "octavo.engine_id"
    ENGINE_EPOCH: Final = "octavo.engine_epoch"
    ATTEMPT: Final = "octavo.attempt"
    PROMPT_PAGES: Final = "octavo.prompt_pages"
    MATCHED_PAGES: Final = "octavo.matched_pages"
    ROUTE_REASON: Final = "octavo.route.reason"
    ROUTE_CANDIDATES: Final = "octavo.route.candidates"
    QUEUE_S: Final = "octavo.queue_s"
    EXPECTED_TOKENS: Final = "octavo.expected_tokens"
    SERVICE_CLASS: Final = "octavo.service_class"
    TTFT_S: Final = "octavo.ttft_s"
    PREFILL_STEPS: Final = "octavo.prefill.num_steps"
    PREFILL_TOKENS: Final = "octavo.prefill.num_tokens"
    DECODE_STEPS: Final = "octavo.decode.num_steps"
    PEAK_PAGES: Final = "octavo.pages.peak"
    PREEMPTIONS: Final = "octavo.num_preemptions"
    RECOMPUTED_TOKENS: Final = "octavo.num_recomputed_tokens"
    MOVES: Final = "octavo.num_moves"


class Log:
    """Keys of structured log lines. Events are constant snake_case names."""

    REQUEST_ID: Final = "request_id"
    TRACE_ID: Final = "trace_id"
    SPAN_ID: Final = "span_id"
    ENGINE_ID: Final = "engine_id"
    ROUTER_ID: Final = "router_id"


class Metric:
    """Prometheus metric names. The label sets stand where the metric is made."""

    ROUTER_REQUESTS: Final = "octavo_router_requests_total"
    ROUTER_TTFT: Final = "octavo_router_time_to_first_token_seconds"
    ROUTER_TPOT: Final = "octavo_router_time_per_output_token_seconds"
    ROUTER_DURATION: Final = "octavo_router_request_duration_seconds"
    ROUTER_STAGE: Final = "octavo_router_stage_duration_seconds"
    ROUTER_IN_FLIGHT: Final = "octavo_router_requests_in_flight"
    ROUTER_QUEUED: Final = "octavo_router_requests_queued"
    ROUTER_QUEUE_WAIT: Final = "octavo_router_queue_wait_seconds"
    ROUTER_REFUSALS: Final = "octavo_router_refusals_total"
    ROUTER_PROMPT_TOKENS: Final = "octavo_router_prompt_tokens_total"
    ROUTER_CACHED_TOKENS: Final = "octavo_router_cached_tokens_total"
    ROUTER_OUTPUT_TOKENS: Final = "octavo_router_output_tokens_total"
    ROUTER_ENGINES: Final = "octavo_router_engines"
    ROUTER_REDIS_UP: Final = "octavo_router_redis_up"
    ROUTER_RESIDENT_PAGES: Final = "octavo_router_directory_pages"
    ENGINE_STEPS: Final = "octavo_engine_steps_total"
    ENGINE_STEP_DURATION: Final = "octavo_engine_step_duration_seconds"
    ENGINE_STEP_TOKENS: Final = "octavo_engine_step_tokens"
    ENGINE_REQUESTS: Final = "octavo_engine_requests_total"
    ENGINE_RUNNING: Final = "octavo_engine_sequences_running"
    ENGINE_WAITING: Final = "octavo_engine_requests_waiting"
    ENGINE_PAGES: Final = "octavo_engine_pages"
    ENGINE_PREEMPTIONS: Final = "octavo_engine_preemptions_total"
    ENGINE_PROMPT_TOKENS: Final = "octavo_engine_prompt_tokens_total"
    ENGINE_CACHED_TOKENS: Final = "octavo_engine_cached_tokens_total"
    ENGINE_OUTPUT_TOKENS: Final = "octavo_engine_output_tokens_total"
    ENGINE_QUEUE: Final = "octavo_engine_queue_duration_seconds"
    ENGINE_PREFILL: Final = "octavo_engine_prefill_duration_seconds"
    ENGINE_REDIS_UP: Final = "octavo_engine_redis_up"
