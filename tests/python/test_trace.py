"""The trace of a server with two language models is one that Chrome and Perfetto open."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any
from urllib.request import urlopen

import pytest
import trustformers_serve as ts
from conftest import ROOT

Event = dict[str, Any]
# Of each phase that is used, the fields that it must have beside `name` and `pid`
# (https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU).
FIELDS = {
    "M": {"args"},
    "X": {"tid", "ts", "dur"},
    "C": {"ts", "args"},
    "b": {"cat", "ts"},
    "e": {"cat", "ts"},
}
FIELDS["n"] = FIELDS["b"]
TEXTS = 12


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Serves two models that have worked one after the other, of which the first had to preempt."""
    config = ts.ServerConfig(
        server={"port": 0, "request_timeout": "10m"},
        device={"default": "cpu"},
        models={
            "crowded": {
                "path": ROOT / "examples" / "tinylm",
                # 50 blocks.
                "batching": {"continuous": {"kv_cache_memory": "1MB"}},
            },
            "roomy": {"path": ROOT / "examples" / "tinylm", "load": False},
        },
    )

    async def ask(url: str, model: str) -> None:
        async with ts.AsyncClient(url) as client:
            texts = [
                client.generate(
                    "The old sailor " * count, model=model, max_tokens=150, ignore_eos=True, seed=count
                )
                for count in range(1, TEXTS + 1)
            ]
            await asyncio.gather(*texts)

    with ts.Server(config) as server:
        asyncio.run(ask(server.url, "crowded"))
        with ts.Client(server.url) as client:
            client.load_model("roomy")
        asyncio.run(ask(server.url, "roomy"))
        yield server.url


@pytest.fixture(scope="module")
def events(url: str) -> list[Event]:
    with urlopen(f"{url}/admin/trace") as reply:
        trace = json.load(reply)
    assert trace["displayTimeUnit"] in {"ms", "ns"}
    return trace["traceEvents"]


def of(events: list[Event], phases: str) -> list[Event]:
    return [event for event in events if event["ph"] in phases]


def steps(events: list[Event]) -> list[Event]:
    return [event for event in of(events, "X") if event["tid"] == 1]


def test_every_event_has_what_its_phase_needs(events: list[Event]) -> None:
    for event in events:
        assert {"name", "pid"} | FIELDS[event["ph"]] <= event.keys(), event
        assert all(event.get(field, 0) >= 0 for field in ("ts", "dur")), event
    for event in of(events, "C"):
        assert all(isinstance(value, int) for value in event["args"].values()), event


def test_every_process_and_thread_with_slices_has_a_name(events: list[Event]) -> None:
    named = {(event["name"], event["pid"], event["tid"]) for event in of(events, "M")}
    for event in of(events, "X"):
        assert ("process_name", event["pid"], 0) in named
        assert ("thread_name", event["pid"], event["tid"]) in named
    names = [event["args"]["name"] for event in of(events, "M") if event["name"] == "process_name"]
    assert [name.split()[0] for name in names] == ["crowded", "roomy"]


def test_slices_of_a_thread_follow_each_other(events: list[Event]) -> None:
    for process, thread in {(event["pid"], event["tid"]) for event in of(events, "X")}:
        slices = [event for event in of(events, "X") if (event["pid"], event["tid"]) == (process, thread)]
        ends = [event["ts"] + event["dur"] for event in slices]
        # A rounding of microseconds apart.
        assert all(end <= later["ts"] + 1e-3 for end, later in zip(ends, slices[1:], strict=False))
    for process in {event["pid"] for event in events}:
        numbers = [event["args"]["step"] for event in steps(events) if event["pid"] == process]
        assert len(set(numbers)) == len(numbers) > 100


