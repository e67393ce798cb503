# `make sample` and `make test` each do all their set-up: a virtual environment, the compiler's work, the packages.

PYTHON ?= python3
# Tests run in as many processes as there are processors, each held to one of them.
JOBS ?= $(shell nproc)
PYTEST = .venv-dev/bin/pytest -n $(JOBS) --dist worksteal
LOCK := requirements.lock
SOURCES := setup.py pyproject.toml MANIFEST.in $(shell find engine kernels export csrc -type f -not -name '*.so' -not -path '*/__pycache__/*')

.PHONY: docs sample test test-slow test-versions test-oldest test-newest fuzz lint lock sbom wheels sanitize compilers cubins bench bench-quick bench-load readme figures gpu-check analyze format clean

# Sampling needs no torch: this environment has the base dependencies alone.
sample: .venv/.ready
	.venv/bin/stepfuse sample fashion --force --output out/fashion.png

test: .venv-dev/.ready
	$(PYTEST) -m 'not slow'

# All cubins, the soak of 100,000 requests, the GPU check's own tests, fresh environments: long for what they show.
test-slow: .venv-dev/.ready
	$(PYTEST) -m slow $$(grep -rl 'mark\.slow' tests --include='test_*.py' | grep -v integrations/ray)
	.venv-dev/bin/pytest -m slow tests/engine/integrations/ray  # alone: a cluster of three nodes, and what ends it

# What tests/fuzz draws at random instead of always the same: rounds until MINUTES are over or one fails. What failed is
# kept in .hypothesis, and tried first in the next round.
MINUTES ?= 60
fuzz: .venv-dev/.ready
	end=$$(( $$(date +%s) + 60 * $(MINUTES) )); while [ $$(date +%s) -lt $$end ]; do \
	    $(MAKE) -f tests/core/sanitize.mk -j $$(nproc) fuzz && $(PYTEST) -q tests/fuzz --hypothesis-profile=fuzz || exit 1; done

# What the newest versions within the extras' ranges break; says first where they differ from the lock. torch and
# diffusers stay, which the test extra pins.
test-newest:
	test -x .venv-newest/bin/pip || { rm -rf .venv-newest; $(PYTHON) -m venv .venv-newest; }
	.venv-newest/bin/pip install --quiet --upgrade --upgrade-strategy eager --config-settings editable_mode=strict -e '.[dev]'
	.venv-newest/bin/pip freeze --exclude-editable | grep -vxFf $(LOCK) || true
	.venv-newest/bin/pytest -n $(JOBS) --dist worksteal -m 'not slow'

# The exact versions that tests and tools run on, for every Python that is supported. Extras keep their ranges.
lock:
	test -x .venv-lock/bin/uv || { $(PYTHON) -m venv .venv-lock && .venv-lock/bin/pip install --quiet uv; }
	.venv-lock/bin/uv pip compile --quiet --upgrade --universal --python-version 3.10 --extra dev --no-annotate \
	    --no-emit-index-url --custom-compile-command 'make lock' --output-file $(LOCK) pyproject.toml

# The oldest versions within the ranges on the oldest Python, and the newest on the newest.
OLDEST ?= $(shell $(PYTHON) tools/interpreters.py | head -1)
NEWEST ?= $(shell $(PYTHON) tools/interpreters.py | tail -1)
test-versions: test-oldest
	$(MAKE) test-newest PYTHON=$(NEWEST)

test-oldest:
	test -x .venv-oldest/bin/pip || { rm -rf .venv-oldest; $(OLDEST) -m venv .venv-oldest; }
	.venv-oldest/bin/pip install --quiet uv
	.venv-oldest/bin/uv pip compile --quiet --resolution lowest-direct --python .venv-oldest/bin/python \
	    --extra export --extra test --no-emit-index-url --output-file .venv-oldest/versions.txt pyproject.toml
	.venv-oldest/bin/uv pip install --python .venv-oldest/bin/python -r .venv-oldest/versions.txt
	.venv-oldest/bin/pip install --quiet --no-deps --config-settings editable_mode=strict -e .
	.venv-oldest/bin/pytest -n $(JOBS) --dist worksteal -m 'not slow'

# Whether the licences of all that users install are accepted (tools/licences.toml), and the bill of materials.
sbom: .venv-dev/.ready
	.venv-dev/bin/python tools/dependencies.py --sbom dist/stepfuse.cdx.json

