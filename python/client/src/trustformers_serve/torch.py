"""Batches of items for a PyTorch model in this process: an executor for `Batcher`.

    classify = TorchExecutor(model=model, collate_fn=torch.stack, device="cpu")
    with Batcher(max_batch=32) as batcher:
        logits = batcher.run(image, classify)

Needs PyTorch to be importable, which the extra `[torch]` says.
"""

# Torch's own annotations are partial.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, cast

from trustformers_serve.errors import ExecutorError, MissingExtraError

try:
    import torch
    from torch.nn.utils.rnn import PackedSequence
except ModuleNotFoundError as error:
    raise MissingExtraError("trustformers_serve.torch", "torch", error.name) from error


class TorchExecutor:
    """Runs a model on a batch in inference mode and gives each caller its own row of what comes out.

    What comes out may be a tensor, a tuple, a list, a dict or a dataclass of tensors, nested as one likes, a
    named tuple or a Hugging Face `ModelOutput`; None stays None. Each caller gets the same with each tensor's
    row, without the batch dimension. A cache of keys and values, which transformers returns for the batch as
    a whole, becomes None.

    Rows are copies: a caller who keeps one keeps nothing else of the batch alive, and may change it without
    anybody else's noticing. They are ordinary tensors on the model's device, which need no gradient and may
    take part in training.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        collate_fn: Callable[[list[Any]], Any] | None = None,
        device: torch.device | str | None = None,
        uncollate_fn: Callable[[Any], Sequence[Any]] | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Puts a module into evaluation mode, and where it is to run.

        Args:
            model: A module, which is changed in place, or any function of what `collate_fn` returns.
            collate_fn: Makes one batch of a list of items, `torch.stack` for tensors of one shape; by default
                PyTorch's `default_collate`. A mapping is given to the model as its keyword arguments, a tuple
                or list as its arguments, anything else, a `PackedSequence` too, as the only one.
            device: Where the module and the tensors of a batch are moved, and whatever else in it has a
                method `to`; by default they stay.
            uncollate_fn: Makes the list of results of what the model returned, in place of the rows. They are
                given as they are.
            dtype: To which floating-point weights and inputs are cast; by default they are not.

        Raises:
            TypeError: `model`, `collate_fn` or `uncollate_fn` cannot be called, or `dtype` is of no floating
                point.
        """
        for name, function in (("model", model), ("collate_fn", collate_fn), ("uncollate_fn", uncollate_fn)):
            if not callable(function) and (function is not None or name == "model"):
                raise TypeError(f"{name} must be callable, not {function!r}")
        if dtype is not None and not dtype.is_floating_point:
            raise TypeError(f"dtype must be of floating point, not {dtype}")
        self._device = None if device is None else torch.device(device)
        self._dtype = dtype
        if isinstance(model, torch.nn.Module):
            # The program that `torch.export` made is in the mode in which it was exported.
            with suppress(NotImplementedError):
                model.eval()
            model = model.to(device=self._device, dtype=dtype)
        self._model = model
        self._collate = torch.utils.data.default_collate if collate_fn is None else collate_fn
        self._uncollate = uncollate_fn
        self._name = getattr(model, "__qualname__", type(model).__qualname__)
        # What a batcher calls it in its messages.
        self.__qualname__ = f"TorchExecutor({self._name})"

    def __call__(self, items: list[Any]) -> Sequence[Any]:
        """One result an item, in order.

        Raises:
            ExecutorError: The model returned what has no row for each item; the message names both.
        """
        with torch.inference_mode():
            batch = self._moved(self._collate(items))
            if isinstance(batch, Mapping):
                output = self._model(**batch)
            elif isinstance(batch, (tuple, list)) and not isinstance(batch, PackedSequence):
                output = self._model(*batch)
            else:
                output = self._model(batch)
        if self._uncollate is not None:
            return self._uncollate(output)
        return self._rows(output, len(items), "")

    def __repr__(self) -> str:
        """Its model, and where it runs."""
        device = "" if self._device is None else f" device={self._device}"
        dtype = "" if self._dtype is None else f" dtype={self._dtype}"
        return f"<TorchExecutor model={self._name}{device}{dtype}>"

    def _moved(self, batch: Any) -> Any:
        """The batch where the model is, and of its type."""
        if isinstance(batch, (torch.Tensor, PackedSequence)):
            floats = batch.data.is_floating_point()
            return cast("Any", batch).to(device=self._device, dtype=self._dtype if floats else None)
        if isinstance(batch, Mapping):
            return {name: self._moved(value) for name, value in cast("Mapping[Any, Any]", batch).items()}
        if isinstance(batch, (tuple, list)):
            moved = [self._moved(value) for value in cast("Sequence[Any]", batch)]
            return _like(batch, moved)
        if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
            names = [field.name for field in dataclasses.fields(batch) if field.init]
            return dataclasses.replace(batch, **{name: self._moved(getattr(batch, name)) for name in names})
        if self._device is not None and callable(getattr(batch, "to", None)):
            return cast("Any", batch).to(self._device)
        return batch

    def _rows(self, output: Any, count: int, path: str) -> list[Any]:
        """The rows of `output`, which is at `path` of what the model returned."""
        if output is None or _is_cache(output):
            return [None] * count
        if isinstance(output, torch.Tensor):
            if output.ndim == 0 or output.shape[0] != count:
                shape = list(output.shape)
                wrong = f"{path or 'a tensor'} of shape {shape} for a batch of {count}"
                raise ExecutorError(
                    f"the model {self._name} returned {wrong}; its first dimension has to be {count}"
                )
            # Outside of inference mode, so that the copies are ordinary tensors.
            return [row.clone() for row in output.unbind(0)]
        if isinstance(output, Mapping):
            named = cast("Mapping[Any, Any]", output)
            columns = [self._rows(value, count, f"{path}[{name!r}]") for name, value in named.items()]
            made = [dict(zip(named, values, strict=True)) for values in _transposed(columns, count)]
            # A `ModelOutput` is a mapping and a dataclass, whose fields without a value are None.
            return [type(output)(**row) for row in made] if dataclasses.is_dataclass(output) else made
        if dataclasses.is_dataclass(output) and not isinstance(output, type):
            names = [field.name for field in dataclasses.fields(output) if field.init]
            columns = [self._rows(getattr(output, name), count, f"{path}.{name}") for name in names]
            rows = _transposed(columns, count)
            return [type(output)(**dict(zip(names, values, strict=True))) for values in rows]
        if isinstance(output, (tuple, list)):
            parts = cast("Sequence[Any]", output)
            columns = [self._rows(value, count, f"{path}[{at}]") for at, value in enumerate(parts)]
            return [_like(parts, values) for values in _transposed(columns, count)]
        kind = type(output).__qualname__
        raise ExecutorError(
            f"the model {self._name} returned {path or 'something'} of type {kind}, which has no rows: "
            "give the TorchExecutor an uncollate_fn"
        )


def _is_cache(output: Any) -> bool:
    caches = sys.modules.get("transformers.cache_utils")
    return caches is not None and isinstance(output, caches.Cache)


def _transposed(columns: list[list[Any]], count: int) -> list[list[Any]]:
    """The rows of columns, `count` of them also where there is no column."""
    return [[column[row] for column in columns] for row in range(count)]


def _like(kind: Sequence[Any], values: list[Any]) -> Any:
    """`values` as a tuple, named tuple or list, whichever `kind` is."""
    if isinstance(kind, tuple):
        return type(kind)(*values) if hasattr(kind, "_fields") else tuple(values)
    return values
