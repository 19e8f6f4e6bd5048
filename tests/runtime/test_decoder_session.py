"""A decoder's session: going back, saving and loading, cancelling, limits, text. Needs a C compiler."""

from __future__ import annotations

import os
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from stic.runtime.emulated import EmulatedStorage
from stic.runtime.errors import EngineError, InputError, PackageError
from stic.runtime.sampling import Sampling
from stic.runtime.session import Session
from stic.targets.target import load
from stic.targets.toolchain import build_engine, find_c_compiler
from tests.runtime.decoder_cases import CONTEXT, ROWS
from tests.runtime.decoder_layout import Made

ROOT = Path(__file__).resolve().parents[2]
MIXED = ((4, 4), (3, 2), (8, 5), (16, 6), (16, 2))
OTHER = ((4, 4), (3, 2), (8, 5), (16, 6), (8, 2))
IDS = np.random.default_rng(6).integers(0, ROWS, CONTEXT)
CANCELLED, FULL = 22, 16


@pytest.fixture(scope="module", params=["float16", "int8"])
def package(request: pytest.FixtureRequest, make_decoder: Callable[..., Path]) -> Path:
    """A decoder with two plans, the second of other bits."""
    return make_decoder("llama", Made((MIXED, OTHER), (frozenset({0}), frozenset()), cache=request.param))


@pytest.fixture(scope="module")
def streamed(make_decoder: Callable[..., Path]) -> Path:
    """The same with one cache, for what takes time."""
    return make_decoder("llama", Made((MIXED, OTHER), (frozenset({0}), frozenset())))


@pytest.fixture
def session(package: Path) -> Iterator[Session]:
    with Session(package) as opened:
        yield opened


def fresh(package: Path, n: int) -> np.ndarray:
    """Logits after the first n of IDS, computed at once."""
    with Session(package) as session:
        session.extend(IDS[:n])
        return session.logits()


def test_what_the_package_is(session: Session) -> None:
    info = session.info
    assert info.decoder and info.max_length == CONTEXT and info.chunk == 16 and info.output_features == ROWS
    assert info.cache_bits in (8, 16) and info.cache_bytes > 0
    assert session.stats().peak_bytes <= info.claimed_bytes


def test_going_back(session: Session, package: Path) -> None:
    session.extend(IDS[:30])
    before = session.logits()
    session.rewind(30)
    assert np.array_equal(session.logits(), before)
    session.rewind(17)
    assert session.position == 17
    with pytest.raises(InputError, match="no logits at position 17"):
        session.logits()
    session.extend([5, 6, 7])  # another continuation
    session.rewind(17)
    session.extend(IDS[17:30])
    assert np.array_equal(session.logits(), before)
    assert np.array_equal(before, fresh(package, 30))
    with pytest.raises(InputError, match="30 tokens, and cannot go back to position 31"):
        session.rewind(31)
    with pytest.raises(InputError, match="not -1"):
        session.rewind(-1)


@pytest.mark.parametrize("n", [0, 1, 16, 23, CONTEXT])
def test_saving_and_loading(n: int, package: Path, tmp_path: Path) -> None:
    with Session(package) as session:
        if n:
            session.extend(IDS[:n])
        session.save(tmp_path / "state")
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
    with Session(package) as session:
        session.extend([9, 8, 7])
        session.load(tmp_path / "state")
        assert session.position == n
        if n:
            assert np.array_equal(session.logits(), fresh(package, n))
        if n < CONTEXT:
            session.extend(IDS[n : n + 1])
            assert np.array_equal(session.logits(), fresh(package, n + 1))


