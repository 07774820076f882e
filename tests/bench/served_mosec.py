"""`served_mosec.py KIND WORKERS --port N ...`: serves `score` with mosec.

Runs in the peers' virtual environment. KIND is "one" for one request a call, "many" for up to 32.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUntypedBaseClass=false
# mosec is installed only in the peers' environment, which the type checker does not see.

from __future__ import annotations

import sys
from typing import Any

from mosec import Server, Worker  # pyright: ignore[reportMissingImports]
from served_function import score

MAX_BATCH = 32


class One(Worker):
    """One request a call."""

    def forward(self, data: Any) -> Any:
        return {"data": score(data["data"])}


class Many(Worker):
    """A list of requests a call."""

    def forward(self, data: list[Any]) -> list[Any]:
        return [{"data": score(item["data"])} for item in data]


if __name__ == "__main__":
    kind, workers = sys.argv[1], int(sys.argv[2])
    server = Server()
    if kind == "one":
        server.append_worker(One, num=workers)
    else:
        server.append_worker(Many, num=workers, max_batch_size=MAX_BATCH, max_wait_time=1)
    server.run()