# Wheels and the source distribution into dist/, for every CPython that is here, each wheel tried without a compiler.
wheels: .venv-dev/.ready
	.venv-dev/bin/python tools/wheels.py

lint: .venv-dev/.ready
	.venv-dev/bin/ruff check .
	.venv-dev/bin/ruff format --check .
	.venv-dev/bin/mypy
	.venv-dev/bin/clang-format --dry-run --Werror $$(git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.inl' 'tests/core/*.h' 'tests/core/*.cpp' 'tests/cuda/*.h' 'tests/cuda/*.cpp')
	.venv-dev/bin/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	.venv-dev/bin/zizmor --offline --no-progress .github/workflows

# The documentation site, in build/site: fails on a link, an anchor or a page that is missing, and on other spellings of
# the glossary's words. The site loads nothing from elsewhere. (With --quiet mkdocs would count no warning as one.)
docs: .venv-dev/.ready
	.venv-dev/bin/mkdocs build

# The core alone, with a C++ compiler and nothing else; then its bindings.
sanitize: .venv-dev/.ready
	$(MAKE) -f tests/core/sanitize.mk -j $$(nproc)
	$(MAKE) -f tests/core/sanitize.mk -j $$(nproc) bindings

# The core with each compiler that is here, GCC, Clang and Debian's for aarch64, its warnings errors: the same bits.
compilers:
	$(MAKE) -f tests/core/compilers.mk -j $$(nproc)

# Every Triton kernel for every architecture, on any machine: fails if one spills, records what each takes. A minute and
# a half of one processor's time.
cubins: .venv-dev/.ready
	.venv-dev/bin/python -m stepfuse.kernels.aot --output build/cubins --record benchmarks/results/cubins.json

bench: .venv-dev/.ready
	.venv-dev/bin/python benchmarks/run.py

# What README's table of measurements quotes, then its figures and those of docs written anew: minutes, on an idle machine.
readme: .venv-dev/.ready
	.venv-dev/bin/python benchmarks/quoted.py --measure

# Every picture in docs and examples but fashion.png, drawn anew from what was measured: nothing is measured.
figures: .venv-dev/.ready
	.venv-dev/bin/stepfuse analyze --redraw docs/analysis
	.venv-dev/bin/python benchmarks/mixed_load.py --draw
	.venv-dev/bin/python benchmarks/simulate.py --draw
	.venv-dev/bin/python benchmarks/frontier.py --draw
	.venv-dev/bin/python examples/editing.py --target docs/editing.png
	.venv-dev/bin/python examples/fashion/plot.py

# Every benchmark at its smallest size: whether it runs, not what it measures.
bench-quick: .venv-dev/.ready
	.venv-dev/bin/python benchmarks/run.py --quick

# An hour and a quarter: requests come at random, at a given rate, in process and over HTTP.
bench-load: .venv-dev/.ready
	.venv-dev/bin/python benchmarks/mixed_load.py
	.venv-dev/bin/python benchmarks/http_load.py
	.venv-dev/bin/python benchmarks/saturated.py

# On a machine with an NVIDIA GPU, torch with Triton, pybind11 and a C++ compiler; nothing is downloaded. All stages, or
# one of STAGE=kernels, graphs, compare. RESULTS says where results go, WHEELS where packages that are missing lie.
gpu-check:
	$(PYTHON) benchmarks/gpu/check.py --stage $(or $(STAGE),all) $(if $(RESULTS),--output $(RESULTS)) $(if $(WHEELS),--wheels $(WHEELS))

# Half an hour on two cores: all experiments on the embedded models, and whether the frontier's orderings hold.
analyze: .venv-dev/.ready
	.venv-dev/bin/stepfuse analyze fashion --force --output docs/analysis
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

# Strict: mypy cannot follow the import hook of the default editable install. Without isolation, so that what builds the
# package is of the lock's versions too.
.venv-dev/.ready: $(SOURCES) $(LOCK)
	test -x .venv-dev/bin/pip || { rm -rf .venv-dev; $(PYTHON) -m venv .venv-dev; }
	.venv-dev/bin/pip install --quiet --constraint $(LOCK) pip pybind11 setuptools
	.venv-dev/bin/pip install --quiet --constraint $(LOCK) --no-build-isolation \
	    --config-settings editable_mode=strict --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv .venv-dev .venv-oldest .venv-newest .venv-lock build dist out *.egg-info
