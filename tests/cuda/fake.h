// The recording driver's own functions: what a test may set and read.
#pragma once

#include <dlfcn.h>

#include <cstdlib>
#include <string>

namespace stepfuse::cuda {

struct Fake {
  explicit Fake(const std::string& path) {
    void* library = dlopen(path.c_str(), RTLD_NOW);
    if (!library) std::abort();
    find(library, "fake_reset", reset);
    find(library, "fake_fail", fail);
    find(library, "fake_late", late);
    find(library, "fake_kernels", kernels);
    find(library, "fake_calls", calls);
    find(library, "fake_text", text);
  }

  void (*reset)();
  void (*fail)(int calls_from_now, int code);
  void (*late)(int);
  void (*kernels)(void (*body)(const char* name, void** params, const unsigned* grid_and_block));
  int (*calls)();
  const char* (*text)(int which);  // 1: rules that were broken, 2: what is not released

 private:
  template <class Function>
  static void find(void* library, const char* name, Function*& function) {
    function = reinterpret_cast<Function*>(dlsym(library, name));
    if (!function) std::abort();
  }
};

}  // namespace stepfuse::cuda
