"""libFuzzer on the package reader under ASan and UBSan, for STIC_FUZZ_SECONDS (default 10). Needs clang."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.runtime.decoder_packages import Options, write
from tests.runtime.test_engine_reader import READER

ROOT = Path(__file__).resolve().parents[2]


def test_reader_survives_fuzzing(package: Path, gpu_package: Path, family: Path, tmp_path: Path) -> None:
    clang = shutil.which("clang")
    if clang is None:
        pytest.skip("needs clang with libFuzzer (Debian: clang)")
    fuzzer = tmp_path / "fuzz"
    sources = [str(ROOT / "runtime" / "src" / f"{name}.c") for name in READER]
    flags = ["-g", "-O1", "-std=c11", "-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all", "-pthread"]
    harness = ROOT / "tests" / "runtime" / "fuzz_package.c"
    line = [clang, *flags, f"-I{ROOT / 'runtime' / 'src'}", str(harness), *sources, "-o", str(fuzzer)]
    built = subprocess.run(line, capture_output=True, text=True, timeout=120)
    if built.returncode and "libclang_rt" in built.stderr:
        pytest.skip("needs clang's sanitizer runtime (Debian: libclang-rt-dev)")
    assert built.returncode == 0, built.stderr
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    index = (package / "index.bin").read_bytes()
    (corpus / "good").write_bytes(index)
    (corpus / "gpu").write_bytes((gpu_package / "index.bin").read_bytes())
    (corpus / "family").write_bytes((family / "index.bin").read_bytes())
    (corpus / "decoder").write_bytes((write(tmp_path / "decoder") / "index.bin").read_bytes())
    (corpus / "tied").write_bytes((write(tmp_path / "tied", Options(tied=True)) / "index.bin").read_bytes())
    (corpus / "with-record").write_bytes(index + (package / "shards.bin").read_bytes()[:4096])
    seconds = int(os.environ.get("STIC_FUZZ_SECONDS", "10"))
    options = [f"-max_total_time={seconds}", "-max_len=65536", "-timeout=20", "-print_final_stats=1"]
    done = subprocess.run(
        [str(fuzzer), *options, f"-artifact_prefix={tmp_path}/", str(corpus)],
        capture_output=True,
        text=True,
        timeout=seconds + 120,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "stat::number_of_executed_units" in done.stderr
