from __future__ import annotations

import grpc
import pytest
from google.rpc import error_details_pb2
from octavo import errors
from octavo.errors import InvalidRequest, OctavoError, Overloaded, from_code


def test_invalid_request_names_the_field_and_the_reason() -> None:
    status = InvalidRequest("prompt_too_long", "9 tokens, at most 8: shorten it", field="input.tokens").status()
    info, violations = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(violations)
    assert (status.code, info.reason, info.domain) == (3, "prompt_too_long", "octavo")
    assert violations.field_violations[0].field == "input.tokens"


def test_overload_tells_when_to_come_back() -> None:
    retry = error_details_pb2.RetryInfo()
    assert Overloaded("queue_full", "full", retry_after_s=1.25).status().details[1].Unpack(retry)
    assert retry.retry_delay.ToTimedelta().total_seconds() == 1.25


@pytest.mark.parametrize("kind", OctavoError.__subclasses__())
def test_every_error_has_a_code_of_its_own_and_comes_back_from_it(kind: type[OctavoError]) -> None:
    assert type(from_code(kind.code.value[0], "reason", "message")) is kind


def test_unknown_code_becomes_an_internal_error() -> None:
    assert isinstance(from_code(grpc.StatusCode.DATA_LOSS.value[0], "r", "m"), errors.InternalError)
