"""The `openai` package against a served language model: it is understood, and understands what it gets."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import openai
import pytest
import trustformers_serve as ts
from conftest import ROOT
from openai.types.chat import ChatCompletionMessageParam
from openai.types.responses import Response

GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 12, "extra_body": {"ignore_eos": True}}
MESSAGES: list[ChatCompletionMessageParam] = [
    {"role": "system", "content": "Be brief"},
    {"role": "user", "content": [{"type": "text", "text": "Hello 🦊"}]},
]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serves a small language model with random weights."""
    folder = tmp_path_factory.mktemp("language-models")
    script = ROOT / "tests" / "models" / "make_language_model.py"
    subprocess.run([sys.executable, script, folder], check=True)
    models = {name: {"path": Path(folder) / name} for name in ("chatty", "plain")}
    config = ts.ServerConfig(server={"port": 0}, device={"default": "cpu"}, models=cast("Any", models))
    with ts.Server(config) as server:
        yield f"{server.url}/v1"


@pytest.fixture
def peer(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key="x", max_retries=0) as peer:
        yield peer


def test_models_are_listed(peer: openai.OpenAI) -> None:
    listed = {model.id: model.object for model in peer.models.list()}
    assert listed == {"chatty": "model", "plain": "model"}
    assert peer.models.retrieve("plain").id == "plain"
    with pytest.raises(openai.NotFoundError, match="nobody"):
        peer.models.retrieve("nobody")


def test_a_chat_is_the_same_whole_and_streamed(peer: openai.OpenAI) -> None:
    whole = peer.chat.completions.create(model="chatty", messages=MESSAGES, **GREEDY)
    (choice,) = whole.choices
    assert choice.message.role == "assistant"
    assert choice.finish_reason == "length"
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 12
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + 12
    stream = peer.chat.completions.create(
        model="chatty", messages=MESSAGES, stream=True, stream_options={"include_usage": True}, **GREEDY
    )
    *chunks, last = stream
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == choice.message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == [
        "length"
    ]
    assert last.choices == []
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (whole.usage.prompt_tokens, 12)


def test_the_packages_own_stream_helper_puts_a_chat_together(peer: openai.OpenAI) -> None:
    whole = peer.chat.completions.create(model="chatty", messages=MESSAGES, **GREEDY)
    content = whole.choices[0].message.content
    assert content
    # The package takes a text that ends with its length for a failure.
    stop = content[len(content) // 2 :]
    with peer.chat.completions.stream(model="chatty", messages=MESSAGES, stop=stop, **GREEDY) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == content[: content.index(stop)]
    assert final.choices[0].finish_reason == "stop"


def test_a_chat_is_the_same_over_asyncio(url: str, peer: openai.OpenAI) -> None:
    whole = peer.chat.completions.create(model="chatty", messages=MESSAGES, **GREEDY)

    async def ask() -> str:
        async with openai.AsyncOpenAI(base_url=url, api_key="x") as client:
            stream = await client.chat.completions.create(
                model="chatty", messages=MESSAGES, stream=True, **GREEDY
            )
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    assert asyncio.run(ask()) == whole.choices[0].message.content


def test_a_completion_is_the_same_whole_and_streamed(peer: openai.OpenAI) -> None:
    whole = peer.completions.create(model="plain", prompt="The quick brown", logprobs=2, **GREEDY)
    (choice,) = whole.choices
    assert choice.finish_reason == "length"
    assert choice.logprobs is not None
    assert choice.logprobs.tokens is not None
    assert len(choice.logprobs.tokens) == 12
    stream = peer.completions.create(model="plain", prompt="The quick brown", stream=True, **GREEDY)
    assert "".join(chunk.choices[0].text for chunk in stream) == choice.text


def test_logprobs_are_those_of_the_answers_tokens(peer: openai.OpenAI) -> None:
    whole = peer.chat.completions.create(
        model="chatty", messages=MESSAGES, logprobs=True, top_logprobs=3, **GREEDY
    )
    logprobs = whole.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content) == 12
    for token in logprobs.content:
        assert len(token.top_logprobs) == 3
        assert token.top_logprobs[0].logprob == token.logprob
    joined = b"".join(bytes(token.bytes or []) for token in logprobs.content)
    assert joined.decode(errors="replace") == whole.choices[0].message.content


def test_several_answers_with_one_seed_are_the_same_each_time(peer: openai.OpenAI) -> None:
    def ask() -> list[str | None]:
        reply = peer.chat.completions.create(
            model="chatty", messages=MESSAGES, n=3, seed=7, temperature=1.0, max_completion_tokens=8
        )
        return [choice.message.content for choice in reply.choices]

    assert ask() == ask()
    assert len(set(ask())) > 1


def test_stop_strings_end_an_answer(peer: openai.OpenAI) -> None:
    whole = peer.chat.completions.create(model="chatty", messages=MESSAGES, **GREEDY)
    text = whole.choices[0].message.content
    assert text is not None
    stopped = peer.chat.completions.create(model="chatty", messages=MESSAGES, stop=text[4], **GREEDY)
    assert stopped.choices[0].message.content == text.split(text[4])[0]
    assert stopped.choices[0].finish_reason == "stop"


