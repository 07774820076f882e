"""Texts of language models: what is sent for them, and how replies, pieces and broken streams are read."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest
import trustformers_serve as ts
from blocking_stream import stream, stream_chat
from conftest import MakeClient
from scripted_server import CLOSE, SILENCE, Answer, ScriptedServer, Streamed
from trustformers_serve._events import EventData
from trustformers_serve.replies import Choice, Generation, Piece, Token, Usage

USAGE = {
    "prompt_tokens": 3,
    "completion_tokens": 2,
    "total_tokens": 5,
    "prompt_tokens_details": {"cached_tokens": 1},
}


def completed(*choices: dict[str, Any]) -> Answer:
    body = {"id": "cmpl-1", "model": "tinylm", "choices": list(choices), "usage": USAGE}
    return Answer(200, body=json.dumps(body).encode())


def part(text: str, reason: str | None = None, **more: Any) -> str:
    choice = {"index": 0, "text": text, "finish_reason": reason, **more}
    return json.dumps({"id": "cmpl-1", "model": "tinylm", "choices": [choice]})


LAST = json.dumps({"id": "cmpl-1", "model": "tinylm", "choices": [], "usage": USAGE})
STORY = [part("The fox"), part(" sings."), part("", "stop"), LAST, "[DONE]"]
ERROR = '{"error":{"code":"model_failed","message":"not a number","type":"server_error"}}'


def sent(peer: ScriptedServer) -> tuple[str, dict[str, Any]]:
    """The head of the last request, and its body."""
    head, _, body = peer.requests[-1].partition(b"\r\n\r\n")
    return head.decode().lower(), json.loads(body)


def test_a_text_comes_with_its_reason_and_usage(make_client: MakeClient) -> None:
    with ScriptedServer(completed({"index": 0, "text": " sings.", "finish_reason": "stop"})) as peer:
        made = make_client(base_url=peer.url).generate("The fox", model="tinylm")
    assert (made.text, made.finish_reason, str(made)) == (" sings.", "stop", " sings.")
    assert made.usage == Usage(3, 2, 1)
    assert made.usage.total_tokens == 5
    assert (made.model, made.id) == ("tinylm", "cmpl-1")
    head, body = sent(peer)
    assert head.startswith("post /v1/completions ")
    assert body == {"prompt": "The fox", "model": "tinylm"}


def test_options_are_sent_under_their_names_and_terms_as_headers(make_client: MakeClient) -> None:
    with ScriptedServer(completed({"index": 0, "text": "", "finish_reason": "length"})) as peer:
        make_client(base_url=peer.url).generate(
            [5, 6], max_tokens=3, top_k=2, stop=["a"], priority="high", timeout_ms=900
        )
    head, body = sent(peer)
    assert body == {"prompt": [5, 6], "max_tokens": 3, "top_k": 2, "stop": ["a"]}
    assert "x-priority: high" in head
    assert "x-timeout-ms: 900" in head


def test_several_texts_come_in_order(make_client: MakeClient) -> None:
    choices = [{"index": index, "text": str(index), "finish_reason": "stop"} for index in (1, 0)]
    with ScriptedServer(completed(*choices)) as peer:
        made = make_client(base_url=peer.url).generate("x", n=2)
    assert [choice.text for choice in made.choices] == ["0", "1"]


def test_tokens_are_told_with_their_likelihood(make_client: MakeClient) -> None:
    logprobs = {
        "tokens": ["a", "b"],
        "token_logprobs": [None, -0.5],
        "top_logprobs": [None, {"b": -0.5, "c": -1.0}],
        "text_offset": [0, 1],
    }
    choice = {"index": 0, "text": "ab", "finish_reason": "stop", "logprobs": logprobs}
    with ScriptedServer(completed(choice)) as peer:
        made = make_client(base_url=peer.url).generate("x", logprobs=2, echo=True)
    assert made.tokens == [Token("a", None, []), Token("b", -0.5, [("b", -0.5), ("c", -1.0)])]


def test_a_chat_sends_messages_and_reads_the_answer(make_client: MakeClient) -> None:
    entry = {
        "token": "Hi",
        "logprob": -0.1,
        "bytes": [72, 105],
        "top_logprobs": [{"token": "Hi", "logprob": -0.1}],
    }
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": "Hi"},
        "finish_reason": "stop",
        "logprobs": {"content": [entry]},
    }
    with ScriptedServer(completed(choice), completed(choice)) as peer:
        client = make_client(base_url=peer.url)
        made = client.chat([{"role": "system", "content": "Be kind."}], top_logprobs=1, logprobs=True)
        head, body = sent(peer)
        client.chat("Hello")
    assert made.choices == [Choice("Hi", "stop", [Token("Hi", -0.1, [("Hi", -0.1)])])]
    assert head.startswith("post /v1/chat/completions ")
    assert body["messages"] == [{"role": "system", "content": "Be kind."}]
    assert sent(peer)[1] == {"messages": [{"role": "user", "content": "Hello"}]}


def test_a_stream_gives_the_pieces_and_in_the_end_the_whole(make_client: MakeClient) -> None:
    with ScriptedServer(Streamed(STORY)) as peer:
        pieces = stream(make_client(base_url=peer.url), max_tokens=9)
        assert list(pieces) == ["The fox", " sings."]
        made = pieces.result()
    assert made == Generation([Choice("The fox sings.", "stop", [])], Usage(3, 2, 1), "tinylm", "cmpl-1")
    _, body = sent(peer)
    assert body == {
        "prompt": "The fox",
        "max_tokens": 9,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_pieces_tell_why_a_text_ended(make_client: MakeClient) -> None:
    with ScriptedServer(Streamed(STORY)) as peer:
        pieces = list(stream(make_client(base_url=peer.url)).pieces())
    assert pieces == [Piece("The fox"), Piece(" sings."), Piece("", "stop")]


def test_a_chat_streams_what_its_deltas_say(make_client: MakeClient) -> None:
    deltas = [{"role": "assistant", "content": ""}, {"content": "Hi"}, {"content": None}]
    events = [json.dumps({"choices": [{"index": 0, "delta": delta}]}) for delta in deltas]
    with ScriptedServer(Streamed([*events, "[DONE]"])) as peer:
        assert list(stream_chat(make_client(base_url=peer.url), "Hello")) == ["Hi"]
    assert sent(peer)[1]["stream"] is True


def test_a_piece_is_given_as_soon_as_it_is_there(make_client: MakeClient) -> None:
    with ScriptedServer(Streamed(STORY[:1], then=SILENCE)) as peer:
        with stream(make_client(base_url=peer.url)) as pieces:
            assert next(iter(pieces)) == "The fox"


def test_leaving_a_stream_ends_its_request(make_client: MakeClient) -> None:
    with ScriptedServer(Streamed(STORY[:1], then=SILENCE)) as peer:
        pieces = stream(make_client(base_url=peer.url))
        assert next(pieces) == "The fox"
        pieces.close()
        deadline = time.monotonic() + 10
        while not peer.left and time.monotonic() < deadline:
            time.sleep(0.001)
        assert peer.left
        assert pieces.result().text == "The fox"
        assert list(pieces) == []


def test_an_error_in_the_middle_is_raised_after_what_came_before(make_client: MakeClient) -> None:
    with ScriptedServer(Streamed([STORY[0], ERROR]), Streamed(STORY)) as peer:
        pieces = stream(make_client(base_url=peer.url, retry_delay=0.001))
        assert next(pieces) == "The fox"
        with pytest.raises(ts.ModelFailedError, match="not a number"):
            next(pieces)
        assert list(pieces) == []
    assert len(peer.requests) == 1


@pytest.mark.parametrize("then", [CLOSE, "end of the body"])
def test_a_stream_that_breaks_off_is_a_broken_connection_and_not_repeated(
    make_client: MakeClient, then: str
) -> None:
    with ScriptedServer(Streamed(STORY[:2], then=then), Streamed(STORY)) as peer:
        pieces = stream(make_client(base_url=peer.url, retry_delay=0.001))
        with pytest.raises(ts.ConnectionBrokenError):
            list(pieces)
    assert len(peer.requests) == 1


def test_a_silence_in_the_middle_is_a_timeout(make_client: MakeClient) -> None:
    with ScriptedServer(Streamed(STORY[:1], then=SILENCE)) as peer:
        pieces = stream(make_client(base_url=peer.url, timeout=0.2))
        assert next(pieces) == "The fox"
        with pytest.raises(ts.ReplyTimeoutError):
            next(pieces)


def test_a_stream_that_was_refused_is_tried_again(make_client: MakeClient) -> None:
    busy = Answer(429, {"retry-after": "0"}, b'{"error":{"code":"queue_full","message":"full"}}')
    with ScriptedServer(busy, Streamed(STORY)) as peer:
        pieces = stream(make_client(base_url=peer.url, retry_delay=0.001))
        assert pieces.result().text == "The fox sings."
    assert len(peer.requests) == 2


def test_an_error_instead_of_a_stream_is_raised_at_once(make_client: MakeClient) -> None:
    refused = Answer(400, body=b'{"error":{"code":"invalid_input","message":"max_tokens is 0"}}')
    with ScriptedServer(refused) as peer:
        with pytest.raises(ts.InvalidInputError, match="max_tokens"):
            stream(make_client(base_url=peer.url), max_tokens=0)


def test_a_whole_reply_instead_of_a_stream_is_unexpected(make_client: MakeClient) -> None:
    with ScriptedServer(completed({"index": 0, "text": "x"})) as peer:
        with pytest.raises(ts.UnexpectedReplyError, match="text/event-stream"):
            stream(make_client(base_url=peer.url))


@pytest.mark.parametrize("event", ["no JSON", "[1]", '{"choices": [3]}', '{"usage": 3}'])
def test_an_event_that_is_none_is_an_unexpected_reply(make_client: MakeClient, event: str) -> None:
    with ScriptedServer(Streamed([STORY[0], event])) as peer:
        pieces = stream(make_client(base_url=peer.url))
        with pytest.raises(ts.UnexpectedReplyError):
            list(pieces)


def test_what_breaks_after_the_end_of_a_text_is_nothing(make_client: MakeClient) -> None:
    with ScriptedServer(Streamed(STORY, then=CLOSE)) as peer:
        assert list(stream(make_client(base_url=peer.url))) == ["The fox", " sings."]


def test_an_asynchronous_stream_can_be_awaited_first() -> None:
    async def read(url: str) -> list[str]:
        async with ts.AsyncClient(url) as client:
            async with await client.chat("Hello", stream=True) as pieces:
                return [piece async for piece in pieces]

    with ScriptedServer(Streamed(STORY)) as peer:
        assert asyncio.run(read(peer.url)) == ["The fox", " sings."]


def test_an_asynchronous_stream_sends_its_request_when_it_is_read() -> None:
    async def read(url: str) -> list[str]:
        async with ts.AsyncClient(url) as client:
            return [piece async for piece in client.stream("The fox")]

    with ScriptedServer(Streamed(STORY)) as peer:
        assert asyncio.run(read(peer.url)) == ["The fox", " sings."]


def test_events_are_found_however_the_bytes_are_cut() -> None:
    text = (
        'data: {"a": "ü"}\r\n\r\n: a comment\n\ndata: first\ndata: second\n\nevent: x\ndata:bare\n\n'.encode()
    )
    for size in range(1, len(text) + 1):
        reader = EventData()
        chunks = [text[at : at + size] for at in range(0, len(text), size)]
        found = [event for chunk in chunks for event in reader.feed(chunk)]
        assert found == ['{"a": "ü"}', "first\nsecond", "bare"]
