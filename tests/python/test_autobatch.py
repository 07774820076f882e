"""`autobatch`: functions and methods of a list, called with one item."""

from __future__ import annotations

import inspect
import itertools
import pickle
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import trustformers_serve as ts
from executors import HOUR_MS, PATIENCE, own_threads

ROOT = Path(__file__).resolve().parents[2]


@ts.autobatch(max_batch=16, max_wait_ms=2)
def double(items: list[int]) -> list[int]:
    """Twice each."""
    return [item * 2 for item in items]


class Model:
    def __init__(self, factor: int) -> None:
        self.factor = factor
        self.sizes: list[int] = []

    @ts.autobatch(max_batch=8, max_wait_ms=20)
    def scale(self, items: list[int]) -> list[int]:
        """Times the factor."""
        self.sizes.append(len(items))
        return [item * self.factor for item in items]


def test_a_thousand_threads_get_exactly_their_own_results() -> None:
    with ThreadPoolExecutor(1000) as threads:
        assert list(threads.map(double, range(5000))) == [item * 2 for item in range(5000)]
    assert double.batcher.metrics().avg_batch > 1


def test_a_function_keeps_its_name_signature_and_docstring() -> None:
    assert double.__name__ == "double"
    assert double.__doc__ == "Twice each."
    assert str(inspect.signature(double)) == "(items: 'list[int]') -> 'list[int]'"
    assert "double" in repr(double)


def test_a_method_batches_each_instance_by_itself() -> None:
    two, three = Model(2), Model(3)
    with ThreadPoolExecutor(16) as threads:
        results = list(threads.map(lambda item: (two if item % 2 else three).scale(item), range(160)))
    assert results == [item * (2 if item % 2 else 3) for item in range(160)]
    assert sum(two.sizes) == sum(three.sizes) == 80
    assert max(two.sizes) > 1
    assert Model.scale(two, 4) == 8


def test_a_method_keeps_its_name_signature_and_docstring() -> None:
    scale = Model(2).scale
    assert scale.__name__ == "scale"
    assert scale.__doc__ == Model.scale.__doc__ == "Times the factor."
    assert str(inspect.signature(scale)) == "(items: 'list[int]') -> 'list[int]'"
    assert str(inspect.signature(Model.scale)).startswith("(self, items")


def test_it_is_pickled_by_name() -> None:
    assert pickle.loads(pickle.dumps(double)) is double
    assert pickle.loads(pickle.dumps(Model.scale)) is Model.scale


def test_static_and_class_methods_are_decorated_from_above() -> None:
    class Both:
        @staticmethod
        @ts.autobatch()
        def static(items: list[int]) -> list[int]:
            return items

    assert Both.static(3) == 3
    assert Both().static(4) == 4
    for kind in (staticmethod, classmethod):
        with pytest.raises(TypeError, match=f"chosen is a {kind.__name__}: put `@{kind.__name__}` above"):
            ts.autobatch()(kind(chosen))  # pyright: ignore[reportCallIssue, reportArgumentType]


def chosen(items: list[int]) -> list[int]:
    return items


async def coroutine(items: list[int]) -> list[int]:
    return items


async def async_generator(items: list[int]) -> Any:
    yield items


def generator(items: list[int]) -> Iterator[int]:
    yield from items


def none() -> list[int]:
    return []


def three(a: int, b: int, c: int) -> list[int]:
    return [a, b, c]


def keyword(items: list[int], *, factor: int) -> list[int]:
    return [item * factor for item in items]


@pytest.mark.parametrize("function", [coroutine, async_generator, generator, none, three, keyword, Model])
def test_the_wrong_kind_of_function_is_named_at_decoration(function: Any) -> None:
    with pytest.raises(TypeError, match=function.__name__):
        ts.autobatch()(function)


def test_what_does_not_say_what_it_takes_is_named_too() -> None:
    with pytest.raises(ts.DecorationError, match="max does not say what it takes"):
        ts.autobatch()(max)


def test_further_parameters_that_need_no_value_do_not_count() -> None:
    @ts.autobatch(max_wait_ms=0)
    def scale(items: list[int], factor: int = 3, *more: int, **options: int) -> list[int]:
        assert not more
        assert not options
        return [item * factor for item in items]

    assert scale(2) == 6


def test_a_callable_object_may_have_attributes_of_any_name() -> None:
    class Scaler:
        def __init__(self) -> None:
            self.batcher = "its own"
            self._function = "its own"

        def __call__(self, items: list[int]) -> list[int]:
            return [item * 2 for item in items]

    assert ts.autobatch(max_wait_ms=0)(Scaler())(21) == 42


def test_wrong_limits_and_missing_parentheses_are_told_at_decoration() -> None:
    with pytest.raises(ValueError, match="max_batch"):
        ts.autobatch(max_batch=0)
    with pytest.raises(TypeError, match=r"write `@autobatch\(\)` above chosen"):
        ts.autobatch(chosen)  # pyright: ignore[reportArgumentType]


def nothing(items: list[int]) -> Any:
    return None


def fewer(items: list[int]) -> Any:
    return items[1:]


def shortened(items: list[int]) -> Any:
    items.pop()
    return items


def endless(items: list[int]) -> Any:
    return (item for item in itertools.count())


def alone_only(items: list[int]) -> Any:
    if len(items) > 1:
        raise ValueError(len(items))
    return items


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (nothing, "nothing returned None for a batch of 4"),
        (fewer, "fewer returned 3 results for a batch of 4"),
        (shortened, "shortened returned 3 results for a batch of 4"),
        (endless, "endless returned generator for a batch of 4"),
        (alone_only, "alone_only raised ValueError: 4"),
    ],
)
def test_what_is_no_list_of_results_fails_everyone_once_and_names_the_function(
    function: Any, message: str
) -> None:
    batched = ts.autobatch(max_batch=4, max_wait_ms=HOUR_MS)(function)
    with ThreadPoolExecutor(4) as threads:
        futures = [threads.submit(batched, item) for item in range(4)]
        errors = [future.exception(PATIENCE) for future in futures]
    assert all(isinstance(error, ts.ExecutorError) and message in str(error) for error in errors)
    assert len({id(error) for error in errors}) == 4
    assert batched.batcher.metrics().batches == 1, "it is not run again in parts"
    batched.batcher.close()


def test_a_closed_function_refuses() -> None:
    function = ts.autobatch()(chosen)
    assert function(1) == 1
    function.batcher.close()
    with pytest.raises(ts.BatcherClosedError):
        function(1)


def test_decorating_starts_no_thread() -> None:
    before = own_threads()
    ts.autobatch()(chosen)
    assert own_threads() <= before


def test_the_example_runs() -> None:
    result = subprocess.run(
        [sys.executable, str(ROOT / "examples/autobatch_threads.py")],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    assert "2000 items in" in result.stdout
