"""That mypy, as `make types` runs it, sees what crosses modules: a wrong import, a wrong value, and no Any between."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

api = pytest.importorskip("mypy.api")
ROOT = Path(__file__).resolve().parents[1]

IMPORTS = {  # a folder -> what it exports, and its type
    "runtime": ("runtime.layout", "pad", "def (n: int, multiple: int) -> int"),
    "targets": ("targets.target", "names", "def () -> tuple[str, ...]"),
    "schedules": ("schedules.pack", "pad16", "def (count: int) -> int"),
    "compiler": ("compiler.quantities", "parse_bytes", "def (text: str) -> int"),
}


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What mypy says of a strict module that imports from every folder, twice wrongly."""
    if not (ROOT / "build/types/stic").is_dir():
        pytest.skip("needs build/types, which `make types` makes")
    lines = [f"from stic.{module} import {name}" for module, name, _ in IMPORTS.values()]
    lines += [f"reveal_type({name})" for _, name, _ in IMPORTS.values()]
    lines += ["import stic.runtime.nothing", "pad('16', 16)"]
    path = tmp_path_factory.mktemp("typing") / "user.py"
    path.write_text("\n".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return list(api.run([str(path)])[0].splitlines())


@pytest.mark.parametrize("folder", IMPORTS)
def test_the_types_of_every_folder_reach_another_module(folder: str, said: list[str]) -> None:
    assert any(f'Revealed type is "{IMPORTS[folder][2]}"' in line for line in said), said


def test_a_missing_module_and_a_wrong_value_are_errors(said: list[str]) -> None:
    assert any(re.search(r"error: .*stic\.runtime\.nothing.*\[import-not-found\]", line) for line in said), said
    assert any(line.endswith("[arg-type]") and '"pad"' in line for line in said), said


def test_stic_is_not_among_what_may_be_missing_or_lax() -> None:
    mypy = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]
    assert mypy["strict"] and "ignore_missing_imports" not in mypy
    assert not [name for lax in mypy["overrides"] for name in lax["module"] if name.startswith(("stic", "*"))]
