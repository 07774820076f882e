"""Generation as data: what `generate`, `stream` and `chat` send, and how replies and events are read.

Nothing here does I/O, so `Client` and `AsyncClient` share all of it. `_calls` has the other routes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from trustformers_serve import _calls
from trustformers_serve._calls import Call
from trustformers_serve._codec import JSON, Reply
from trustformers_serve.errors import ConnectionBrokenError, TrustformersError, UnexpectedReplyError
from trustformers_serve.replies import Choice, Generation, Piece, Token, Usage

EVENTS = "text/event-stream"
_DONE = "[DONE]"
_HEADERS = {"priority": "x-priority", "timeout_ms": "x-timeout-ms"}


def completion(
    prompt: str | Sequence[int], model: str | None, options: Mapping[str, Any], *, stream: bool = False
) -> Call[Generation]:
    """A text that goes on from a prompt."""
    tokens_or_text = prompt if isinstance(prompt, str) else list(prompt)
    return _call("/v1/completions", {"prompt": tokens_or_text}, model, options, stream)


def chat(
    messages: str | Sequence[Mapping[str, Any]],
    model: str | None,
    options: Mapping[str, Any],
    *,
    stream: bool = False,
) -> Call[Generation]:
    """An answer to messages; a text is one message of a user."""
    said = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
    return _call("/v1/chat/completions", {"messages": said}, model, options, stream)


def _call(
    target: str, body: dict[str, Any], model: str | None, options: Mapping[str, Any], stream: bool
) -> Call[Generation]:
    headers = {"content-type": JSON, "accept": EVENTS if stream else JSON}
    if model is not None:
        body["model"] = model
    for name, value in options.items():
        if name in _HEADERS:
            headers[_HEADERS[name]] = str(value)
        else:
            body[name] = value
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return Call("POST", target, _generation, json.dumps(body).encode(), headers)


def refusal(call: Call[Any], reply: Reply) -> TrustformersError:
    """The exception of a reply that should have been a stream."""
    try:
        call.read(reply)
    except TrustformersError as error:
        return error
    return UnexpectedReplyError(f"HTTP {reply.status} instead of a stream", status=reply.status)


def _generation(reply: Reply) -> Generation:
    body = _calls.checked(reply)
    choices: list[Any] = _calls.member(body, "choices")
    ordered = sorted(choices, key=lambda choice: _calls.member(choice, "index"))
    if not ordered:
        raise UnexpectedReplyError(f"a reply without a text: {str(body)[:200]}")
    return Generation(
        choices=[Choice(_text(choice), choice.get("finish_reason"), _tokens(choice)) for choice in ordered],
        usage=_usage(_calls.member(body, "usage")),
        model=str(body.get("model", "")),
        id=str(body.get("id", "")),
    )


def _text(choice: dict[str, Any]) -> str:
    """The text of a choice: of a completion, of a chat's message, or of an event's part of that."""
    if "text" in choice:
        return choice["text"]
    message = choice.get("message", choice.get("delta"))
    return _calls.member({"message": message or {}}, "message").get("content") or ""


def _tokens(choice: dict[str, Any]) -> Sequence[Token]:
    logprobs = cast("dict[str, Any] | None", choice.get("logprobs"))
    if logprobs is None:
        return ()
    if "content" in logprobs:
        return [
            Token(
                entry["token"],
                entry["logprob"],
                [(top["token"], top["logprob"]) for top in entry.get("top_logprobs") or ()],
            )
            for entry in cast("list[dict[str, Any]]", logprobs["content"] or [])
        ]
    texts = cast("list[str]", _calls.member(logprobs, "tokens"))
    numbers = cast("list[float | None]", _calls.member(logprobs, "token_logprobs"))
    tops = cast("list[dict[str, float] | None]", logprobs.get("top_logprobs") or [None] * len(texts))
    return [
        Token(text, number, list((top or {}).items()))
        for text, number, top in zip(texts, numbers, tops, strict=True)
    ]


def _usage(value: Any) -> Usage:
    details = cast("dict[str, Any]", value.get("prompt_tokens_details") or {})
    return Usage(
        prompt_tokens=_calls.member(value, "prompt_tokens"),
        completion_tokens=_calls.member(value, "completion_tokens"),
        cached_tokens=details.get("cached_tokens") or 0,
    )


class EventReader:
    """The data of server-sent events, out of bytes that come in any portions (WHATWG HTML, 9.2)."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, chunk: bytes) -> list[str]:
        """The data of each event that has ended with `chunk`."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        events: list[str] = []
        for ended in lines:
            line = ended.removesuffix(b"\r")
            if not line:
                if self._data:
                    events.append(b"\n".join(self._data).decode())
                self._data = []
            elif line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
        return events


class StreamReader:
    """A streamed reply: bytes to pieces, and in the end all of them together."""

    def __init__(self, reply: Reply) -> None:
        """Of a reply whose body is yet to come."""
        media_type = reply.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != EVENTS:
            raise UnexpectedReplyError(
                f"HTTP {reply.status} with a body of type {media_type or 'unknown'} instead of {EVENTS}",
                status=reply.status,
            )
        self._reply = reply
        self._events = EventReader()
        self._pieces: list[Piece] = []
        self._usage: Usage | None = None
        self._model = self._id = ""
        self.done = False
        """Whether the reply has ended as it should; what comes after that means nothing."""
        self._failure: TrustformersError | None = None

    def feed(self, chunk: bytes | None) -> list[Piece]:
        """The pieces that come with `chunk`; None is the end of the body. What follows them is in `check`."""
        pieces: list[Piece] = []
        if chunk is None and not self.done:
            self._failure = ConnectionBrokenError("the stream ended before the text did")
        for data in self._events.feed(chunk or b""):
            if self.done or self._failure:
                break
            if data == _DONE:
                self.done = True
            else:
                try:
                    pieces += self._read(json.loads(data))
                except TrustformersError as error:
                    self._failure = error
                except (ValueError, TypeError, KeyError, AttributeError) as error:
                    self._failure = UnexpectedReplyError(f"an event that is none ({error!r}): {data[:200]}")
        self._pieces += pieces
        return pieces

    def check(self) -> None:
        """Raises what ended the stream before its time, once the pieces before that were had."""
        if self._failure is not None:
            raise self._failure

    def generation(self) -> Generation:
        """All that came; the usage is 0 where the stream was left before it."""
        texts: dict[int, list[Piece]] = {}
        for piece in self._pieces:
            texts.setdefault(piece.index, []).append(piece)
        choices = [
            Choice(
                "".join(piece.text for piece in pieces),
                next((piece.finish_reason for piece in pieces if piece.finish_reason), None),
                [token for piece in pieces for token in piece.tokens],
            )
            for _, pieces in sorted(texts.items())
        ]
        usage = self._usage or Usage(0, 0)
        return Generation(choices or [Choice("", None)], usage, self._model, self._id)

    def _read(self, event: dict[str, Any]) -> list[Piece]:
        if "error" in event:
            raise _calls.api_error(self._reply, event["error"])
        self._model = event.get("model") or self._model
        self._id = event.get("id") or self._id
        if event.get("usage") is not None:
            self._usage = _usage(event["usage"])
        made = [
            Piece(_text(choice), choice.get("finish_reason"), _tokens(choice), choice.get("index", 0))
            for choice in event.get("choices") or ()
        ]
        # A chat's first event names the role and says nothing.
        return [piece for piece in made if piece.text or piece.finish_reason or piece.tokens]
