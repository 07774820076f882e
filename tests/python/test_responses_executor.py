"""`OpenAIResponsesExecutor`: batches of prompts over HTTP, against the server's own route and others."""

from __future__ import annotations

import gc
import os
import pickle
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from typing import Any, cast

import pytest
import trustformers_serve as ts
from answering_server import Answer, AnsweringServer, echoed, response
from counting_proxy import CountingProxy
from executors import PATIENCE, until
from scripted_server import CLOSE, ScriptedServer
from trustformers_serve.http import OpenAIResponsesExecutor, output_text

KEY = "sk-a-key-that-nobody-may-see"


def executor(url: str, **options: Any) -> OpenAIResponsesExecutor[str]:
    settings: dict[str, Any] = {"retry_delay": 0.001, **options}
    return OpenAIResponsesExecutor(KEY, "m", url, **settings)


@pytest.fixture(scope="module")
def served() -> Iterator[str]:
    """The server's own route, over its built-in language model."""
    # A machine that is busy with other work must not make the server foresee that it will be too late.
    patient: Any = {"port": 0, "request_timeout": "10m"}
    config = ts.ServerConfig(server=patient, device={"default": "cpu"}, models={"tinylm": {}})
    with ts.Server(config) as server:
        yield server.url


def test_prompts_get_the_texts_of_the_servers_own_model(served: str) -> None:
    prompts = ["The old sailor", "A girl", "A fox", "The king"]
    with ts.Client(served) as client:
        chats = [client.chat(prompt, temperature=0, max_tokens=8).text for prompt in prompts]
    options: dict[str, Any] = {"temperature": 0, "max_output_tokens": 8}
    with OpenAIResponsesExecutor(None, "tinylm", f"{served}/v1", **options) as ask:
        with ts.Batcher(max_batch=4) as batcher:
            assert batcher.map(prompts * 8, ask) == chats * 8
            assert batcher.metrics().items == 32
            told = [{"role": "user", "content": "A girl"}]
            assert batcher.run(told, ask) == chats[1]
            assert batcher.run({"input": "A fox", "max_output_tokens": 8}, ask) == chats[2]


def test_the_server_refuses_one_prompt_and_answers_the_others(served: str) -> None:
    with OpenAIResponsesExecutor(None, "tinylm", f"{served}/v1", max_output_tokens=4) as ask:
        results = ask(["A fox", "fox " * 5000, {"input": "A fox", "top_p": 7}, "A fox"])
    assert [isinstance(result, str) for result in results] == [True, False, False, True]
    too_long, wrong = results[1:3]
    assert isinstance(too_long, ts.InvalidInputError)
    assert too_long.code == "context_length_exceeded"
    assert isinstance(wrong, ts.InvalidInputError)
    assert "top_p" in wrong.message
    assert wrong.request_id


def test_an_unknown_model_fails_each_prompt_with_its_own_error(served: str) -> None:
    with OpenAIResponsesExecutor(None, "nobody", f"{served}/v1") as ask:
        results = ask(["a", "b"])
    assert all(isinstance(result, ts.ModelNotFoundError) for result in results)


def test_connections_are_kept_between_batches_and_closed_at_the_end(served: str) -> None:
    with CountingProxy(served) as proxy:
        options: dict[str, Any] = {"max_concurrency": 4, "max_output_tokens": 2}
        with OpenAIResponsesExecutor(None, "tinylm", f"{proxy.url}/v1", **options) as ask:
            for _ in range(5):
                assert len(ask(["A fox"] * 8)) == 8
            assert 1 <= proxy.connections <= 4
            assert proxy.open == proxy.connections
        until(lambda: proxy.open == 0)


def test_a_request_has_the_model_the_options_and_the_prompts_own_fields() -> None:
    with AnsweringServer() as peer, executor(peer.url, instructions="Be brief", temperature=0.5) as ask:
        assert ask([{"input": "a", "temperature": 1}]) == ["A"]
    (sent,) = peer.requests
    assert sent == {"model": "m", "instructions": "Be brief", "temperature": 1, "input": "a"}
    assert (peer.paths, peer.keys) == (["/v1/responses"], [f"Bearer {KEY}"])


