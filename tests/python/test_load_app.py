"""`load_app`: an app by the name of its module and its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import trustformers_serve as ts


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "apps_here.py").write_text(
        "import trustformers_serve as ts\n"
        "class Holder:\n    inner = ts.App('inner')\n"
        "app = ts.App('outer')\n"
        "number = 3\n"
    )
    (tmp_path / "apps_broken.py").write_text("import nowhere_at_all\n")
    (tmp_path / "apps_wrong.py").write_text("def (\n")
    monkeypatch.syspath_prepend(str(tmp_path))


def test_an_app_is_found_by_module_and_attribute() -> None:
    assert ts.load_app("apps_here:app").name == "outer"
    assert ts.load_app("apps_here:Holder.inner").name == "inner"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("apps_here", "Expected format 'module:attribute'.* not 'apps_here'"),
        ("apps_here:", "Expected format"),
        (":app", "Expected format"),
        ("", "Expected format"),
        ("apps_here:app:app", "Expected format"),
        ("apps_nowhere:app", "Could not import 'apps_nowhere': ModuleNotFoundError"),
        ("apps_broken:app", "Could not import 'apps_broken': ModuleNotFoundError: .*nowhere_at_all"),
        ("apps_wrong:app", "Could not import 'apps_wrong': SyntaxError"),
        (".apps_here:app", "Could not import '.apps_here': TypeError"),
        ("apps_here:other", "'apps_here' has no attribute 'other'"),
        ("apps_here:Holder.other", "'apps_here' has no attribute 'Holder.other'"),
        ("apps_here:number", "'apps_here:number' is not an App, but a int"),
        ("apps_here:Holder", "is not an App"),
    ],
)
def test_what_is_wrong_is_named(path: str, message: str) -> None:
    with pytest.raises(ts.ConfigurationError, match=message):
        ts.load_app(path)
