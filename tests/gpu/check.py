"""Serves models on a GPU, compares what they answer with the CPU, and times texts. See check.sh."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PROMPT, OUTPUT = 128, 64


class Server:
    """The server as a process, on one device."""

    def __init__(self, device: str, checkpoint: str | None) -> None:
        model = f"path = {json.dumps(checkpoint)}" if checkpoint else ""
        name = "llm" if checkpoint else "tinylm"
        config = f"[server]\nport = 0\n[device]\ndefault = '{device}'\n[models.{name}]\n{model}\n"
        config += "[models.mlp]\n[models.minilm]\n"
        self.name = name
        self._folder = tempfile.TemporaryDirectory()
        file = Path(self._folder.name) / "serve.toml"
        file.write_text(config)
        command = [ROOT / "target/release/trustformers-serve", "--config", file]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.url = ""
        for line in self._process.stdout:
            found = re.search(r"listening on (http://\S+)", line)
            self.url = found[1] if found else self.url
            if line.startswith("ready"):
                break
        else:
            raise SystemExit(f"the server did not start on {device}")

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """One call, which must succeed."""
        data, headers = json.dumps(body).encode(), {"content-type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(self.url + path, data, headers)) as reply:
            return json.load(reply)

    def close(self) -> None:
        """Stops it."""
        self._process.terminate()
        self._process.wait(60)
        self._folder.cleanup()


def answers(server: Server) -> tuple[list[float], list[float], str]:
    """What each model says to one question."""
    row = server.post("/models/mlp/predict", {"data": [0.5] * 64})["data"]
    embedding = server.post("/models/minilm/predict", {"data": "A cat sleeps."})["data"]
    asked = {"model": server.name, "prompt": list(range(4, 24)), "max_tokens": 8, "temperature": 0}
    return row, embedding, server.post("/v1/completions", asked)["choices"][0]["text"]


def tokens_a_second(server: Server, clients: int) -> float:
    """Texts of so many clients at once."""

    def ask(client: int) -> int:
        prompt = [4 + (client * 31 + index * 7) % 800 for index in range(PROMPT)]
        body = {"model": server.name, "prompt": prompt, "max_tokens": OUTPUT, "temperature": 0}
        return server.post("/v1/completions", {**body, "ignore_eos": True})["usage"]["completion_tokens"]

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(ask, range(clients)))
        started = time.perf_counter()
        tokens = sum(pool.map(ask, range(clients, 2 * clients)))
        return tokens / (time.perf_counter() - started)


def main() -> None:
    """Compares and times."""
    checkpoint = sys.argv[1] if len(sys.argv) > 1 else None
    said: dict[str, tuple[list[float], list[float], str]] = {}
    for device in ("cpu", "cuda:0"):
        server = Server(device, checkpoint)
        try:
            said[device] = answers(server)
            if device != "cpu":
                for clients in (1, 8, 32):
                    print(f"{clients:3} clients: {tokens_a_second(server, clients):,.0f} tokens/s")
        finally:
            server.close()
    for what, here, there in zip(("mlp", "minilm"), said["cpu"], said["cuda:0"], strict=False):
        worst = max(abs(float(a) - float(b)) for a, b in zip(here, there, strict=True))
        print(f"{what}: differs from the CPU by at most {worst:.2g}")
        if worst > 1e-2:
            raise SystemExit(f"{what} is wrong on the GPU")
    print("text:", "the CPU's" if said["cpu"][2] == said["cuda:0"][2] else f"another: {said['cuda:0'][2]!r}")


if __name__ == "__main__":
    main()