def test_results_are_in_the_order_of_the_prompts_whatever_takes_long() -> None:
    def slow_first(fields: dict[str, Any]) -> Answer:
        if fields["input"] == "0":
            assert others_answered.wait(PATIENCE)
        elif fields["input"] == "9":
            others_answered.set()
        return echoed(fields)

    others_answered = threading.Event()
    with AnsweringServer(slow_first) as peer, executor(peer.url) as ask:
        assert ask([str(index) for index in range(10)]) == [str(index) for index in range(10)]


def test_at_most_so_many_requests_are_under_way_at_once_over_all_batches() -> None:
    def together(fields: dict[str, Any]) -> Answer:
        if int(fields["input"]) < 6:
            # Only where three are here at once do they go on.
            barrier.wait(PATIENCE)
        return echoed(fields)

    barrier = threading.Barrier(3)
    with AnsweringServer(together) as peer, executor(peer.url, max_concurrency=3) as ask:
        with ThreadPoolExecutor(4) as threads:
            batches = list(threads.map(ask, [[str(index)] * 3 for index in (0, 1, 7, 8)]))
        assert batches == [[str(index)] * 3 for index in (0, 1, 7, 8)]
    assert peer.most_at_once == 3
    assert peer.connections <= 3


@pytest.mark.parametrize("status", [429, 500, 502, 503, 529])
def test_a_refusal_or_a_failure_is_asked_for_again(status: int) -> None:
    def twice(fields: dict[str, Any]) -> Answer:
        return echoed(fields) if len(peer.requests) > 2 else (status, {}, {"error": {"message": "later"}})

    with AnsweringServer(twice) as peer, executor(peer.url) as ask:
        assert ask(["a"]) == ["A"]
    assert len(peer.requests) == 3


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_waited_for(status: int) -> None:
    times: list[float] = []

    def busy(fields: dict[str, Any]) -> Answer:
        times.append(time.monotonic())
        return echoed(fields) if len(times) > 1 else (status, {"retry-after": "1"}, {})

    with AnsweringServer(busy) as peer, executor(peer.url) as ask:
        assert ask(["a"]) == ["A"]
    assert 1.0 <= times[1] - times[0] < PATIENCE


def test_retry_after_may_be_a_date() -> None:
    answered: list[float] = []

    def busy(fields: dict[str, Any]) -> Answer:
        answered.append(time.time())
        # It has whole seconds, so that it is up to one less.
        date = formatdate(answered[0] + 2, usegmt=True)
        return echoed(fields) if len(answered) > 1 else (429, {"retry-after": date}, {})

    with AnsweringServer(busy) as peer, executor(peer.url) as ask:
        assert ask(["a"]) == ["A"]
    assert answered[1] >= int(answered[0] + 2)


def test_many_prompts_at_once_are_answered_in_one_batch() -> None:
    with AnsweringServer() as peer, executor(peer.url, max_concurrency=64) as ask:
        prompts = [f"prompt {index}" for index in range(500)]
        assert ask(prompts) == [prompt.upper() for prompt in prompts]
        assert peer.connections <= 64


def test_who_waits_for_a_retry_holds_up_nobody() -> None:
    def busy(fields: dict[str, Any]) -> Answer:
        if fields["input"] == "busy" and "b" not in [sent["input"] for sent in peer.requests]:
            return 429, {"retry-after": "1"}, {}
        return echoed(fields)

    with AnsweringServer(busy) as peer, executor(peer.url, max_concurrency=1) as ask:
        assert ask(["busy", "a", "b"]) == ["BUSY", "A", "B"]
    assert [sent["input"] for sent in peer.requests] == ["busy", "a", "b", "busy"]


def test_a_wait_longer_than_the_timeout_is_not_waited_for() -> None:
    answer = (
        429,
        {"retry-after": "3600"},
        {"error": {"message": "slow down", "code": "rate_limit_exceeded"}},
    )
    with AnsweringServer(lambda _: answer) as peer, executor(peer.url, timeout=5) as ask:
        (error,) = ask(["a"])
    assert isinstance(error, ts.OverloadedError)
    assert (error.retry_after, error.message, error.status) == (3600.0, "slow down", 429)
    assert len(peer.requests) == 1


