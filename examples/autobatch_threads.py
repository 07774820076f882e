"""Sixty-four threads call a function with one item each; it runs on batches of them.

python examples/autobatch_threads.py
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import trustformers_serve as ts

Vector = npt.NDArray[np.float32]

WEIGHTS = np.random.default_rng(0).standard_normal((256, 256), dtype=np.float32)


@ts.autobatch(max_batch=32, max_wait_ms=10)
def predict(items: list[Vector]) -> list[Vector]:
    """One product for the whole batch, which is much faster than one for each item."""
    return list(np.stack(items) @ WEIGHTS)


def main() -> None:
    """Sends 2,000 items, each from whichever thread is free."""
    items = list(np.random.default_rng(1).standard_normal((2000, 256), dtype=np.float32))
    with ThreadPoolExecutor(64) as threads:
        results = list(threads.map(predict, items))
    np.testing.assert_allclose(np.stack(results), np.stack(items) @ WEIGHTS, atol=1e-3)
    metrics = predict.batcher.metrics()
    print(f"{metrics.items} items in {metrics.batches} batches of {metrics.avg_batch:.1f} on average")
    print(f"half of the calls took less than {metrics.p50_ms:.2f} ms, 99 % less than {metrics.p99_ms:.2f} ms")
    predict.batcher.close()


if __name__ == "__main__":
    main()