def test_what_is_no_regular_file_is_not_replaced(session: Session, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    session.extend([1, 2, 3])
    with pytest.raises(EngineError, match="is no regular file"):
        session.save(pipe)
    assert pipe.is_fifo() and [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_a_text_without_logits_is_saved_without(session: Session, tmp_path: Path) -> None:
    session.extend(IDS[:20])
    session.rewind(11)
    session.save(tmp_path / "state")
    session.load(tmp_path / "state")
    assert session.position == 11
    with pytest.raises(InputError, match="no logits"):
        session.sample()


def test_states_of_other_models_and_plans_are_refused(
    package: Path, tmp_path: Path, make_decoder: Callable[..., Path]
) -> None:
    state = tmp_path / "state"
    with Session(package) as session:
        session.extend(IDS[:12])
        session.save(state)
        session.set_budget(session.plans[1].predicted_us)
        with pytest.raises(InputError, match="another model or plan"):
            session.load(state)
        assert session.position == 12
        cache = "int8" if session.info.cache_bits == 8 else "float16"
    together = Made((((4,), (3, 2), (8,), (16, 6), (16, 2)),), cache=cache, key_heads_per_slice=2)
    for other in (Made((MIXED, OTHER), cache=cache, seed=1), together):
        with Session(make_decoder("llama", other)) as session:
            with pytest.raises(InputError, match="another model or plan"):
                session.load(state)
            assert session.position == 0
    placed = (frozenset(range(5)), frozenset({1}))
    with Session(make_decoder("llama", Made((MIXED, OTHER), placed, cache=cache, threads=1))) as session:
        session.extend([1])  # the same weights and bits, placed elsewhere
        session.load(state)
        assert session.position == 12


def damaged(good: bytes) -> Iterator[tuple[str, bytes]]:
    """What a file may look like that was a state."""

    def header(at: int, value: bytes) -> bytes:
        data = bytearray(good)
        data[at : at + len(value)] = value
        data[12:16] = bytes(4)
        data[12:16] = struct.pack("<I", zlib.crc32(data[:48]))
        return bytes(data)

    yield "empty", b""
    yield "short header", good[:40]
    yield "truncated", good[:-1]
    yield "too long", good + b"\0"
    yield "another file", bytes(len(good))
    for at in (0, 9, 20, 30, 40, 48, len(good) // 2, len(good) - 1):
        yield f"bit at {at}", good[:at] + bytes([good[at] ^ 4]) + good[at + 1 :]
    yield "version", header(8, struct.pack("<I", 2))
    yield "bytes", header(24, struct.pack("<Q", 1 << 60))
    yield "position", header(36, struct.pack("<I", 1 << 31))
    yield "position within", header(36, struct.pack("<I", 19))
    yield "logits", header(40, struct.pack("<I", 2))
    yield "reserved", header(44, struct.pack("<I", 1))
    infinite = bytearray(good)
    infinite[-4:] = struct.pack("<f", np.inf)
    infinite[32:36] = struct.pack("<I", zlib.crc32(infinite[48:]))
    infinite[12:16] = bytes(4)
    infinite[12:16] = struct.pack("<I", zlib.crc32(infinite[:48]))
    yield "infinite", bytes(infinite)


def test_damaged_states_change_nothing(session: Session, tmp_path: Path) -> None:
    state = tmp_path / "state"
    session.extend(IDS[:20])
    session.save(state)
    good = state.read_bytes()
    session.rewind(0)
    session.extend(IDS[:5])
    before = session.logits()
    for name, data in damaged(good):
        state.write_bytes(data)
        with pytest.raises(InputError):
            session.load(state)
        assert session.position == 5 and np.array_equal(session.logits(), before), name
    for path in (tmp_path, tmp_path / "missing", Path("/dev/null")):
        with pytest.raises(InputError):
            session.load(path)
    state.write_bytes(good)
    session.load(state)
    assert session.position == 20


def test_a_state_that_cannot_be_written(session: Session, package: Path, tmp_path: Path) -> None:
    """Where the disk is full, an older file stays as it is."""
    session.extend(IDS[:20])
    with pytest.raises(EngineError, match="cannot be written"):
        session.save(tmp_path / "no folder" / "state")
    with pytest.raises(InputError, match="longer than"):
        session.save("x" * 5000)
    limited = (
        "import resource, sys; from stic.runtime.session import Session; from stic.runtime.errors import EngineError\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "with Session(sys.argv[1]) as s:\n"
        "    s.extend([1, 2, 3]); s.save(sys.argv[2]); old = open(sys.argv[2], 'rb').read(); s.extend(range(30))\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, resource.RLIM_INFINITY))\n"
        "    try: s.save(sys.argv[2])\n"
        "    except EngineError as error: assert 'free some space' in str(error), error\n"
        "    else: sys.exit('written')\n"
        "    assert open(sys.argv[2], 'rb').read() == old\n"
    )
    state = tmp_path / "state"
    subprocess.run([sys.executable, "-c", limited, str(package), str(state)], check=True, timeout=60)
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_limits(session: Session) -> None:
    session.extend(IDS)
    before = session.logits()
    assert session.position == CONTEXT
    with pytest.raises(InputError, match=f"1 tokens after {CONTEXT} are more than this package's context of {CONTEXT}"):
        session.extend([1])
    session.rewind(CONTEXT)
    assert np.array_equal(session.logits(), before)
    session.rewind(3)
    for ids, words in (
        ([], "no tokens"),
        ([1, ROWS], f"token 1 has id {ROWS}; the vocabulary has {ROWS}"),
        ([-1], "token 0 has id -1"),
        (range(CONTEXT - 2), "more than this package's context"),
        ([0.5], "whole numbers"),
    ):
        for call in (session.extend, session.score):
            with pytest.raises(InputError, match=words):
                call(list(ids))
        assert session.position == 3
    with pytest.raises(InputError, match="stic_session_extend"):
        session.run([1, 2])


def test_decoders_calls_on_an_encoder(make_package: Callable[..., Path], tmp_path: Path) -> None:
    with Session(make_package(((4, 4, 4, 4),))) as session:
        assert session.position == 0 and not session.info.decoder
        for call in (
            lambda: session.extend([1]),
            lambda: session.score([1]),
            session.logits,
            session.sample,
            lambda: session.rewind(0),
            lambda: session.save(tmp_path / "state"),
            lambda: session.load(tmp_path / "state"),
            lambda: list(session.generate([1], 3)),
        ):
            with pytest.raises(InputError, match="is for decoders, and this package is an encoder's"):
                call()
        session.cancel()
        assert session.run([1]).shape == (64,)


@pytest.mark.parametrize("call", ["extend", "score"])
@pytest.mark.parametrize("after_s", [0.0, 0.1, 0.35])
def test_cancelling_from_another_thread(after_s: float, call: str, streamed: Path) -> None:
    """Before the first pass, within one, and where earlier chunks are done."""
    with Session(streamed, storage=EmulatedStorage(200_000)) as session:  # a pass takes about half a second
        session.extend(IDS[:3])
        before, begin = session.logits(), time.monotonic()
        failures: list[EngineError] = []

        def extend() -> None:
            try:
                getattr(session, call)(IDS[3:43])
            except EngineError as error:
                failures.append(error)

        thread = threading.Thread(target=extend)
        thread.start()
        while thread.is_alive():
            time.sleep(after_s or 0.001)
            session.cancel()
        thread.join()
        assert time.monotonic() - begin < 10
        assert failures and failures[0].status == CANCELLED and "as it was" in str(failures[0])
        assert session.position == 3 and np.array_equal(session.logits(), before)
        session.extend(IDS[3:4])
        assert np.array_equal(session.logits(), fresh(streamed, 4))


def test_one_call_at_a_time(streamed: Path) -> None:
    with Session(streamed, storage=EmulatedStorage(400_000)) as session:
        thread = threading.Thread(target=session.extend, args=(IDS[:16],))
        thread.start()
        time.sleep(0.05)
        with pytest.raises(EngineError, match="another thread"):
            session.rewind(0)
        thread.join()
        assert session.position == 16


def test_a_failed_extend_leaves_the_text(package: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(package, tmp_path / "copy.stic"))
    shards = copy / "shards.bin"
    with Session(copy, direct=False) as session:
        session.extend(IDS[:7])
        before, good = session.logits(), shards.read_bytes()
        at = len(good) - 3000  # of the vocabulary, which is read last
        with shards.open("r+b") as file:
            file.seek(at)
            file.write(bytes(byte ^ 255 for byte in good[at : at + 64]))
        with pytest.raises(PackageError, match="corrupt"):
            session.extend(IDS[7:30])
        assert session.position == 7 and np.array_equal(session.logits(), before)
        with shards.open("r+b") as file:
            file.write(good)
        session.extend(IDS[7:30])
        assert np.array_equal(session.logits(), fresh(package, 30))


def test_generating(session: Session) -> None:
    prompt = IDS[:9].tolist()
    answer = list(session.generate(prompt, 12))
    assert len(answer) == 12 and [one.finish for one in answer] == [None] * 11 + ["length"]
    assert all(one.time_us > 0 for one in answer)
    tokens = [one.token for one in answer]
    assert session.position == 9 + 11  # the last token is not computed
    session.rewind(0)
    logits = session.score([*prompt, *tokens])
    assert [int(row.argmax()) for row in logits[8:-1]] == tokens
    session.rewind(0)
    stopped = list(session.generate(prompt, 12, stops=(tokens[4], ROWS + 5)))
    assert [one.token for one in stopped] == tokens[: tokens.index(tokens[4]) + 1] and stopped[-1].finish == "stop"
    session.rewind(0)
    assert [one.finish for one in session.generate(prompt, 1000)][-1] == "context"
    assert session.position == CONTEXT
    for wrong in (lambda: session.generate(prompt, 0), lambda: session.generate([0.5], 3)):
        with pytest.raises(InputError):
            wrong()


def test_generating_again_gives_the_same_text(session: Session, tmp_path: Path) -> None:
    """The draw depends on seed and position only: in one go, after going back, and after loading."""
    how = Sampling(1.5, top_k=20, top_p=0.9, repetition_penalty=1.2, seed=3)
    prompt = IDS[:5].tolist()
    tokens = [one.token for one in session.generate(prompt, 20, how)]
    session.rewind(0)
    assert [one.token for one in session.generate(prompt, 20, how)] == tokens
    session.rewind(5)
    session.save(tmp_path / "state")
    session.rewind(0)
    session.load(tmp_path / "state")
    assert [one.token for one in session.generate(tokens[:1], 1, Sampling())]
    session.rewind(0)
    others = [one.token for one in session.generate(prompt, 20, Sampling(1.5, seed=4))]
    assert others != tokens


def test_asking_for_fewer_tokens_than_there_could_be(session: Session) -> None:
    answer = session.generate(IDS[:4], 1000)
    first = [next(answer).token for _ in range(3)]
    answer.close()  # type: ignore[attr-defined]
    assert session.position == 4 + 2
    session.rewind(0)
    assert [one.token for one in session.generate(IDS[:4], 3)] == first


@pytest.mark.parametrize(
    "wrong",
    (
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"min_p": 2.0},
        {"repetition_penalty": 0.0},
        {"repetition_tokens": -1},
        {"seed": -1},
        {"seed": 1 << 64},
    ),
)
def test_sampling_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        Sampling(**wrong)


def test_ctrl_c_ends_a_long_prompt(streamed: Path) -> None:
    script = (
        "import sys, os, threading, time, signal\n"
        "from stic.runtime.session import Session\n"
        "from stic.runtime.emulated import EmulatedStorage\n"
        "with Session(sys.argv[1], storage=EmulatedStorage(40_000)) as session:\n"
        "    threading.Timer(0.4, lambda: os.kill(os.getpid(), signal.SIGINT)).start()\n"
        "    begin = time.monotonic()\n"
        "    try: list(session.generate(range(40), 5))\n"
        "    except KeyboardInterrupt: print(session.position, time.monotonic() - begin < 20)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(streamed)], capture_output=True, text=True, timeout=120)
    assert done.stdout == "0 True\n", done.stderr
    assert done.returncode == 0, done.stderr


def test_stic_run_generates(streamed: Path, tmp_path: Path) -> None:
    import json

    runner = build_engine(load("host"), tmp_path / "engine").runner
    with Session(streamed) as session:
        greedy = [one.token for one in session.generate(IDS[:6], 7)]
        session.rewind(0)
        how = Sampling(0.9, 30, 0.95, 0.01, 1.3, 4, 77)
        drawn = [one.token for one in session.generate(IDS[:6], 7, how)]
    prompt = ["--ids", ",".join(map(str, IDS[:6])), "--generate", "7"]
    options = "--temperature 0.9 --top-k 30 --top-p 0.95 --min-p 0.01 --repetition-penalty 1.3".split()
    options += "--repetition-tokens 4 --seed 77".split()

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([str(runner), str(streamed), *arguments], capture_output=True, text=True, timeout=60)

    facts = json.loads(run(*prompt, "--json").stdout)
    assert facts["ids"] == greedy and facts["finish"] == "length" and len(facts["times_us"]) == 7
    assert facts["peak_bytes"] <= facts["claimed_bytes"]
    facts = json.loads(run(*prompt, *options, "--json", "--save", str(tmp_path / "state")).stdout)
    assert facts["ids"] == drawn
    stop = json.loads(run(*prompt, "--json", "--stop", f"{ROWS + 1},{greedy[2]}").stdout)
    assert stop["finish"] == "stop" and stop["ids"] == greedy[: greedy.index(greedy[2]) + 1]
    more = run("--ids", str(drawn[-1]), "--generate", "2", "--load", str(tmp_path / "state"))
    assert more.returncode == 0 and "2 tokens (length)" in more.stdout
    for wrong, status, words in (
        (["--ids", "1"], 1, "stic_session_extend"),
        (["--ids", "1", "--stop", "3"], 2, "--generate"),
        (["--ids", "1", "--generate", "2", "--runs", "3"], 2, "--runs"),
        (["--ids", "1", "--generate", "2", "--temperature", "x"], 2, "not a number"),
        (["--ids", "1", "--generate", "2", "--top-p", "7"], 1, "top_p"),
        (["--ids", str(ROWS), "--generate", "2"], 1, "vocabulary"),
        (["--ids", "1", "--generate", "2", "--load", str(streamed / "index.bin")], 1, "not a saved state"),
    ):
        done = run(*wrong)
        assert done.returncode == status and words in done.stderr, (wrong, done.stderr)


def test_ctrl_c_ends_stic_run(streamed: Path, tmp_path: Path) -> None:
    runner = build_engine(load("host"), tmp_path / "engine").runner
    line = [str(runner), str(streamed), "--ids", "1,2,3", "--generate", "40", "--io-limit", "40000"]
    running = subprocess.Popen(line, stderr=subprocess.PIPE, text=True)
    time.sleep(0.5)
    running.send_signal(signal.SIGINT)
    _, told = running.communicate(timeout=60)
    assert running.returncode == 1 and "cancelled" in told


def test_no_call_takes_memory(package: Path, tmp_path: Path) -> None:
    target = load("host")
    engine, compiler, tests = build_engine(target, tmp_path), find_c_compiler(target), ROOT / "tests" / "runtime"
    counter, program = tmp_path / "libcount.so", tmp_path / "decoder_run"
    compiler.run(["-shared", "-fPIC", "-O1", "-o", str(counter), str(tests / "count_allocations.c"), "-ldl"], "counter")
    line = ["-std=c11", "-O1", "-pthread", f"-I{ROOT / 'runtime' / 'include'}", "-o", str(program)]
    line += [str(tests / "decoder_run.c"), str(counter), str(engine.library), f"-Wl,-rpath,{tmp_path}"]
    compiler.run(line, "program")
    done = subprocess.run([str(program), str(package), str(tmp_path)], capture_output=True, text=True, timeout=60)
    if "undefined symbol: __libc_" in done.stderr:
        pytest.skip("needs glibc, whose allocator can be wrapped by name")
    assert done.returncode == 0, done.stderr
    taken, before = done.stdout.split(",")[0].split(" of ")
    assert int(before) > 10, "the counter did not stand before libc's allocator"
    assert int(taken) == 0


@pytest.mark.parametrize("name", ["llama", "capped", "learned", "branches", "odd"])
@pytest.mark.parametrize("store", ["float16", "int8"])
def test_sanitizers_have_nothing_to_say(
    name: str, store: str, make_decoder: Callable[..., Path], sanitized: Callable[[str], Path], tmp_path: Path
) -> None:
    from tests.runtime.test_engine_decoder import mixed_bits

    package = make_decoder(name, Made((mixed_bits(name),), cache=store))
    line = [str(sanitized("decoder_run.c")), str(package), str(tmp_path)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
