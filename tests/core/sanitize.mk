# The core, its tests in C++ without Python: `make sanitize` runs them under the thread sanitizer and under the address
# and undefined behaviour sanitizers; `make -f tests/core/sanitize.mk stress SECONDS=60` as fast as they go.

OUT := build/sanitize
SECONDS := 15
DEVICE_SECONDS := 8
# As in setup.py: the stress test compares bits.
NUMERICS := -ffp-contract=off -fno-math-errno -fno-trapping-math
FLAGS := -std=c++17 -g -pthread -fPIC $(NUMERICS) -Wall -Wextra -Wno-psabi -MMD -MP

CORE := $(wildcard csrc/core/*/*.cpp)
CUDA := $(wildcard csrc/cuda/*.cpp)
objects = $(patsubst %.cpp,$(OUT)/$(1)/%.o,$(CORE))
device_objects = $(call objects,$(1)) $(patsubst %.cpp,$(OUT)/$(1)/%.o,$(CUDA))

plain := -O2 -DNDEBUG
thread := -O1 -fsanitize=thread
address := -O1 -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer

# What runs the programs of another processor; see compilers.mk.
RUN :=

.PHONY: all stress digests objects thread address thread_device address_device allocations lifetimes bindings fuzz
.SECONDARY:

# Allocations and digests are those of every compiler: compilers.mk.
all: thread address thread_device address_device lifetimes

# `stress 0` only starts and ends, and so does `lifetimes` without a driver. Where that fails, the kernel spreads memory
# too widely for the thread sanitizer's own, or forbids the tracing by which the address sanitizer finds leaks.
without_races = if $< 0 >/dev/null 2>&1; then $< $(1); else setarch "$$(uname -m)" -R $< $(1); fi
without_leaks = if $< 0 >/dev/null 2>&1; then $< $(1); else ASAN_OPTIONS=detect_leaks=0 $< $(1); fi

thread: $(OUT)/thread/stress
	$(call without_races,$(SECONDS))

address: $(OUT)/address/stress
	$(call without_leaks,$(SECONDS))

stress: $(OUT)/plain/stress
	$(RUN) $< $(SECONDS)

allocations: $(OUT)/plain/allocations
	$(RUN) $<

# The bits of noise, steps and rows are those of every other compiler and processor.
digests: $(OUT)/plain/digests
	$(RUN) $< | diff tests/core/digests.txt -

objects: $(call device_objects,plain)

# The CUDA side on a driver that records: neither a GPU nor its toolkit is needed.
thread_device: $(OUT)/thread/stress_device
	$(call without_races,$(DEVICE_SECONDS))

address_device: $(OUT)/address/stress_device
	$(call without_leaks,$(DEVICE_SECONDS))

lifetimes: $(OUT)/address/lifetimes $(OUT)/address/libfake.so
	if $< >/dev/null 2>&1; then $^; else ASAN_OPTIONS=detect_leaks=0 $^; fi

# The Python extension under the address sanitizer, with the Python that has pybind11 and numpy: whatever it is given, no
# byte beyond what is its own. The bindings are not optimised: compiling takes longer than the calls.
PYTHON ?= .venv-dev/bin/python
SITE := $(OUT)/address/site
BINDINGS := $(patsubst csrc/bindings/%.cpp,$(OUT)/address/csrc/bindings/%.o,$(wildcard csrc/bindings/*.cpp))
# Python itself is not built with it: its libraries come first, and libstdc++ with them for exceptions' sake.
sanitized = LD_PRELOAD="$(foreach name,asan ubsan stdc++,$(shell $(CXX) -print-file-name=lib$(name).so))" \
    ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 PYTHONPATH=$(SITE) $(PYTHON)

bindings: $(SITE)/stepfuse/_core.so
	$(sanitized) tests/core/hostile_calls.py 20000 $<

# Random calls instead of the same ones: the package as it is installed, but for the extension.
fuzz: $(SITE)/stepfuse/_core.so
	ln -sfn $(CURDIR)/engine/* $(CURDIR)/kernels $(CURDIR)/export $(SITE)/stepfuse/
	rm -f $(SITE)/stepfuse/_core.*.so
	$(sanitized) -c 'import stepfuse._core as core; assert core.__file__.endswith("$<"), core.__file__'
	$(sanitized) -m pytest -q tests/fuzz/test_fuzz_core.py tests/fuzz/test_fuzz_arguments.py --hypothesis-profile=fuzz

$(BINDINGS): extra = -O0 -g1 -fno-sanitize=undefined -fvisibility=hidden $(shell $(PYTHON) -m pybind11 --includes 2>/dev/null)
$(SITE)/stepfuse/_core.so: $(BINDINGS) $(call device_objects,address)
	@mkdir -p $(@D)
	$(CXX) $(FLAGS) $(address) -shared $^ -ldl -o $@

define variant
$(OUT)/$(1)/%.o: %.cpp
	@mkdir -p $$(@D)
	$(CXX) $(FLAGS) $($(1)) $$(extra) -c $$< -o $$@
$(OUT)/$(1)/allocations: $(OUT)/$(1)/tests/core/allocations.o $(call objects,$(1))
$(OUT)/$(1)/digests: $(OUT)/$(1)/tests/core/digests.o $(call objects,$(1))
$(OUT)/$(1)/stress: $(patsubst %,$(OUT)/$(1)/tests/core/%.o,stress stress_host) $(call objects,$(1))
$(OUT)/$(1)/stress_device: $(patsubst %,$(OUT)/$(1)/tests/%.o,core/stress cuda/stress_device) \
    $(call device_objects,$(1)) | $(OUT)/$(1)/libfake.so
$(OUT)/$(1)/lifetimes: $(OUT)/$(1)/tests/cuda/lifetimes.o $(call device_objects,$(1))
$(OUT)/$(1)/allocations $(OUT)/$(1)/digests $(OUT)/$(1)/stress $(OUT)/$(1)/stress_device $(OUT)/$(1)/lifetimes:
	$(CXX) $(FLAGS) $($(1)) $$^ -ldl -Wl,--disable-new-dtags,-rpath,'$$$$ORIGIN' -o $$@
$(OUT)/$(1)/libfake.so: tests/cuda/fake_driver.cpp
	@mkdir -p $$(@D)
	$(CXX) $(FLAGS) $($(1)) -shared -fPIC $$< -ldl -o $$@
endef
$(foreach name,plain thread address,$(eval $(call variant,$(name))))

-include $(shell find $(OUT) -name '*.d' 2>/dev/null)
