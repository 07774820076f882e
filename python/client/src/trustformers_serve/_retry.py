"""Which failures are worth another try, and when, and what a client says of that.

Nothing here waits or reads a clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trustformers_serve._calls import Call, retry_after
from trustformers_serve._codec import Reply
from trustformers_serve._limits import check_count, check_time
from trustformers_serve.errors import ConnectionBrokenError, ConnectionFailedError, TransportError

# Refused before they ran: the queue is full; the model or the server is not ready. What ran when the
# server shut down is answered 500.
_REFUSED = frozenset({429, 503})
# Doubling ends here, so that many retries do not wait for minutes.
_LONGEST_BACKOFF_SECONDS = 10.0


@dataclass(frozen=True)
class RetryPolicy:
    """How often and how patiently; see `Client`."""

    max_retries: int
    retry_delay: float
    timeout: float | None
    """A server that asks for a longer wait than this is not waited for: its error is raised at once."""
    repeat_unsafe: bool = False
    """Whether what may have run is repeated too: after any status from 500 on, and a broken connection."""

    def __post_init__(self) -> None:
        """Checks the numbers.

        Raises:
            ValueError: One is out of range; the message names it.
            TypeError: One is no number.
        """
        if self.timeout is not None:
            check_time("timeout", self.timeout)
        check_count("max_retries", self.max_retries, 0)
        check_time("retry_delay", self.retry_delay, may_be_zero=True)

    def __str__(self) -> str:
        """What a client's repr says of it."""
        unsafe = " repeat_unsafe=True" if self.repeat_unsafe else ""
        timeout = "None" if self.timeout is None else f"{self.timeout:g}"
        return f"timeout={timeout} max_retries={self.max_retries}{unsafe}"

    def wait_seconds(
        self, call: Call[Any], outcome: Reply | TransportError, retries: int, jitter: float
    ) -> float | None:
        """Seconds to wait before `call` is sent again, or None when `outcome` stands.

        Only what cannot have run is repeated, and a GET, which may run twice, unless `repeat_unsafe` is set.
        Silence is not repeated either way: the caller's patience is over.

        Args:
            call: What was sent.
            outcome: What came of it.
            retries: How often it has been repeated.
            jitter: A random number in [0, 1) that spreads callers who failed together.
        """
        if retries >= self.max_retries:
            return None
        asked = 0.0
        if isinstance(outcome, Reply):
            again = outcome.status in _REFUSED or (self.repeat_unsafe and outcome.status >= 500)
            if not again or outcome.status in call.final_statuses:
                return None
            asked = retry_after(outcome) or 0.0
        elif not isinstance(outcome, ConnectionFailedError) and not (
            (call.method == "GET" or self.repeat_unsafe) and isinstance(outcome, ConnectionBrokenError)
        ):
            return None
        if self.timeout is not None and asked > self.timeout:
            return None
        backoff = min(self.retry_delay * 2.0**retries, _LONGEST_BACKOFF_SECONDS)
        return max(asked, backoff) * (1.0 + 0.25 * jitter)
