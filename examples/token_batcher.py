"""Many tasks bring prompts of all lengths; a model gets them in batches of about as many tokens.

python examples/token_batcher.py
"""

from __future__ import annotations

import asyncio
import random

import trustformers_serve as ts

TARGET = 8_000


async def generate(prompts: list[ts.Prompt]) -> list[str]:
    """Stands for a model: it takes as long as its batch has tokens."""
    tokens = sum(prompt.estimate_tokens() for prompt in prompts)
    await asyncio.sleep(tokens / 1_000_000)
    return [prompt.text[-8:].upper() for prompt in prompts]


async def ask(batcher: ts.TokenBatcher[ts.Prompt, str], number: int) -> bool:
    """Brings one prompt; whether the answer is that of it."""
    text = "word " * random.Random(number).randint(1, 1_500) + f"no. {number:4}"
    future = await batcher.submit(ts.Prompt(text))
    return await future == f"NO. {number:4}"


async def main() -> None:
    """Brings 1,000 prompts at once."""
    async with ts.TokenBatcher(generate, target_batch_tokens=TARGET) as batcher:
        answers = await asyncio.gather(*(ask(batcher, number) for number in range(1_000)))
    stats = batcher.stats
    print(f"{sum(answers)} of {len(answers)} tasks got their own answers")
    size, tokens = stats.avg_batch_size, stats.avg_batch_cost
    print(f"{stats.total_batches} batches of {size:.1f} prompts and {tokens:.0f} tokens, of at most {TARGET}")
    print(f"the model was busy for {stats.utilization:.0%} of the time")


if __name__ == "__main__":
    asyncio.run(main())
