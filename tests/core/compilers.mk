# The core with each compiler that is here, every warning an error: the bits that it computes, what it allocates, and
# the stress test. `make -f tests/core/compilers.mk -j $(nproc)`; one that is not installed is skipped, which is said.

SECONDS := 5

.PHONY: all gcc clang lanes aarch64

all: gcc clang lanes aarch64

# $(call check,compiler,flags,what runs its programs)
check = @+for tool in $(1) $(3); do \
    command -v $$tool >/dev/null || { echo "skipped: $$tool is not installed"; exit 0; }; done; \
    $(MAKE) -f tests/core/sanitize.mk OUT=build/compilers/$@ CXX=$(1) plain='-O3 -DNDEBUG -Werror $(2)' RUN=$(3) \
    SECONDS=$(SECONDS) objects digests allocations stress

gcc:
	$(call check,g++)

clang:
	$(call check,clang++)

# Without vector types, as with MSVC.
lanes:
	$(call check,g++,-DSTEPFUSE_WITHOUT_VECTOR_TYPES)

# Emulated: Debian's g++-aarch64-linux-gnu and qemu-user.
aarch64:
	$(call check,aarch64-linux-gnu-g++,-static,qemu-aarch64)
