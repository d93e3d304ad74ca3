"""The public gRPC service: messages in, domain objects through, messages out."""
# ruff: noqa: N802  # gRPC methods keep the names that the proto gives them

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass

from octavo.attributes import Attribute, Span
from octavo.errors import NotFound, OctavoError, Unavailable
from octavo.tracing import context_of, trace_id_of
from octavo.v1 import inference_pb2, inference_pb2_grpc, types_pb2
from opentelemetry import trace
from opentelemetry.trace import SpanKind

from octavo_router import validation
from octavo_router.account import Account
from octavo_router.admission import Admission, Demand, Place
from octavo_router.call import Call, Context, read_call
from octavo_router.chat_template import Message
from octavo_router.dispatch import Dispatch
from octavo_router.fair_queue import ServiceClass
from octavo_router.metrics import RouterMetrics
from octavo_router.output import ChoiceEnded, Chunk
from octavo_router.responses import Responses, engine_cost
from octavo_router.resume import Resumption, resumption_of
from octavo_router.routing import Routing
from octavo_router.tokenizer import TokenizerThreads
from octavo_router.work import DispatchLimits, Placed, Work


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceLimits:
    """See the settings of the same names."""

    default_max_tokens: int
    default_timeout_s: float
    max_timeout_s: float
    max_prompt_bytes: int
    vocab_size: int


