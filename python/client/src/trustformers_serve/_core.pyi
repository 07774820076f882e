"""The Rust extension: converts, releases the GIL, calls."""

from collections.abc import Mapping
from typing import Any, final

__version__: str

def run_cli(args: list[str]) -> int:
    """Runs the command line with `args` (the program's name first) and returns its exit code."""

def validate_toml(text: str, origin: str, folder: str) -> None:
    """Checks a configuration as the server would at start; raises `ConfigError`."""

def parse_toml(text: str, origin: str) -> dict[str, Any]:
    """The tables of a TOML text, unchecked but for the syntax."""

def to_toml(tables: Mapping[str, Any]) -> str:
    """The TOML text of nested dicts; keys whose value is `None` are left out."""

def known_keys() -> list[str]:
    """Every key that a configuration may have, dotted."""

def error_codes() -> list[tuple[str, int]]:
    """Every code that an error of the server can have, with its HTTP status."""

@final
class Server:
    """A server that runs on threads of its own in this process."""

    @staticmethod
    def start(text: str, origin: str, folder: str) -> Server: ...
    def address(self) -> tuple[str, int]: ...
    def wait_ready(self, timeout_seconds: float) -> None: ...
    def stop(self) -> None: ...
    def is_running(self) -> bool: ...
    def wait(self, timeout_seconds: float | None) -> bool: ...
