# The two commands of the README: make demo, make test. Everything lands in .venv and runs/.
# make check is for daily work: lint, and the tests that are not marked slow. make check-all adds to lint and make test the
# tests against the real WarpRec (which needs Python 3.12, in an environment of its own), the sanitizers, and the kernels'
# compilation for every GPU architecture: run it by hand, it takes an hour or more.
# make test-warprec WARPREC=newest (or a version) tests against another WarpRec than the pinned one, in one more
# environment, and says which of the files that fastseq builds on differ.
PYTHON ?= python3
VENV ?= .venv
# The Triton that belongs to TORCH, whose build for the CPU names none. With TORCH="torch" give TRITON="triton" too.
TRITON ?= triton==3.7.1
# One build of PyTorch for everyone; TORCH="torch" takes the newest.
TORCH ?= torch==2.13.0
# One process of tests a core, each with one thread.
WORKERS ?= 2
BIN := $(VENV)/bin
PYTEST = -m pytest -q -n $(WORKERS) --dist worksteal --benchmark-disable
INSTALLED := $(VENV)/.installed
WARPREC_PYTHON ?= python3.12
WARPREC ?=
WARPREC_VENV ?= .venv-warprec$(addprefix -,$(WARPREC))
WARPREC_INSTALLED := $(WARPREC_VENV)/.installed
RECTOOLS := .venv-rectools/.installed
RECBOLE := .venv-recbole/.installed
SOURCES := pyproject.toml setup.py fastseq/_version.py $(wildcard csrc/*.cpp csrc/*.h csrc/bindings/*.cpp csrc/bindings/*.h)

.PHONY: demo test check check-all test-warprec peers sanitize lint wheel smoke clean

demo: $(INSTALLED)
	$(BIN)/fastseq train examples/demo.yaml --overwrite
	$(BIN)/fastseq recommend runs/demo/SASRec --sample 3 -k 5

test: $(INSTALLED)
	$(BIN)/python $(PYTEST)

check: lint
	$(BIN)/python $(PYTEST) -m "not slow"

check-all: lint test test-warprec sanitize
	$(BIN)/python -m benchmarks.ops.compile_report

test-warprec: $(WARPREC_INSTALLED)
ifeq ($(WARPREC),)
	$(WARPREC_VENV)/bin/python -m pytest -q tests/warprec
else
	$(WARPREC_VENV)/bin/python -m pip install -q --upgrade $(if $(filter newest,$(WARPREC)),warprec,warprec==$(WARPREC))
	$(WARPREC_VENV)/bin/python tests/warprec/canary.py $(WARPREC_VENV)/pinned
endif

# The environments of benchmarks/peers.py, a few GB.
peers: $(INSTALLED) $(WARPREC_INSTALLED) $(RECTOOLS) $(RECBOLE)

sanitize: $(INSTALLED)
	PYTHON=$(BIN)/python tests/sanitize/run.sh address
	PYTHON=$(BIN)/python tests/sanitize/run.sh thread

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Wheels for the package index in dist/: PYTHONS="3.11 3.12 3.13", those that are here. Needs no PyTorch.
wheel:
	PYTHON=$(PYTHON) .ci/wheels

# The wheel for $(PYTHON), used in an empty environment.
smoke:
	PYTHON=$(PYTHON) TORCH="$(TORCH)" tests/smoke/run.sh dist/*-$$($(PYTHON) -c 'import sys; print("cp%d%d" % sys.version_info[:2])')-*.whl

$(INSTALLED): $(SOURCES)
	@$(PYTHON) -c 'import sys; sys.exit("fastseq needs Python 3.11 or newer: make PYTHON=/path/to/python3.11" if sys.version_info < (3, 11) else 0)'
	@command -v $${CXX:-g++} >/dev/null || { echo "fastseq needs a C++17 compiler: install g++, or set CXX"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q "$(TORCH)" numpy "setuptools>=77" wheel "pybind11>=2.13" "ninja>=1.11"
	$(BIN)/python -m pip install -q "$(TORCH)" "$(TRITON)" --no-build-isolation -e ".[cli,triton,dev]"
	touch $(INSTALLED)

$(WARPREC_INSTALLED): $(SOURCES)
	@$(WARPREC_PYTHON) -c 'import sys; sys.exit("WarpRec needs Python 3.12 or newer: make test-warprec WARPREC_PYTHON=/path/to/python3.12" if sys.version_info < (3, 12) else 0)'
	test -x $(WARPREC_VENV)/bin/python || $(WARPREC_PYTHON) -m venv $(WARPREC_VENV)
	$(WARPREC_VENV)/bin/python -m pip install -q "$(TORCH)" numpy "setuptools>=77" wheel "pybind11>=2.13" "ninja>=1.11" "pytest>=8"
	$(WARPREC_VENV)/bin/python -m pip install -q "$(TORCH)" --no-build-isolation -e ".[cli,warprec]"
	touch $(WARPREC_INSTALLED)

$(RECTOOLS):
	$(PYTHON) -m venv .venv-rectools
	.venv-rectools/bin/python -m pip install -q "$(TORCH)" "rectools[torch]==0.19.0"
	touch $(RECTOOLS)

# Without its dependencies: it wants a Ray of 2023, for its own parameter search alone, and does not know numpy 2.
$(RECBOLE):
	$(PYTHON) -m venv .venv-recbole
	.venv-recbole/bin/python -m pip install -q "$(TORCH)" "numpy<2" "pandas<2.3" "scipy<1.14" scikit-learn pyyaml tqdm colorlog==4.7.2 \
		colorama==0.4.4 tensorboard tabulate plotly texttable psutil thop
	.venv-recbole/bin/python -m pip install -q --no-deps recbole==1.2.1
	touch $(RECBOLE)

clean:
	rm -rf build dist runs $(VENV) .venv-warprec* .venv-rectools .venv-recbole fastseq/*.so
