# Every target makes the virtual environment first when it is missing or older than the requirements.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
EVALUATION ?= ../shared/evaluation
SECONDS ?= 60
SEED ?= 0
SPEED_FILES := --json benchmarks/results/speed.json --markdown benchmarks/results/speed.md
# Small matrices run fastest on one thread; the tests run in two processes instead.
TEST_ENV := OMP_NUM_THREADS=1 MPLBACKEND=Agg

.PHONY: demo test coverage test-arviz-1 lint evaluate bench bench-accuracy docs wheel clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	touch $@

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	touch $@

demo: $(VENV)/.installed
	$(BIN)/python examples/demo.py

test: $(VENV)/.installed
	$(TEST_ENV) $(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not slow" --doctest-modules pyro_coupling tests

$(VENV)/.coverage: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt pytest-cov
	touch $@

# The same tests, with the part of the lines that they run: at least 95 %.
coverage: $(VENV)/.coverage
	$(TEST_ENV) $(BIN)/python -m pytest -q -n 2 --dist worksteal --cov -m "not slow" --doctest-modules pyro_coupling tests

# ArviZ 1 needs Python 3.12: make test-arviz-1 PYTHON=python3.12
$(VENV)-arviz-1/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)-arviz-1
	$(VENV)-arviz-1/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		-e ".[plots]" "arviz>=1" h5netcdf h5py hypothesis pytest
	touch $@

test-arviz-1: $(VENV)-arviz-1/.installed
	$(TEST_ENV) $(VENV)-arviz-1/bin/python -m pytest -q -m "not slow" tests/test_arviz.py tests/inference

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy pyro_coupling

evaluate: $(VENV)/.installed
	$(TEST_ENV) $(BIN)/python -m pytest -q -m slow tests
	$(BIN)/python $(EVALUATION)/evaluate.py --seconds $(SECONDS) --seed $(SEED)

$(VENV)/.bench: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[bench]"
	touch $@

# Time and memory beside other packages, in less than 20 minutes; with QUICK=1 a few lines of the table in two.
bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks.speed $(if $(QUICK),--quick,$(SPEED_FILES))
	$(BIN)/python benchmarks/step_time.py $(if $(QUICK),--steps 50)

# Rounding errors, gradients, fits: each a script that can be run alone. An hour in all.
bench-accuracy: $(VENV)/.bench
	$(BIN)/python benchmarks/round_trip.py --json benchmarks/results/round_trip.json
	$(BIN)/python benchmarks/memory.py --json benchmarks/results/memory.json
	$(BIN)/python benchmarks/planar_kl.py --json benchmarks/results/planar_kl.json
	$(BIN)/python benchmarks/digits_bits.py

docs: $(VENV)/.docs
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

# Wheel and source distribution, tried in environments of their own.
wheel:
	PYTHON=$(PYTHON) .ci/wheel

clean:
	rm -rf $(VENV) $(VENV)-arviz-1 build dist docs/_build *_output *.egg-info
