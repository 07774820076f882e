"""A process that serves and forks, or whose served functions run in processes that it spawns."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import subprocess
import sys

import pytest
import trustformers_serve as ts
from served import Serve, predict

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

HEAD = """
import gc, os, sys
import trustformers_serve as ts

@ts.register()
def double(item: int) -> int:
    return item * 2

@ts.register()
async def double_later(item: int) -> int:
    return item * 2

@ts.register()
@ts.batch(max_wait_time=0)
def double_each(items: list[int]) -> list[int]:
    return [item * 2 for item in items]

def use(server):
    with ts.Client(server.url) as client:
        return [client.predict(name, 2) for name in ("double", "double_later", "double_each")]

def fork():
    child = os.fork()
    if child:
        print("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    return child

def serve():
    return ts.serve(port=0, block=False, config=ts.ServerConfig(logging={"level": "error"}))

server = serve()
use(server)
"""

TAIL = """
assert server.running
print("parent", use(server), flush=True)
server.stop()
"""


def run(code: str) -> list[str]:
    """The lines that a program prints, which serves all the time, and whose child runs `code`."""
    child = "if not fork():\n" + "".join(f"    {line}\n" for line in code.strip().split("\n"))
    program = HEAD + child + "    sys.exit(3)\n" + TAIL
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[-2:] == ["child 3", "parent [4, 4, 4]"]
    return lines[:-2]


@needs_fork
def test_a_forked_child_ends_and_its_parent_goes_on_serving() -> None:
    assert run("pass") == []


@needs_fork
def test_a_forked_child_that_forgets_the_server_ends_too() -> None:
    assert run("del server\ngc.collect()") == []


@needs_fork
@pytest.mark.parametrize("method", ["stop", "wait", "wait_ready"])
def test_a_forked_child_is_told_that_the_server_is_not_its_own(method: str) -> None:
    code = f"""
try:
    server.{method}()
except RuntimeError as error:
    print(str(error).replace(str(os.getppid()), "PARENT"), server.running, repr(server).split()[2:])
"""
    why = "this server runs in process PARENT, which this one was forked from: stop it there"
    assert run(code) == [f"{why} False ['of', 'another', 'process>']"]


@needs_fork
def test_a_forked_child_may_ask_the_server_of_its_parent() -> None:
    assert run("print(use(server))") == ["[4, 4, 4]"]


@needs_fork
def test_a_forked_child_that_leaves_the_block_of_a_server_leaves_it_as_it_is() -> None:
    assert run("with server:\n    pass") == []


def double(item: int) -> int:
    return item * 2


@ts.autobatch(max_wait_ms=0)
def double_each(items: list[int]) -> list[int]:
    return [item * 2 for item in items]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_served_functions_run_in_processes_made_meanwhile(serve: Serve, method: str) -> None:
    ts.register("double")(double)
    ts.register("double_each")(double_each)
    server = serve()
    for name, function in {"double": double, "double_each": double_each}.items():
        assert predict(server, name, 1).value["data"] == 2
        with multiprocessing.get_context(method).Pool(2) as pool:
            assert pool.map_async(function, range(20)).get(60) == [item * 2 for item in range(20)]
        assert predict(server, name, 2).value["data"] == 4


def test_a_server_does_not_travel(serve: Serve) -> None:
    ts.register()(double)
    with pytest.raises(TypeError, match="a Server cannot be copied or sent to another process; send its url"):
        pickle.dumps(serve())
