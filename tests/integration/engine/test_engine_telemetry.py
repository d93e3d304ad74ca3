from __future__ import annotations

import asyncio
import urllib.request

from support.engine_process import running_engine
from support.fake_core import POISON
from support.link_client import a_submit, open_link
from support.trace_sink import attributes_of, trace_sink

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT_ID = "00f067aa0ba902b7"
SAMPLED = f"00-{TRACE_ID}-{PARENT_ID}-01"
UNSAMPLED = f"00-{TRACE_ID}-{PARENT_ID}-00"
STATUS_ERROR = 2


async def test_a_request_becomes_one_server_span_with_its_stages_below_the_routers_span() -> None:
    async with (
        trace_sink() as sink,
        running_engine("--otlp-endpoint", sink.address, "--max-step-tokens", "32", "--log-level", "debug") as engine,
        open_link(engine.stub()) as link,
    ):
        await link.submit(a_submit(1, prompt=list(range(100, 180)), max_tokens=6, traceparent=SAMPLED, attempt=2))
        end = await link.ended(1)
        await link.submit(a_submit(2, traceparent=UNSAMPLED))
        await link.ended(2)
        await link.submit(a_submit(3, prompt=[POISON], traceparent=SAMPLED))
        await link.ended(3)
        await sink.until(lambda: len(sink.named("engine.generate")) == 2)
        line = await engine.logged("request_finished", request_id="request-1")

    assert not [line for line in engine.lines if "101, 102" in str(line)], "prompts stay out of the log"
    assert not [span for span in sink.spans if "101, 102" in str(attributes_of(span))], "and out of spans"
    root, failed = sorted(sink.named("engine.generate"), key=lambda span: span.start_time_unix_nano)
    queue = next(span for span in sink.named("engine.queue") if span.parent_span_id == root.span_id)
    (prefill,) = sink.named("engine.prefill")[:1]
    (decode,) = sink.named("engine.decode")
    attributes = attributes_of(root)

    assert root.trace_id.hex() == line["trace_id"] == TRACE_ID
    assert root.parent_span_id.hex() == PARENT_ID
    assert root.kind == root.SPAN_KIND_SERVER
    assert {queue.parent_span_id, prefill.parent_span_id, decode.parent_span_id} == {root.span_id}
    assert root.start_time_unix_nano == queue.start_time_unix_nano <= queue.end_time_unix_nano
    assert queue.end_time_unix_nano == prefill.start_time_unix_nano
    assert prefill.end_time_unix_nano - prefill.start_time_unix_nano == end.timing.prefill_ns
    assert decode.start_time_unix_nano == prefill.end_time_unix_nano
    assert decode.end_time_unix_nano - decode.start_time_unix_nano == end.timing.decode_ns
    assert decode.end_time_unix_nano <= root.end_time_unix_nano
    assert attributes["octavo.request_id"] == "request-1"
    assert attributes["octavo.attempt"] == 2
    assert attributes["gen_ai.response.finish_reasons"] == ["length"]
    assert attributes_of(prefill)["octavo.prefill.num_tokens"] == 80
    assert [attributes_of(event)["octavo.chunk.num_tokens"] for event in prefill.events] == [32, 32, 16]
    assert attributes_of(decode)["octavo.decode.num_steps"] == 5
    assert attributes_of(decode)["octavo.pages.peak"] == end.timing.peak_pages == 6
    assert failed.status.code == STATUS_ERROR
    assert sink.resource["service.name"] == "octavo-engine"
    assert sink.resource["service.instance.id"] == "engine-1"


async def test_the_metrics_page_counts_steps_requests_and_pages() -> None:
    async with running_engine("--num-pages", "64") as engine, open_link(engine.stub()) as link:
        await link.submit(a_submit(1, prompt=list(range(100, 150)), max_tokens=6))
        await link.ended(1)
        await link.submit(a_submit(2, prompt=list(range(100, 150)), max_tokens=6))
        await link.ended(2)
        page = await asyncio.to_thread(_read, f"http://{engine.metrics_address}/metrics")

    series = dict(line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
    assert float(series["octavo_engine_steps_total"]) == 12
    assert float(series["octavo_engine_output_tokens_total"]) == 12
    assert float(series["octavo_engine_prompt_tokens_total"]) == 100
    assert float(series["octavo_engine_cached_tokens_total"]) == 48
    assert float(series['octavo_engine_requests_total{reason="length"}']) == 2
    assert float(series["octavo_engine_queue_duration_seconds_count"]) == 2
    pages = [float(series[f'octavo_engine_pages{{state="{state}"}}']) for state in ("free", "cached", "in_use")]
    assert sum(pages) == 64
    assert pages[1] == 3


def _read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - the test's own engine
        return str(answer.read().decode())
