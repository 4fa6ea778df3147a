# make demo: the whole of BRIDGE on two CPU cores. make test: what CI runs. Both set up first where needed.
# make setup EXTRA=gpu: the same for a machine with NVIDIA GPUs.
PYTHON ?= python3
EXTRA ?= cpu
VENV := .venv
BIN := $(VENV)/bin
# torch's CPU build is not on the ordinary index: uv finds it by --torch-backend, or in PIP_FIND_LINKS where that is set.
TORCH_cpu := $(if $(PIP_FIND_LINKS),$(addprefix --find-links ,$(PIP_FIND_LINKS)),--torch-backend cpu)
OPTIONS := $(TORCH_$(EXTRA)) --override requirements/overrides-$(EXTRA).txt

.PHONY: setup demo test test-all lint bench requirements clean

setup: $(VENV)/.ready

# Byte code is compiled here because the first import of vLLM takes minutes without it.
$(VENV)/.ready: requirements/$(EXTRA).txt requirements/overrides-$(EXTRA).txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("bridge_ray needs Python 3.11 or newer") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --python $(BIN)/python --compile-bytecode $(OPTIONS) -r requirements/$(EXTRA).txt
	$(BIN)/uv pip install --python $(BIN)/python --no-deps --editable .
	touch $@

demo: setup
	$(BIN)/bridge-ray run demo

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest tests/unit tests/ray

test-all: lint
	$(BIN)/python -m pytest tests

bench: setup
	@for claim in benchmarks/*.py; do [ -e "$$claim" ] || continue; $(BIN)/python "$$claim" --json || exit 1; done

# After a make setup: pin what pyproject.toml asks for, for EXTRA=cpu or EXTRA=gpu; no addresses are written.
requirements:
	$(BIN)/uv pip compile pyproject.toml --extra $(EXTRA) --extra dev --python-version 3.11 $(OPTIONS) \
	  --no-annotate --no-header --no-emit-index-url --no-emit-find-links --quiet -o requirements/$(EXTRA).txt

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
