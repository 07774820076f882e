"""Serves a ResNet-18, batching the images of all clients.

python examples/resnet_server.py --port 8000
python examples/resnet_client.py http://127.0.0.1:8000
"""

from __future__ import annotations

import argparse

import trustformers_serve as ts


def main() -> None:
    """Serves until it is interrupted."""
    parser = argparse.ArgumentParser(description="Serve a ResNet-18.")
    parser.add_argument("--port", type=int, default=8000, help="0 picks a free one")
    parser.add_argument("--max-batch-size", type=int, default=16)
    arguments = parser.parse_args()
    config = ts.ServerConfig(
        server={"port": arguments.port},
        models={"resnet18": {"batching": {"max_batch_size": arguments.max_batch_size}}},
    )
    with ts.Server(config) as server:
        print(f"serving resnet18 on {server.url}", flush=True)
        server.wait()


if __name__ == "__main__":
    main()
