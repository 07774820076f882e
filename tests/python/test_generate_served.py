"""Texts of the built-in language model: what both clients get of a server, whole, streamed and left early."""

from __future__ import annotations

import asyncio
import importlib
import re
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from itertools import count
from typing import Any

import pytest
import trustformers_serve as ts
from blocking_stream import stream, stream_chat
from conftest import ROOT, MakeClient
from tokenizers import Tokenizer
from trustformers_serve.replies import Piece, Usage

sys.path.insert(0, str(ROOT / "examples"))
grammar: Any = importlib.import_module("tinylm_grammar")

PROMPT = "The old sailor"
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 40}
DRAWN: dict[str, Any] = {"temperature": 1.0, "max_tokens": 40}
# Takes many seconds, so that it still runs when it is left.
ENDLESS: dict[str, Any] = {"model": "tinylm", "max_tokens": 1900, "n": 64, "ignore_eos": True, "seed": 3}
BLOCK = 16
PATIENCE_SECONDS = 60
SALTS = count()


@pytest.fixture(scope="module")
def texts() -> Iterator[ts.Server]:
    """Serves the built-in language model, and one that generates nothing."""
    config = ts.ServerConfig(
        # Nothing that is asked here is refused because a busy machine would take long for it.
        server={"port": 0, "request_timeout": "10m"},
        device={"default": "cpu"},
        models={"tinylm": {}, "delay": {"warmup": 0}},
    )
    with ts.Server(config) as server:
        yield server


@pytest.fixture
def client(texts: ts.Server, make_client: MakeClient) -> ts.Client:
    # A refusal is an answer here.
    return make_client(base_url=texts.url, max_retries=0)


def gauge(metrics: str, name: str, state: str) -> int:
    (value,) = re.findall(rf'^trustformers_{name}{{.*state="{state}".*}} (\d+)$', metrics, re.MULTILINE)
    return int(value)