class InferenceService(inference_pb2_grpc.InferenceServiceServicer):
    """Methods are coroutines, so that a client that vanishes ends them at the point where they wait."""

    def __init__(
        self,
        *,
        router_id: str,
        model_name: str,
        limits: ServiceLimits,
        dispatch_limits: DispatchLimits,
        admission: Admission,
        tokenizer: TokenizerThreads,
        routing: Routing,
        metrics: RouterMetrics,
        tracer: trace.Tracer,
    ) -> None:
        self._router_id = router_id
        self._model_name = model_name
        self._limits = limits
        self._dispatch_limits = dispatch_limits
        self._admission = admission
        self._tokenizer = tokenizer
        self._routing = routing
        self._metrics = metrics
        self._tracer = tracer

    async def Generate(  # type: ignore[override]  # a coroutine that writes, which grpc.aio takes as well
        self, request: inference_pb2.GenerateRequest, context: Context
    ) -> None:
        """Generate text; see the proto."""
        call = self._read_call(context)
        parent = context_of(call.traceparent)
        with self._tracer.start_as_current_span(
            Span.ROUTER_GENERATE,
            context=parent,
            kind=SpanKind.SERVER,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            account = Account(span, self._metrics, self._tracer, request_id=call.request_id, router_id=self._router_id)
            failure: str | None = "internal"
            try:
                with self._admission.enter() as place:
                    self._metrics.in_flight.set(self._admission.num_in_flight)
                    await self._generate(request, call, place, account, context.write, trace_id_of(span))
                failure = None
            except OctavoError as error:
                failure = error.code.name.lower()
                raise
            except asyncio.CancelledError:
                failure = "cancelled"
                raise
            finally:
                self._metrics.in_flight.set(self._admission.num_in_flight)
                account.close(failure)

    async def Tokenize(
        self, request: inference_pb2.TokenizeRequest, context: Context
    ) -> inference_pb2.TokenizeResponse:
        """Turn text or a chat into token ids; see the proto."""
        self._read_call(context)
        with self._admission.enter():
            self._check_model(request.model)
            self._check_input(request.input)
            return inference_pb2.TokenizeResponse(token_ids=await self._encode(request.input))

    async def ListModels(
        self, request: inference_pb2.ListModelsRequest, context: Context
    ) -> inference_pb2.ListModelsResponse:
        """List the models that live engines serve; see the proto."""
        del request, context
        models = {
            (engine.info.model.name, engine.info.model.revision): engine for engine in self._routing.fleet.engines
        }
        return inference_pb2.ListModelsResponse(models=[models[key].info.model for key in sorted(models)])

    async def Explain(self, request: inference_pb2.ExplainRequest, context: Context) -> inference_pb2.ExplainResponse:
        """Tell where a prompt would go; see the proto."""
        call = self._read_call(context)
        with self._admission.enter():
            self._check_model(request.model)
            self._check_input(request.input)
            prompt = self._routing.prompt(await self._encode(request.input), cache_salt=call.cache_salt)
            _, room = self._output_limits(0, len(prompt))
            route = self._routing.route(prompt, room=room)
            return inference_pb2.ExplainResponse(
                prompt_tokens=len(prompt),
                prompt_pages=route.prompt_pages,
                candidates=[engine_cost(cost) for cost in route.ranked],
            )

    async def _generate(
        self,
        request: inference_pb2.GenerateRequest,
        call: Call,
        place: Place,
        account: Account,
        write: Callable[[inference_pb2.GenerateResponse], Awaitable[None]],
        trace_id: str,
    ) -> None:
        self._check_model(request.model)
        account.describe(request, model=self._model_name, tenant=call.tenant)
        validation.check_generate(
            request, max_prompt_bytes=self._limits.max_prompt_bytes, vocab_size=self._limits.vocab_size
        )
        if not request.HasField("resume"):
            place.announce(_demand(call, request.sampling, request.priority))
        work = self._work(request, call, await self._tokenize(request.input, account))
        await self._take_turn(place, work, _demand(call, work.sampling, work.priority), account)
        dispatch = Dispatch(
            work,
            routing=self._routing,
            detokenizer=self._tokenizer.tokenizer.detokenizer,
            limits=self._dispatch_limits,
        )
        account.dispatched(dispatch, work.sampling.seed)
        responses = Responses(request, work, dispatch, trace_id)
        async with aclosing(dispatch.events()) as events:
            async for event in events:
                if isinstance(event, Placed):
                    place.runs(dispatch.journal)
                await write(responses.of(event))
                if isinstance(event, Chunk):
                    account.sent_tokens()
                elif isinstance(event, ChoiceEnded):
                    account.ended(event.ending)

    async def _take_turn(self, place: Place, work: Work, demand: Demand, account: Account) -> None:
        if work.resumed is not None:
            place.go_on(demand, work.prompt)
        elif not place.ask(demand, work.prompt):
            with self._tracer.start_as_current_span(Span.ROUTER_QUEUE, record_exception=False) as span:
                span.set_attribute(Attribute.SERVICE_CLASS, demand.service_class.value)
                span.set_attribute(Attribute.EXPECTED_TOKENS, place.expected_tokens)
                await place.wait()
        account.had_turn(place.waited_s)

    async def _tokenize(self, message: inference_pb2.Input, account: Account) -> list[int]:
        started_ns, started_at = time.time_ns(), time.perf_counter()
        token_ids: list[int] = []
        try:
            token_ids = await self._encode(message)
        finally:
            account.tokenized(len(token_ids), started_ns, time.perf_counter() - started_at)
        return token_ids

    async def _encode(self, message: inference_pb2.Input) -> list[int]:
        kind = message.WhichOneof("kind")
        if kind == "text":
            return await self._tokenizer.encode_text(message.text)
        if kind == "chat":
            messages = [Message(each.role, each.content) for each in message.chat.messages]
            return await self._tokenizer.encode_chat(messages)
        token_ids = message.tokens.ids[:]
        validation.check_token_ids(token_ids, vocab_size=self._limits.vocab_size)
        return token_ids

    def _work(self, request: inference_pb2.GenerateRequest, call: Call, token_ids: list[int]) -> Work:
        max_tokens, room = self._output_limits(request.sampling.max_tokens, len(token_ids))
        sampling = types_pb2.SamplingParams()
        sampling.CopyFrom(request.sampling)
        sampling.ClearField("stop")  # matched here, over text
        sampling.n = sampling.n or 1
        sampling.max_tokens = max_tokens
        sampling.min_tokens = min(sampling.min_tokens, sampling.max_tokens)
        if not sampling.HasField("seed"):
            sampling.seed = secrets.randbits(64)
        return Work(
            request_id=call.request_id,
            prompt=self._routing.prompt(token_ids, cache_salt=call.cache_salt),
            sampling=sampling,
            room=room,
            expected_output=self._admission.turns.queue.expected_output(max_tokens),
            stops=tuple(request.sampling.stop),
            priority=request.priority,
            deadline=call.deadline,
            resumed=self._resumption(request, max_tokens),
        )

    def _resumption(self, request: inference_pb2.GenerateRequest, max_tokens: int) -> Resumption | None:
        if not request.HasField("resume"):
            return None
        resumed = resumption_of(request.resume)
        if any(len(choice.token_ids) > max_tokens for choice in resumed.choices):
            raise Unavailable(
                "no_room", "no engine here has a context as long as prompt and output; try another router"
            )
        return resumed if resumed.is_committed else None  # without output it is a request like any other

    def _read_call(self, context: Context) -> Call:
        return read_call(
            context, default_timeout_s=self._limits.default_timeout_s, max_timeout_s=self._limits.max_timeout_s
        )

    def _check_model(self, name: str) -> None:
        if name not in {"", self._model_name}:
            raise NotFound("model_not_found", f"no such model here; this router serves {self._model_name!r}")

    def _check_input(self, message: inference_pb2.Input) -> None:
        validation.check_input(message, max_prompt_bytes=self._limits.max_prompt_bytes)

    def _output_limits(self, asked: int, num_prompt: int) -> tuple[int, int]:
        """Return the most output tokens of a request, and for how many of them its engine must have room.

        These are the same, except for a request without a limit: engines whose contexts differ only because their pools
        do must share such requests, so half of what the longest context leaves is room enough.

        Args:
            asked: the request's limit; 0 if it gives none.
            num_prompt: prompt tokens.

        Raises:
            Unavailable: no engine serves.
            InvalidRequest: the prompt has no tokens, or too many.
        """
        serving = self._routing.fleet.serving()
        if not serving:
            raise Unavailable("no_engine", "no engine can take the request now; try again", retry_after_s=1.0)
        max_model_len = max(engine.max_model_len for engine in serving)
        validation.check_prompt_len(num_prompt, max_model_len=max_model_len)
        most = max_model_len - num_prompt
        limit = asked or self._limits.default_max_tokens
        return (min(limit, most), min(limit, most)) if limit else (most, (most + 1) // 2)


def _demand(call: Call, sampling: types_pb2.SamplingParams, priority: types_pb2.Priority.ValueType) -> Demand:
    is_batch = priority == types_pb2.PRIORITY_BATCH
    return Demand(
        tenant=call.tenant,
        service_class=ServiceClass.BATCH if is_batch else ServiceClass.INTERACTIVE,
        deadline=call.deadline,
        max_tokens=sampling.max_tokens,
        num_choices=sampling.n or 1,
    )
