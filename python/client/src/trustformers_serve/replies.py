"""What the server's replies hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypedDict

Priority: TypeAlias = Literal["low", "normal", "high", "critical"]
"""How urgent a request is; of two that wait, the more urgent one leaves first."""

FinishReason: TypeAlias = str
"""Why a text ended: "stop" (an end token or a stop string) or "length" (`max_tokens` or the context)."""

ModelState: TypeAlias = Literal["loading", "ready", "failed", "unloading", "unloaded"]


class TensorDetails(TypedDict, total=False):
    """What is there of an input or output of tensors, or of one of a Python function."""

    dtype: str
    shape: list[int]
    """That of one item, -1 for a dimension that may vary."""
    pad: float
    """With what items of other lengths are filled up, where they are."""
    schema: dict[str, Any]
    """Of a Python function, in place of the others: the JSON schema of its values."""


class TensorInfo(TensorDetails):
    """A declared input or output."""

    name: str


class FailureDetails(TypedDict, total=False):
    """What is there only of a version that failed."""

    reason: str


class VersionDetails(FailureDetails, total=False):
    """What is there only of some versions."""

    device: str
    """Of one that is ready, like `load_seconds`."""
    load_seconds: float
    instances: int
    """Of one that the server runs itself, like `threads`; not of a Python function."""
    threads: int


class VersionInfo(VersionDetails):
    """One version of a model."""

    version: str
    state: ModelState
    format: str
    default: bool


class ModelDetails(TypedDict, total=False):
    """What is there only of a model that is ready."""

    inputs: list[TensorInfo]
    outputs: list[TensorInfo]
    streaming: bool
    """Of a Python function: whether it is a generator, which `predict_stream` asks."""


class ModelInfo(ModelDetails):
    """A model and its versions; a request that names no version goes to the one marked `default`."""

    name: str
    versions: list[VersionInfo]


class ModelReadiness(FailureDetails):
    """The state of one version of a model."""

    name: str
    version: str
    state: ModelState


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


class Breaker(TypedDict):
    """Whether a model is left alone because it kept failing."""

    state: Literal["closed", "half_open", "open"]
    retry_after_seconds: float | None
    """When an open one lets a request in to try."""


class BreakerReset(TypedDict):
    """The reply to a reset."""

    name: str
    version: str
    breaker: Breaker


@dataclass(frozen=True)
class Usage:
    """Tokens of a request; `cached_tokens` of those of the prompt were not computed again."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Of prompt and text together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True)
class Token:
    """A token of a text, where `logprobs` asked for them: what it says, and how likely it was.

    `logprob` is None for the first token of an echoed prompt; `top` has the likeliest ones in its place.
    """

    text: str
    logprob: float | None
    top: Sequence[tuple[str, float]] = ()


@dataclass(frozen=True)
class Choice:
    """One of the texts that were made for a prompt."""

    text: str
    finish_reason: FinishReason | None
    tokens: Sequence[Token] = ()
    """Empty unless `logprobs` asked for them."""


@dataclass(frozen=True)
class Piece:
    """A part of a text as it comes; the last one has the reason why the text ended, and maybe no text."""

    text: str
    finish_reason: FinishReason | None = None
    tokens: Sequence[Token] = ()
    index: int = 0
    """Which of the texts it belongs to, where `n` asked for several."""


@dataclass(frozen=True)
class Generation:
    """What a language model made of a prompt; `str()` is the text."""

    choices: Sequence[Choice]
    """One unless `n` asked for more."""
    usage: Usage
    model: str
    id: str

    @property
    def text(self) -> str:
        """The first text."""
        return self.choices[0].text

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the first text ended."""
        return self.choices[0].finish_reason

    @property
    def tokens(self) -> Sequence[Token]:
        """The tokens of the first text; empty unless `logprobs` asked for them."""
        return self.choices[0].tokens

    def __str__(self) -> str:
        """The first text."""
        return self.text


class Distribution(TypedDict):
    """What is known of many values; all 0 without any. Percentiles are within 0.8 %."""

    count: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float


class Bar(TypedDict):
    """How many values lie above the bar before and up to `up_to`."""

    up_to: float
    count: int


class RequestCounts(TypedDict):
    """Requests by what became of them; `admitted` is the sum of the others."""

    admitted: int
    completed: int
    failed: int
    never_fits: int
    expired_in_queue: int
    given_up: int
    expired_running: int
    cancelled: int
    queued: int
    running: int


class Throughput(TypedDict):
    """Results a second."""

    last_10_seconds: float
    last_60_seconds: float
    overall: float


class BatchCounts(TypedDict):
    """Batches by how they ended; `retries` are parts of failed ones that ran again."""

    started: int
    retries: int
    ended: int
    failed: int
    out_of_memory: int


class Padding(TypedDict):
    """What padding adds: `overhead` is its share of `padded_tokens`.

    `bucketed_overhead` is what that would be in buckets that suit the last lengths, `None` without any.
    """

    tokens: int
    padded_tokens: int
    overhead: float
    bucketed_overhead: float | None


class Utilization(TypedDict):
    """Share of the instances' time in which they ran a batch, 0 to 1."""

    now: float
    last_60_seconds: float
    overall: float


