"""What the decorators and batchers take, in which order, and what they do where nothing is said."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import trustformers_serve as ts
from executors import HOUR_MS, PATIENCE, Held
from trustformers_serve.http import OpenAIResponsesExecutor
from trustformers_serve.torch import TorchExecutor

REQUIRED = inspect.Parameter.empty

STREAM_LIMITS: dict[str, Any] = {
    "max_batch_size": 256,
    "min_batch_size": 1,
    "batch_timeout_s": 0.05,
    "max_queue_size": 5000,
    "prefetch_batches": 2,
}

POSITIONAL: dict[Callable[..., Any], dict[str, Any]] = {
    ts.autobatch: {"max_batch": 32, "max_wait_ms": 10},
    ts.Batcher: {
        "max_batch": 32,
        "max_wait_ms": 10,
        "backpressure": "block",
        "max_queue": None,
        "max_item_bytes": None,
    },
    ts.Batcher.run: {"self": REQUIRED, "item": REQUIRED, "executor": REQUIRED},
    ts.Batcher.arun: {"self": REQUIRED, "item": REQUIRED, "executor": REQUIRED},
    ts.Batcher.submit: {"self": REQUIRED, "item": REQUIRED, "executor": REQUIRED},
    ts.Batcher.map: {"self": REQUIRED, "items": REQUIRED, "executor": REQUIRED},
    ts.Batcher.flush: {"self": REQUIRED},
    ts.Batcher.metrics: {"self": REQUIRED},
    ts.Batcher.close: {"self": REQUIRED},
    OpenAIResponsesExecutor: {
        "api_key": REQUIRED,
        "model": REQUIRED,
        "base_url": "https://api.openai.com/v1",
        "max_concurrency": 16,
        "timeout": 60.0,
        "max_retries": 3,
    },
    TorchExecutor: {
        "model": REQUIRED,
        "collate_fn": None,
        "device": None,
        "uncollate_fn": None,
        "dtype": None,
    },
    ts.DynamicBatcher: {
        # Without one the error says what is required.
        "process_fn": None,
        "cost_estimator": None,
        "target_batch_cost": 32000,
        "default_cost": 1,
        **STREAM_LIMITS,
    },
    ts.DynamicBatcher.submit: {"self": REQUIRED, "record": REQUIRED},
    ts.DynamicBatcher.submit_batch: {"self": REQUIRED, "records": REQUIRED},
    ts.TokenBatcher: {
        "inference_fn": None,
        "process_fn": None,
        "token_estimator": None,
        "cost_estimator": None,
        "target_batch_tokens": None,
        "target_batch_cost": 32000,
        "default_token_estimate": None,
        "default_cost": 1,
        **STREAM_LIMITS,
    },
    ts.TokenBatcher.submit: {"self": REQUIRED, "record": REQUIRED},
    ts.TokenBatcher.submit_batch: {"self": REQUIRED, "records": REQUIRED},
    ts.Prompt: {"text": REQUIRED},
    ts.BatchStats: {
        "total_submitted": 0,
        "total_completed": 0,
        "total_batches": 0,
        "total_batch_cost": 0,
        "avg_batch_size": 0.0,
        "avg_batch_cost": 0.0,
        "busy_time_s": 0.0,
        "idle_time_s": 0.0,
    },
    ts.batch: {
        "max_batch_size": 32,
        "max_wait_time": 0.01,
        "input_schema": None,
        "max_queue_size": 128,
        "workers": 1,
        "target_latency": None,
    },
    ts.register: {"name": None, "version": "1"},
    ts.registry.get: {"name": REQUIRED, "version": None},
    ts.registry.clear: {},
    ts.serve: {"host": "127.0.0.1", "port": 8000, "block": True},
    ts.App: {"name": "app", "enable_batching": True, "max_batch_size": 32, "batch_timeout_ms": 10.0},
    ts.App.model: {"self": REQUIRED, "name": REQUIRED, "version": "1", "streaming": False},
    ts.App.predict: {"self": REQUIRED, "name": REQUIRED, "item": REQUIRED, "version": None},
    ts.App.stop: {"self": REQUIRED},
    ts.App.serve: {"self": REQUIRED, "host": "127.0.0.1", "port": 8000, "block": True},
    ts.load_app: {"path": REQUIRED},
}
"""All parameters that may be given by position, in order, with their defaults."""

BY_NAME: dict[Callable[..., Any], dict[str, Any]] = {
    ts.autobatch: {"max_item_bytes": None},
    ts.batch: {"max_item_bytes": None},
    ts.App.model: {"batched": None},
    ts.Batcher.map: {"progress": False},
    ts.DynamicBatcher.submit: {"estimated_cost": None},
    ts.DynamicBatcher.submit_batch: {"estimated_cost": None},
    ts.TokenBatcher.submit: {"estimated_tokens": None, "estimated_cost": None},
    ts.TokenBatcher.submit_batch: {"estimated_tokens": None, "estimated_cost": None},
}
"""Parameters that are given by name."""


def parameters(function: Callable[..., Any], *kinds: Any) -> dict[str, Any]:
    found = inspect.signature(function).parameters.values()
    return {parameter.name: parameter.default for parameter in found if parameter.kind in kinds}


@pytest.mark.parametrize("function", POSITIONAL, ids=lambda function: function.__qualname__)
def test_parameters_have_their_order_and_their_defaults(function: Callable[..., Any]) -> None:
    by_position = parameters(function, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    assert list(by_position.items()) == list(POSITIONAL[function].items())
    by_name = parameters(function, inspect.Parameter.KEYWORD_ONLY)
    for name, default in BY_NAME.get(function, {}).items():
        assert by_name[name] == default
    assert REQUIRED not in by_name.values(), "nothing else has to be given"


def test_a_batchers_queue_holds_sixteen_batches_unless_it_is_told() -> None:
    held = Held()
    with ts.Batcher(max_batch=2, max_wait_ms=HOUR_MS, backpressure="drop") as batcher:
        running = [batcher.submit(item, held) for item in range(2)]
        held.wait_entered()
        waiting = [batcher.submit(item, held) for item in range(2, 2 + 16 * 2)]
        with pytest.raises(ts.QueueFullError):
            batcher.submit(-1, held)
        held.let_go()
        results = [future.result(PATIENCE) for future in [*running, *waiting]]
    assert results == [item * 2 for item in range(2 + 16 * 2)]
