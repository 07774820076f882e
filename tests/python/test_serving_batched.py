"""Registered functions that are batched: their requests go to the batcher as they come."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import trustformers_serve as ts
from executors import PATIENCE, Held, until
from served import Serve, leave_early, metric, predict, refuses
from trustformers_serve import _event_loop
from trustformers_serve.decorators import Autobatched


class Handed(_event_loop.Handed):
    """Tells of each call that came to a batcher, and of each that was taken back."""

    came = threading.Semaphore(0)
    went = threading.Semaphore(0)

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.came.release()

    def left(self) -> None:
        super().left()
        self.went.release()

    @classmethod
    def wait_came(cls) -> None:
        """The next call is with its batcher before the event loop does anything else."""
        assert cls.came.acquire(timeout=PATIENCE)

    @classmethod
    def wait_went(cls) -> None:
        assert cls.went.acquire(timeout=PATIENCE)


@pytest.fixture(autouse=True)
def told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_event_loop, "Handed", Handed)
    monkeypatch.setattr(Handed, "came", threading.Semaphore(0))
    monkeypatch.setattr(Handed, "went", threading.Semaphore(0))


DECORATORS: dict[str, Any] = {
    "autobatch": ts.autobatch(max_batch=4, max_wait_ms=0),
    "batch": ts.batch(max_batch_size=4, max_wait_time=0),
}


@pytest.mark.parametrize("kind", DECORATORS)
def test_methods_of_instances_share_no_batch(serve: Serve, kind: str) -> None:
    class Scaler:
        def __init__(self, factor: int) -> None:
            self.factor = factor

        @DECORATORS[kind]
        def scale(self, items: list[int]) -> list[int]:
            return [item * self.factor for item in items]

    for factor in (2, 3):
        ts.register(f"times{factor}")(Scaler(factor).scale)
    server = serve()
    for factor in (2, 3):
        predictions = predict(server, f"times{factor}", {"instances": list(range(20))}).value["predictions"]
        assert [prediction["data"] for prediction in predictions] == [item * factor for item in range(20)]


@pytest.mark.parametrize("kind", DECORATORS)
def test_a_client_who_leaves_takes_its_waiting_item_along(serve: Serve, kind: str) -> None:
    held = Held()

    ts.register("held")(DECORATORS[kind](held.__call__))
    server = serve()
    with ThreadPoolExecutor() as pool:
        first = pool.submit(predict, server, "held", 1)
        held.wait_entered()
        Handed.wait_came()
        leaving = leave_early(server, "/models/held/predict", 2)
        Handed.wait_came()
        leaving.close()
        Handed.wait_went()
        held.let_go()
        assert first.result(PATIENCE).value["data"] == 2
    assert predict(server, "held", 3).value["data"] == 6
    assert held.batches == [[1], [3]]
    assert metric(server, "requests_total", "held", "cancelled") == 1


@pytest.mark.parametrize("kind", DECORATORS)
def test_stopping_finishes_the_batch_that_runs_and_those_that_wait(serve: Serve, kind: str) -> None:
    held = Held()
    ts.register("held")(DECORATORS[kind](held.__call__))
    server = serve()
    with ThreadPoolExecutor() as pool:
        first = pool.submit(predict, server, "held", 1)
        held.wait_entered()
        more = [pool.submit(predict, server, "held", item) for item in range(2, 5)]
        for _ in range(4):
            Handed.wait_came()
        stopped = pool.submit(server.stop)
        until(lambda: refuses(server))
        assert not stopped.done()
        held.let_go()
        assert [answer.result(PATIENCE).value["data"] for answer in (first, *more)] == [2, 4, 6, 8]
        stopped.result(PATIENCE)


@pytest.mark.parametrize("kind", DECORATORS)
def test_stopping_does_not_wait_for_a_batch_that_hangs(serve: Serve, kind: str) -> None:
    held = Held()
    ts.register("held")(DECORATORS[kind](held.__call__))
    server = serve({"shutdown_timeout": "100ms"})
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(predict, server, "held", 1)
        held.wait_entered()
        server.stop()
        assert answer.result(PATIENCE).error[:2] == (500, "model_failed")
    held.let_go()


@pytest.mark.parametrize("kind", DECORATORS)
def test_what_a_batch_raises_is_told_to_each_client_and_the_log(
    serve: Serve, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(items: list[int]) -> list[int]:
        raise ValueError("no such luck")

    ts.register("fail")(DECORATORS[kind](fail))
    with caplog.at_level(logging.ERROR, "trustformers_serve.serving"):
        status, code, message = predict(serve(), "fail", 1).error
    assert (status, code) == (500, "model_failed")
    assert "no such luck" in message
    (record,) = caplog.records
    assert record.getMessage() == "model 'fail' failed"
    assert record.exc_info is not None
    assert "no such luck" in str(record.exc_info[1])


def test_a_full_batcher_refuses_and_loses_nobody(serve: Serve) -> None:
    held = Held()

    @ts.register()
    @ts.batch(max_batch_size=1, max_wait_time=0, max_queue_size=1)
    def hold(items: list[int]) -> list[int]:
        return held(items)

    server = serve()
    with ThreadPoolExecutor() as pool:
        first = pool.submit(predict, server, "hold", 1)
        held.wait_entered()
        second = pool.submit(predict, server, "hold", 2)
        for _ in range(2):
            Handed.wait_came()
        refused = predict(server, "hold", 3)
        assert refused.error[:2] == (429, "queue_full")
        assert "retry-after" in refused.headers
        held.let_go()
        assert [answer.result(PATIENCE).value["data"] for answer in (first, second)] == [2, 4]


def test_a_full_batcher_that_lets_pass_runs_an_item_alone(serve: Serve) -> None:
    held = Held()

    def hold(items: list[int]) -> list[int]:
        if items == [3]:
            return [0]
        if items == [4]:
            raise ValueError("four")
        return held(items)

    batcher = ts.Batcher(max_batch=1, max_wait_ms=0, backpressure="passthrough", max_queue=1)
    ts.register("hold")(Autobatched(hold, batcher))
    server = serve()
    with batcher, ThreadPoolExecutor() as pool:
        first = pool.submit(predict, server, "hold", 1)
        held.wait_entered()
        second = pool.submit(predict, server, "hold", 2)
        for _ in range(2):
            Handed.wait_came()
        assert predict(server, "hold", 3).value["data"] == 0
        assert predict(server, "hold", 4).error[:2] == (500, "model_failed")
        held.let_go()
        assert [answer.result(PATIENCE).value["data"] for answer in (first, second)] == [2, 4]


def test_what_stands_above_a_batched_function_is_called(serve: Serve) -> None:
    @ts.batch(max_wait_time=0)
    async def double(items: list[int]) -> list[int]:
        return [item * 2 for item in items]

    @ts.register()
    @functools.wraps(double)
    async def one_more(item: int) -> int:
        return await double(item) + 1

    assert predict(serve(), "double", 3).value["data"] == 7
    assert getattr(one_more, "batcher", None) is double.batcher, "as `wraps` has it"


def test_defaults_of_a_batched_function_are_no_inputs(serve: Serve) -> None:
    @ts.register()
    @ts.autobatch(max_wait_ms=0)
    def scale(items: list[int], factor: int = 3) -> list[int]:
        return [item * factor for item in items]

    assert predict(serve(), "scale", {"data": 2}).value["data"] == 6


def test_workers_share_what_is_served(serve: Serve) -> None:
    together = threading.Barrier(2, timeout=PATIENCE)

    @ts.register()
    @ts.batch(max_batch_size=1, max_wait_time=0, workers=2)
    def meet(items: list[int], worker_id: int) -> list[int]:
        together.wait()
        return [worker_id for _ in items]

    predictions = predict(serve(), "meet", {"instances": list(range(8))}).value["predictions"]
    assert sorted(prediction["data"] for prediction in predictions) == [0] * 4 + [1] * 4


@pytest.mark.parametrize("kind", DECORATORS)
def test_a_coroutine_function_that_blocks_keeps_no_plain_batch_waiting(serve: Serve, kind: str) -> None:
    ts.register("double")(DECORATORS[kind](lambda items: [item * 2 for item in items]))
    check_beside_one_that_blocks(serve, ts.register)


def test_a_coroutine_function_that_blocks_keeps_no_batch_of_an_app_waiting() -> None:
    app = ts.App(batch_timeout_ms=0)

    @app.model("double")
    def _(items: list[int]) -> list[float]:
        return [item * 2 for item in items]

    check_beside_one_that_blocks(lambda: app.serve(port=0, block=False), app.model)


def check_beside_one_that_blocks(serve: Callable[[], ts.Server], model: Callable[[str], Any]) -> None:
    entered, leave = threading.Event(), threading.Event()

    @model("block")
    async def _(item: int) -> int:
        entered.set()
        leave.wait(PATIENCE)
        return item

    with serve() as server, ThreadPoolExecutor() as pool:
        blocked = pool.submit(predict, server, "block", 1)
        assert entered.wait(PATIENCE)
        try:
            doubled = pool.submit(predict, server, "double", 2)
            assert doubled.result(PATIENCE / 2).value["data"] == 4
            assert not blocked.done()
        finally:
            leave.set()
        assert blocked.result(PATIENCE).value["data"] == 1


def test_the_more_urgent_requests_leave_first(serve: Serve) -> None:
    held = Held()
    ts.register("held")(ts.batch(max_batch_size=1, max_wait_time=0)(held.__call__))
    server = serve()
    requests: dict[int, dict[str, Any]] = {
        1: {"value": {"data": 1}},
        2: {"value": {"data": 2, "priority": "low"}},
        3: {"value": {"data": 3}},
        4: {"value": {"data": 4}, "headers": {"x-priority": "high"}},
        5: {"value": {"data": 5, "priority": "critical"}},
    }
    with ThreadPoolExecutor() as pool:
        answers: dict[int, Any] = {}
        for item, request in requests.items():
            answers[item] = pool.submit(predict, server, "held", **request)
            Handed.wait_came()
            if item == 1:
                held.wait_entered()
        held.let_go()
        assert [answer.result(PATIENCE).value["data"] for answer in answers.values()] == [2, 4, 6, 8, 10]
    assert held.batches == [[1], [5], [4], [3], [2]]


@pytest.mark.parametrize("decorator", [ts.autobatch, ts.batch])
def test_an_item_that_is_too_large_is_the_clients_mistake(serve: Serve, decorator: Any) -> None:
    ts.register("length")(decorator(max_item_bytes=1000)(lambda items: [len(item) for item in items]))
    server = serve()
    status, code, message = predict(server, "length", {"data": "x" * 2000}).error
    assert (status, code) == (422, "invalid_input")
    assert "has more than max_item_bytes = 1,000 bytes" in message
    assert predict(server, "length", {"data": "short"}).value["data"] == 5


def test_callers_of_the_process_and_of_the_server_share_a_batch(serve: Serve) -> None:
    sizes = list[int]()

    @ts.register()
    @ts.autobatch(max_batch=2, max_wait_ms=60_000)
    def size(items: list[int]) -> list[int]:
        sizes.append(len(items))
        return [len(items)] * len(items)

    server = serve()
    with ThreadPoolExecutor() as pool:
        here = pool.submit(size, 1)
        assert predict(server, "size", 2).value["data"] == here.result(PATIENCE) == 2
    assert sizes == [2]
