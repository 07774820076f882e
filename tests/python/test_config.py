"""ServerConfig: the server's keys, the server's checks."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from typing import Any, get_type_hints, is_typeddict

import pytest
import trustformers_serve as ts
from conftest import ROOT
from trustformers_serve import _core, config


def keys_of(table: type, prefix: str) -> set[str]:
    """Every key of a table and of the tables in it."""
    keys: set[str] = set()
    for name, kind in get_type_hints(table).items():
        key = f"{prefix}.{name}"
        keys |= keys_of(kind, key) if is_typeddict(kind) else {key}
    return keys


def test_the_typed_keys_are_the_keys_of_the_server() -> None:
    model = "models.NAME"
    typed = (
        keys_of(config.ServerSettings, "server")
        | keys_of(config.LoggingSettings, "logging")
        | keys_of(config.DeviceSettings, "device")
        | keys_of(config.BatchingSettings, "batching")
        | keys_of(config.ModelSettings, model)
        | {"model_repository", "builtin_models"}
    )
    assert typed == set(_core.known_keys())


def test_a_file_is_read_and_written_back(tmp_path: Path) -> None:
    path = tmp_path / "serve.toml"
    path.write_text('[server]\nport = 0\n[models.delay]\ninstances = 2\ndelay = { batch_time = "7ms" }\n')
    read = ts.ServerConfig.from_file(path)
    assert read == ts.ServerConfig(
        server={"port": 0}, models={"delay": {"instances": 2, "delay": {"batch_time": "7ms"}}}
    )
    assert ts.ServerConfig.from_toml(read.to_toml()) == read


def test_top_level_keys_come_before_the_tables() -> None:
    written = ts.ServerConfig(server={"port": 0}, builtin_models=Path("/models")).to_toml()
    assert written.index("builtin_models") < written.index("[server]")
    assert ts.ServerConfig.from_toml(written).builtin_models == "/models"


def test_an_unknown_key_of_a_file_is_named_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "serve.toml"
    path.write_text("[server]\nprot = 8000\n")
    with pytest.raises(ts.ConfigError) as caught:
        ts.ServerConfig.from_file(path)
    message = caught.value.message
    assert all(part in message for part in ("serve.toml", "2", "prot", "port")), message


def test_a_file_keeps_its_name_in_messages_until_it_is_changed(tmp_path: Path) -> None:
    path = tmp_path / "serve.toml"
    path.write_text("[server]\nport = 0\n")
    read = ts.ServerConfig.from_file(path)
    assert read.source() == (path.read_text(), str(path), str(tmp_path))
    read.server["port"] = 8000
    assert read.source()[1:] == ("ServerConfig", str(tmp_path))


def test_broken_toml_says_where() -> None:
    with pytest.raises(ts.ConfigError, match=r"<toml>:1: "):
        ts.ServerConfig.from_toml("[server")


def test_what_the_server_refuses_has_its_own_message() -> None:
    bad: Any = {"request_timeout": 30}
    with pytest.raises(ts.ConfigError, match="request_timeout"):
        ts.ServerConfig(server=bad).validate()
    with pytest.raises(ValueError, match="fixed"):
        ts.ServerConfig(batching={"mode": "fixed", "dispatch": "eager"}).validate()


@pytest.mark.parametrize(
    ("duration", "text"),
    [
        (timedelta(seconds=90), "90s"),
        (timedelta(milliseconds=50), "50ms"),
        (timedelta(microseconds=1500), "1500us"),
    ],
)
def test_a_timedelta_is_a_duration(duration: timedelta, text: str) -> None:
    typed = ts.ServerConfig(batching={"max_wait_time": duration})
    assert f'max_wait_time = "{text}"' in typed.to_toml()
    typed.validate()


def test_set_takes_dotted_keys() -> None:
    typed = ts.ServerConfig()
    typed.set("batching.max_batch_size", 64)
    typed.set("models.delay.batching.max_wait_time", "1ms")
    typed.set("model_repository", "/models")
    assert typed == ts.ServerConfig(
        batching={"max_batch_size": 64},
        models={"delay": {"batching": {"max_wait_time": "1ms"}}},
        model_repository="/models",
    )


@pytest.mark.parametrize("key", ["nonsense", "nonsense.port", "server.nonsense"])
def test_an_unknown_key_that_was_set_is_refused(key: str) -> None:
    typed = ts.ServerConfig()
    typed.set(key, 1)
    with pytest.raises(ts.ConfigError, match="nonsense"):
        typed.validate()


def test_what_has_no_toml_form_is_named_by_its_key() -> None:
    endless: list[Any] = []
    endless.append(endless)
    for value in (object(), 2**70, [None], endless, timedelta(seconds=-1)):
        typed = ts.ServerConfig()
        typed.set("server.port", value)
        with pytest.raises(ts.ConfigError, match=r"^server\.port: "):
            typed.to_toml()


def test_the_commented_configuration_has_every_key_and_is_valid() -> None:
    commented = (ROOT / "config" / "serve.toml").read_text()
    # Settings are commented out, prose is too: only the former look like TOML.
    text = re.sub(r"^# (?=\[models|\w+ = )", "", commented, flags=re.MULTILINE)
    config = ts.ServerConfig.from_toml(text)
    config.validate()
    named = set(re.findall(r"(\w+) =", text))
    missing = {key for key in _core.known_keys() if key.rsplit(".", 1)[-1] not in named}
    assert missing == set()
