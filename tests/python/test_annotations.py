"""`annotations`: what fits, what is converted, and what clients are told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import pydantic
import pytest
import torch
import trustformers_serve as ts
from trustformers_serve.annotations import check, require, schema
from typing_extensions import TypedDict

Matrix = Annotated[np.ndarray, ts.Tensor("f32", (3, -1))]


class Point(pydantic.BaseModel):
    x: float
    tags: list[str] = []


class Picture(pydantic.BaseModel):
    pixels: Annotated[np.ndarray, ts.Tensor("f32", (2, 2))]


@dataclass
class Pair:
    left: int
    right: int


class Options(TypedDict):
    depth: int


@dataclass
class BareArray:
    pixels: np.ndarray


@dataclass
class BareTensor:
    pixels: torch.Tensor


class BareField(TypedDict):
    pixels: npt.NDArray[np.float32]


@dataclass
class SaidArray:
    pixels: Annotated[np.ndarray, ts.Tensor()]


class Plain:
    pass


PLAIN = Plain()


@pytest.mark.parametrize(
    ("annotation", "value", "result"),
    [
        (Any, PLAIN, PLAIN),
        (int, 3, 3),
        (float, 3, 3.0),
        (str | None, None, None),
        (list[float], [1, 2], [1.0, 2.0]),
        (dict[str, list[int]], {"a": [1]}, {"a": [1]}),
        (Literal["a", "b"], "b", "b"),
        (Point, {"x": 1}, Point(x=1.0)),
        (list[Point], [{"x": 1, "tags": ["t"]}], [Point(x=1.0, tags=["t"])]),
        (Pair, {"left": 1, "right": 2}, Pair(1, 2)),
        (Options, {"depth": 2}, {"depth": 2}),
        (Plain, PLAIN, PLAIN),
        (Annotated[int, pydantic.Field(ge=1)], 1, 1),
    ],
)
def test_what_fits_comes_as_it_was_annotated(annotation: Any, value: Any, result: Any) -> None:
    found = check(annotation, value)
    assert found == result
    assert type(found) is type(result)


@pytest.mark.parametrize(
    ("annotation", "value", "message"),
    [
        (int, "x", "item: .*valid integer"),
        (str, 3, "item: .*valid string"),
        (list[int], [1, "x"], r"item\.1: .*valid integer"),
        (Point, {"x": "far"}, r"item\.x: .*valid number"),
        (Point, {}, r"item\.x: Field required"),
        (Literal["a", "b"], "c", "item: .*'a' or 'b'"),
        (Plain, 3, "item: .*instance of Plain"),
        (Annotated[int, pydantic.Field(ge=1)], 0, "item: .*greater than or equal to 1"),
    ],
)
def test_a_misfit_is_named_by_place(annotation: Any, value: Any, message: str) -> None:
    with pytest.raises(ts.ValidationError, match=message) as caught:
        check(annotation, value, "item")
    assert isinstance(caught.value, ts.InvalidInputError)


@pytest.mark.parametrize(
    ("annotation", "value", "dtype"),
    [
        (np.ndarray, [1, 2], np.int64),
        (np.ndarray, [[1.5], [2.5]], np.float64),
        (np.ndarray, np.ones(3, np.float16), np.float16),
        (np.ndarray, 3, np.int64),
        (np.ndarray, torch.ones(2, dtype=torch.bfloat16), np.float32),
        (npt.NDArray[np.float32], [1, 2.5], np.float32),
        (npt.NDArray[np.uint8], [1, 255], np.uint8),
        (npt.NDArray[np.floating[Any]], [1.5], np.float64),
        (npt.NDArray[Any], [True], np.bool_),
        (Annotated[np.ndarray, ts.Tensor("i64")], [1.0, 2.0], np.int64),
        (Annotated[np.ndarray, ts.Tensor("bool")], [0, 1], np.bool_),
        (Annotated[np.ndarray, ts.Tensor("u8")], [0, 255], np.uint8),
        (Annotated[np.ndarray, ts.Tensor("u64")], [2**63], np.uint64),
        (Annotated[np.ndarray, ts.Tensor("i16")], [-1, 2**14], np.int16),
        (Annotated[np.ndarray, ts.Tensor("f16")], np.array([1.0, np.nan, np.inf]), np.float16),
        (Annotated[np.ndarray, ts.Tensor("f32", (0,))], [], np.float32),
        (Annotated[np.ndarray, ts.Tensor("f32", ())], 4, np.float32),
        (Annotated[np.ndarray, "a note"], [1], np.int64),
        (Matrix, [[1], [2], [3]], np.float32),
        (Matrix, np.ones((3, 5), np.int32), np.float32),
    ],
)
def test_arrays_come_with_their_dtype_and_values(annotation: Any, value: Any, dtype: Any) -> None:
    found = check(annotation, value)
    assert isinstance(found, np.ndarray)
    assert found.dtype == dtype
    values = value.tolist() if isinstance(value, torch.Tensor) else value
    np.testing.assert_array_equal(found.astype(np.float64), np.array(values, np.float64))


def test_an_array_that_fits_is_not_copied() -> None:
    array = np.ones((3, 2), np.float32)
    assert check(Matrix, array) is array
    tensor = torch.ones(2)
    assert check(torch.Tensor, tensor) is tensor


@pytest.mark.parametrize(
    ("annotation", "value", "message"),
    [
        (Matrix, [[1, 2], [3, 4]], r"must have the shape \[3, -1\], not \[2, 2\]"),
        (Matrix, [1, 2, 3], r"must have the shape \[3, -1\], not \[3\]"),
        (Matrix, [[1], [2, 3], [4]], "nested lists of one length at each depth"),
        (Matrix, "abc", "must be an array, or nested lists of numbers, not str"),
        (Matrix, {"a": 1}, "nested lists of numbers, not dict"),
        (Matrix, None, "must be an array of numbers, or nested lists of them, not NoneType"),
        (Matrix, [["a"], ["b"], ["c"]], "an array of numbers, or nested lists of them, not list"),
        (np.ndarray, np.array(["a"]), "nested lists of them of <U1"),
        (np.ndarray, [1j], "an array of numbers"),
        (np.ndarray, [10**30], "an array of numbers"),
        (Matrix, [[1e300], [1], [1]], "has numbers that are none of float32"),
        (Annotated[np.ndarray, ts.Tensor("i32")], [2**40], "none of int32"),
        (Annotated[np.ndarray, ts.Tensor("i64")], [1.5], "none of int64"),
        (Annotated[np.ndarray, ts.Tensor("i64")], [1e19], "none of int64"),
        (Annotated[np.ndarray, ts.Tensor("i64")], [float("nan")], "none of int64"),
        (Annotated[np.ndarray, ts.Tensor("bool")], [2], "none of bool"),
        (npt.NDArray[np.uint8], [256], "none of uint8"),
        (npt.NDArray[np.uint8], [-1], "none of uint8"),
        (npt.NDArray[np.uint64], [-1], "none of uint64"),
        (npt.NDArray[np.int64], np.array([2**63], np.uint64), "none of int64"),
        (Annotated[torch.Tensor, ts.Tensor("u64")], [-1], "none of uint64"),
        (Annotated[torch.Tensor, ts.Tensor("i64")], [2**63], "none of int64"),
        (torch.Tensor, np.ones(2, np.longdouble), r"must be of numbers that torch has, not (float128|long)"),
        (torch.Tensor, "abc", "must be an array"),
        (Annotated[torch.Tensor, ts.Tensor("f32", (2,))], [1.0], r"must have the shape \[2\], not \[1\]"),
        (Annotated[torch.Tensor, ts.Tensor("i32")], torch.tensor([2**40]), "none of int32"),
        (Annotated[torch.Tensor, ts.Tensor("i64")], torch.tensor([0.5]), "none of int64"),
        (Annotated[torch.Tensor, ts.Tensor("f16")], torch.tensor([1e9]), "none of float16"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(annotation: Any, value: Any, message: str) -> None:
    with pytest.raises(ts.ValidationError, match=f"x: .*{message}"):
        check(annotation, value, "x")


@pytest.mark.parametrize(
    ("annotation", "value", "dtype"),
    [
        (torch.Tensor, [1.0, 2.0], torch.float32),
        (torch.Tensor, [1, 2], torch.int64),
        (torch.Tensor, np.ones(2, np.float64), torch.float64),
        (torch.Tensor, np.arange(3)[::-1], torch.int64),
        (torch.Tensor, np.arange(6.0, dtype=">f4").reshape(2, 3).T, torch.float32),
        (Annotated[torch.Tensor, ts.Tensor("u8")], np.array([1, 255], np.uint64), torch.uint8),
        (Annotated[torch.Tensor, ts.Tensor("u64")], [2**63], torch.uint64),
        (torch.Tensor, torch.ones(2, dtype=torch.bfloat16), torch.bfloat16),
        (Annotated[torch.Tensor, ts.Tensor("bf16", (2,))], [1.0, 2.0], torch.bfloat16),
        (Annotated[torch.Tensor, ts.Tensor("f64")], [1, 2], torch.float64),
        (Annotated[torch.Tensor, ts.Tensor("i32")], torch.tensor([1.0, 2.0]), torch.int32),
        (Annotated[torch.Tensor, ts.Tensor("bool")], [0, 1], torch.bool),
    ],
)
def test_tensors_come_with_their_dtype_and_values(annotation: Any, value: Any, dtype: torch.dtype) -> None:
    found = check(annotation, value)
    assert isinstance(found, torch.Tensor)
    assert found.dtype == dtype
    assert found.tolist() == (value.tolist() if hasattr(value, "tolist") else value)


def test_a_tensor_of_a_read_only_array_is_a_copy() -> None:
    array = np.ones(2, np.float32)
    array.flags.writeable = False
    tensor = check(torch.Tensor, array)
    tensor[0] = 5
    assert array[0] == 1


def test_arrays_are_found_at_any_depth() -> None:
    found = check(dict[str, list[np.ndarray | None]], {"a": [[1, 2], None]})
    assert isinstance(found["a"][0], np.ndarray)
    assert found["a"][1] is None
    first, second = check(tuple[Matrix, npt.NDArray[np.int32]], ([[1], [2], [3]], [4]))
    assert (first.shape, second.dtype) == ((3, 1), np.int32)
    assert check(Picture, {"pixels": [[1, 2], [3, 4]]}).pixels.dtype == np.float32
    with pytest.raises(ts.ValidationError, match=r"pixels: must have the shape \[2, 2\], not \[1\]"):
        check(Picture, {"pixels": [1]})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("f8",), "one of f32, .*not 'f8'"),
        (("f32", (-2,)), "not negative"),
    ],
)
def test_a_tensor_that_cannot_be_is_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ts.Tensor(*arguments)


def test_an_annotation_that_nothing_can_be_checked_against_is_named() -> None:
    with pytest.raises(ts.DecorationError, match=r"x of f: nothing can be checked .*numpy has no bf16"):
        require(Annotated[np.ndarray, ts.Tensor("bf16")], "x of f")
    require(Any, "x of f")
    require(Annotated[torch.Tensor, ts.Tensor("bf16")], "x of f")
    require(Annotated[int, ["cannot be hashed"]], "x of f")


@pytest.mark.parametrize(
    "scalar", [np.str_, np.bytes_, np.object_, np.complex64, np.complexfloating, np.datetime64]
)
def test_an_array_of_no_numbers_is_refused_as_an_annotation(scalar: Any) -> None:
    with pytest.raises(ts.DecorationError, match=f"x of f: .*but no {scalar.__name__}"):
        require(npt.NDArray[scalar], "x of f")
    app = ts.App()

    def f(x: Any) -> str:
        return ""

    f.__annotations__["x"] = npt.NDArray[scalar]
    with pytest.raises(ts.DecorationError, match=f"x of .*f: .*but no {scalar.__name__}"):
        app.model("f")(f)


@pytest.mark.parametrize(
    ("bare", "name"),
    [(BareArray, r"np\.ndarray"), (BareTensor, r"torch\.Tensor"), (BareField, r"np\.ndarray")],
)
def test_a_field_that_is_a_bare_array_is_told_how_it_is_written(bare: Any, name: str) -> None:
    advice = rf"x of f: .*: write a field that is an array as `Annotated\[{name}, ts\.Tensor\(\)\]`$"
    with pytest.raises(ts.DecorationError, match=advice):
        require(bare, "x of f")
    assert check(SaidArray, {"pixels": [1, 2]}).pixels.tolist() == [1, 2]


def test_schemas_say_what_clients_send() -> None:
    assert schema(int) == {"type": "integer"}
    assert schema(Any) == {}
    assert schema(Plain) == {}
    assert schema(Point)["required"] == ["x"]
    row = {"type": "array", "items": {"type": "number"}}
    assert schema(Matrix) == {
        "type": "array",
        "items": row,
        "minItems": 3,
        "maxItems": 3,
        "title": "f32[3, -1]",
    }
    assert schema(Annotated[np.ndarray, ts.Tensor("bool", ())]) == {"type": "boolean", "title": "bool[]"}
    assert schema(Annotated[torch.Tensor, ts.Tensor("i64", (-1,))])["items"] == {"type": "integer"}
    assert schema(Annotated[np.ndarray, ts.Tensor("u8", (-1,))])["items"] == {"type": "integer"}
    assert schema(list[np.ndarray])["items"] == {"type": "array", "items": {}, "title": "tensor"}
    assert schema(Picture)["properties"]["pixels"]["minItems"] == 2
