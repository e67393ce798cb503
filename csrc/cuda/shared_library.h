// Loading of a shared library at run time, by each system's own calls. A library stays loaded.
#pragma once

#include <string>

#ifdef _WIN32
#include <windows.h>
#else
#include <dlfcn.h>
#endif

namespace stepfuse::cuda {

#ifdef _WIN32

// Null, and why in `error`, if there is none of this name.
inline void* open_library(const std::string& name, std::string& error) {
  void* library = LoadLibraryA(name.c_str());
  if (!library) error = name + ": error " + std::to_string(GetLastError());
  return library;
}

inline void* find_symbol(void* library, const char* name) {
  return reinterpret_cast<void*>(GetProcAddress(static_cast<HMODULE>(library), name));
}

#else

inline void* open_library(const std::string& name, std::string& error) {
  void* library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) error = dlerror();
  return library;
}

inline void* find_symbol(void* library, const char* name) { return dlsym(library, name); }

#endif

}  // namespace stepfuse::cuda
