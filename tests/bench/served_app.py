"""`served_app.py KIND PORT`: serves `score` with this package until it is ended.

KIND is "register", "autobatch" or "batch": how the function is decorated; or "app" or "app-batched": a model
of an `App`, of one item or of a whole batch.
"""

from __future__ import annotations

import sys

import trustformers_serve as ts
from served_function import score

MAX_BATCH = 32
Item = list[float]
Result = dict[str, float | str]


def many(items: list[Item]) -> list[Result]:
    """A whole batch."""
    return [score(item) for item in items]


async def many_later(items: list[Item]) -> list[Result]:
    """The same for an event loop."""
    return many(items)


if __name__ == "__main__":
    kind, port = sys.argv[1], int(sys.argv[2])
    app = ts.App(max_batch_size=MAX_BATCH, batch_timeout_ms=1)
    if kind == "register":
        ts.register("score")(score)
    elif kind == "autobatch":
        ts.register("score")(ts.autobatch(MAX_BATCH, 1)(many))
    elif kind == "batch":
        ts.register("score")(ts.batch(MAX_BATCH, 0.001)(many_later))
    elif kind == "app":
        app.model("score")(score)
    else:
        app.model("score")(many)
    serve = app.serve if kind.startswith("app") else ts.serve
    serve(port=port, config=ts.ServerConfig(logging={"level": "warn"}))
