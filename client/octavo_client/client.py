"""The Python SDK: an asynchronous client of one router, typed, with deadlines, errors and trace context.

async with OctavoClient("127.0.0.1:50051") as client:
    async for event in client.generate("The capital of France is", sampling=Sampling(max_tokens=16)):
        if isinstance(event, Chunk):
            print(event.text, end="")
"""

from __future__ import annotations

import uuid
import weakref
from collections.abc import Awaitable, Sequence
from types import TracebackType
from typing import Final, Self, TypeVar

import grpc
from octavo.attributes import Attribute, Metadata, Span
from octavo.errors import from_rpc_error
from octavo.tracing import traceparent_of
from octavo.v1 import inference_pb2, inference_pb2_grpc
from opentelemetry import trace

from octavo_client import translation
from octavo_client.generation import Generation
from octavo_client.values import Explanation, Message, Model, Priority, Sampling

DEFAULT_TARGET: Final = "127.0.0.1:50051"
UNARY_TIMEOUT_S: Final = 10.0
_DEFAULT_SAMPLING: Final = Sampling()
_CHANNEL_OPTIONS: Final = (
    # The router resumes a generation by itself; a repeated one would pay for its prompt twice.
    ("grpc.enable_retries", 0),
    ("grpc.max_receive_message_length", 16 << 20),
    # Each client keeps a connection of its own, so that several of one process spread over several routers.
    ("grpc.use_local_subchannel_pool", 1),
)

_T = TypeVar("_T")


class OctavoClient:
    """A client of one router. Use it as a context manager: leaving it cancels what still runs.

    Args:
        target: "host:port" of the router.
        tenant: names whose prefix cache the request shares; without one, all that name none share theirs.
        tracer: makes the `client.generate` spans; the global tracer provider's by default.
        credentials: TLS; plain text by default.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        tenant: str | None = None,
        tracer: trace.Tracer | None = None,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        self.target = target
        self._tenant = tenant
        self._tracer = tracer or trace.get_tracer("octavo")
        self._credentials = credentials
        self._channel: grpc.aio.Channel | None = None
        self._running: weakref.WeakSet[Generation] = weakref.WeakSet()

    async def __aenter__(self) -> Self:
        if self._credentials is None:
            self._channel = grpc.aio.insecure_channel(self.target, options=_CHANNEL_OPTIONS)
        else:
            self._channel = grpc.aio.secure_channel(self.target, self._credentials, options=_CHANNEL_OPTIONS)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        channel, self._channel = self._channel, None
        for generation in list(self._running):
            generation.cancel()
        if channel is not None:
            await channel.close()

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        sampling: Sampling = _DEFAULT_SAMPLING,
        model: str = "",
        priority: Priority = Priority.INTERACTIVE,
        logprobs: bool = False,
        return_token_ids: bool = False,
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> Generation:
        """Start generating from text or token ids; must be called inside the client's context.

        Args:
            prompt: text or token ids.
            sampling: how tokens are chosen and when to stop.
            model: name of the model; empty means the only one.
            priority: class of service.
            logprobs: ask for the log-probability of each output token.
            return_token_ids: ask for the output token ids.
            timeout_s: deadline from now; the router's default if None.
            request_id: for logs and traces; made up if None.
        """
        return self._start(
            inference_pb2.GenerateRequest(
                model=model,
                input=translation.input_message(prompt),
                sampling=translation.sampling_message(sampling),
                priority=translation.priority_value(priority),
                logprobs=logprobs,
                return_token_ids=return_token_ids,
            ),
            timeout_s,
            request_id,
        )

    def chat(
        self,
        messages: Sequence[Message],
        *,
        sampling: Sampling = _DEFAULT_SAMPLING,
        model: str = "",
        priority: Priority = Priority.INTERACTIVE,
        logprobs: bool = False,
        return_token_ids: bool = False,
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> Generation:
        """Start generating the answer to the last message of a chat. Arguments as for `generate`."""
        return self._start(
            inference_pb2.GenerateRequest(
                model=model,
                input=inference_pb2.Input(chat=translation.chat_message(messages)),
                sampling=translation.sampling_message(sampling),
                priority=translation.priority_value(priority),
                logprobs=logprobs,
                return_token_ids=return_token_ids,
            ),
            timeout_s,
            request_id,
        )

    async def tokenize(self, prompt: translation.Prompt, *, model: str = "") -> tuple[int, ...]:
        """Return the token ids that a prompt becomes."""
        request = inference_pb2.TokenizeRequest(model=model, input=translation.input_message(prompt))
        stub = self._stub()
        response = await _unary(stub.Tokenize(request, timeout=UNARY_TIMEOUT_S, metadata=self._metadata()))
        return tuple(response.token_ids)

    async def models(self) -> tuple[Model, ...]:
        """Return the models that live engines serve."""
        request = inference_pb2.ListModelsRequest()
        stub = self._stub()
        response = await _unary(stub.ListModels(request, timeout=UNARY_TIMEOUT_S, metadata=self._metadata()))
        return tuple(translation.model_of(model) for model in response.models)

    async def explain(self, prompt: translation.Prompt, *, model: str = "") -> Explanation:
        """Return where a prompt would go now, and why. Generates nothing."""
        request = inference_pb2.ExplainRequest(model=model, input=translation.input_message(prompt))
        stub = self._stub()
        response = await _unary(stub.Explain(request, timeout=UNARY_TIMEOUT_S, metadata=self._metadata()))
        return translation.explanation_of(response)

    def _start(
        self, request: inference_pb2.GenerateRequest, timeout_s: float | None, request_id: str | None
    ) -> Generation:
        stub = self._stub()
        request_id = request_id or uuid.uuid4().hex
        span = self._tracer.start_span(
            Span.CLIENT_GENERATE,
            kind=trace.SpanKind.CLIENT,
            attributes={Attribute.REQUEST_ID: request_id, Attribute.MODEL: request.model},
        )
        metadata = [*self._metadata(), (Metadata.REQUEST_ID, request_id)]
        if traceparent := traceparent_of(span):
            metadata.append((Metadata.TRACEPARENT, traceparent))
        call = stub.Generate(request, timeout=timeout_s, metadata=tuple(metadata))
        num_choices = max(1, request.sampling.n)
        generation = Generation(call, request_id=request_id, num_choices=num_choices, span=span)
        self._running.add(generation)
        return generation

    def _stub(self) -> inference_pb2_grpc.InferenceServiceAsyncStub:
        if self._channel is None:
            raise RuntimeError("the client is not open: use `async with OctavoClient(...) as client`")
        return inference_pb2_grpc.InferenceServiceStub(self._channel)

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        return () if self._tenant is None else ((Metadata.TENANT, self._tenant),)


async def _unary(call: Awaitable[_T]) -> _T:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from None
