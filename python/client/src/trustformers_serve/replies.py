"""What the server's replies hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict

if TYPE_CHECKING:
    # In `typing` itself only from Python 3.11 on.
    from typing_extensions import NotRequired

Priority: TypeAlias = Literal["low", "normal", "high", "critical"]
"""How urgent a request is; of two that wait, the more urgent one leaves first."""

ModelState: TypeAlias = Literal["loading", "ready", "failed", "unloading", "unloaded"]


class TensorInfo(TypedDict):
    """A declared input or output: `shape` is that of one item, -1 for a dimension that may vary."""

    name: str
    dtype: str
    shape: list[int]
    pad: NotRequired[float]


class VersionInfo(TypedDict):
    """One version of a model; `reason` says why it failed, `load_seconds` how long loading took."""

    version: str
    state: ModelState
    reason: NotRequired[str]
    format: str
    device: str
    instances: int
    threads: int
    default: bool
    load_seconds: NotRequired[float]


class ModelInfo(TypedDict):
    """A model and its versions; a request that names no version goes to the one marked `default`."""

    name: str
    versions: list[VersionInfo]
    inputs: list[TensorInfo]
    outputs: list[TensorInfo]


class ModelReadiness(TypedDict):
    """The state of one version of a model, with the reason when it failed."""

    name: str
    version: str
    state: ModelState
    reason: NotRequired[str]


@dataclass(frozen=True)
class Readiness:
    """Whether the server can answer for each of its models; true in a condition when it can."""

    status: str
    """"ready", "loading", "failed" or "draining"."""
    models: Sequence[ModelReadiness]

    def __bool__(self) -> bool:
        """Whether the status is "ready"."""
        return self.status == "ready"


Health: TypeAlias = dict[str, Any]
"""`status` ("ok"), `version` of the server, and what else it tells."""

Stats: TypeAlias = dict[str, Any]
"""The operator's view of each model's queue and batches."""