def wait_until_idle(url: str) -> None:
    """Until nobody holds a block of the KV cache and no text is generated or waits; fails after a while."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    with ts.Client(url) as watcher:
        while True:
            metrics = watcher.metrics()
            held = gauge(metrics, "kv_blocks", "used")
            sequences = {s: gauge(metrics, "sequences", s) for s in ("running", "waiting", "preempted")}
            if held == 0 and not any(sequences.values()):
                return
            assert time.monotonic() < deadline, (held, sequences)


def blocks_in_use(url: str) -> int:
    with ts.Client(url) as watcher:
        return gauge(watcher.metrics(), "kv_blocks", "used")


def test_a_text_goes_on_from_its_prompt_by_the_grammar(client: ts.Client) -> None:
    made = client.generate(PROMPT, **GREEDY)
    assert made.finish_reason == "stop"
    assert all(grammar.accepts(sentence) for sentence in grammar.sentences(PROMPT + made.text)), made.text
    assert made.model == "tinylm"


def test_a_text_is_the_same_whole_and_streamed(client: ts.Client) -> None:
    whole = client.generate(PROMPT, **GREEDY)
    pieces = stream(client, PROMPT, **GREEDY)
    read = list(pieces)
    assert len(read) > 3
    assert "".join(read) == whole.text
    made = pieces.result()
    assert (made.text, made.finish_reason) == (whole.text, whole.finish_reason)
    assert (made.usage.prompt_tokens, made.usage.completion_tokens) == (
        whole.usage.prompt_tokens,
        whole.usage.completion_tokens,
    )


def test_an_answer_is_the_same_whole_and_streamed(client: ts.Client) -> None:
    messages = [{"role": "user", "content": "Tell me about the robots."}]
    whole = client.chat(messages, **GREEDY)
    assert whole.finish_reason == "stop"
    assert all(grammar.accepts(sentence) for sentence in grammar.sentences(whole.text)), whole.text
    pieces = stream_chat(client, messages, **GREEDY)
    assert "".join(pieces) == whole.text
    assert pieces.result().finish_reason == "stop"
    assert client.chat(messages[0]["content"], **GREEDY).text == whole.text


def test_token_ids_are_a_prompt_too(client: ts.Client) -> None:
    tokenizer = Tokenizer.from_file(str(ROOT / "examples" / "tinylm" / "tokenizer.json"))
    ids = tokenizer.encode(PROMPT).ids
    made = client.generate(ids, **GREEDY)
    assert made.usage.prompt_tokens == len(ids)
    assert made.text == client.generate(PROMPT, **GREEDY).text


def test_usage_counts_what_was_read_and_written(client: ts.Client) -> None:
    made = client.generate(PROMPT, temperature=0, max_tokens=7, ignore_eos=True, logprobs=0)
    assert made.finish_reason == "length"
    assert made.usage.completion_tokens == 7 == len(made.tokens)
    assert made.usage.total_tokens == made.usage.prompt_tokens + 7


def test_usage_tells_how_much_of_a_prompt_was_cached(client: ts.Client) -> None:
    options: dict[str, Any] = {"max_tokens": 1, "cache_salt": f"salt {next(SALTS)}"}
    prompt = "The fox sings. " * 10

    def usage() -> Usage:
        return client.generate(prompt, **options).usage

    first, second = usage(), usage()
    assert first.cached_tokens == 0
    # Whole blocks, and never the last token: its logits are needed.
    assert second.cached_tokens == (second.prompt_tokens - 1) // BLOCK * BLOCK > 0
    assert stream(client, prompt, **options).result().usage == second


def test_several_texts_are_drawn_apart_and_counted_together(client: ts.Client) -> None:
    made = client.generate(PROMPT, n=4, seed=11, logprobs=0, **DRAWN)
    assert len(made.choices) == 4
    assert len({choice.text for choice in made.choices}) > 1
    assert {choice.finish_reason for choice in made.choices} <= {"stop", "length"}
    assert made.usage.completion_tokens == sum(len(choice.tokens) for choice in made.choices)


def test_several_answers_stream_beside_each_other(client: ts.Client) -> None:
    whole = client.chat("Tell me about the robots.", n=3, seed=11, **DRAWN)
    pieces = stream_chat(client, "Tell me about the robots.", n=3, seed=11, **DRAWN)
    read: list[Piece] = list(pieces.pieces())
    assert {piece.index for piece in read} == {0, 1, 2}
    made = pieces.result()
    assert [(choice.text, choice.finish_reason) for choice in made.choices] == [
        (choice.text, choice.finish_reason) for choice in whole.choices
    ]


def test_a_stop_string_ends_a_text_and_is_no_part_of_it(client: ts.Client) -> None:
    whole = client.generate(PROMPT, **GREEDY).text
    # From within a token to within another one.
    stop = whole[len(whole) // 2 - 3 : len(whole) // 2 + 4]
    made = client.generate(PROMPT, stop=["never said", stop], **GREEDY)
    assert (made.text, made.finish_reason) == (whole[: whole.index(stop)], "stop")
    assert "".join(stream(client, PROMPT, stop=stop, **GREEDY)) == made.text
    kept = client.generate(PROMPT, stop=stop, include_stop_str_in_output=True, **GREEDY)
    assert kept.text == made.text + stop


def test_a_seed_draws_the_same_text_again_and_another_draws_another(client: ts.Client) -> None:
    def drawn(seed: int) -> str:
        return client.generate(PROMPT, seed=seed, **DRAWN).text

    first = drawn(1)
    assert drawn(1) == first
    assert "".join(stream(client, PROMPT, seed=1, **DRAWN)) == first
    assert len({drawn(seed) for seed in range(2, 6)} | {first}) > 1


def test_a_seed_draws_the_same_text_in_company(texts: ts.Server) -> None:
    async def drawn() -> tuple[list[str], list[str]]:
        async with ts.AsyncClient(texts.url, max_retries=0) as client:

            def ask(seed: int) -> Awaitable[Any]:
                return client.generate(PROMPT, seed=seed, **DRAWN)

            alone = [(await ask(seed)).text for seed in range(8)]
            together = await asyncio.gather(*(ask(seed) for seed in range(8)))
            return alone, [made.text for made in together]

    alone, together = asyncio.run(drawn())
    assert together == alone


REFUSED = [
    ({"model": "nobody"}, ts.ModelNotFoundError, '"nobody" is not known'),
    ({"model": "delay"}, ts.InvalidInputError, '"delay" does not generate text'),
    ({"max_tokens": 5000}, ts.InvalidInputError, "context is 2048 tokens.* 5000 to generate"),
    ({"max_tokens": 0}, ts.InvalidInputError, "max_tokens"),
    ({"temperature": -1}, ts.InvalidInputError, "temperature is -1"),
    ({"top_p": 1.5}, ts.InvalidInputError, "top_p is 1.5"),
    ({"n": 0}, ts.InvalidInputError, '"n" is 0'),
    ({"stop": ["x"] * 1000}, ts.InvalidInputError, '"stop" has 1000 texts'),
    ({"tempreature": 1}, ts.MalformedRequestError, 'did you mean "temperature"'),
    ({"priority": "urgent"}, ts.MalformedRequestError, "low, normal, high or critical"),
]


@pytest.mark.parametrize(("options", "kind", "words"), REFUSED)
def test_what_cannot_be_done_is_refused_with_its_reason(
    client: ts.Client, options: dict[str, Any], kind: type[ts.ApiError], words: str
) -> None:
    asked: dict[str, Any] = {"model": "tinylm", **options}
    calls: list[Callable[[], Any]] = [
        lambda: client.generate(PROMPT, **asked),
        lambda: client.chat(PROMPT, **asked),
        lambda: stream(client, PROMPT, **asked),
        lambda: stream_chat(client, PROMPT, **asked),
    ]
    for call in calls:
        with pytest.raises(kind, match=words) as refused:
            call()
        assert refused.value.status == (404 if kind is ts.ModelNotFoundError else 400)
        assert refused.value.request_id


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("fox " * 3000, "context is 2048 tokens, and the request has 300[0-9] in the prompt"),
        ([], '"prompt" is empty'),
        ([5, 880], "token 1 of the prompt is 880; the vocabulary has 880 tokens"),
    ],
    ids=["too long", "empty", "no token"],
)
def test_a_prompt_that_cannot_be_read_is_refused(client: ts.Client, prompt: Any, words: str) -> None:
    for ask in (client.generate, lambda prompt: stream(client, prompt)):
        with pytest.raises(ts.InvalidInputError, match=words):
            ask(prompt)


def test_a_text_that_is_not_there_in_time_is_given_up(texts: ts.Server, client: ts.Client) -> None:
    with pytest.raises(ts.DeadlineExceededError):
        client.generate(PROMPT, timeout_ms=50, **ENDLESS)
    wait_until_idle(texts.url)


@pytest.mark.parametrize("open_stream", [stream, stream_chat])
def test_a_stream_that_is_left_gives_its_blocks_up(
    texts: ts.Server, client: ts.Client, open_stream: Callable[..., Any]
) -> None:
    pieces = open_stream(client, PROMPT, **ENDLESS)
    first = next(pieces)
    assert blocks_in_use(texts.url) > 0
    pieces.close()
    wait_until_idle(texts.url)
    assert first in "".join(choice.text for choice in pieces.result().choices)
    assert client.generate(PROMPT, **GREEDY).finish_reason == "stop"


def test_a_stream_whose_block_is_left_gives_its_blocks_up(texts: ts.Server, client: ts.Client) -> None:
    def fail() -> None:
        with stream(client, PROMPT, **ENDLESS) as pieces:
            next(iter(pieces))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    wait_until_idle(texts.url)


def test_a_client_that_waits_no_longer_gives_its_blocks_up(texts: ts.Server, make_client: MakeClient) -> None:
    impatient = make_client(base_url=texts.url, timeout=0.3, max_retries=0)
    with pytest.raises(ts.ReplyTimeoutError):
        impatient.generate(PROMPT, **ENDLESS)
    wait_until_idle(texts.url)


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_a_task_that_is_cancelled_gives_its_blocks_up(texts: ts.Server, streamed: bool) -> None:
    async def leave() -> None:
        async with ts.AsyncClient(texts.url, max_retries=0) as client:

            async def ask() -> None:
                if streamed:
                    options: Any = ENDLESS
                    async for _ in client.stream(PROMPT, **options):
                        pass
                else:
                    await client.generate(PROMPT, **ENDLESS)

            task = asyncio.create_task(ask())
            while await asyncio.to_thread(blocks_in_use, texts.url) == 0:
                pass
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(leave())
    wait_until_idle(texts.url)


def test_hundreds_of_streams_that_are_left_leave_nothing_behind(texts: ts.Server) -> None:
    async def leave() -> None:
        async with ts.AsyncClient(texts.url, max_retries=0) as client:

            async def begin(seed: int) -> None:
                options: Any = {**ENDLESS, "n": 1, "seed": seed}
                async with client.stream(PROMPT, **options) as pieces:
                    # As many read on as leave at once.
                    for _ in range(seed % 2 * 5):
                        await anext(pieces)

            await asyncio.gather(*(begin(seed) for seed in range(200)))

    asyncio.run(leave())
    wait_until_idle(texts.url)
