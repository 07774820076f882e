"""What importing the package costs and needs."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import trustformers_serve as ts
from trustformers_serve import _libtorch


def run(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    ).stdout


def test_import_takes_under_half_a_second() -> None:
    code = "import time; t = time.perf_counter(); import trustformers_serve; print(time.perf_counter() - t)"
    # The best of five: the first may read the libraries from disk, and others may want the cores.
    assert min(float(run(code)) for _ in range(5)) < 0.5


def test_import_brings_neither_torch_nor_what_only_clients_need() -> None:
    loaded = run("import sys, trustformers_serve; print(*sys.modules)").split()
    assert not {"torch", "numpy", "requests", "httpx", "msgpack"} & set(loaded)


def test_an_installed_package_reads_its_pin_without_importlib_metadata(tmp_path: Path) -> None:
    (tmp_path / "trustformers_serve").symlink_to(Path(ts.__file__).parent)
    folder = tmp_path / "trustformers_serve-9.9.9.dist-info"
    folder.mkdir()
    text = importlib.metadata.distribution("trustformers-serve").read_text("METADATA") or ""
    (folder / "METADATA").write_text(text)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import trustformers_serve; print(*sys.modules)"
    )
    assert "importlib.metadata" not in run(code).split()


@pytest.mark.parametrize("order", [("torch", "trustformers_serve"), ("trustformers_serve", "torch")])
def test_torch_may_be_imported_before_or_after(order: tuple[str, str]) -> None:
    code = f"import {order[0]}, {order[1]}; print(float(torch.ones(3) @ torch.ones(3)))"
    assert run(code).strip() == "3.0"


def test_every_public_name_exists() -> None:
    assert sorted(ts.__all__) == ts.__all__
    assert all(hasattr(ts, name) for name in ts.__all__)
    assert set(ts.__all__) <= set(dir(ts))
    with pytest.raises(AttributeError, match="nonsense"):
        _ = ts.nonsense  # pyright: ignore[reportAttributeAccessIssue]


def test_a_missing_torch_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ImportError, match=r"not installed: pip install torch==\d+\.\d+\.\d+"):
        _libtorch.load()


def test_another_torch_is_refused_with_both_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_libtorch, "installed_version", lambda _: "1.0.0")
    with pytest.raises(
        ImportError, match=rf"built for torch {_libtorch.pinned_version()}, but torch 1\.0\.0"
    ):
        _libtorch.load()


def test_a_torch_of_another_build_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = _libtorch.pinned_version()
    monkeypatch.setattr(_libtorch, "installed_version", lambda _: f"{pinned}+cpu")
    _libtorch.load()


def test_the_versions_are_those_that_the_packages_have() -> None:
    assert f"torch=={_libtorch.pinned_version()}" in (importlib.metadata.requires("trustformers-serve") or [])
    assert _libtorch.installed_version(Path(torch.__file__).parent) == torch.__version__


def test_the_stub_says_what_the_extension_has(tmp_path: Path) -> None:
    allowed = Path(__file__).with_name("stubtest_allowed.txt")
    checked = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy.stubtest",
            "trustformers_serve._core",
            "--allowlist",
            allowed,
            "--concise",
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        cwd=tmp_path,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize(
    ("module", "package", "extra"),
    [("trustformers_serve.http", "httpx", "http"), ("trustformers_serve.torch", "torch", "torch")],
)
def test_a_package_that_only_a_part_needs_is_named_with_the_extra_that_brings_it(
    module: str, package: str, extra: str
) -> None:
    code = (
        "import sys, trustformers_serve as ts\n"
        f"sys.modules[{package!r}] = None\n"
        f"try:\n    import {module}\n"
        "except ts.MissingExtraError as error:\n"
        "    print(isinstance(error, ImportError), error.name, error)\n"
    )
    expected = f"True {package} {module} needs {package}: pip install 'trustformers-serve[{extra}]'\n"
    assert run(code) == expected
    assert extra in importlib.metadata.metadata("trustformers-serve").get_all("Provides-Extra", [])
