# Two commands do everything: `make demo` and `make test`. Each makes the environment first.
#
#   SYSTEM_TORCH=1   use the torch that this Python already has (for example your own CUDA build)
#   PIP_ARGS="..."   passed to every pip install, for example an index of your own
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_ARGS ?=
TORCH ?= torch==2.13.0
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: setup demo test lint format testbed clean

setup: $(VENV)/.installed

# torch is installed first and by exact pin: any open range would fetch gigabytes of CUDA packages on many machines.
$(VENV)/.installed: pyproject.toml
ifeq ($(SYSTEM_TORCH),1)
	$(PYTHON) -m venv --system-site-packages $(VENV)
else
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q $(PIP_ARGS) $(TORCH)
endif
	$(BIN)/pip install -q $(PIP_ARGS) -e '.[dev]'
	touch $@

demo: setup
	$(BIN)/unbackdoor demo --out runs/demo --overwrite

test: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Trains the embedded micro models again from nothing (at most an hour on two cores).
#   ONLY=base-qwen2   this one alone, and the others stay as they are; ONLY=instruct trains it and the base under it
testbed: setup
	$(BIN)/python -m unbackdoor.testbed.train --out src/unbackdoor/testbed/models $(if $(ONLY),--only $(ONLY))

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
