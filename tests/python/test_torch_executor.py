"""`TorchExecutor`: a model on a batch, and each caller's own row of what comes out."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import pytest
import torch
import trustformers_serve as ts
from executors import HOUR_MS, PATIENCE
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel
from transformers.modeling_outputs import SequenceClassifierOutput
from trustformers_serve.torch import TorchExecutor


class Pair(NamedTuple):
    total: torch.Tensor
    half: torch.Tensor


@dataclasses.dataclass
class Scored:
    score: torch.Tensor
    label: torch.Tensor | None = None


def vectors(count: int) -> list[torch.Tensor]:
    return list(torch.randn(count, 4, generator=torch.Generator().manual_seed(0)))


def linear() -> torch.nn.Linear:
    torch.manual_seed(1)
    return torch.nn.Linear(4, 3)


def executor(model: Callable[..., Any], **options: Any) -> TorchExecutor:
    settings: dict[str, Any] = {"collate_fn": torch.stack, "device": "cpu", **options}
    return TorchExecutor(model=model, **settings)


def test_each_caller_gets_the_row_that_the_model_alone_gives() -> None:
    model, items = linear(), vectors(100)
    classify = executor(model)
    with ts.Batcher(max_batch=16) as batcher:
        rows = batcher.map(items, classify)
        assert batcher.metrics().batches < 100
    for item, row in zip(items, rows, strict=True):
        assert row.shape == (3,)
        torch.testing.assert_close(row, model(item[None])[0].detach())


def test_a_row_keeps_nothing_else_of_the_batch_alive() -> None:
    made: list[weakref.ref[Any]] = []

    def model(batch: torch.Tensor) -> torch.Tensor:
        output = batch * 2
        made.append(weakref.ref(output.untyped_storage()))
        return output

    rows = executor(model)(vectors(8))
    gc.collect()
    assert made[0]() is None
    assert all(row.untyped_storage().nbytes() == 4 * 4 for row in rows)


def test_changing_a_row_changes_nobody_elses() -> None:
    kept = torch.zeros(3, 4)

    def model(batch: torch.Tensor) -> torch.Tensor:
        return kept

    rows = executor(model)(vectors(3))
    rows[0].fill_(7)
    assert not rows[1].any()
    assert not kept.any(), "nor what the model keeps"
    items = vectors(1)
    (alone,) = executor(lambda batch: batch, collate_fn=lambda items: items[0][None])(items)
    alone.fill_(7)
    assert not (items[0] == 7).any(), "nor an item"


def test_the_model_runs_in_inference_mode_and_evaluation_mode_and_rows_are_ordinary_tensors() -> None:
    seen: list[tuple[bool, bool]] = []

    class Probe(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = torch.nn.Dropout(0.99)

        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            seen.append((torch.is_inference_mode_enabled(), self.training))
            return self.drop(batch)

    items = vectors(2)
    rows = executor(Probe().train())(items)
    assert seen == [(True, False)]
    torch.testing.assert_close(rows, items)
    assert not rows[0].is_inference()
    weight = torch.ones(4, requires_grad=True)
    (rows[0] * weight).sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize(
    "shape",
    [
        lambda total, half: (total, half),
        lambda total, half: [total, half],
        lambda total, half: {"total": total, "half": half},
        Pair,
        Scored,
        lambda total, half: SequenceClassifierOutput(loss=None, logits=total, hidden_states=(half, half)),
        lambda total, half: {"deep": [(total, None), {"half": half}]},
        lambda total, _: Scored(total, None),
    ],
    ids=["tuple", "list", "dict", "named tuple", "dataclass", "ModelOutput", "nested", "None"],
)
def test_rows_have_the_form_of_what_the_model_returns(shape: Callable[[Any, Any], Any]) -> None:
    def model(batch: torch.Tensor) -> Any:
        return shape(batch.sum(1), batch / 2)

    items = vectors(3)
    rows = executor(model)(items)
    for item, row in zip(items, rows, strict=True):
        expected = shape(item.sum(), item / 2)
        assert type(row) is type(expected)
        assert repr(row) == repr(expected)


def test_a_hugging_face_model_gives_its_own_outputs_row_by_row() -> None:
    torch.manual_seed(2)
    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    model = BertForSequenceClassification(config)
    items = [{"input_ids": torch.arange(5) + index, "attention_mask": torch.ones(5)} for index in range(4)]
    # The default collate function makes one dict of tensors of dicts of tensors.
    rows = TorchExecutor(model=model, device="cpu")(items)
    whole = model(input_ids=torch.stack([item["input_ids"] for item in items]))
    for row, logits in zip(rows, whole.logits.detach(), strict=True):
        assert isinstance(row, SequenceClassifierOutput)
        assert row.loss is None
        torch.testing.assert_close(cast("Any", row.logits), logits)


def test_a_language_model_gives_its_logits_although_it_returns_a_cache_of_the_whole_batch() -> None:
    torch.manual_seed(2)
    numbers: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 1}
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=8, **numbers)
    )
    items = [{"input_ids": torch.arange(5) + index} for index in range(3)]
    whole = model.eval()(input_ids=torch.stack([item["input_ids"] for item in items]))
    assert whole.past_key_values is not None
    for row, logits in zip(TorchExecutor(model)(items), whole.logits.detach(), strict=True):
        torch.testing.assert_close(row.logits, logits)
        assert row.past_key_values is None


def test_an_exported_program_is_a_model() -> None:
    model, items = linear(), vectors(3)
    sizes: Any = {"input": {0: torch.export.Dim("batch")}}
    program = torch.export.export(model, (torch.stack(vectors(2)),), dynamic_shapes=sizes)
    for item, row in zip(items, executor(program.module())(items), strict=True):
        torch.testing.assert_close(row, model(item[None])[0].detach())


def test_a_packed_sequence_is_the_only_argument() -> None:
    class Last(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.nn.GRU(4, 3)

        def forward(self, packed: PackedSequence) -> torch.Tensor:
            return self.inner(packed)[1][0]

    torch.manual_seed(1)
    model, items = Last(), [torch.randn(length, 4) for length in (2, 5, 3)]

    def pack(items: list[torch.Tensor]) -> PackedSequence:
        return pack_sequence(items, enforce_sorted=False)

    rows = executor(model, collate_fn=pack, dtype=torch.float64)(items)
    assert [row.dtype for row in rows] == [torch.float64] * 3
    for item, row in zip(items, rows, strict=True):
        torch.testing.assert_close(row, model(pack([item.double()]))[0].detach())


def test_everything_in_a_batch_is_moved_to_the_device() -> None:
    class Movable:
        device = "cpu"

        def to(self, device: torch.device) -> Movable:
            moved = Movable()
            moved.device = device.type
            return moved

    seen: list[str] = []

    def model(scored: Scored, deep: Any, other: Movable, packed: PackedSequence, name: str) -> torch.Tensor:
        found = [scored.score, deep["a"][0].total, packed.data]
        seen.extend([*(tensor.device.type for tensor in found), other.device, name])
        return found[0]

    def collate(items: list[torch.Tensor]) -> tuple[Any, ...]:
        batch = torch.stack(items)
        return Scored(batch), {"a": [Pair(batch, batch)]}, Movable(), pack_sequence(items), "name"

    rows = executor(model, collate_fn=collate, device="meta")(vectors(2))
    assert seen == ["meta"] * 4 + ["name"]
    assert [row.device.type for row in rows] == ["meta"] * 2


def test_mappings_and_tuples_are_the_models_arguments() -> None:
    def add(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return left + 2 * right

    pairs = [(torch.tensor(float(index)), torch.tensor(1.0)) for index in range(3)]
    assert executor(add, collate_fn=None)(pairs) == [2.0, 3.0, 4.0]
    named = [{"right": right, "left": left} for left, right in pairs]
    assert executor(add, collate_fn=None)(named) == [2.0, 3.0, 4.0]


def test_weights_and_floating_point_inputs_have_the_type_that_is_asked_for() -> None:
    class Probe(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = linear()

        def forward(self, vectors: torch.Tensor, places: torch.Tensor) -> Any:
            assert places.dtype == torch.int64
            return self.inner(vectors), places

    classify = TorchExecutor(model=Probe(), device="cpu", dtype=torch.float64)
    rows = classify([(item, torch.tensor(index)) for index, item in enumerate(vectors(3))])
    assert [row[0].dtype for row in rows] == [torch.float64] * 3
    assert [int(row[1]) for row in rows] == [0, 1, 2]


def test_an_uncollate_function_makes_the_results_instead() -> None:
    labels = ["a", "b", "c"]

    def named(logits: torch.Tensor) -> list[str]:
        return [labels[index] for index in logits.argmax(1).tolist()]

    model, items = linear(), vectors(5)
    expected = [labels[int(model(item).argmax())] for item in items]
    assert executor(model, uncollate_fn=named)(items) == expected
    with ts.Batcher(max_batch=2, max_wait_ms=HOUR_MS) as batcher:
        futures = [batcher.submit(item, executor(model, uncollate_fn=lambda _: ["a"])) for item in items[:1]]
        batcher.flush()
        assert futures[0].result(PATIENCE) == "a"


def test_what_has_no_row_for_each_item_is_refused_by_the_models_name() -> None:
    class Pooling(torch.nn.Module):
        def forward(self, batch: torch.Tensor) -> Any:
            return {"logits": batch, "loss": batch.mean()}

    with ts.Batcher(max_batch=3, max_wait_ms=HOUR_MS) as batcher:
        pooling = executor(Pooling())
        futures = [batcher.submit(item, pooling) for item in vectors(3)]
        errors = [future.exception(PATIENCE) for future in futures]
    for error in errors:
        assert isinstance(error, ts.ExecutorError)
        assert "Pooling returned ['loss'] of shape [] for a batch of 3" in str(error)
    with pytest.raises(
        ts.ExecutorError, match=r"<lambda> returned a tensor of shape \[1, 4\] for a batch of 3"
    ):
        executor(lambda batch: batch[:1])(vectors(3))
    with pytest.raises(
        ts.ExecutorError, match=r"returned \[1\] of type str, which has no rows.*uncollate_fn"
    ):
        executor(lambda batch: (batch, "done"))(vectors(3))


def test_a_model_that_raises_is_named_to_everyone() -> None:
    with ts.Batcher(max_batch=2, max_wait_ms=HOUR_MS) as batcher:
        classify = executor(linear())
        futures = [batcher.submit(torch.zeros(5), classify) for _ in range(2)]
        errors = [future.exception(PATIENCE) for future in futures]
    for error in errors:
        assert isinstance(error, ts.ExecutorError)
        assert "TorchExecutor(Linear) raised RuntimeError" in str(error)
        assert isinstance(error.__cause__, RuntimeError)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"model": 3}, "model"),
        ({"collate_fn": 3}, "collate_fn"),
        ({"uncollate_fn": 3}, "uncollate_fn"),
        ({"dtype": torch.int8}, "dtype"),
    ],
)
def test_an_argument_of_the_wrong_kind_is_named(arguments: dict[str, Any], name: str) -> None:
    settings: dict[str, Any] = {"model": linear(), **arguments}
    with pytest.raises(TypeError, match=name):
        TorchExecutor(**settings)


def test_its_repr_says_what_runs_where() -> None:
    classify = executor(linear(), dtype=torch.bfloat16)
    assert repr(classify) == "<TorchExecutor model=Linear device=cpu dtype=torch.bfloat16>"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_items_are_moved_to_the_device_of_the_model() -> None:
    model, items = linear(), vectors(8)
    expected = [model(item).detach() for item in items]
    rows = executor(model, device="cuda")(items)
    assert all(row.is_cuda for row in rows)
    torch.testing.assert_close([row.cpu() for row in rows], expected)
