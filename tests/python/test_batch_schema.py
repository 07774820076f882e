"""`batch` with an `input_schema`: what is checked before it is queued."""

from __future__ import annotations

import asyncio
from types import MappingProxyType
from typing import Any

import pydantic
import pytest
import trustformers_serve as ts


class Text(pydantic.BaseModel):
    text: str
    top_k: int = 3


class Wrapped(pydantic.BaseModel):
    data: dict[str, int]


@ts.batch(input_schema=Text, max_wait_time=0)
async def describe(items: list[Text]) -> list[str]:
    assert all(isinstance(item, Text) for item in items)
    return [f"{item.text}:{item.top_k}" for item in items]


@ts.batch(input_schema=Wrapped, max_wait_time=0)
def total(items: list[Wrapped]) -> list[int]:
    return [sum(item.data.values()) for item in items]


def call(function: Any, item: Any) -> Any:
    async def main() -> Any:
        try:
            return await function(item)
        finally:
            await function.batcher.stop()

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("item", "result"),
    [
        (Text(text="a", top_k=1), "a:1"),
        ({"text": "a"}, "a:3"),
        (MappingProxyType({"text": "a", "top_k": 2}), "a:2"),
        ({"data": {"text": "a"}}, "a:3"),
        ({"data": {"text": "a"}, "priority": "high"}, "a:3"),
        ({"data": Text(text="b")}, "b:3"),
        ({"text": "whole", "data": {"other": 1}}, "whole:3"),
    ],
)
def test_an_item_is_an_instance_or_what_makes_one_unwrapped_first_and_then_whole(
    item: Any, result: str
) -> None:
    assert call(describe, item) == result


def test_a_schema_with_the_wrappers_name_gets_the_whole_body() -> None:
    assert call(total, {"data": {"a": 1, "b": 2}}) == 3
    assert call(total, {"data": {"data": {"a": 4}}}) == 4
    with pytest.raises(ts.ValidationError, match=r"total: data\.a: .*integer"):
        call(total, {"data": {"a": "x"}})


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"top_k": 1}, "describe: text: Field required"),
        ({"text": 5}, "describe: text: Input should be a valid string"),
        ({"text": "a", "top_k": "many"}, "describe: top_k: .*integer"),
        ({"data": {"top_k": 2}}, "describe: text: Field required"),
        ({}, "describe: text: Field required"),
    ],
)
def test_a_misfit_is_named_by_place_and_is_a_value_error(item: Any, message: str) -> None:
    with pytest.raises(ts.ValidationError, match=message) as caught:
        call(describe, item)
    assert isinstance(caught.value, ValueError)
    assert not isinstance(caught.value, TypeError)
    assert (caught.value.code, caught.value.status) == ("invalid_input", 422)


@pytest.mark.parametrize("item", ["text", 5, None, ["text"], Wrapped(data={})])
def test_what_is_neither_mapping_nor_instance_is_a_type_error_too(item: Any) -> None:
    with pytest.raises(
        ts.ValidationError, match="describe takes a Text or a mapping of its fields, not"
    ) as caught:
        call(describe, item)
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, ValueError)


def test_a_misfit_is_never_queued_and_its_neighbours_are_answered() -> None:
    async def main() -> None:
        items: list[Any] = [{"text": "a"}, {"text": None}, {"text": "b"}]
        results = await asyncio.gather(*map(describe, items), return_exceptions=True)
        assert results[::2] == ["a:3", "b:3"]
        assert isinstance(results[1], ts.ValidationError)
        (metrics,) = describe.batcher.metrics()
        assert metrics.items == 2
        await describe.batcher.stop()

    asyncio.run(main())


@pytest.mark.parametrize("schema", [int, dict, "Text", Text(text="a")])
def test_what_is_no_schema_is_refused_at_decoration(schema: Any) -> None:
    def work(items: list[Any]) -> list[Any]:
        return items

    with pytest.raises(ts.DecorationError, match=r"input_schema of .*work must be a pydantic model"):
        ts.batch(input_schema=schema)(work)


def test_an_instance_of_the_schema_is_what_runs() -> None:
    seen: list[Any] = []

    @ts.batch(input_schema=Text, max_wait_time=0)
    def keep(items: list[Text]) -> list[int]:
        seen.extend(items)
        return [0] * len(items)

    item = Text(text="same")
    call(keep, item)
    assert seen[0] is item