def test_retries_end_with_the_services_own_error() -> None:
    def failing(fields: dict[str, Any]) -> Answer:
        if fields["input"] == "bad":
            return 500, {"x-request-id": "req_1"}, {"error": {"message": "no luck", "code": "server_error"}}
        return echoed(fields)

    with AnsweringServer(failing) as peer, executor(peer.url, max_retries=2) as ask:
        good, bad, other = ask(["good", "bad", "other"])
    assert (good, other) == ("GOOD", "OTHER")
    assert isinstance(bad, ts.ModelFailedError)
    assert (bad.message, bad.status, bad.request_id) == ("no luck", 500, "req_1")
    assert [sent["input"] for sent in peer.requests].count("bad") == 3


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (401, "invalid_api_key", ts.AuthenticationError),
        (404, "model_not_found", ts.ModelNotFoundError),
        (400, "context_length_exceeded", ts.InvalidInputError),
        (400, None, ts.ApiError),
    ],
)
def test_what_is_wrong_with_a_request_is_not_repeated(
    status: int, code: str | None, kind: type[ts.ApiError]
) -> None:
    refused = (status, {}, {"error": {"message": "no", "code": code}})
    with AnsweringServer(lambda _: refused) as peer, executor(peer.url) as ask:
        (error,) = ask(["a"])
    assert type(error) is kind
    assert len(peer.requests) == 1


def test_a_broken_connection_is_tried_again_and_a_refused_one_told() -> None:
    with ScriptedServer(CLOSE, CLOSE) as peer, executor(f"{peer.url}/v1", max_retries=1) as ask:
        (error,) = ask(["a"])
    assert isinstance(error, ts.ConnectionBrokenError)
    assert len(peer.requests) == 2
    with executor(f"{peer.url}/v1", max_retries=1) as ask:
        (error,) = ask(["a"])
    assert isinstance(error, ts.ConnectionFailedError)


def test_silence_ends_at_the_timeout_for_its_prompt_alone_and_is_not_repeated() -> None:
    def silent(fields: dict[str, Any]) -> Answer:
        if fields["input"] == "silent":
            over.wait(PATIENCE)
        return echoed(fields)

    over = threading.Event()
    with AnsweringServer(silent) as peer, executor(peer.url, timeout=2) as ask:
        good, late = ask(["good", "silent"])
        over.set()
    assert good == "GOOD"
    assert isinstance(late, ts.ReplyTimeoutError)
    assert len(peer.requests) == 2


@pytest.mark.parametrize("body", [{}, [], {"output": 3}, {"output": [{"type": "message"}]}, "text"], ids=str)
def test_a_reply_that_is_no_response_is_named_as_such(body: Any) -> None:
    with AnsweringServer(lambda _: (200, {}, body)) as peer, executor(peer.url) as ask:
        (error,) = ask(["a"])
    assert isinstance(error, ts.UnexpectedReplyError)


def test_a_response_that_failed_is_its_prompts_error() -> None:
    failed = response("", status="failed", error={"code": "server_error", "message": "it broke"})
    with AnsweringServer(lambda _: failed) as peer, executor(peer.url) as ask:
        (error,) = ask(["a"])
    assert isinstance(error, ts.ModelFailedError)
    assert error.message == "it broke"


def test_what_becomes_of_a_response_is_up_to_the_caller() -> None:
    def read(response: Any) -> tuple[str, str]:
        return response["id"], output_text(response)

    with AnsweringServer() as peer:
        with OpenAIResponsesExecutor(KEY, "m", peer.url, read=read) as ask:
            assert ask(["a"]) == [("resp_1", "A")]
        with OpenAIResponsesExecutor(KEY, "m", peer.url, read=lambda response: response["absent"]) as broken:
            assert isinstance(broken(["a"])[0], KeyError)


def test_only_texts_and_messages_are_parts_of_the_text() -> None:
    def mixed(_: dict[str, Any]) -> Answer:
        status, headers, body = response("one")
        body["output"] = [
            {"type": "reasoning", "summary": []},
            *body["output"],
            *response("two")[2]["output"],
        ]
        return status, headers, body

    with AnsweringServer(mixed) as peer, executor(peer.url) as ask:
        assert ask(["a"]) == ["onetwo"]


