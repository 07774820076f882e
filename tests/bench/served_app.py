"""`served_app.py KIND PORT WORKERS`: serves `score` with this package, mosec or LitServe until it is ended.

Those of the peers run in their own virtual environments. KIND is "register", "autobatch" or "batch" for
this package, "mosec", "mosec-batch" or "litserve" for the peers.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUntypedBaseClass=false
# pyright: reportMissingImports=false, reportUnknownParameterType=false, reportUnknownArgumentType=false
# The peers are installed only in their own environments, which the type checker does not see.

from __future__ import annotations

import os
import sys
from typing import Any

from served_function import score

KIND, PORT, WORKERS = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
MAX_BATCH = 32


def own() -> None:
    """This package."""
    import trustformers_serve as ts

    def many(items: list[list[float]]) -> list[dict[str, float | str]]:
        return [score(item) for item in items]

    async def many_later(items: list[list[float]]) -> list[dict[str, float | str]]:
        return [score(item) for item in items]

    if KIND == "register":
        ts.register("score")(score)
    elif KIND == "autobatch":
        ts.register("score")(ts.autobatch(MAX_BATCH, 1)(many))
    else:
        ts.register("score")(ts.batch(MAX_BATCH, 0.001)(many_later))
    # One worker for the requests, as the peers leave the other core to the function.
    ts.serve(port=PORT, config=ts.ServerConfig(logging={"level": "warn"}))


def mosec() -> None:
    """mosec, one request a call or up to 32."""
    from mosec import Server, Worker

    class One(Worker):
        def forward(self, data: Any) -> Any:
            return {"data": score(data["data"])}

    class Many(Worker):
        def forward(self, data: list[Any]) -> list[Any]:
            return [{"data": score(item["data"])} for item in data]

    server = Server()
    if KIND == "mosec":
        server.append_worker(One, num=WORKERS)
    else:
        server.append_worker(Many, num=WORKERS, max_batch_size=MAX_BATCH, max_wait_time=1)
    server.run()


def litserve() -> None:
    """LitServe on the CPU."""
    import litserve as ls

    class Api(ls.LitAPI):
        def setup(self, device: str) -> None:
            pass

        def decode_request(self, request: dict[str, Any]) -> Any:
            return request["data"]

        def predict(self, x: Any) -> Any:
            return score(x)

        def encode_response(self, output: Any) -> dict[str, Any]:
            return {"data": output}

    server = ls.LitServer(Api(), accelerator="cpu", workers_per_device=WORKERS, timeout=30)
    server.run(host="127.0.0.1", port=PORT, log_level="warning", generate_client_file=False)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if KIND.startswith("mosec"):
        mosec()
    elif KIND == "litserve":
        litserve()
    else:
        own()
