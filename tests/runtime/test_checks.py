"""Both readers have the same checks, by name."""

import re
from pathlib import Path

RUNTIME = Path(__file__).resolve().parents[2] / "runtime"
# What only one reader can meet: Python looks at codes one by one when it takes a matrix apart, the engine never does.
PYTHON_ONLY = {"outlier_code"}


def named(paths: list[Path], pattern: str) -> list[str]:
    return [name for path in paths for name in re.findall(pattern, path.read_text(encoding="utf-8"))]


def test_every_check_stands_in_both_readers() -> None:
    engine = named(sorted((RUNTIME / "src").glob("*.c")), r"\bSTIC_REQUIRE\(\s*(\w+),")
    modules = sorted(RUNTIME.glob("*.py"))
    python = named(modules, r'\bCheck\(\s*"(\w+)"') + named(modules, r'refuse\(\s*"(\w+)"')
    python += named(modules, r'\bcheck="(\w+)"')
    assert len(set(engine)) > 80
    assert set(python) - PYTHON_ONLY == set(engine)
    declared = named(modules, r'\bCheck\(\s*"(\w+)"')
    assert len(declared) == len(set(declared))