def test_errors_are_the_packages_own(peer: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="nobody"):
        peer.chat.completions.create(model="nobody", messages=MESSAGES)
    with pytest.raises(openai.BadRequestError, match="no chat template") as refused:
        peer.chat.completions.create(model="plain", messages=MESSAGES)
    assert refused.value.param == "messages"
    late: list[ChatCompletionMessageParam] = [
        {"role": "user", "content": "a"},
        {"role": "system", "content": "b"},
    ]
    with pytest.raises(openai.BadRequestError, match="the system message comes first"):
        peer.chat.completions.create(model="chatty", messages=late)
    with pytest.raises(openai.BadRequestError, match="temperature"):
        peer.chat.completions.create(model="chatty", messages=MESSAGES, temperature=-1)
    with pytest.raises(openai.BadRequestError, match="5000 to generate"):
        peer.chat.completions.create(model="chatty", messages=MESSAGES, max_tokens=5000)


def test_a_stream_may_be_left_early(peer: openai.OpenAI) -> None:
    stream = peer.chat.completions.create(
        model="chatty", messages=MESSAGES, stream=True, max_tokens=400, extra_body={"ignore_eos": True}
    )
    assert next(iter(stream)).choices[0].delta.role == "assistant"
    stream.close()
    whole = peer.chat.completions.create(model="chatty", messages=MESSAGES, **GREEDY)
    assert whole.choices[0].finish_reason == "length"


def test_a_response_has_its_text_usage_and_status(peer: openai.OpenAI) -> None:
    made = peer.responses.create(
        model="chatty",
        instructions="Be brief",
        input="Hello 🦊",
        temperature=0,
        max_output_tokens=12,
        metadata={"run": "7"},
        extra_body=GREEDY["extra_body"],
    )
    chat = peer.chat.completions.create(
        model="chatty",
        messages=[{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Hello 🦊"}],
        **GREEDY,
    )
    assert made.output_text == chat.choices[0].message.content
    assert made.usage is not None
    assert chat.usage is not None
    assert (made.usage.input_tokens, made.usage.output_tokens) == (chat.usage.prompt_tokens, 12)
    assert made.usage.total_tokens == chat.usage.total_tokens
    assert made.usage.input_tokens_details.cached_tokens >= 0
    assert made.status == "incomplete"
    assert made.incomplete_details is not None
    assert made.incomplete_details.reason == "max_output_tokens"
    assert (made.model, made.metadata, made.error) == ("chatty", {"run": "7"}, None)
    # Nothing is missing and nothing is of another type than the package declares.
    Response.model_validate(made.model_dump(mode="json"), strict=False)


def test_a_conversation_of_responses_goes_on_with_what_came_back(peer: openai.OpenAI) -> None:
    first = peer.responses.create(
        model="chatty", input="Hello", temperature=0, max_output_tokens=8, extra_body=GREEDY["extra_body"]
    )
    said: Any = [
        {"role": "user", "content": "Hello"},
        *first.output,
        {"role": "user", "content": "And then?"},
    ]
    second = peer.responses.create(
        model="chatty", input=said, temperature=0, max_output_tokens=8, extra_body=GREEDY["extra_body"]
    )
    spelled: list[ChatCompletionMessageParam] = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "And then?"},
    ]
    fewer: dict[str, Any] = {**GREEDY, "max_tokens": 8}
    chat = peer.chat.completions.create(model="chatty", messages=spelled, **fewer)
    assert second.output_text == chat.choices[0].message.content


def test_a_response_ends_where_a_stop_string_does_and_is_complete(peer: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "plain",
        "input": "The quick",
        "temperature": 0,
        "max_output_tokens": 12,
    }
    whole = peer.responses.create(**asked, extra_body=GREEDY["extra_body"])
    stop = whole.output_text[3]
    ended = peer.responses.create(**asked, extra_body={**GREEDY["extra_body"], "stop": stop})
    assert ended.output_text == whole.output_text.split(stop)[0]
    assert (ended.status, ended.incomplete_details) == ("completed", None)


def test_errors_of_responses_are_the_packages_own(peer: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="nobody"):
        peer.responses.create(model="nobody", input="Hello")
    with pytest.raises(openai.BadRequestError, match="responses are not streamed") as refused:
        peer.responses.create(model="chatty", input="Hello", stream=True)
    assert refused.value.param == "stream"
    with pytest.raises(openai.BadRequestError, match="not stored"):
        peer.responses.create(model="chatty", input="Hello", previous_response_id="resp_1")
    with pytest.raises(openai.BadRequestError, match="no chat template") as refused:
        peer.responses.create(model="plain", input="Hello", instructions="Be brief")
    assert refused.value.param == "instructions"
    with pytest.raises(openai.BadRequestError) as refused:
        peer.responses.create(model="chatty", input="fox " * 1000)
    assert refused.value.code == "context_length_exceeded"
