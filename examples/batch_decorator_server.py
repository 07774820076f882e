r"""A batched function behind a server: callers of any number send one text each, the function gets many.

python examples/batch_decorator_server.py

curl -s http://127.0.0.1:8000/models/sentiment/predict -H 'content-type: application/json' \
  -d '{"data": {"text": "What a wonderful day"}}'
"""

from __future__ import annotations

import argparse
import asyncio

import pydantic
import trustformers_serve as ts

GOOD = {"good", "great", "lovely", "wonderful"}
BAD = {"awful", "bad", "boring", "sad"}


class Review(pydantic.BaseModel):
    """What a caller sends; anything else is refused before it is queued."""

    text: str = pydantic.Field(min_length=1)


@ts.register(name="sentiment", version="1")
@ts.batch(max_batch_size=32, max_wait_time=0.005, input_schema=Review, max_queue_size=1000)
async def sentiment(reviews: list[Review]) -> list[float]:
    """From -1 to 1 for each review: a model would take all of them in one run."""
    await asyncio.sleep(0.002)
    words = [set(review.text.lower().split()) for review in reviews]
    return [(len(found & GOOD) - len(found & BAD)) / max(len(found & (GOOD | BAD)), 1) for found in words]


async def try_it() -> None:
    """Calls it in this process, as the server does."""
    texts = ["a lovely film", "boring and sad", "it is a film", "good but boring"]
    scores = await asyncio.gather(*(sentiment({"text": text}) for text in texts * 50))
    for text, score in zip(texts, scores, strict=False):
        print(f"{score:+.1f}  {text}")
    (metrics,) = sentiment.batcher.metrics()
    print(f"{metrics.items} reviews in {metrics.batches} batches")
    await sentiment.batcher.stop()


def main() -> None:
    """Serves it, or with `--try` calls it once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--port", type=int, default=8000, help="0 picks a free one")
    parser.add_argument("--try", dest="once", action="store_true", help="call it here and end")
    options = parser.parse_args()
    if options.once:
        asyncio.run(try_it())
        return
    with ts.serve(host="127.0.0.1", port=options.port, block=False) as server:
        print(f"serving sentiment on {server.url}", flush=True)
        server.wait()


if __name__ == "__main__":
    main()
