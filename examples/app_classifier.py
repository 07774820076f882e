r"""An app of three models: a batched classifier on tensors, one that explains itself, one that streams.

python examples/app_classifier.py

curl -s http://127.0.0.1:8000/models/digit/predict -H 'content-type: application/json' \
  -d "{\"data\": $(python -c 'print([[0.5] * 8] * 8)')}"
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Iterator
from typing import Annotated

import torch
import trustformers_serve as ts

Image = Annotated[torch.Tensor, ts.Tensor("f32", (8, 8))]

app = ts.App(name="digits", max_batch_size=32, batch_timeout_ms=5.0)

torch.manual_seed(0)
network = torch.nn.Sequential(
    torch.nn.Flatten(), torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10)
)


@torch.inference_mode()
def scores_of(images: list[Image]) -> torch.Tensor:
    """One run of the network for all of them."""
    return network(torch.stack(images)).softmax(dim=1)


@app.model("digit")
def digit(images: list[Image]) -> list[int]:
    """The likeliest digit of each image: a list in and a list of another type out is a batch."""
    return scores_of(images).argmax(dim=1).tolist()


@app.model("explain")
def explain(image: Image, top: int = 3) -> dict[str, float]:
    """The likeliest digits of one image: several parameters are never batched."""
    scores, digits = scores_of([image])[0].topk(top)
    return {
        str(number): round(score, 4) for number, score in zip(digits.tolist(), scores.tolist(), strict=True)
    }


@app.model("rows")
def rows(image: Image) -> Iterator[float]:
    """The brightness of each row, one by one: a generator streams."""
    for row in image:
        yield row.mean().item()


async def try_it() -> None:
    """Calls the models in this process, as the server does."""
    images = list(torch.rand(200, 8, 8))
    digits = await asyncio.gather(*(app.predict("digit", image) for image in images))
    alone = [await app.predict("explain", {"image": image, "top": 1}) for image in images]
    same = sum(str(digit) in scores for digit, scores in zip(digits, alone, strict=True))
    print(f"{len(digits)} images, of which {same} as each by itself")
    print(await app.predict("explain", {"image": images[0].tolist(), "top": 2}))
    print([round(row, 2) async for row in await app.predict("rows", images[0])])
    try:
        await app.predict("digit", [[1.0, 2.0]])
    except ts.ValidationError as error:
        print(error)
    await app.stop()


def main() -> None:
    """Serves the models, or with `--try` calls each once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--port", type=int, default=8000, help="0 picks a free one")
    parser.add_argument("--try", dest="once", action="store_true", help="call them here and end")
    options = parser.parse_args()
    if options.once:
        asyncio.run(try_it())
        return
    with app.serve(host="127.0.0.1", port=options.port, block=False) as server:
        print(f"serving digit, explain and rows on {server.url}", flush=True)
        server.wait()


if __name__ == "__main__":
    main()
