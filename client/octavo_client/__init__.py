"""The Python SDK and the octavo command line."""

from octavo_client.admin import AdminClient
from octavo_client.client import OctavoClient
from octavo_client.generation import Generation
from octavo_client.values import (
    Accepted,
    Candidate,
    Choice,
    Chunk,
    Completion,
    Engine,
    Event,
    Explanation,
    Finished,
    FinishReason,
    Message,
    Model,
    Priority,
    Role,
    Sampling,
    Timing,
    Usage,
)

__all__ = [
    "Accepted",
    "AdminClient",
    "Candidate",
    "Choice",
    "Chunk",
    "Completion",
    "Engine",
    "Event",
    "Explanation",
    "FinishReason",
    "Finished",
    "Generation",
    "Message",
    "Model",
    "OctavoClient",
    "Priority",
    "Role",
    "Sampling",
    "Timing",
    "Usage",
]
