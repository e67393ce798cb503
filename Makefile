# `make sample` and `make test` each do all their set-up: a virtual environment, the compiler's work, the packages.

PYTHON ?= python3
SOURCES := setup.py pyproject.toml MANIFEST.in $(shell find engine kernels export csrc -type f -not -name '*.so' -not -path '*/__pycache__/*')

.PHONY: sample test lint sanitize cubins bench bench-load gpu-check analyze format clean

# Sampling needs no torch: this environment has the base dependencies alone.
sample: .venv/.ready
	.venv/bin/stepfuse sample fashion --output out/fashion.png

test: .venv-dev/.ready
	.venv-dev/bin/pytest

lint: .venv-dev/.ready
	.venv-dev/bin/ruff check .
	.venv-dev/bin/ruff format --check .
	.venv-dev/bin/mypy
	.venv-dev/bin/clang-format --dry-run --Werror $$(git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.inl' 'tests/core/*.h' 'tests/core/*.cpp' 'tests/cuda/*.h' 'tests/cuda/*.cpp')

# The core alone, with a C++ compiler and nothing else.
sanitize:
	$(MAKE) -f tests/core/sanitize.mk -j $$(nproc)

# Every Triton kernel for every architecture, on any machine: fails if one spills, records what each takes. A minute and
# a half of one processor's time.
cubins: .venv-dev/.ready
	.venv-dev/bin/python -m stepfuse.kernels.aot --output build/cubins --record benchmarks/results/cubins.json

bench: .venv-dev/.ready
	.venv-dev/bin/python benchmarks/run.py

# Three quarters of an hour: requests come at random, at a given rate.
bench-load: .venv-dev/.ready
	.venv-dev/bin/python benchmarks/mixed_load.py
	.venv-dev/bin/python benchmarks/saturated.py

# On a machine with an NVIDIA GPU, torch with Triton, pybind11 and a C++ compiler; nothing is downloaded. All stages, or
# one of STAGE=kernels, graphs, compare. RESULTS says where results go, WHEELS where packages that are missing lie.
gpu-check:
	$(PYTHON) benchmarks/gpu/check.py --stage $(or $(STAGE),all) $(if $(RESULTS),--output $(RESULTS)) $(if $(WHEELS),--wheels $(WHEELS))

# Half an hour on two cores: all experiments on the embedded models, and whether the frontier's orderings hold.
analyze: .venv-dev/.ready
	.venv-dev/bin/stepfuse analyze fashion --output docs/analysis
	.venv-dev/bin/python benchmarks/frontier_orderings.py docs/analysis/frontier.json

format: .venv-dev/.ready
	.venv-dev/bin/ruff check --fix .
	.venv-dev/bin/ruff format .
	.venv-dev/bin/clang-format -i $$(git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.inl' 'tests/core/*.h' 'tests/core/*.cpp' 'tests/cuda/*.h' 'tests/cuda/*.cpp')

# A venv that stopped halfway has no pip: make it anew.
.venv/.ready: $(SOURCES)
	test -x .venv/bin/pip || { rm -rf .venv; $(PYTHON) -m venv .venv; }
	.venv/bin/pip install --quiet .
	touch $@

# Strict: mypy cannot follow the import hook of the default editable install. --config-settings came with pip 22.1.
.venv-dev/.ready: $(SOURCES)
	test -x .venv-dev/bin/pip || { rm -rf .venv-dev; $(PYTHON) -m venv .venv-dev; }
	.venv-dev/bin/pip install --quiet 'pip>=22.1'
	.venv-dev/bin/pip install --quiet --config-settings editable_mode=strict -e '.[dev]'
	touch $@

clean:
	rm -rf .venv .venv-dev build dist out *.egg-info
