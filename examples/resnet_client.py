"""Asks a server's ResNet-18 what is in some images, from several threads at once; see resnet_server.py.

python examples/resnet_client.py http://127.0.0.1:8000
"""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import trustformers_serve as ts

IMAGES = 32
THREADS = 8
MEAN = np.array([0.485, 0.456, 0.406], np.float32)[:, None, None]
DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)[:, None, None]


def picture(seed: int) -> npt.NDArray[np.uint8]:
    """An image of noise, 224 by 224, as a decoder of JPEG files would give it."""
    return np.random.default_rng(seed).integers(0, 256, (224, 224, 3), np.uint8)


def prepared(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """The image as the model was trained to see it: [3, 224, 224], normalised."""
    return (image.transpose(2, 0, 1).astype(np.float32) / 255 - MEAN) / DEVIATION


def main() -> None:
    """Classifies images one by one and together, and says how fast that was."""
    images = [prepared(picture(seed)) for seed in range(IMAGES)]
    with ts.Client(sys.argv[1]) as client:
        began = time.perf_counter()
        with ThreadPoolExecutor(THREADS) as threads:
            scores = list(threads.map(lambda image: client.predict("resnet18", image), images))
        seconds = time.perf_counter() - began
        together = client.predict_batch("resnet18", images[:4])
        np.testing.assert_allclose(scores[:4], together, rtol=1e-3, atol=1e-3)
        first = np.argsort(scores[0])[::-1][:5]
        print(f"the likeliest classes of the first image: {', '.join(map(str, first))}")
        print(f"{IMAGES} images from {THREADS} threads in {seconds:.2f} s")
        (model,) = [model for model in client.stats()["models"] if model["name"] == "resnet18"]
        if "batching" in model:
            print(f"{model['batching']['batches']['ended']} batches")


if __name__ == "__main__":
    main()
