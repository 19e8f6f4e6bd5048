"""The sampler of the engine: each filter, ties, the draw, refusals. Needs a C compiler."""

import ctypes
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from stic.runtime import native

ROOT = Path(__file__).resolve().parents[2] / "runtime"
INVALID, TOKEN_RANGE = 10, 12
MASK = 2**64 - 1
INFINITY = np.float32(np.inf)


@dataclass(frozen=True)
class Settings:
    """stic_sampling, with its defaults."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0


class Choice(ctypes.Structure):
    _fields_ = (
        ("logits", ctypes.c_void_p),
        ("vocabulary", ctypes.c_uint32),
        ("recent", ctypes.c_void_p),
        ("recent_tokens", ctypes.c_size_t),
        ("position", ctypes.c_uint64),
        ("marks", ctypes.c_void_p),
    )


class Sampler:
    """sample.c by itself."""

    def __init__(self, library: Path) -> None:
        self.library = ctypes.CDLL(str(library))
        self.library.stic_sample_draw.restype = ctypes.c_uint64
        self.library.stic_sample_draw.argtypes = (ctypes.c_uint64, ctypes.c_uint64)
        self.error = ctypes.create_string_buffer(1024)  # stic_error: a status, then the sentence

    def status(self, logits: NDArray[np.float32], how: Settings, recent: tuple[int, ...], position: int) -> int:
        size = ctypes.sizeof(native.Sampling)
        plain = (how.top_k, how.temperature, how.top_p, how.min_p, how.repetition_penalty, how.seed)
        given, token = native.Sampling(size, *plain), ctypes.c_int32(-7)
        before, ids = logits.copy(), np.array(recent, np.int32)
        marks = np.full((len(logits) + 63) // 64, 2**64 - 1, np.uint64)
        choice = Choice(logits.ctypes.data, len(logits), ids.ctypes.data, len(ids), position, marks.ctypes.data)
        status = self.library.stic_sample(ctypes.byref(given), ctypes.byref(choice), ctypes.byref(token), self.error)
        assert np.array_equal(logits, before, equal_nan=True)
        self.token = token.value
        assert (token.value == -7) == (status != 0)
        return int(status)

    def sample(
        self, logits: NDArray[np.float32], how: Settings, recent: tuple[int, ...] = (), position: int = 0
    ) -> int:
        assert self.status(logits, how, recent, position) == 0, self.error.raw[4:].split(b"\0")[0]
        return self.token


@pytest.fixture(scope="module")
def sampler(tmp_path_factory: pytest.TempPathFactory) -> Sampler:
    compiler = shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("needs gcc or clang")
    library = tmp_path_factory.mktemp("sample") / "libsample.so"
    files = [str(ROOT / "src" / f"{name}.c") for name in ("sample", "versions", "error")]
    flags = [flag for flag in native.FLAGS if flag != "-fvisibility=hidden"]
    subprocess.run([compiler, *flags, "-shared", f"-I{ROOT / 'include'}", *files, "-o", str(library)], check=True)
    return Sampler(library)


def penalised(logits: NDArray[np.float32], recent: tuple[int, ...], penalty: float) -> NDArray[np.float32]:
    changed, factor = logits.copy(), np.float32(penalty)
    for token in set(recent):
        changed[token] = changed[token] * factor if changed[token] < 0 else changed[token] / factor
    return changed


def kept(logits: NDArray[np.float32], how: Settings) -> list[tuple[int, int]]:
    """(token, weight) that may be drawn, in the order of the vocabulary: the definition, token by token."""
    scaled = (logits.astype(np.float64) - float(logits.max())) / float(np.float32(how.temperature))
    weights = [int(np.floor(2.0**40 * np.exp(x))) for x in scaled]
    order = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
    order = order[: how.top_k or None]
    if how.top_p < 1:
        need, sum_, count = int(float(np.float32(how.top_p)) * sum(weights[t] for t in order)), 0, 0
        while sum_ < max(need, 1):
            sum_ += weights[order[count]]
            count += 1
        order = order[:count]
    least = float(np.float32(how.min_p)) * 2.0**40
    return [(token, weights[token]) for token in sorted(order) if weights[token] >= least]


def drawn(choices: list[tuple[int, int]], draw: int) -> int:
    limit = sum(weight for _, weight in choices) * draw >> 64
    for token, weight in choices:
        limit -= weight
        if limit < 0:
            return token
    raise AssertionError


def mix(z: int) -> int:
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK
    return z ^ z >> 31


def draw_of(seed: int, position: int) -> int:
    return mix((mix(seed) + (position + 1) * 0x9E3779B97F4A7C15) & MASK)


FILTERS = (
    Settings(1.0),
    Settings(0.2),
    Settings(3.0),
    Settings(1.0, top_k=1),
    Settings(1.0, top_k=7),
    Settings(1.0, top_k=5000),
    Settings(1.0, top_p=0.5),
    Settings(1.0, top_p=0.99),
    Settings(1.0, top_p=1e-9),
    Settings(1.0, min_p=0.1),
    Settings(1.0, min_p=1.0),
    Settings(0.8, top_k=40, top_p=0.95, min_p=0.05),
    Settings(1.5, top_k=3, top_p=0.6),
    Settings(1.0, repetition_penalty=1.3),
    Settings(0.9, top_k=20, top_p=0.8, min_p=0.01, repetition_penalty=0.7),
)
LOGITS = {
    "spread": lambda random: random.normal(0, 3, 300).astype(np.float32),
    "ties": lambda random: random.integers(-2, 3, 200).astype(np.float32),
    "equal": lambda random: np.full(65, -1.5, np.float32),
    "zeros of both signs": lambda random: random.choice(np.array([0.0, -0.0, -4.0], np.float32), 64),
    "one token": lambda random: np.array([5.0], np.float32),
    "some banned": lambda random: np.where(random.random(100) < 0.5, random.normal(0, 1, 100), -np.inf).astype("f4"),
    "far apart": lambda random: random.normal(0, 1e30, 70).astype(np.float32),
}


@pytest.mark.parametrize("name", LOGITS)
@pytest.mark.parametrize("how", FILTERS, ids=str)
def test_token_is_that_of_the_definition(name: str, how: Settings, sampler: Sampler) -> None:
    random = np.random.default_rng(4)
    for seed in range(30):
        logits = LOGITS[name](random)
        recent = tuple(random.integers(0, len(logits), 9).tolist())
        settings = Settings(**{**vars(how), "seed": seed})
        want = drawn(kept(penalised(logits, recent, how.repetition_penalty), how), draw_of(seed, 11 * seed))
        assert sampler.sample(logits, settings, recent, 11 * seed) == want


@pytest.mark.parametrize("how", [how for how in FILTERS if how.repetition_penalty == 1], ids=str)
def test_tokens_come_as_often_as_they_should(how: Settings, sampler: Sampler) -> None:
    """Against the softmax in floating point, over positions."""
    logits = np.random.default_rng(1).normal(0, 1.5, 12).astype(np.float32)
    draws = 4000
    found = Counter(sampler.sample(logits, how, position=p) for p in range(draws))
    order = np.argsort(-logits, kind="stable")
    probability = np.zeros(12)
    probability[order] = np.exp((logits[order] - logits.max()) / how.temperature)
    probability[order[how.top_k or 12 :]] = 0
    probability /= probability.sum()
    before = np.concatenate([[0], np.cumsum(probability[order])[:-1]])
    probability[order[before >= how.top_p]] = 0
    probability[probability < how.min_p * probability.max()] = 0
    probability /= probability.sum()
    assert all(probability[token] > 0 for token in found)
    for token, share in enumerate(probability):
        assert abs(found[token] / draws - share) < 5 * np.sqrt(share * (1 - share) / draws) + 1e-9


def test_greedy_takes_the_first_of_the_greatest(sampler: Sampler) -> None:
    assert sampler.sample(np.array([1, 3, 2, 3], np.float32), Settings()) == 1
    assert sampler.sample(np.array([-INFINITY, -3e38, -INFINITY], np.float32), Settings(top_k=1, top_p=0.1)) == 1


def test_penalty_makes_recent_tokens_less_likely_once(sampler: Sampler) -> None:
    logits = np.array([3.0, 2.0, -1.0, -1.5], np.float32)
    assert sampler.sample(logits, Settings(repetition_penalty=1.6), (0, 0, 0)) == 1
    assert sampler.sample(logits, Settings(repetition_penalty=1.4), (0, 0, 0)) == 0
    assert sampler.sample(-np.abs(logits), Settings(repetition_penalty=1.6), (2,)) == 3
    assert sampler.sample(logits, Settings(repetition_penalty=0.4), (1,)) == 1


def test_draws_are_those_of_the_definition(sampler: Sampler) -> None:
    for seed, position in ((0, 0), (1, 2), (MASK, 2**40), (12345, 7)):
        assert sampler.library.stic_sample_draw(seed, position) == draw_of(seed, position)


@pytest.mark.parametrize(
    "wrong",
    (
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"top_p": float("nan")},
        {"min_p": -0.1},
        {"min_p": 1.1},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": -2.0},
        {"repetition_penalty": float("nan")},
    ),
)
def test_settings_out_of_range(wrong: dict[str, float], sampler: Sampler) -> None:
    assert sampler.status(np.zeros(4, np.float32), Settings(**wrong), (), 0) == INVALID
    assert b"out of range" in sampler.error.raw


@pytest.mark.parametrize("temperature", (0.0, 1.0))
@pytest.mark.parametrize("bad", (float("nan"), float("inf")))
def test_logits_that_are_no_numbers(bad: float, temperature: float, sampler: Sampler) -> None:
    for at in (0, 3):
        logits = np.zeros(4, np.float32)
        logits[at] = bad
        assert sampler.status(logits, Settings(temperature, top_k=2), (), 0) == INVALID
        assert f"token {at}".encode() in sampler.error.raw
    assert sampler.status(np.full(4, -np.inf, np.float32), Settings(temperature), (), 0) == INVALID
    assert sampler.status(np.full(4, 1e38, np.float32), Settings(1.0, repetition_penalty=1e-3), (2,), 0) == INVALID


@pytest.mark.parametrize("token", (-1, 4, 2**31 - 1, -(2**31)))
def test_recent_tokens_outside_the_vocabulary(token: int, sampler: Sampler) -> None:
    assert sampler.status(np.zeros(4, np.float32), Settings(), (1, token), 0) == TOKEN_RANGE
    assert f"recent token 1 has id {token}".encode() in sampler.error.raw
