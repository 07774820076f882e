"""The `openai` package talks to this server as it does to OpenAI: a response, a chat as it grows, a batch.

python examples/openai_client.py
"""

from __future__ import annotations

import openai
import trustformers_serve as ts
from trustformers_serve.http import OpenAIResponsesExecutor

SENTENCES = ["The old sailor", "A girl", "A fox", "The king"]


def main() -> None:
    """Serves the built-in language model, and asks it."""
    config = ts.ServerConfig(server={"port": 0}, models={"tinylm": {}})
    with ts.Server(config) as server, openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        made = client.responses.create(model="tinylm", input="The old sailor", max_output_tokens=40)
        print(made.output_text)
        if made.usage is not None:
            print(f"({made.status}: {made.usage.input_tokens} tokens in, {made.usage.output_tokens} out)")

        chat = client.chat.completions.create(
            model="tinylm", messages=[{"role": "user", "content": "A girl"}], max_tokens=40, stream=True
        )
        for chunk in chat:
            print(chunk.choices[0].delta.content or "", end="", flush=True)
        print()

        # Many prompts at once: an executor of the same API, behind a batcher.
        with (
            OpenAIResponsesExecutor("none", "tinylm", f"{server.url}/v1", max_output_tokens=20) as ask,
            ts.Batcher(max_batch=64) as batcher,
        ):
            texts = batcher.map(SENTENCES * 8, ask)
        print(f"{len(texts)} more, the last one: {texts[-1]}")


if __name__ == "__main__":
    main()