def test_a_prompt_that_is_none_fails_alone() -> None:
    with AnsweringServer() as peer, executor(peer.url) as ask, ts.Batcher() as batcher:
        prompts: list[Any] = ["a", 3, {"input": {1, 2}}, "b"]
        results = batcher.map(prompts, ask, return_exceptions=True)
        assert [results[0], results[3]] == ["A", "B"]
        assert isinstance(results[1], TypeError)
        assert "int" in str(results[1])
        assert isinstance(results[2], ts.SerializationError)
        assert "a value of type set to the server, at input" in str(results[2])
        with pytest.raises(TypeError, match="a prompt must be"):
            batcher.run(cast("Any", b"bytes"), ask)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"model": ""}, "model"),
        ({"max_concurrency": 0}, "max_concurrency"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": float("nan")}, "timeout"),
        ({"max_retries": -1}, "max_retries"),
        ({"retry_delay": -1}, "retry_delay"),
        ({"base_url": "example.org/v1"}, "base_url"),
        ({"base_url": "http://"}, "base_url"),
        ({"api_key": ""}, "api_key"),
        ({"api_key": f"{KEY}\n"}, "api_key"),
    ],
)
def test_an_argument_out_of_range_is_named(arguments: dict[str, Any], name: str) -> None:
    settings: dict[str, Any] = {"api_key": KEY, "model": "m", **arguments}
    with pytest.raises(ValueError, match=name) as caught:
        OpenAIResponsesExecutor(**settings)
    assert KEY not in str(caught.value)


def test_the_key_is_in_no_text_about_the_executor() -> None:
    with ScriptedServer(CLOSE) as peer:
        url = peer.url.replace("http://", "http://user:password@")
        with executor(f"{url}/v1", max_retries=0) as ask:
            (error,) = ask(["a"])
            assert isinstance(error, ts.ConnectionBrokenError)
            shown = [repr(ask), str(ask), repr(vars(ask)), repr(error), repr(error.__cause__)]
    assert "model='m'" in shown[0]
    assert f" {peer.url}/v1 " in shown[0]
    assert not any(KEY in text for text in shown)
    assert "password" not in shown[0]


def test_an_executor_does_not_travel() -> None:
    with pytest.raises(TypeError, match="make one there"):
        pickle.dumps(executor("http://127.0.0.1:1/v1"))


def test_nothing_is_started_before_the_first_batch_and_no_thread_is_left() -> None:
    before = threading.active_count()
    with AnsweringServer() as peer:
        serving = threading.active_count()
        ask = executor(peer.url)
        assert threading.active_count() == serving
        ask(["a"])
        ask.close()
        until(lambda: threading.active_count() == serving)
        with pytest.raises(ts.ExecutorError, match="closed"):
            ask(["a"])
        ask.close()
    until(lambda: threading.active_count() == before)


def test_an_executor_that_nobody_holds_closes_its_connections() -> None:
    with AnsweringServer() as peer, CountingProxy(peer.url.removesuffix("/v1")) as proxy:
        ask = executor(f"{proxy.url}/v1")
        ask(["a"])
        assert proxy.open == 1
        gone = weakref.ref(ask)
        del ask
        gc.collect()
        assert gone() is None
        until(lambda: proxy.open == 0)


def test_closing_ends_what_is_under_way() -> None:
    def silent(fields: dict[str, Any]) -> Answer:
        came.set()
        over.wait(PATIENCE)
        return echoed(fields)

    came, over = threading.Event(), threading.Event()
    with AnsweringServer(silent) as peer, ts.Batcher() as batcher:
        ask = executor(peer.url)
        future = batcher.submit("a", ask)
        assert came.wait(PATIENCE)
        ask.close()
        with pytest.raises(ts.ExecutorError, match="closed before the batch was done"):
            future.result(PATIENCE)
        over.set()


def test_a_forked_child_has_connections_of_its_own() -> None:
    with AnsweringServer() as peer, executor(peer.url) as ask:
        assert ask(["a"]) == ["A"]
        child = os.fork()
        if child == 0:
            try:
                done = ask(["b"]) == ["B"]
                ask.close()
            except BaseException:  # noqa: BLE001 - the child says all with its status
                done = False
            os._exit(0 if done else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert ask(["c"]) == ["C"]


def test_the_interpreter_ends_while_a_service_is_silent() -> None:
    def silent(fields: dict[str, Any]) -> Answer:
        over.wait(60)
        return echoed(fields)

    over = threading.Event()
    with AnsweringServer(silent) as peer:
        code = (
            "import trustformers_serve as ts\n"
            "from trustformers_serve.http import OpenAIResponsesExecutor\n"
            f"ask = OpenAIResponsesExecutor('k', 'm', {peer.url!r})\n"
            "batcher = ts.Batcher(max_wait_ms=0)\n"
            "future = batcher.submit('a', ask)\n"
            "print('asked')\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False
        )
        over.set()
    assert (done.returncode, done.stdout, done.stderr) == (0, "asked\n", "")
