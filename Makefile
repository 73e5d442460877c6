# Two commands do everything on a machine with Python 3.11 and make: `make quickstart` and `make check`.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN = $(VENV)/bin
INSTALL = $(BIN)/python -m pip install --quiet --constraint constraints.txt
# where a machine has it set, every process that a test starts would compile the program again, and all asserts are
# rewritten in every run: 10 s of processor for each of the two
export PYTHONDONTWRITEBYTECODE =
# each process begins with one half of the files, in order: what a file's tests share is trained once, not twice
TWO = -n 2 --dist worksteal

.PHONY: quickstart test check coverage longest leaderboard site docs methods-table networks bench bench-quick bench-startup bench-gpu bench-gpu-memory lint types wheel-check clean

quickstart: $(VENV)/.installed
	$(BIN)/harness run suites/quickstart.yaml
	$(BIN)/harness report

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(TWO)

check: lint types test

# which lines no test runs. SlipCover writes into the code of harness/ and methods/ alone and stops where a line was seen:
# 4 % of the tests' time, where coverage.py makes Python 3.11 trace all code, the libraries' too: 53 %
coverage: $(VENV)/.installed-dev
	$(BIN)/python -m slipcover --source harness,methods --skip-covered -m pytest $(TWO)

# the longest files and functions of harness/ and methods/: a note for the reader, not a limit
longest:
	$(PYTHON) benchmarks/longest.py harness methods

leaderboard: quickstart
	$(BIN)/harness report --suite quickstart --format markdown --out reports/quickstart.md
	UPDATE_GOLDEN=1 $(BIN)/python -m pytest tests/test_docs.py

site: quickstart
	$(BIN)/harness site --out reports/site

# the pages of docs/ as a site; ends with an error at a link that leads nowhere
docs: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build
	@echo open reports/docs/index.html

methods-table: $(VENV)/.installed-dev
	$(BIN)/harness run suites/methods.yaml
	$(BIN)/harness report --suite methods --format markdown --costs --out reports/methods.md
	UPDATE_GOLDEN=1 $(BIN)/python -m pytest tests/test_docs.py

# every method on a tiny checkpoint of every architecture, about a quarter of an hour; writes docs/networks.md
networks: $(VENV)/.installed-dev
	$(BIN)/python -m tools.network_matrix --write

# the floors of a decoder's shape, then all of T5-small's: two hours on two cores
bench: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.bench --shape smollm2-135m --precision float32 --floors --skip-padded --steps 4 --write
	$(BIN)/python -m benchmarks.bench --precision float32 --steps 6 --seconds 150 --eval-tasks sst2 --write

bench-quick: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.bench --quick

# seconds before the first step of small and of large suites; what reading, planning and reporting them costs
bench-startup: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.startup --write
	$(BIN)/python -m benchmarks.loading --write

# with QUICK=1 small networks, on a machine without a GPU too: shows that all runs, and writes nothing
bench-gpu: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.bench --device cuda --precision bfloat16 --compile --steps 20 --seconds 120 \
		--shape t5-base llama-3.2-1b llama-2-7b:bf16 llama-2-7b:nf4 $(if $(QUICK),--quick,--write)

bench-gpu-memory: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.memory $(if $(QUICK),--quick,--write)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

# the wheel with the newest releases instead of those of constraints.txt; TORCH=torch==2.13.0 keeps that one
wheel-check:
	bash tests/wheel_check.sh $(PYTHON)

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(INSTALL) --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
