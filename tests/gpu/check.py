"""Serves models on a GPU, compares what they answer with the CPU, and times texts. See check.sh."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PROMPT, OUTPUT = 128, 64
# The largest difference that is rounding.
WORST = 1e-2


class Server:
    """The server as a process, on one device."""

    def __init__(self, device: str, checkpoint: str | None, dtype: str) -> None:
        model = f"dtype = '{dtype}'\n" + (f"path = {json.dumps(checkpoint)}" if checkpoint else "")
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


def answers(server: Server) -> dict[str, list[float] | str]:
    """What each model says to one question, and how likely it finds tokens of a prompt and of its text."""
    asked = {"model": server.name, "prompt": list(range(4, 24)), "max_tokens": 32, "temperature": 0}
    asked |= {"echo": True, "logprobs": 0, "ignore_eos": True}
    [choice] = server.post("/v1/completions", asked)["choices"]
    return {
        "mlp": server.post("/models/mlp/predict", {"data": [0.5] * 64})["data"],
        "minilm": server.post("/models/minilm/predict", {"data": "A cat sleeps."})["data"],
        f"{server.name}'s log-probabilities": choice["logprobs"]["token_logprobs"][1:],
        f"{server.name}'s text": choice["text"],
    }


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


def compare(here: dict[str, list[float] | str], there: dict[str, list[float] | str]) -> None:
    """Fails where two devices do not say the same."""
    for what, mine in here.items():
        other = there[what]
        if isinstance(mine, str) or isinstance(other, str):
            if mine != other:
                raise SystemExit(f"{what} is wrong there: {other!r}, not {mine!r}")
            print(f"{what}: the CPU's")
            continue
        worst = max(abs(float(a) - float(b)) for a, b in zip(mine, other, strict=True))
        print(f"{what}: differs from the CPU by at most {worst:.2g}")
        if worst > WORST:
            raise SystemExit(f"{what} is wrong there")


def main() -> None:
    """Compares in f32, and times in bf16."""
    parser = argparse.ArgumentParser(prog="check.sh", description=__doc__)
    parser.add_argument("checkpoint", nargs="?", help="a language model's folder; without it tinylm")
    parser.add_argument("--device", default="cuda:0", help="what is compared with the CPU (default: cuda:0)")
    asked = parser.parse_args()
    said: list[dict[str, list[float] | str]] = []
    for device in ("cpu", asked.device):
        server = Server(device, asked.checkpoint, "f32")
        try:
            said.append(answers(server))
        finally:
            server.close()
    compare(*said)
    server = Server(asked.device, asked.checkpoint, "bf16")
    try:
        for clients in (1, 8, 32):
            print(f"{clients:3} clients: {tokens_a_second(server, clients):,.0f} tokens/s")
    finally:
        server.close()


if __name__ == "__main__":
    main()
