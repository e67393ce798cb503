# The core without Python, its tests in C++: `make sanitize` runs them under the thread sanitizer and under the address
# and undefined behaviour sanitizers; `make -f tests/core/sanitize.mk stress SECONDS=60` as fast as they go.

OUT := build/sanitize
SECONDS := 15
# As in setup.py: the stress test compares bits.
NUMERICS := -ffp-contract=off -fno-math-errno -fno-trapping-math
FLAGS := -std=c++17 -g -pthread $(NUMERICS) -Wall -Wextra -Wno-psabi -MMD -MP

CORE := $(wildcard csrc/core/*.cpp)
CUDA := $(wildcard csrc/cuda/*.cpp)
objects = $(patsubst %.cpp,$(OUT)/$(1)/%.o,$(CORE))

plain := -O2 -DNDEBUG
thread := -O1 -fsanitize=thread
address := -O1 -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer

.PHONY: all stress thread address allocations lifetimes
.SECONDARY:

all: thread address allocations lifetimes

# `stress 0` only starts and ends, and so does `lifetimes` without a driver. Where that fails, the kernel spreads memory
# too widely for the thread sanitizer's own, or forbids the tracing by which the address sanitizer looks for leaks.
thread: $(OUT)/thread/stress
	if $< 0 >/dev/null 2>&1; then $< $(SECONDS); else setarch "$$(uname -m)" -R $< $(SECONDS); fi

address: $(OUT)/address/stress
	if $< 0 >/dev/null 2>&1; then $< $(SECONDS); else ASAN_OPTIONS=detect_leaks=0 $< $(SECONDS); fi

stress: $(OUT)/plain/stress
	$< $(SECONDS)

allocations: $(OUT)/plain/allocations
	$<

# The CUDA side on a driver that records: neither a GPU nor its toolkit is needed.
lifetimes: $(OUT)/address/lifetimes $(OUT)/address/libfake.so
	if $< >/dev/null 2>&1; then $^; else ASAN_OPTIONS=detect_leaks=0 $^; fi

$(OUT)/address/lifetimes: $(OUT)/address/tests/cuda/lifetimes.o \
    $(patsubst %.cpp,$(OUT)/address/%.o,$(CUDA)) $(call objects,address)
	$(CXX) $(FLAGS) $(address) $^ -ldl -o $@
$(OUT)/address/libfake.so: tests/cuda/fake_driver.cpp
	@mkdir -p $(@D)
	$(CXX) $(FLAGS) $(address) -shared -fPIC $< -ldl -o $@

define variant
$(OUT)/$(1)/%.o: %.cpp
	@mkdir -p $$(@D)
	$(CXX) $(FLAGS) $($(1)) -c $$< -o $$@
$(OUT)/$(1)/%: $(OUT)/$(1)/tests/core/%.o $(call objects,$(1))
	$(CXX) $(FLAGS) $($(1)) $$^ -o $$@
endef
$(foreach name,plain thread address,$(eval $(call variant,$(name))))

-include $(shell find $(OUT) -name '*.d' 2>/dev/null)
