"""What is repeated, when, and what never is."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from typing import Any

import pytest
import trustformers_serve as ts
from conftest import Blocking, MakeClient
from scripted_server import CLOSE, SILENCE, Answer, ScriptedServer
from trustformers_serve import _calls
from trustformers_serve._calls import Call
from trustformers_serve._codec import Reply
from trustformers_serve._retry import RetryPolicy

POLICY = RetryPolicy(max_retries=3, retry_delay=0.1, timeout=30.0)
POST = _calls.load_model("m", None)
GET = _calls.models()

BUSY = Answer(429, {"retry-after": "1"}, b'{"error":{"code":"queue_full","message":"full"}}')
OK = Answer(200, body=b'{"data":[1.0],"model":"m","version":"1"}')


def wait(call: Call[Any], outcome: Reply | ts.TransportError, retries: int = 0, jitter: float = 0.0) -> Any:
    return POLICY.wait_seconds(call, outcome, retries, jitter)


def reply(status: int, retry_after: str | None = None) -> Reply:
    return Reply(status, {} if retry_after is None else {"retry-after": retry_after}, b"")


@pytest.mark.parametrize("status", [429, 503])
def test_a_refusal_is_repeated_with_doubling_delays(status: int) -> None:
    assert [wait(POST, reply(status), retries) for retries in range(4)] == [0.1, 0.2, 0.4, None]


def test_the_server_may_ask_for_a_longer_wait_than_the_backoff() -> None:
    assert wait(POST, reply(429, "2")) == 2.0
    assert wait(POST, reply(429, "0")) == 0.1


def test_a_wait_longer_than_the_timeout_is_not_waited_for() -> None:
    assert wait(POST, reply(503, "31")) is None


def test_jitter_only_lengthens() -> None:
    assert wait(POST, reply(429, "2"), jitter=0.5) == 2.25


@pytest.mark.parametrize("status", [200, 400, 404, 408, 413, 422, 500, 502, 504])
@pytest.mark.parametrize("call", [POST, GET], ids=["post", "get"])
def test_what_ran_or_can_never_run_is_not_repeated(call: Call[Any], status: int) -> None:
    assert wait(call, reply(status)) is None
    assert wait(call, reply(status, "1")) is None


def test_what_was_never_sent_is_repeated() -> None:
    assert wait(POST, ts.ConnectionFailedError("refused")) == 0.1


def test_a_broken_connection_repeats_only_a_get() -> None:
    broken = ts.ConnectionBrokenError("reset")
    assert wait(POST, broken) is None
    assert wait(GET, broken) == 0.1


def test_a_client_out_of_patience_does_not_begin_again() -> None:
    assert wait(GET, ts.ReplyTimeoutError("slow")) is None


@pytest.mark.parametrize("status", [500, 502, 504, 529])
def test_what_may_have_run_is_repeated_where_that_is_asked_for(status: int) -> None:
    unsafe = replace(POLICY, repeat_unsafe=True)
    assert unsafe.wait_seconds(POST, reply(status, "2"), 0, 0.0) == 2.0
    assert unsafe.wait_seconds(POST, ts.ConnectionBrokenError("reset"), 1, 0.0) == 0.2
    assert unsafe.wait_seconds(POST, reply(status), 3, 0.0) is None
    for outcome in (reply(400), reply(408), ts.ReplyTimeoutError("slow")):
        assert unsafe.wait_seconds(POST, outcome, 0, 0.0) is None


def test_not_ready_is_an_answer_to_the_question_whether_it_is_ready() -> None:
    assert wait(_calls.ready(), reply(503, "1")) is None


def test_retry_after_may_be_a_date() -> None:
    assert _calls.retry_after(reply(429, "Fri, 31 Dec 1999 23:59:59 GMT")) == 0.0
    hence = _calls.retry_after(reply(429, formatdate(time.time() + 3600, usegmt=True)))
    assert hence is not None
    assert 3500 < hence <= 3600


@pytest.mark.parametrize("value", ["soon", "", "inf", "nan", "1e999", "Fri, 31 Dec 99999 23:59:59 GMT"])
def test_a_retry_after_that_is_no_time_is_none(value: str) -> None:
    assert _calls.retry_after(reply(429, value)) is None
    assert wait(POST, reply(429, value)) == 0.1


def test_a_date_is_waited_for_on_the_wire(make_client: MakeClient) -> None:
    until = int(time.time() + 2)
    busy = Answer(429, {"retry-after": formatdate(until, usegmt=True)}, BUSY.body)
    with ScriptedServer(busy, OK) as peer:
        assert make_client(base_url=peer.url, retry_delay=0.001).predict("m", [1.0]) == [1.0]
    assert time.time() >= until


def test_retry_after_is_waited_for_on_the_wire(make_client: MakeClient) -> None:
    with ScriptedServer(BUSY, OK) as peer:
        assert make_client(base_url=peer.url, retry_delay=0.01).predict("m", [1.0]) == [1.0]
    first, second = peer.times
    assert 1.0 <= second - first < 2.0
    assert peer.requests[0] == peer.requests[1]


def test_the_last_refusal_is_raised(make_client: MakeClient) -> None:
    busy = Answer(429, {"retry-after": "0"}, BUSY.body)
    with ScriptedServer(*[busy] * 4) as peer:
        client = make_client(base_url=peer.url, retry_delay=0.001, max_retries=2)
        with pytest.raises(ts.QueueFullError, match="full"):
            client.predict("m", [1.0])
    assert len(peer.requests) == 3


@pytest.mark.parametrize("status", [500, 504])
def test_a_post_that_ran_is_sent_once(make_client: MakeClient, status: int) -> None:
    with ScriptedServer(Answer(status), OK) as peer:
        with pytest.raises(ts.ApiError):
            make_client(base_url=peer.url, retry_delay=0.001).predict("m", [1.0])
    assert len(peer.requests) == 1


def test_what_ran_while_the_server_shut_down_is_sent_once(make_client: MakeClient) -> None:
    cut_off = Answer(500, {"retry-after": "0"}, b'{"error":{"code":"model_failed","message":"cut off"}}')
    with ScriptedServer(cut_off, OK) as peer:
        with pytest.raises(ts.ModelFailedError, match="cut off"):
            make_client(base_url=peer.url, retry_delay=0.001).predict("m", [1.0])
    assert len(peer.requests) == 1


def test_what_a_closing_server_refused_is_repeated(make_client: MakeClient) -> None:
    refused = Answer(503, {}, b'{"error":{"code":"shutting_down","message":"draining"}}')
    with ScriptedServer(refused, OK) as peer:
        assert make_client(base_url=peer.url, retry_delay=0.001).predict("m", [1.0]) == [1.0]
    assert len(peer.requests) == 2


def test_a_post_whose_connection_broke_is_sent_once(make_client: MakeClient) -> None:
    with ScriptedServer(CLOSE, OK) as peer:
        with pytest.raises(ts.ConnectionBrokenError):
            make_client(base_url=peer.url, retry_delay=0.001).predict("m", [1.0])
    assert len(peer.requests) == 1


def test_a_get_whose_connection_broke_is_repeated(make_client: MakeClient) -> None:
    with ScriptedServer(CLOSE, Answer(200, body=b'{"models":[]}')) as peer:
        assert make_client(base_url=peer.url, retry_delay=0.001).models() == []
    assert len(peer.requests) == 2


def test_silence_ends_at_the_timeout_and_is_not_repeated(make_client: MakeClient) -> None:
    with ScriptedServer(SILENCE, OK) as peer:
        with pytest.raises(ts.ReplyTimeoutError):
            make_client(base_url=peer.url, timeout=0.1).predict("m", [1.0])
        assert len(peer.requests) == 1


@dataclass
class ListenAtRetry:
    """A policy that opens the refused port before the retry, so that no timing is involved."""

    listener: socket.socket
    timeout: float
    waits: list[float | None] = field(default_factory=list[float | None])

    def wait_seconds(self, *args: Any) -> float | None:
        self.listener.listen()
        self.waits.append(POLICY.wait_seconds(*args))
        return self.waits[-1]


def test_a_refused_connection_is_tried_again(make_client: MakeClient) -> None:
    with socket.socket() as refusing:
        refusing.bind(("127.0.0.1", 0))
        client: Any = make_client(base_url=f"http://127.0.0.1:{refusing.getsockname()[1]}", timeout=1)
        policy = ListenAtRetry(refusing, timeout=1)
        inner = client.inner if isinstance(client, Blocking) else client
        setattr(inner, "_policy", policy)  # noqa: B010
        # The port accepts after the first refusal but never answers.
        with pytest.raises(ts.ReplyTimeoutError):
            client.predict("m", [1.0])
        assert policy.waits[0] is not None
        assert policy.waits[1] is None


def test_a_connection_refused_for_good_says_so(make_client: MakeClient) -> None:
    with socket.socket() as refusing:
        refusing.bind(("127.0.0.1", 0))
        port = refusing.getsockname()[1]
        client = make_client(base_url=f"http://127.0.0.1:{port}", max_retries=1, retry_delay=0.001)
        with pytest.raises(ts.ConnectionFailedError, match="cannot connect"):
            client.health()


def test_what_another_server_says_is_named_as_such(make_client: MakeClient) -> None:
    page = Answer(200, {"content-type": "text/html"}, b"<h1>hello</h1>")
    with ScriptedServer(page) as peer, pytest.raises(ts.UnexpectedReplyError, match="text/html"):
        make_client(base_url=peer.url).models()


def test_a_proxy_error_page_keeps_its_status(make_client: MakeClient) -> None:
    page = Answer(502, {"content-type": "text/html"}, b"<h1>bad gateway</h1>")
    with ScriptedServer(page) as peer, pytest.raises(ts.ApiError, match="bad gateway") as caught:
        make_client(base_url=peer.url).models()
    assert (caught.value.status, caught.value.code) == (502, None)


def test_key_and_headers_are_sent(make_client: MakeClient) -> None:
    with ScriptedServer(Answer(200, body=b'{"models":[]}')) as peer:
        make_client(base_url=peer.url, api_key="secret", headers={"X-Team": "blue"}).models()
    head = peer.requests[0].lower()
    assert b"authorization: bearer secret" in head
    assert b"x-team: blue" in head
