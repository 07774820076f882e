"""`served_litserve.py WORKERS PORT`: serves `score` with LitServe, in the virtual environment of that."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUntypedBaseClass=false
# LitServe is installed only in its own environment, which the type checker does not see.

import sys
from typing import Any

import litserve  # pyright: ignore[reportMissingImports]
from served_function import score


class Score(litserve.LitAPI):
    """One request a call."""

    def setup(self, device: str) -> None:
        """Nothing to load."""

    def decode_request(self, request) -> Any:  # pyright: ignore[reportMissingParameterType, reportUnknownParameterType] - an annotation would be a schema
        return request["data"]

    def predict(self, x: Any) -> Any:
        return score(x)

    def encode_response(self, output: Any) -> dict[str, Any]:
        return {"data": output}


if __name__ == "__main__":
    workers, port = int(sys.argv[1]), int(sys.argv[2])
    server = litserve.LitServer(Score(), accelerator="cpu", workers_per_device=workers)
    server.run(host="127.0.0.1", port=port, log_level="warning", generate_client_file=False)