class Recent(TypedDict):
    """The last minute, which suggestions go by.

    `mean_left_behind` requests could have joined a batch but for a limit; `held_back` is the share of
    batches that left any behind.
    """

    seconds: float
    offered_per_second: float
    completed_per_second: float
    mean_latency_seconds: float
    batches: int
    mean_batch_size: float
    mean_batch_seconds: float
    tokens_per_item: float
    padding_overhead: float
    mean_left_behind: float
    held_back: float


class QueueStats(TypedDict):
    """What waits, and how long it will take; `None` before the first batch."""

    requests: int
    tokens: int
    bytes: int
    predicted_drain_seconds: float | None


class Limits(TypedDict):
    """Limits in force, which follow the load in mode `adaptive`."""

    batch_size: int
    max_wait_seconds: float
    instances: int


class MemoryStats(TypedDict):
    """What batches need and may have; `None` is no limit, 0 is not known."""

    limit_bytes: int | None
    max_tokens: int | None
    full_batch_bytes: int
    peak_bytes: int


class BreakerStats(TypedDict):
    """Whether a failing model is left alone, and for how long."""

    state: Literal["closed", "open", "half_open"]
    retry_after_seconds: float


class Group(TypedDict):
    """Requests that may share a batch: those of one shape and one bucket (0: any length)."""

    shape: int
    bound: int


class Fit(TypedDict):
    """How long batches take: seconds = a + b * items + c * tokens; `group` is `None` for all batches."""

    group: Group | None
    samples: int
    a: float
    b: float
    c: float
    relative_error: float
    margin: float


class CostModel(TypedDict):
    """All fits; and that of all batches as it was when their sizes, or tokens an item, last differed."""

    fits: list[Fit]
    across_sizes: Fit | None
    across_lengths: Fit | None


class BatchingStats(TypedDict):
    """What the scheduler of a model version did since it was loaded, and what it does now."""

    seconds: float
    requests: RequestCounts
    rejected: dict[str, int]
    throughput: Throughput
    latency_seconds: Distribution
    queue_wait_seconds: Distribution
    queue_wait_histogram: list[Bar]
    batch_duration_seconds: Distribution
    batch_size: Distribution
    batch_size_histogram: list[Bar]
    batches: BatchCounts
    padding: Padding
    utilization: Utilization
    recent: Recent
    queue: QueueStats
    limits: Limits
    memory: MemoryStats
    breaker: BreakerStats | None
    stalled_instances: list[int]
    cost_model: CostModel


class Gain(TypedDict):
    """What a change would make of a number, by the cost model; `value` is by how much it is better."""

    value: float
    unit: Literal["items/s", "seconds", "device-seconds/item"]
    before: float
    after: float


class Suggestion(TypedDict):
    """A change of a setting that the last minute suggests, why (numbers by name), and what it gains.

    `current` and `proposed` are items, seconds, instances or bytes; 0 and 1 stand for off and on.
    """

    action: Literal[
        "raise_max_batch_size",
        "lower_max_batch_size",
        "raise_max_wait_time",
        "lower_max_wait_time",
        "enable_bucketing",
        "add_instance",
        "raise_memory_limit",
    ]
    current: float
    proposed: float
    evidence: dict[str, float]
    predicted_gain: Gain


class LoadedStats(TypedDict, total=False):
    """What is there of a version only while it is loaded."""

    batching: BatchingStats
    suggestions: list[Suggestion]


class ModelStats(LoadedStats):
    """One version of a model: what it did since the server started, and what it does now."""

    name: str
    version: str
    state: ModelState
    ok: int
    executed_items: int
    executed_batches: int
    mean_batch_size: float
    mean_queue_seconds: float
    mean_compute_seconds: float
    mean_request_seconds: float
    instance_busy_ratio: list[float]


class Stats(TypedDict):
    """The operator's view of the server and of each model's queue and batches."""

    uptime_seconds: float
    connections: int
    models: list[ModelStats]
