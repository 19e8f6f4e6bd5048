"""Sessions that change between the plans of a family: answers, reads and memory. Needs a C compiler."""

import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from stic.runtime.emulated import EmulatedStorage
from stic.runtime.errors import EngineError, InputError, PackageError
from stic.runtime.format import BLOCK, PLAN
from stic.runtime.package import Package
from stic.runtime.reference import Reference
from stic.runtime.session import Session
from tests.runtime.conftest import FAMILY

IDS = np.random.default_rng(3).integers(0, 1024, 19)
PLANS = range(len(FAMILY))


def budget(number: int) -> int:
    """The deadline, in us, under which plan `number` is the best."""
    return 1000 * (number + 1)


@pytest.fixture(scope="module")
def answers(family: Path) -> list[np.ndarray]:
    """What sessions that were opened with each plan give."""
    outputs = []
    for number in PLANS:
        with Session(family, latency_us=budget(number)) as session:
            assert session.plan.number == number
            outputs.append(session.run(IDS))
    return outputs


@pytest.fixture
def copy(family: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(family, tmp_path / "copy.stic"))


class Contents:
    """What a preload buffer holds, by record: told of what happens to a session, it says what the next run reads."""

    def __init__(self, path: Path) -> None:
        package = Package.open(path)
        self.plans = [package.with_plan(number) for number in PLANS]
        self.now = self.plans[0]
        self.held = set(self.wanted())

    def extents(self, resident: bool) -> list[np.void]:
        count = self.now.entry.resident_extents
        return list(self.now.extents[:count] if resident else self.now.extents[count:])

    def wanted(self) -> list[tuple[int, int, int]]:
        return [
            (int(e["block"]), int(e["level"]), s)
            for e in self.extents(resident=True)
            for s in range(int(e["first"]), int(e["first"]) + int(e["count"]))
        ]

    def change(self, number: int) -> None:
        self.now = self.plans[number]
        self.held &= set(self.wanted())

    def run(self) -> int:
        """Bytes of shards.bin that a run now reads: streamed extents, and the blocks of missing resident records."""
        total = sum(int(e["bytes"]) for e in self.extents(resident=False))
        for e in self.extents(resident=True):
            blocks = set()
            for s in range(int(e["first"]), int(e["first"]) + int(e["count"])):
                if (int(e["block"]), int(e["level"]), s) not in self.held:
                    record = self.now.records[e["block"], e["level"], s]
                    start = int(record["offset"])
                    blocks |= set(range(start // BLOCK, -(-(start + int(record["bytes"])) // BLOCK)))
            total += BLOCK * len(blocks)
        self.held = set(self.wanted())
        return total


def shard_bytes_read(session: Session) -> int:
    """Bytes of shards.bin that the last run read."""
    trace = session.trace()
    read = sum(event.bytes for event in trace if event.name == "read")
    assert session.stats().io_bytes == read + sum(event.bytes for event in trace if event.name == "rows")
    return read


@pytest.mark.parametrize("number", PLANS)
def test_a_session_opens_with_each_plan(number: int, family: Path, answers: list[np.ndarray]) -> None:
    want = Reference(Package.open(family).with_plan(number)).run(IDS)
    assert np.abs(answers[number] - want).max() < 1e-4


def test_plans_are_told(family: Path) -> None:
    package = Package.open(family)
    with Session(family) as session:
        assert session.info.plans == len(session.plans) == len(package.plans) == len(FAMILY)
        assert session.plan == session.plans[0]
        for told, entry in zip(session.plans, package.plans, strict=True):
            assert told.number == entry.number and told.quality == entry.quality == entry.number
            assert told.predicted_us == entry.predicted_us == budget(entry.number)
            assert (told.claimed_bytes, told.preload_bytes) == (entry.claimed_bytes, entry.preload[1])
        chosen = session.set_budget(latency_us=budget(3))
        assert chosen == session.plan == session.plans[3]
        assert session.info.predicted_us == chosen.predicted_us and session.info.claimed_bytes == chosen.claimed_bytes
        stats = session.stats()
        assert (stats.arena_bytes, stats.claimed_bytes) == (package.plans[3].arena_bytes, chosen.claimed_bytes)
        assert stats.peak_bytes <= stats.claimed_bytes


@pytest.mark.parametrize("old", PLANS)
def test_every_change_gives_the_answer_of_a_fresh_session(old: int, family: Path, answers: list[np.ndarray]) -> None:
    for new in PLANS:
        contents = Contents(family)
        with Session(family, latency_us=budget(old)) as session:
            contents.change(old)
            contents.held = set(contents.wanted())
            assert np.array_equal(session.run(IDS), answers[old])
            assert shard_bytes_read(session) == contents.run()
            assert session.set_budget(latency_us=budget(new)).number == new
            contents.change(new)
            for _ in range(2):
                assert np.array_equal(session.run(IDS), answers[new])
                assert shard_bytes_read(session) == contents.run()
            assert session.stats().resident_bytes == session.plan.preload_bytes


@pytest.mark.parametrize("seed", range(4))
def test_changes_evictions_and_runs_in_any_order(seed: int, family: Path, answers: list[np.ndarray]) -> None:
    chance = random.Random(seed)
    contents = Contents(family)
    with Session(family, lanes=chance.choice((1, 2)), direct=chance.choice((True, False))) as session:
        for _ in range(60):
            what = chance.random()
            if what < 0.6:
                number = chance.choice(PLANS)
                session.set_budget(latency_us=budget(number))
                contents.change(number)
            elif what < 0.7:
                session.evict()
                contents.held = set()
                assert session.stats().resident_bytes == 0
            else:
                assert np.array_equal(session.run(IDS), answers[session.plan.number])
                assert shard_bytes_read(session) == contents.run()


def test_a_finer_plan_reads_its_plane_only_and_a_coarser_one_nothing(make_package: Callable[..., Path]) -> None:
    coarse, fine = ((4, 4), (4, 4)), ((5, 5), (5, 5))
    path = make_package(coarse, coarse, also=((fine, fine),))
    package = Package.open(path)
    plane = sum(int(e["bytes"]) for e in package.with_plan(1).extents if e["level"] == 3)
    with Session(path) as session:
        for _ in range(2):
            session.set_budget()
            session.run(IDS)
            assert shard_bytes_read(session) == plane > 0
            session.set_budget(latency_us=budget(0))
            session.run(IDS)
            assert shard_bytes_read(session) == 0


def test_part_of_an_eviction_and_a_change(family: Path, answers: list[np.ndarray]) -> None:
    with Session(family, latency_us=budget(2)) as session:
        held = session.stats().resident_bytes
        session.evict(1)
        evicted = session.stats().resident_bytes
        assert 0 < evicted < held
        session.set_budget(latency_us=budget(3))
        assert 0 < session.stats().resident_bytes <= evicted
        session.evict(1)
        assert session.stats().resident_bytes < evicted
        assert np.array_equal(session.run(IDS), answers[3])
        assert {event.layer for event in session.trace() if event.name == "check"} == set(range(4))
        session.set_budget(latency_us=budget(2))
        assert np.array_equal(session.run(IDS), answers[2])


@pytest.mark.parametrize("again", [1, 4])
def test_a_failed_read_after_a_change_leaves_the_session_usable(
    again: int, copy: Path, answers: list[np.ndarray]
) -> None:
    """Every byte is flipped while the new plan reads; then the same plan, or another one, finds nothing amiss."""
    good = (copy / "shards.bin").read_bytes()
    for old, new in ((4, 2), (2, 3), (5, 0), (0, 5)):
        with Session(copy, direct=False, latency_us=budget(old)) as session:
            session.set_budget(latency_us=budget(new))
            (copy / "shards.bin").write_bytes(bytes(byte ^ 255 for byte in good))
            with pytest.raises(PackageError, match="corrupt at block"):
                session.run(IDS)
            (copy / "shards.bin").write_bytes(good)
            for number in (new, again):
                session.set_budget(latency_us=budget(number))
                assert np.array_equal(session.run(IDS), answers[number])


def test_what_a_failed_read_may_have_spoilt_is_not_kept(copy: Path, answers: list[np.ndarray]) -> None:
    """A block of a kept record is read again with its neighbour's; a change right after that read failed."""
    good = (copy / "shards.bin").read_bytes()
    for numbers in ((4, 2, 4), (4, 3, 0, 4), (1, 3, 4, 2)):
        with Session(copy, direct=False, latency_us=budget(numbers[0])) as session:
            for number in numbers[1:]:
                session.set_budget(latency_us=budget(number))
                (copy / "shards.bin").write_bytes(bytes(byte ^ 255 for byte in good))
                if number != numbers[-1]:
                    with pytest.raises(PackageError):
                        session.run(IDS)
            (copy / "shards.bin").write_bytes(good)
            assert np.array_equal(session.run(IDS), answers[numbers[-1]])


def test_budgets(family: Path) -> None:
    with Session(family) as session:
        claims = [plan.claimed_bytes for plan in session.plans]
        assert session.set_budget().number == len(FAMILY) - 1
        for number in PLANS:
            fitting = [i for i in PLANS if claims[i] <= claims[number]]
            assert session.set_budget(memory_bytes=claims[number]).number == max(fitting)
            both = [i for i in fitting if i <= 3]
            if both:
                assert session.set_budget(budget(3), claims[number]).number == max(both)
        active = session.set_budget(latency_us=budget(2))
        for impossible in ((999, None), (None, min(claims) - 1), (budget(3), min(claims))):
            with pytest.raises(InputError, match=f"least deadline .* 1000 us, the least memory {min(claims)} bytes"):
                session.set_budget(*impossible)
        with pytest.raises(InputError, match="at least 1"):
            session.set_budget(latency_us=0)
        assert session.plan == active
        session.run(IDS)
    with pytest.raises(InputError, match="no plan of the package meets a deadline of 999 us"):
        Session(family, latency_us=999)
    with Session(family, memory_bytes=min(claims)) as session:
        assert session.plan.claimed_bytes == min(claims)


def test_equal_qualities_are_decided_by_memory(
    make_package: Callable[..., Path], with_header: Callable[..., bytes]
) -> None:
    streamed, resident = ((0, 0),) * 4, ((4, 4),) * 4
    path = make_package(resident, resident, also=((resident, streamed), (resident, resident)))
    index = bytearray((path / "index.bin").read_bytes())
    plans = np.frombuffer(index, PLAN, 3, int(Package.open(path).header["plans_at"]))
    plans["quality"] = 0.5
    (path / "index.bin").write_bytes(with_header(bytes(index)))
    with Session(path) as session:
        assert session.set_budget().number == 1


def test_a_package_with_one_plan_has_one(package: Path) -> None:
    with Session(package) as session:
        before = session.run(IDS)
        assert session.plans == (session.plan,) and session.plan.number == 0
        assert session.set_budget(memory_bytes=session.plan.claimed_bytes) == session.plan
        with pytest.raises(InputError, match="no plan"):
            session.set_budget(memory_bytes=1)
        assert np.array_equal(session.run(IDS), before)


def test_no_change_during_a_run(family: Path, answers: list[np.ndarray]) -> None:
    with Session(family, latency_us=budget(1), storage=EmulatedStorage(400_000)) as session:
        outputs: list[np.ndarray] = []
        thread = threading.Thread(target=lambda: outputs.append(session.run(IDS)))
        refused = 0
        thread.start()
        while thread.is_alive():
            try:
                session.set_budget(latency_us=budget(1))
            except EngineError as error:
                assert "another thread" in str(error)
                refused += 1
        thread.join()
        assert refused > 0 and np.array_equal(outputs[0], answers[1])


def test_a_forked_child_may_not_change_the_plan(family: Path) -> None:
    script = (
        "import os, sys; from stic.runtime.session import Session; s = Session(sys.argv[1])\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    try: s.set_budget(); os._exit(3)\n"
        "    except Exception as e: print(e, flush=True); s.close(); os._exit(0)\n"
        "assert os.waitpid(pid, 0)[1] == 0; s.set_budget(); s.run([1]); s.close()"
    )
    done = subprocess.run([sys.executable, "-c", script, str(family)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "another process" in done.stdout


def test_a_smaller_plan_gives_memory_back(make_package: Callable[..., Path]) -> None:
    """Resident memory of a process of its own, before and after; the plans differ by 2 MiB."""
    wide, narrow = ((32,) * 4,) * 2, ((2,),) * 2
    path = make_package(wide, wide, also=((narrow, ((0,),) * 2),), ffn=2048, full_bits=32)
    script = (
        "import sys; from stic.runtime.session import Session\n"
        "def rss(): return int(open('/proc/self/statm').read().split()[1]) * 4096\n"
        "s = Session(sys.argv[1]); s.run([1, 2]); a = rss()\n"
        "s.set_budget(latency_us=2000); b = rss(); s.run([1, 2])\n"
        "s.set_budget(latency_us=1000); s.run([1, 2]); c = rss(); p = s.plans\n"
        "print(a - b, c - b, p[0].claimed_bytes - p[1].claimed_bytes)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    fell, rose, claimed = map(int, done.stdout.split())
    assert claimed > 2 << 20
    assert abs(fell - claimed) < 1 << 19 and abs(rose - claimed) < 1 << 19
