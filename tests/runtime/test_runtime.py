"""What `import stic.runtime` gives, and what it costs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# As tests/conftest.py does it for a checkout that is not installed.
STIC = f"import json, sys, types; sys.modules['stic'] = s = types.ModuleType('stic'); s.__path__ = [{str(ROOT)!r}]"


def modules_after(statement: str) -> set[str]:
    """Packages that a fresh interpreter has loaded for `statement`, those of its own start aside."""
    code = f"{STIC}; before = set(sys.modules)\n{statement}\nprint(json.dumps(sorted(set(sys.modules) - before)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def test_the_package_alone_loads_none_of_its_modules():
    assert not {name for name in modules_after("import stic.runtime") if name.startswith(("numpy", "stic.runtime."))}


def test_a_session_needs_numpy_only():
    loaded = {name.split(".")[0] for name in modules_after("from stic.runtime import Session")}
    foreign = loaded - sys.stdlib_module_names - {"stic"}
    assert {name for name in foreign if not name.startswith("_")} == {"numpy"}


def test_the_session_is_the_one_of_its_module():
    import stic.runtime
    from stic.runtime.session import Session

    assert stic.runtime.Session is Session
    with pytest.raises(AttributeError, match="no attribute 'Sesion'"):
        _ = stic.runtime.Sesion
