"""Generation as data: what `generate`, `stream` and `chat` send, and how replies and events are read.

Nothing here does I/O, so `Client` and `AsyncClient` share all of it. `_calls` has the other routes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from trustformers_serve import _calls, _codec
from trustformers_serve._calls import Call
from trustformers_serve._codec import EVENTS, JSON, Reply
from trustformers_serve._events import EventReader
from trustformers_serve.errors import UnexpectedReplyError
from trustformers_serve.replies import Choice, Generation, Piece, Token, Usage

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
    content, _ = _codec.to_json(body)
    return Call("POST", target, _generation, content, headers)


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


class TextReader(EventReader[Piece]):
    """A text that comes piece by piece, and in the end all of it."""

    def __init__(self, reply: Reply) -> None:
        """Of a reply whose body is yet to come."""
        super().__init__(reply)
        self._pieces: list[Piece] = []
        self._usage: Usage | None = None
        self._model = self._id = ""

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
        self._model = event.get("model") or self._model
        self._id = event.get("id") or self._id
        if event.get("usage") is not None:
            self._usage = _usage(event["usage"])
        made = [
            Piece(_text(choice), choice.get("finish_reason"), _tokens(choice), choice.get("index", 0))
            for choice in event.get("choices") or ()
        ]
        # A chat's first event names the role and says nothing.
        pieces = [piece for piece in made if piece.text or piece.finish_reason or piece.tokens]
        self._pieces += pieces
        return pieces
