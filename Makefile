# make demo   hear what it does: a recording becomes a small file and comes back as speech; who speaks is told apart
# make test   all tests
# make lint   style and types
# make quality DATA="FOLDER..."   measure the shipped codec on folders of speech: README, model card, docs/quality.md
# make verification TRIALS="LIST..." ROOT=FOLDER   measure the shipped speaker encoder on lists of trials
# demo, test and lint create .venv and install what they need. PYTHON=python3.12 chooses the interpreter; pip's own
# environment variables apply (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu, ...).

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PACKAGES := engine codec speaker recipes
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test lint quality verification format clean
.DEFAULT_GOAL := demo

demo: $(VENV)/.demo
	$(BIN)/python -m codec.demo
	@echo
	$(BIN)/python -m speaker.demo

# Small matrices and busy machines: more threads only wait for each other. OMP_NUM_THREADS=8 make test overrides.
test: export OMP_NUM_THREADS ?= 1
test: $(VENV)/.dev
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy $(PACKAGES)

quality: export OMP_NUM_THREADS ?= 1
quality: $(VENV)/.dev
	@test -n "$(DATA)" || { echo 'make quality DATA="FOLDER..." names the folders of test speech' >&2; exit 2; }
	$(BIN)/python -m benchmarks.quality $(DATA) $(ARGS) --images docs/images \
		--write README.md checkpoints/esc_live/README.md docs/quality.md

verification: export OMP_NUM_THREADS ?= 1
verification: $(VENV)/.dev
	@test -n "$(TRIALS)" -a -n "$(ROOT)" || { echo 'make verification TRIALS="LIST..." ROOT=FOLDER' >&2; exit 2; }
	$(BIN)/python -m benchmarks.verification --trials $(TRIALS) --root $(ROOT) $(ARGS) \
		--write README.md checkpoints/ecapa/README.md

format: $(VENV)/.dev
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -m venv $(VENV) || { echo 'No virtual environment: on Debian and Ubuntu, apt install python3-venv' >&2; exit 1; }

# The stamps: reinstall only when the dependencies change. Compiling all of torch to bytecode at once would take
# minutes; Python compiles what is imported. pesq is compiled; without a C compiler the demo still runs,
# with fewer numbers.
$(VENV)/.demo: pyproject.toml | $(BIN)/python
	$(PIP) install --no-compile -e '.[eval]' || { echo 'Trying again without the measuring tools' >&2; $(PIP) install --no-compile -e .; }
	touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(PIP) install --no-compile -e '.[dev]'
	touch $@ $(VENV)/.demo
