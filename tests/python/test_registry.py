"""`register` and `registry`: functions under names and versions."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pydantic
import pytest
import trustformers_serve as ts
from trustformers_serve import registry

if TYPE_CHECKING:
    from nowhere import Missing  # pyright: ignore[reportMissingImports]


Vector = Annotated[np.ndarray, ts.Tensor("f32", (3,))]


@pytest.fixture(autouse=True)
def empty() -> Iterator[None]:
    registry.clear()
    yield
    registry.clear()


def double(item: int) -> int:
    return item * 2


def test_a_function_is_returned_unchanged_and_found_by_its_name() -> None:
    assert ts.register()(double) is double
    info = registry.get("double")
    assert (info.name, info.version, info.streaming) == ("double", "1", False)
    assert info.function is double
    assert (info.input_types, info.output_type) == ({"item": int}, int)
    assert ts.registry is registry


def test_the_newest_version_is_meant_by_natural_order() -> None:
    for version in ("v9", "v10", "v2", "1.10"):
        ts.register("scale", version)(functools.partial(double))
    assert registry.get("scale").version == "v10"
    assert registry.get("scale", "v9").version == "v9"
    assert [info.version for info in registry.all()] == ["1.10", "v2", "v9", "v10"]


def test_what_is_not_there_is_named_with_what_is() -> None:
    with pytest.raises(ts.ModelNotFoundError, match="'scale'; there are: none"):
        registry.get("scale")
    ts.register("double", "1")(double)
    ts.register("double", "2")(double)
    with pytest.raises(ts.ModelNotFoundError, match="'scale'; there are: double"):
        registry.get("scale")
    with pytest.raises(ts.ModelNotFoundError, match="'double' has no version '3'; it has: 1, 2") as caught:
        registry.get("double", "3")
    assert isinstance(caught.value, ts.VersionNotFoundError)
    registry.clear()
    assert registry.all() == []
    with pytest.raises(ts.ModelNotFoundError):
        registry.get("double")


def test_a_batched_function_is_a_model_of_one_item() -> None:
    @ts.register("twice")
    @ts.batch(workers=2)
    async def twice(items: list[int], worker_id: int) -> list[float]:
        return [item * 2.0 for item in items]

    @ts.register("text")
    @ts.autobatch()
    def text(items: list[int]) -> list[str]:
        return [str(item) for item in items]

    for name, output in (("twice", float), ("text", str)):
        info = registry.get(name)
        assert (info.input_types, info.output_type) == ({"items": int}, output)
        assert not info.streaming
    assert registry.get("twice").function is twice
    assert asyncio.run(registry.get("twice").function(4)) == 8.0
    assert registry.get("text").function(4) == "4"
    text.batcher.close()


class Query(pydantic.BaseModel):
    text: str


def test_the_schema_of_a_batched_function_is_its_input_type() -> None:
    @ts.register("search")
    @ts.batch(input_schema=Query)
    async def search(items: list[Any]) -> list[str]:
        return [item.text for item in items]

    info = registry.get("search")
    assert info.input_types == {"items": Query}
    item = {"data": {"text": "wrapped"}}
    assert info.arguments(item) == ((item,), {}), "the function itself unwraps it"


def test_generators_of_both_kinds_stream_one_element_at_a_time() -> None:
    @ts.register()
    def count(to: int) -> Iterator[int]:
        yield from range(to)

    @ts.register()
    async def words(text: str) -> AsyncIterator[str]:
        for word in text.split():
            yield word

    assert (registry.get("count").streaming, registry.get("count").output_type) == (True, int)
    assert (registry.get("words").streaming, registry.get("words").output_type) == (True, str)


def test_annotations_are_resolved_with_their_metadata_and_local_names() -> None:
    class Local:
        pass

    @ts.register()
    def combine(vector: Vector, local: Local, anything: Any, more: int | None = None) -> list[Local]:
        return [local]

    @ts.register()
    def bare(item: Any) -> Any:
        return item

    bare.__annotations__ = {}
    ts.register("bare")(bare)
    assert registry.get("bare").input_types == {"item": Any}
    assert registry.get("bare").output_type is Any
    info = registry.get("combine")
    assert info.input_types == {"vector": Vector, "local": Local, "anything": Any, "more": int | None}
    assert info.output_type == list[Local]


def test_methods_partial_functions_and_callable_objects_are_functions() -> None:
    class Model:
        def predict(self, item: int) -> str:
            return str(item)

        def __call__(self, item: bytes) -> bytes:
            return item

    model = Model()
    ts.register()(model.predict)
    ts.register("object")(model)
    ts.register("partial")(functools.partial(Model.predict, model))
    assert registry.get("predict").input_types == {"item": int}
    assert registry.get("object").input_types == {"item": bytes}
    assert registry.get("partial").output_type is str


def test_an_item_is_given_by_position_or_by_name_as_the_function_takes_it() -> None:
    def by_name(*, item: int) -> int:
        return item

    def wrapping(*args: Any, **kwargs: Any) -> Any:
        assert not kwargs
        return args

    def with_more(item: int, *more: int, **options: int) -> tuple[Any, ...]:
        return item, more, options

    def alone(item: int, /) -> int:
        return item

    for function, taken, result in (
        (by_name, {"item": int}, 3),
        (wrapping, {"args": Any}, (3,)),
        (with_more, {"item": int}, (3, (), {})),
        (alone, {"item": int}, 3),
    ):
        info = registry.get(ts.register()(function).__name__)
        assert info.input_types == taken
        args, kwargs = info.arguments(3)
        assert info.function(*args, **kwargs) == result


def test_an_annotation_that_cannot_be_resolved_is_named() -> None:
    def lost(item: Missing) -> int:  # pyright: ignore[reportUnknownParameterType]
        return 1

    with pytest.raises(ts.DecorationError, match=r"lost cannot be resolved: NameError: .*Missing"):
        ts.register()(lost)


def positional(left: int, right: int, /) -> int:
    return left - right


def whatever(**values: int) -> int:
    return len(values)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (3, "register takes a function, not 3"),
        (None, "register takes a function, not None"),
        (Query, "register takes a function, not Query"),
        (staticmethod(double), "put `@staticmethod` above `@register`"),
        (max, "max does not say what it takes"),
        (positional, "positional must take its 2 parameters by name"),
        (whatever, "whatever must have parameters, each with a name of its own"),
    ],
)
def test_what_is_no_function_is_refused(function: Any, message: str) -> None:
    with pytest.raises(ts.DecorationError, match=message):
        ts.register("name")(function)
    assert registry.all() == []


def test_a_batched_method_is_registered_as_that_of_an_instance() -> None:
    class Model:
        @ts.batch()
        async def predict(self, items: list[int]) -> list[str]:
            return [str(item) for item in items]

    with pytest.raises(ts.DecorationError, match=r"Model\.predict is a method"):
        ts.register()(Model.predict)
    ts.register()(Model().predict)
    assert registry.get("predict").input_types == {"items": int}


def test_a_method_is_registered_as_that_of_an_instance() -> None:
    with pytest.raises(ts.DecorationError, match=r"Model\.predict is a method: .*`register\(...\)\(inst"):

        class Model:  # pyright: ignore[reportUnusedClass]
            @ts.register()
            def predict(self, item: int) -> str:
                return str(item)

    class Threads:
        @ts.autobatch()
        def predict(self, items: list[int]) -> list[str]:
            return [str(item) for item in items]

    with pytest.raises(ts.DecorationError, match=r"Threads\.predict is a method"):
        ts.register()(Threads.predict)
    assert registry.all() == []
    ts.register()(Threads().predict)
    assert registry.get("predict").function(3) == "3"


@pytest.mark.parametrize("decorator", [ts.batch, ts.autobatch])
@pytest.mark.parametrize("below", [ts.batch, ts.autobatch])
def test_a_batched_function_is_not_batched_again(decorator: Any, below: Any) -> None:
    def count(items: list[int]) -> list[str]:
        return [str(len(items))] * len(items)

    name = rf"count is batched already: put `@{decorator.__name__}` above the function alone"
    with pytest.raises(ts.DecorationError, match=name):
        decorator()(below()(count))


@pytest.mark.parametrize(("name", "version", "kind"), [(3, "1", "name"), ("double", 2, "version")])
def test_names_and_versions_are_strings(name: Any, version: Any, kind: str) -> None:
    with pytest.raises(ts.DecorationError, match=rf"double cannot have the {kind} \d: .* not int"):
        ts.register(name, version)(double)


def test_forgotten_parentheses_are_named() -> None:
    with pytest.raises(ts.DecorationError, match=r"@register\(\)` above double"):
        ts.register(double)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("name", ["", "a/b", "a b", "../x", "é", "a?b"])
def test_names_and_versions_are_those_that_a_url_can_have(name: str) -> None:
    with pytest.raises(ts.ConfigurationError, match="double cannot have the name"):
        ts.register(name)(double)
    with pytest.raises(ts.ConfigurationError, match="double cannot have the version"):
        ts.register("double", name)(double)


def test_a_taken_name_is_refused_but_a_function_may_be_defined_anew() -> None:
    def make(factor: int) -> Any:
        def scale(item: int) -> int:
            return item * factor

        return scale

    first, second = make(2), make(3)
    ts.register("scale")(first)
    ts.register("scale")(second)
    assert registry.get("scale").function is second
    with pytest.raises(
        ts.ConfigurationError, match=r"double cannot be model 'scale' version '1': .*scale is"
    ):
        ts.register("scale")(double)


def test_arguments_are_checked_by_name() -> None:
    @ts.register()
    def area(width: float, height: float = 1.0) -> float:
        return width * height

    info = registry.get("area")
    assert info.arguments({"width": 2}) == ((), {"width": 2.0})
    assert info.arguments({"width": 2, "height": 3}) == ((), {"width": 2.0, "height": 3.0})
    for item, message in (
        ({}, "width: missing"),
        ({"width": 1, "depth": 2}, "depth: unknown; it takes width, height"),
        ({"width": "wide"}, "width: .*valid number"),
        (5, "a mapping of width, height, not int"),
    ):
        with pytest.raises(ts.ValidationError, match=message):
            info.arguments(item)
    ts.register()(double)
    assert registry.get("double").arguments(4) == ((4,), {})
    with pytest.raises(ts.ValidationError, match="item: .*integer"):
        registry.get("double").arguments("x")


def test_registries_are_apart() -> None:
    own = ts.Registry()
    own.add(ts.ModelInfo("double", "1", double, False, {"item": int}, int))
    assert own.get("double").function is double
    assert registry.all() == []
