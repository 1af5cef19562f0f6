"""Each reason has an HTTP status that a proxy would understand."""

import pytest

from fedgpt2.errors import Reason
from fedgpt2.protocol.statuses import http_status


@pytest.mark.parametrize("reason", list(Reason))
def test_every_refusal_is_a_client_error(reason):
    assert 400 <= http_status(reason) < 500


def test_statuses_say_what_http_means_by_them():
    wanted = {Reason.BAD_SIGNATURE: 401, Reason.UNKNOWN_CALLER: 403, Reason.UNKNOWN_BLOB: 404, Reason.TOO_LARGE: 413}
    assert {reason: http_status(reason) for reason in wanted} == wanted
    assert http_status(Reason.WRONG_SHAPE) == 400