def test_callers_are_told_and_a_step_is_planned_once_the_next_one_is_under_way(events: list[Event]) -> None:
    chosen = {
        (step["pid"], step["args"]["step"]): step["ts"] - step["args"]["planning_us"]
        for step in steps(events)
    }
    for name in ("tell callers", "plan ahead"):
        errands = [event for event in of(events, "X") if event["name"] == name]
        begins = [
            (errand["ts"], chosen[errand["pid"], errand["args"]["last_step"] + 1])
            for errand in errands
            if (errand["pid"], errand["args"]["last_step"] + 1) in chosen
        ]
        assert len(begins) > 100
        waited = sum(told >= under_way for told, under_way in begins)
        # Where no step follows at once, nobody waits for one.
        assert waited > 0.9 * len(begins)


def test_what_begins_on_a_track_ends_there_and_nests(events: list[Event]) -> None:
    tracks: dict[tuple[Any, ...], list[Event]] = {}
    for event in of(events, "be"):
        track = (event["pid"], event["cat"], json.dumps(event.get("id2", event.get("id"))))
        tracks.setdefault(track, []).append(event)
    assert Counter(track[0] for track in tracks) == {
        of(events, "M")[0]["pid"]: TEXTS,
        events[-1]["pid"]: TEXTS,
    }
    for track in tracks.values():
        open_slices: list[str] = []
        for event in track:
            if event["ph"] == "b":
                open_slices.append(event["name"])
            else:
                assert open_slices.pop() == event["name"]
        assert not open_slices
        times = [event["ts"] for event in track]
        assert times == sorted(times)


def test_tracks_of_two_models_are_told_apart(events: list[Event]) -> None:
    # An `id` is of the whole trace; a local one, of its process.
    assert all(event["id2"]["local"] and "id" not in event for event in of(events, "ben"))


def test_all_models_are_drawn_by_one_clock(events: list[Event]) -> None:
    crowded, roomy = (
        [event["ts"] for event in events if "ts" in event and event["pid"] == process["pid"]]
        for process in of(events, "M")
        if process["name"] == "process_name"
    )
    assert max(crowded) < min(roomy)


def test_a_preempted_text_is_marked(events: list[Event]) -> None:
    assert len(of(events, "n")) == sum(event["args"]["preempted"] for event in steps(events))


def test_a_text_that_was_left_is_drawn_too(url: str) -> None:
    options: Any = {"n": 64, "max_tokens": 1900, "ignore_eos": True}
    with ts.Client(url) as client:
        with client.stream("A girl", model="roomy", **options) as pieces:
            next(pieces)
        ends: list[str] = []
        deadline = time.monotonic() + 60
        while "cancelled" not in ends:
            assert time.monotonic() < deadline, Counter(ends)
            with urlopen(f"{url}/admin/trace") as reply:
                begun = of(json.load(reply)["traceEvents"], "b")
            ends = [event["args"]["end"] for event in begun if event["args"]]


def test_a_text_lies_within_the_steps_that_made_it(events: list[Event]) -> None:
    for event in of(events, "b"):
        if event["name"] == "generate":
            own = [step for step in steps(events) if step["pid"] == event["pid"]]
            assert any(step["ts"] + step["dur"] == pytest.approx(event["ts"], abs=0.01) for step in own)


def test_the_cache_is_shown_whole_after_each_step(events: list[Event]) -> None:
    counters = of(events, "C")
    assert len(counters) == len(steps(events))
    for process in {event["pid"] for event in counters}:
        sizes = {sum(event["args"].values()) for event in counters if event["pid"] == process}
        assert len(sizes) == 1


def test_preemptions_are_those_of_the_metrics(url: str, events: list[Event]) -> None:
    with ts.Client(url) as client:
        counted = re.findall(
            r'^trustformers_preemptions_total{model="(\w+)".*} (\d+)', client.metrics(), re.MULTILINE
        )
    totals = {model: int(count) for model, count in counted}
    names = {
        event["pid"]: event["args"]["name"].split()[0]
        for event in of(events, "M")
        if event["name"] == "process_name"
    }
    shown = Counter(dict.fromkeys(names.values(), 0))
    for event in steps(events):
        shown[names[event["pid"]]] += event["args"]["preempted"]
    assert shown == totals
    assert totals["crowded"] > 0
