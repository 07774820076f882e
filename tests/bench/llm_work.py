"""The loads of the language model benchmark: prompts from a seed, and when they are sent.

Another seed gives other prompts, so that what a server kept of an earlier repeat is of no use to it. All
servers of one repeat get the same ones.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

VOCABULARY = 16_000
PROMPT, OUTPUT = 128, 64
SHARED = 512
LONGEST_PROMPT, LONGEST_OUTPUT = 1024, 256


@dataclass(frozen=True)
class Text:
    """One request: token ids, and how many are to follow."""

    prompt: Sequence[int]
    output: int


@dataclass(frozen=True)
class Work:
    """Texts, and how they are sent."""

    texts: Sequence[Text]
    users: int = 0  # closed loop
    due: Sequence[float] = field(default_factory=tuple[float, ...])  # open loop
    before: Sequence[Text] = ()  # sent first, and not measured


@dataclass(frozen=True)
class Load:
    """A kind of load, by name."""

    name: str
    make: Callable[[int], Work]  # from a seed


def _ids(draw: random.Random, count: int) -> list[int]:
    # The first ids are the special tokens.
    return [draw.randrange(2, VOCABULARY) for _ in range(count)]


def even(users: int, requests: int) -> Load:
    """All texts of one size."""

    def make(seed: int) -> Work:
        draw = random.Random(seed)
        return Work([Text(_ids(draw, PROMPT), OUTPUT) for _ in range(requests)], users)

    return Load(f"c={users}", make)


def together(users: int) -> Load:
    """All begin at once and are twice as long as else, so that for a while they do nothing but generate."""

    def make(seed: int) -> Work:
        draw = random.Random(seed)
        return Work([Text(_ids(draw, PROMPT), 2 * OUTPUT) for _ in range(users)], users)

    return Load(f"decode alone, c={users}", make)


def mixed(users: int, requests: int) -> Load:
    """Lengths as they are in chats: many short ones, a few long ones."""

    def make(seed: int) -> Work:
        draw = random.Random(seed)
        texts = [
            Text(
                _ids(draw, min(LONGEST_PROMPT, max(8, int(draw.lognormvariate(4.6, 0.8))))),
                min(LONGEST_OUTPUT, max(4, int(draw.lognormvariate(3.8, 0.7)))),
            )
            for _ in range(requests)
        ]
        return Work(texts, users)

    return Load(f"mixed lengths, c={users}", make)


def shared_prefix(users: int, requests: int) -> Load:
    """All prompts begin with the same tokens, which nobody has seen before."""

    def make(seed: int) -> Work:
        draw = random.Random(seed)
        shared = _ids(draw, SHARED)
        return Work([Text(shared + _ids(draw, PROMPT), OUTPUT) for _ in range(requests)], users)

    return Load(f"shared prefix {SHARED}, c={users}", make)


def prefix_hits(share: float, users: int, requests: int) -> Load:
    """This share of the prompts, in order, begins with what was sent before the load."""

    def make(seed: int) -> Work:
        draw = random.Random(seed)
        known = _ids(draw, SHARED)
        texts: list[Text] = []
        for number in range(requests):
            hit = int((number + 1) * share) > int(number * share)
            texts.append(Text((known if hit else _ids(draw, SHARED)) + _ids(draw, 16), OUTPUT))
        return Work(texts, users, before=[Text([*known, 2], 1)])

    return Load(f"prefix hits {share:.0%}, c={users}", make)


def poisson(rate: float, seconds: float) -> Load:
    """Requests come by chance, `rate` a second."""

    def make(seed: int) -> Work:
        draw = random.Random(seed)
        due: list[float] = []
        at = draw.expovariate(rate)
        while at < seconds:
            due.append(at)
            at += draw.expovariate(rate)
        return Work([Text(_ids(draw, PROMPT), OUTPUT) for _ in due], due=due)

    return Load("Poisson", make)
