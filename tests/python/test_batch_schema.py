"""`batch` with an `input_schema`: what is checked before it is queued."""

from __future__ import annotations

import asyncio
from types import MappingProxyType
from typing import Any

import pydantic
import pytest
import trustformers_serve as ts
from served import MSGPACK, Serve, ask, predict


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


class Lenient(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    a: int | None = None


class Renamed(pydantic.BaseModel):
    a: int | None = pydantic.Field(default=None, alias="first")
    b: int | None = pydantic.Field(default=None, validation_alias=pydantic.AliasChoices("second", "zweite"))
    c: int | None = pydantic.Field(default=None, validation_alias=pydantic.AliasPath("third", 0))


class RenamedOrNot(Renamed):
    model_config = pydantic.ConfigDict(populate_by_name=True)


class Opaque(pydantic.BaseModel):
    a: int | None = None
    data: Any = None


class Numbers(pydantic.RootModel[dict[str, int]]):
    pass


def read(schema: type[pydantic.BaseModel], item: Any) -> Any:
    """What a function with the schema is given for an item."""

    @ts.batch(input_schema=schema, max_wait_time=0)
    async def same(items: list[Any]) -> list[Any]:
        return items

    return call(same, item)


@pytest.mark.parametrize(
    ("schema", "item", "message"),
    [
        (Lenient, {"data": {"a": "x"}}, "same: a: .*integer"),
        (Lenient, {"data": {"a": "x"}, "priority": "high"}, "same: a: .*integer"),
        (Lenient, {"data": 5}, "same: Input should be .*dictionary"),
        (Renamed, {"data": {"first": "x"}, "a": 1}, "same: first: .*integer"),
        # The error is that of the attempt in which there are fields of the schema's.
        (Lenient, {"a": "whole", "data": {"a": "inside"}}, "same: a: .*integer"),
        (Text, {"text": 5, "data": {"other": 1}}, "same: text: Input should be a valid string"),
        (Text, {"text": 5, "data": {"top_k": 1}}, "same: text: Field required"),
        (Wrapped, {"data": {"data": {"a": "x"}}}, r"same: data\.a: .*integer"),
        (Numbers, {"data": {"a": "x"}}, "same: a: .*integer"),
    ],
)
def test_what_does_not_fit_inside_is_not_taken_for_a_body_without_fields(
    schema: type[pydantic.BaseModel], item: Any, message: str
) -> None:
    with pytest.raises(ts.ValidationError, match=message):
        read(schema, item)


@pytest.mark.parametrize(
    ("schema", "item", "expected"),
    [
        (Lenient, {"data": {"a": "x"}, "a": 1}, {"a": 1, "data": {"a": "x"}}),
        (Renamed, {"data": {"first": "x"}, "first": 1}, {"a": 1, "b": None, "c": None}),
        (Renamed, {"data": {"first": "x"}, "zweite": 1}, {"a": None, "b": 1, "c": None}),
        (Renamed, {"data": {"first": "x"}, "third": [1]}, {"a": None, "b": None, "c": 1}),
        (RenamedOrNot, {"data": {"first": "x"}, "a": 1}, {"a": 1, "b": None, "c": None}),
        (Opaque, {"data": {"a": "x"}}, {"a": None, "data": {"a": "x"}}),
        (Numbers, {"data": 5}, {"data": 5}),
    ],
)
def test_a_whole_body_with_a_field_of_the_schema_is_read_after_a_real_failure_inside(
    schema: type[pydantic.BaseModel], item: Any, expected: Any
) -> None:
    assert read(schema, item).model_dump() == expected


def test_over_http_a_misfit_inside_is_refused_and_a_whole_body_that_fits_is_read(serve: Serve) -> None:
    @ts.register()
    @ts.batch(input_schema=Lenient)
    async def lenient(items: list[Lenient]) -> list[Any]:
        return [item.a for item in items]

    @ts.register()
    @ts.batch(input_schema=Opaque)
    def opaque(items: list[Opaque]) -> list[Any]:
        return [[item.a, item.data] for item in items]

    server = serve()
    for answer in (
        predict(server, "lenient", {"data": {"a": "x"}}),
        predict(server, "lenient", {"data": {"a": "x"}, "priority": "high"}),
        ask(server, "/v1/inference", {"model": "lenient", "data": {"a": "x"}}),
    ):
        status, code, message = answer.error
        assert (status, code) == (422, "invalid_input")
        assert "lenient: a: Input should be a valid integer" in message
    assert predict(server, "lenient", {"data": {"a": 1}}).value["data"] == 1
    assert predict(server, "lenient", {"a": 1}).value["data"] == 1
    assert predict(server, "opaque", {"data": {"a": 1}}).value["data"] == [1, None]
    assert predict(server, "opaque", {"data": {"a": "x"}}).value["data"] == [None, {"a": "x"}]
    beside = {"data": {"a": "x"}, "a": 5}
    assert predict(server, "opaque", beside).value["data"] == [5, {"a": "x"}]
    in_msgpack = predict(server, "opaque", beside, headers={"content-type": MSGPACK})
    assert in_msgpack.value["data"] == [5, {"a": "x"}]
    many = predict(server, "opaque", {"instances": [{"a": 1}], "a": 5})
    assert many.error == (400, "malformed_request", many.error[2])
    assert 'unknown field "a"' in many.error[2]


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
