"""The server's configuration: the same keys as `serve.toml`, checked by the server itself."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict

from trustformers_serve import _core

if TYPE_CHECKING:
    # In `typing` itself only from Python 3.11 on.
    from typing_extensions import NotRequired

Duration: TypeAlias = str | timedelta
"""A duration with its unit ("50ms", "30s"), or a timedelta."""

StrPath: TypeAlias = str | os.PathLike[str]


class ServerSettings(TypedDict, total=False):
    """`[server]`: the socket and its limits."""

    host: str
    port: int
    """0 takes a free port."""
    workers: int
    max_body_size: str
    request_timeout: Duration
    shutdown_timeout: Duration
    max_connections: int


class LoggingSettings(TypedDict, total=False):
    """`[logging]`: read by the command line; a `Server` in this process leaves logging to the process."""

    level: str
    format: Literal["text", "json"]


class DeviceSettings(TypedDict, total=False):
    """`[device]`: where models run, and with how many threads in all."""

    default: str
    """"auto", "cpu" or "cuda:N"."""
    threads: int
    memory_limit: str


class TimeoutMultipliers(TypedDict, total=False):
    """`[batching.timeout_multipliers]`: of `request_timeout`, for a request that names no time."""

    low: float
    normal: float
    high: float
    critical: float


class BreakerSettings(TypedDict, total=False):
    """`[batching.breaker]`: when a failing model is left alone."""

    failures: int
    """In a row, within `window`; 0 never opens it."""
    window: Duration
    open: Duration


class DynamicSettings(TypedDict, total=False):
    """`[batching.dynamic]`: how batches are filled and padded."""

    target_utilization: float
    size_increment: int
    padding_strategy: Literal["minimal", "maximum", "none", "dynamic"]
    enable_bucketing: bool
    bucket_boundaries: list[int]
    """An empty list learns them from recent lengths."""
    memory_aware: bool
    bytes_per_element: str


class AdaptiveSettings(TypedDict, total=False):
    """`[batching.adaptive]`: the regimes of `mode = "adaptive"`; thresholds in requests a second."""

    low_load_threshold: float
    high_load_threshold: float
    adjustment_interval: Duration
    high_load_batch_size: int
    low_load_timeout: Duration


class ContinuousSettings(TypedDict, total=False):
    """`[batching.continuous]`: models that generate text; sizes in tokens."""

    block_size: int
    kv_cache_memory: str
    max_sequences: int
    max_step_tokens: int
    prefill_chunk: int
    inter_token_target: Duration
    prefix_caching: bool
    preemption: bool


class BatchingSettings(TypedDict, total=False):
    """`[batching]` and `[models.NAME.batching]`: when a batch leaves, and what may wait."""

    mode: Literal["dynamic", "fixed", "adaptive", "continuous"]
    dispatch: Literal["eager", "window"]
    isolation: Literal["bisect", "none"]
    max_batch_size: int
    min_batch_size: int
    max_wait_time: Duration
    max_queue_size: int
    max_queue_tokens: int
    max_queue_bytes: str
    max_batch_tokens: int
    optimization_target: Literal["balanced", "throughput", "latency", "cost"]
    latency_slo: Duration
    memory_limit: str
    enable_priority_scheduling: bool
    priority_ageing: Duration
    max_priority: Literal["low", "normal", "high", "critical"]
    stall_timeout: Duration
    event_log: StrPath
    timeout_multipliers: TimeoutMultipliers
    breaker: BreakerSettings
    dynamic: DynamicSettings
    adaptive: AdaptiveSettings
    continuous: ContinuousSettings


class TensorSettings(TypedDict):
    """A declared input or output: `shape` is that of one item, without the batch; -1 may vary."""

    name: str
    dtype: str
    shape: list[int]
    pad: NotRequired[float]
    """Of an input with exactly one -1: what items of different lengths are filled up with along it."""


class DelaySettings(TypedDict, total=False):
    """`[models.NAME.delay]`: the time that the built-in `delay` model takes."""

    batch_time: Duration
    item_time: Duration


class ModelSettings(TypedDict, total=False):
    """`[models.NAME]`: one model."""

    path: StrPath
    format: Literal["torchscript", "huggingface", "builtin"]
    version: str
    versions: Literal["latest", "all"] | list[str]
    device: str
    instances: int
    threads: int
    inputs: list[TensorSettings]
    outputs: list[TensorSettings]
    warmup: int
    load: bool
    max_length: int
    truncation: bool
    static_batch: bool
    dtype: Literal["f32", "bf16", "f16"]
    quantization: Literal["none", "int8"]
    batching: BatchingSettings
    delay: DelaySettings


@dataclass
class ServerConfig:
    """A configuration of the server, with the keys of `serve.toml`; what is left out has its default.

    Nothing is checked here: `validate` and `Server` ask the server, whose message names the key and
    the remedy. Fields may be changed at any time; a running server keeps what it was started with.
    """

    server: ServerSettings = field(default_factory=ServerSettings)
    logging: LoggingSettings = field(default_factory=LoggingSettings)
    device: DeviceSettings = field(default_factory=DeviceSettings)
    batching: BatchingSettings = field(default_factory=BatchingSettings)
    models: dict[str, ModelSettings] = field(default_factory=dict[str, ModelSettings])
    model_repository: StrPath | None = None
    builtin_models: StrPath | None = None
    # Not compared: two configurations of the same keys are equal wherever they came from.
    _source: _Source | None = field(default=None, init=False, repr=False, compare=False)

    @classmethod
    def from_file(cls, path: StrPath) -> ServerConfig:
        """Reads a TOML file; relative paths in it start at its folder, also those set later.

        Raises:
            ConfigError: It is not a valid configuration; the message names the file and the line.
            OSError: It cannot be read.
        """
        return cls._parsed(Path(path).read_text(encoding="utf-8"), os.fspath(path), str(Path(path).parent))

    @classmethod
    def from_toml(cls, text: str) -> ServerConfig:
        """Reads TOML text.

        Raises:
            ConfigError: It is not a valid configuration.
        """
        return cls._parsed(text, "<toml>", "")

    @classmethod
    def _parsed(cls, text: str, origin: str, folder: str) -> ServerConfig:
        # Checked first, so that no unknown key is left for the constructor to stumble over.
        _core.validate_toml(text, origin, folder)
        config = cls(**_core.parse_toml(text, origin))
        config._source = _Source(text, origin, folder, copy.deepcopy(config._tables()))
        return config

    def validate(self) -> None:
        """Checks the configuration as the server would at start, loading nothing.

        Raises:
            ConfigError: The server's own message: the key, what is wrong, the right form.
        """
        _core.validate_toml(*self.source())

    def to_toml(self) -> str:
        """The configuration as TOML text that the server reads."""
        return _core.to_toml(self._tables())

    def set(self, key: str, value: object) -> None:
        """Sets a dotted key: `config.set("batching.max_batch_size", 64)`."""
        *tables, last = key.split(".")
        if not tables:
            setattr(self, last, value)
            return
        table: dict[str, Any] = vars(self).setdefault(tables[0], {})
        for name in tables[1:]:
            table = table.setdefault(name, {})
        table[last] = value

    def source(self) -> tuple[str, str, str]:
        """What a server is given: the text, its name in messages, and the folder of relative paths.

        The text is the file as read, until a key is changed.
        """
        source = self._source
        if source is not None and source.tables == self._tables():
            return source.text, source.origin, source.folder
        return self.to_toml(), "ServerConfig", "" if source is None else source.folder

    def _tables(self) -> dict[str, Any]:
        # Also what `set` added beside the fields, so that the server can say that it is unknown.
        return {name: value for name, value in vars(self).items() if name != "_source" and value != {}}


@dataclass(frozen=True)
class _Source:
    """The text that a configuration was read from, kept for the line numbers in messages."""

    text: str
    origin: str
    folder: str
    tables: dict[str, Any]
