# The two commands of the README: make demo, make test. Everything lands in .venv and runs/.
# make test-warprec tests against the real WarpRec, which needs Python 3.12, in an environment of its own.
PYTHON ?= python3
VENV ?= .venv
# One build of PyTorch for everyone; TORCH="torch" takes the newest.
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
WARPREC_PYTHON ?= python3.12
WARPREC_VENV ?= .venv-warprec
WARPREC_INSTALLED := $(WARPREC_VENV)/.installed
SOURCES := pyproject.toml setup.py fastseq/_version.py $(wildcard csrc/*.cpp csrc/*.h csrc/bindings/*.cpp csrc/bindings/*.h)

.PHONY: demo test test-warprec sanitize lint build clean

demo: $(INSTALLED)
	$(BIN)/fastseq train examples/demo.yaml --overwrite
	$(BIN)/fastseq recommend runs/demo/SASRec --sample 3 -k 5

test: $(INSTALLED)
	$(BIN)/python -m pytest -q

test-warprec: $(WARPREC_INSTALLED)
	$(WARPREC_VENV)/bin/python -m pytest -q tests/warprec

sanitize: $(INSTALLED)
	PYTHON=$(BIN)/python tests/sanitize/run.sh address
	PYTHON=$(BIN)/python tests/sanitize/run.sh thread

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

build: $(INSTALLED)
	$(BIN)/python -m build --wheel --no-isolation

$(INSTALLED): $(SOURCES)
	@$(PYTHON) -c 'import sys; sys.exit("fastseq needs Python 3.11 or newer: make PYTHON=/path/to/python3.11" if sys.version_info < (3, 11) else 0)'
	@command -v $${CXX:-g++} >/dev/null || { echo "fastseq needs a C++17 compiler: install g++, or set CXX"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q "$(TORCH)" numpy "setuptools>=77" wheel "pybind11>=2.13" "ninja>=1.11"
	$(BIN)/python -m pip install -q "$(TORCH)" --no-build-isolation -e ".[cli,triton,dev]"
	touch $(INSTALLED)

$(WARPREC_INSTALLED): $(SOURCES)
	@$(WARPREC_PYTHON) -c 'import sys; sys.exit("WarpRec needs Python 3.12 or newer: make test-warprec WARPREC_PYTHON=/path/to/python3.12" if sys.version_info < (3, 12) else 0)'
	test -x $(WARPREC_VENV)/bin/python || $(WARPREC_PYTHON) -m venv $(WARPREC_VENV)
	$(WARPREC_VENV)/bin/python -m pip install -q "$(TORCH)" numpy "setuptools>=77" wheel "pybind11>=2.13" "ninja>=1.11" "pytest>=8"
	$(WARPREC_VENV)/bin/python -m pip install -q "$(TORCH)" --no-build-isolation -e ".[cli,warprec]"
	touch $(WARPREC_INSTALLED)

clean:
	rm -rf build dist runs $(VENV) $(WARPREC_VENV) fastseq/*.so
