"""The Python SDK: an asynchronous client of one or several routers, typed, with deadlines, errors and trace context.

async with OctavoClient("127.0.0.1:50051") as client:
    async for event in client.generate("The capital of France is", sampling=Sampling(max_tokens=16)):
        if isinstance(event, Chunk):
            print(event.text, end="")
"""

from __future__ import annotations

import uuid
import weakref
from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self

import grpc
from octavo.attributes import Attribute, Metadata, Span
from octavo.tracing import traceparent_of
from octavo.v1 import inference_pb2
from opentelemetry import trace

from octavo_client import translation
from octavo_client.generation import Generation
from octavo_client.persistence import Persistence
from octavo_client.routers import Routers, read_targets
from octavo_client.transcript import Transcript
from octavo_client.values import Explanation, Message, Model, Priority, Sampling

DEFAULT_TARGET: Final = "127.0.0.1:50051"
DEFAULT_MAX_RESUMES: Final = 4
UNARY_TIMEOUT_S: Final = 10.0
_DEFAULT_SAMPLING: Final = Sampling()


class OctavoClient:
    """A client of one or several routers. Use it as a context manager: leaving it cancels what still runs.

    Requests take the routers in turn. When one dies or hangs, its generations go on at another, or at itself once it is
    back. An address that stands for several router processes may be named more than once: each entry is a connection.

    Args:
        target: "host:port" of the router; of several with commas between them, or as a sequence.
        max_resumes: times that one generation may go on after it lost its router; 0 asks each router once, and saves
            the bytes of the token ids that a resume needs.
        tenant: names whose prefix cache the request shares; without one, all that name none share theirs.
        tracer: makes the `client.generate` spans; the global tracer provider's by default.
        credentials: TLS; plain text by default.
    """

    def __init__(
        self,
        target: str | Sequence[str] = DEFAULT_TARGET,
        *,
        max_resumes: int = DEFAULT_MAX_RESUMES,
        tenant: str | None = None,
        tracer: trace.Tracer | None = None,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        self._targets = read_targets(target)
        self._max_resumes = max_resumes
        self._tenant = tenant
        self._tracer = tracer or trace.get_tracer("octavo")
        self._credentials = credentials
        self._routers: Routers | None = None
        self._running: weakref.WeakSet[Generation] = weakref.WeakSet()

    @property
    def target(self) -> str:
        """Addresses of the routers, with commas between them."""
        return ",".join(self._targets)

    async def __aenter__(self) -> Self:
        self._routers = Routers(self._targets, self._credentials)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        routers, self._routers = self._routers, None
        for generation in list(self._running):
            generation.cancel()
        if routers is not None:
            await routers.close()

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
        metadata = self._metadata()
        response = await self._open_routers().ask(
            lambda stub: stub.Tokenize(request, timeout=UNARY_TIMEOUT_S, metadata=metadata)
        )
        return tuple(response.token_ids)

    async def models(self) -> tuple[Model, ...]:
        """Return the models that live engines serve."""
        request = inference_pb2.ListModelsRequest()
        metadata = self._metadata()
        response = await self._open_routers().ask(
            lambda stub: stub.ListModels(request, timeout=UNARY_TIMEOUT_S, metadata=metadata)
        )
        return tuple(translation.model_of(model) for model in response.models)

    async def explain(self, prompt: translation.Prompt, *, model: str = "") -> Explanation:
        """Return where a prompt would go now, and why. Generates nothing."""
        request = inference_pb2.ExplainRequest(model=model, input=translation.input_message(prompt))
        metadata = self._metadata()
        response = await self._open_routers().ask(
            lambda stub: stub.Explain(request, timeout=UNARY_TIMEOUT_S, metadata=metadata)
        )
        return translation.explanation_of(response)

    def _start(
        self, request: inference_pb2.GenerateRequest, timeout_s: float | None, request_id: str | None
    ) -> Generation:
        routers = self._open_routers()
        request_id = request_id or uuid.uuid4().hex
        span = self._tracer.start_span(
            Span.CLIENT_GENERATE,
            kind=trace.SpanKind.CLIENT,
            attributes={Attribute.REQUEST_ID: request_id, Attribute.MODEL: request.model},
        )
        metadata = [*self._metadata(), (Metadata.REQUEST_ID, request_id)]
        if traceparent := traceparent_of(span):
            metadata.append((Metadata.TRACEPARENT, traceparent))
        wants_token_ids = request.return_token_ids
        request.return_token_ids = wants_token_ids or self._max_resumes > 0
        generation = Generation(
            Transcript(request, wants_token_ids=wants_token_ids),
            routers=routers,
            persistence=Persistence(num_routers=len(routers), max_resumes=self._max_resumes),
            metadata=metadata,
            timeout_s=timeout_s,
            request_id=request_id,
            num_choices=max(1, request.sampling.n),
            span=span,
        )
        self._running.add(generation)
        return generation

    def _open_routers(self) -> Routers:
        if self._routers is None:
            raise RuntimeError("the client is not open: use `async with OctavoClient(...) as client`")
        return self._routers

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        return () if self._tenant is None else ((Metadata.TENANT, self._tenant),)
