// What is used of the CUDA driver API, declared as NVIDIA documents it (docs.nvidia.com/cuda/cuda-driver-api), so that
// nothing of the toolkit is needed to build. Names are the driver's; the layouts are part of its binary interface.
#pragma once

#include <cstddef>
#include <cstdint>

namespace stepfuse::cuda {

using CUdevice = int;
using CUdeviceptr = unsigned long long;
using CUcontext = struct CUctx_st*;
using CUstream = struct CUstream_st*;
using CUevent = struct CUevent_st*;
using CUmodule = struct CUmod_st*;
using CUfunction = struct CUfunc_st*;
using CUkernel = struct CUkern_st*;
using CUgraph = struct CUgraph_st*;
using CUgraphNode = struct CUgraphNode_st*;
using CUgraphExec = struct CUgraphExec_st*;
using CUgraphConditionalHandle = std::uint64_t;

enum CUresult : int {
  CUDA_SUCCESS = 0,
  CUDA_ERROR_OUT_OF_MEMORY = 2,
  CUDA_ERROR_NOT_INITIALIZED = 3,
  CUDA_ERROR_DEINITIALIZED = 4,
  CUDA_ERROR_CALL_REQUIRES_NEWER_DRIVER = 36,
  CUDA_ERROR_NO_DEVICE = 100,
  CUDA_ERROR_INVALID_DEVICE = 101,
  CUDA_ERROR_INVALID_IMAGE = 200,
  CUDA_ERROR_NO_BINARY_FOR_GPU = 209,
  CUDA_ERROR_JIT_COMPILER_NOT_FOUND = 221,
  CUDA_ERROR_UNSUPPORTED_PTX_VERSION = 222,
  CUDA_ERROR_NOT_FOUND = 500,
  CUDA_ERROR_NOT_READY = 600,
  CUDA_ERROR_ILLEGAL_ADDRESS = 700,
  CUDA_ERROR_SYSTEM_DRIVER_MISMATCH = 803,
  CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900,
  CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901,
};

enum CUdevice_attribute : int {
  CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT = 16,
  CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE = 38,
  CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75,
  CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76,
};

enum CUfunction_attribute : int {
  CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK = 0,
  CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES = 3,
  CU_FUNC_ATTRIBUTE_NUM_REGS = 4,
  CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8,
};

enum CUjit_option : int { CU_JIT_ERROR_LOG_BUFFER = 5, CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES = 6 };

enum CUstreamCaptureMode : int { CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = 1 };

enum CUgraphNodeType : int {
  CU_GRAPH_NODE_TYPE_KERNEL = 0,
  CU_GRAPH_NODE_TYPE_MEMCPY = 1,
  CU_GRAPH_NODE_TYPE_HOST = 3,
  CU_GRAPH_NODE_TYPE_GRAPH = 4,
  CU_GRAPH_NODE_TYPE_MEM_ALLOC = 10,
  CU_GRAPH_NODE_TYPE_MEM_FREE = 11,
  CU_GRAPH_NODE_TYPE_CONDITIONAL = 13,
};

enum CUmemorytype : unsigned { CU_MEMORYTYPE_HOST = 1, CU_MEMORYTYPE_DEVICE = 2, CU_MEMORYTYPE_UNIFIED = 4 };

enum CUpointer_attribute : int { CU_POINTER_ATTRIBUTE_MEMORY_TYPE = 2 };

enum CUgraphConditionalNodeType : int { CU_GRAPH_COND_TYPE_WHILE = 1 };

constexpr unsigned CU_STREAM_NON_BLOCKING = 1;
constexpr unsigned CU_EVENT_DEFAULT = 0;
constexpr unsigned CU_EVENT_DISABLE_TIMING = 2;
constexpr unsigned CU_GRAPH_COND_ASSIGN_DEFAULT = 1;
constexpr std::uint64_t CU_GET_PROC_ADDRESS_DEFAULT = 0;

struct CUDA_KERNEL_NODE_PARAMS_v2 {
  CUfunction func;
  unsigned gridDimX, gridDimY, gridDimZ;
  unsigned blockDimX, blockDimY, blockDimZ;
  unsigned sharedMemBytes;
  void** kernelParams;
  void** extra;
  CUkernel kern;
  CUcontext ctx;
};

struct CUDA_CONDITIONAL_NODE_PARAMS {
  CUgraphConditionalHandle handle;
  CUgraphConditionalNodeType type;
  unsigned size;         // bodies: 1 of a WHILE
  CUgraph* phGraph_out;  // the driver's array of them
  CUcontext ctx;
};

struct CUgraphNodeParams {
  CUgraphNodeType type;
  int reserved0[3];
  union {
    long long reserved1[29];
    CUDA_CONDITIONAL_NODE_PARAMS conditional;
  };
  long long reserved2;
};

struct CUDA_MEMCPY3D_v2 {
  struct Side {
    std::size_t x, y, z, lod;
    CUmemorytype type;
    void* host;
    CUdeviceptr device;  // of unified memory, too
    void *array, *reserved;
    std::size_t pitch, height;
  } from, to;
  std::size_t width, height, depth;
};

static_assert(sizeof(CUDA_MEMCPY3D_v2) == 200 && offsetof(CUDA_MEMCPY3D_v2, to) == 88);
static_assert(sizeof(CUDA_KERNEL_NODE_PARAMS_v2) == 72 && offsetof(CUDA_KERNEL_NODE_PARAMS_v2, kernelParams) == 40);
static_assert(sizeof(CUDA_CONDITIONAL_NODE_PARAMS) == 32 && offsetof(CUDA_CONDITIONAL_NODE_PARAMS, phGraph_out) == 16);
static_assert(sizeof(CUgraphNodeParams) == 256 && offsetof(CUgraphNodeParams, conditional) == 16);

// CALL(name, exported symbol, CUDA version that brought this form, argument types). cuGraphAddNode is asked for in its
// first form: what the name means from 12.3 on differs by driver, what it meant in 12.2 does not.
#define STEPFUSE_CUDA_CALLS(CALL)                                                                                      \
  CALL(cuInit, "cuInit", 2000, unsigned)                                                                               \
  CALL(cuDeviceGetCount, "cuDeviceGetCount", 2000, int*)                                                               \
  CALL(cuDeviceGet, "cuDeviceGet", 2000, CUdevice*, int)                                                               \
  CALL(cuDeviceGetName, "cuDeviceGetName", 2000, char*, int, CUdevice)                                                 \
  CALL(cuDeviceGetAttribute, "cuDeviceGetAttribute", 2000, int*, CUdevice_attribute, CUdevice)                         \
  CALL(cuDevicePrimaryCtxRetain, "cuDevicePrimaryCtxRetain", 7000, CUcontext*, CUdevice)                               \
  CALL(cuDevicePrimaryCtxRelease, "cuDevicePrimaryCtxRelease_v2", 11000, CUdevice)                                     \
  CALL(cuCtxPushCurrent, "cuCtxPushCurrent_v2", 4000, CUcontext)                                                       \
  CALL(cuCtxPopCurrent, "cuCtxPopCurrent_v2", 4000, CUcontext*)                                                        \
  CALL(cuMemGetInfo, "cuMemGetInfo_v2", 3020, std::size_t*, std::size_t*)                                              \
  CALL(cuMemAlloc, "cuMemAlloc_v2", 3020, CUdeviceptr*, std::size_t)                                                   \
  CALL(cuMemFree, "cuMemFree_v2", 3020, CUdeviceptr)                                                                   \
  CALL(cuMemHostAlloc, "cuMemHostAlloc", 2020, void**, std::size_t, unsigned)                                          \
  CALL(cuMemFreeHost, "cuMemFreeHost", 2000, void*)                                                                    \
  CALL(cuMemcpyHtoDAsync, "cuMemcpyHtoDAsync_v2", 3020, CUdeviceptr, const void*, std::size_t, CUstream)               \
  CALL(cuMemcpyDtoHAsync, "cuMemcpyDtoHAsync_v2", 3020, void*, CUdeviceptr, std::size_t, CUstream)                     \
  CALL(cuMemcpyDtoDAsync, "cuMemcpyDtoDAsync_v2", 3020, CUdeviceptr, CUdeviceptr, std::size_t, CUstream)               \
  CALL(cuStreamCreate, "cuStreamCreate", 2000, CUstream*, unsigned)                                                    \
  CALL(cuStreamDestroy, "cuStreamDestroy_v2", 4000, CUstream)                                                          \
  CALL(cuStreamSynchronize, "cuStreamSynchronize", 2000, CUstream)                                                     \
  CALL(cuStreamWaitEvent, "cuStreamWaitEvent", 3020, CUstream, CUevent, unsigned)                                      \
  CALL(cuStreamBeginCapture, "cuStreamBeginCapture_v2", 10010, CUstream, CUstreamCaptureMode)                          \
  CALL(cuStreamEndCapture, "cuStreamEndCapture", 10000, CUstream, CUgraph*)                                            \
  CALL(cuEventCreate, "cuEventCreate", 2000, CUevent*, unsigned)                                                       \
  CALL(cuEventDestroy, "cuEventDestroy_v2", 4000, CUevent)                                                             \
  CALL(cuEventRecord, "cuEventRecord", 2000, CUevent, CUstream)                                                        \
  CALL(cuEventQuery, "cuEventQuery", 2000, CUevent)                                                                    \
  CALL(cuEventSynchronize, "cuEventSynchronize", 2000, CUevent)                                                        \
  CALL(cuEventElapsedTime, "cuEventElapsedTime", 2000, float*, CUevent, CUevent)                                       \
  CALL(cuModuleLoadDataEx, "cuModuleLoadDataEx", 2010, CUmodule*, const void*, unsigned, CUjit_option*, void**)        \
  CALL(cuModuleUnload, "cuModuleUnload", 2000, CUmodule)                                                               \
  CALL(cuModuleGetFunction, "cuModuleGetFunction", 2000, CUfunction*, CUmodule, const char*)                           \
  CALL(cuFuncGetAttribute, "cuFuncGetAttribute", 2020, int*, CUfunction_attribute, CUfunction)                         \
  CALL(cuFuncSetAttribute, "cuFuncSetAttribute", 9000, CUfunction, CUfunction_attribute, int)                          \
  CALL(cuLaunchKernel, "cuLaunchKernel", 4000, CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, \
       unsigned, CUstream, void**, void**)                                                                             \
  CALL(cuGraphCreate, "cuGraphCreate", 10000, CUgraph*, unsigned)                                                      \
  CALL(cuGraphDestroy, "cuGraphDestroy", 10000, CUgraph)                                                               \
  CALL(cuGraphAddKernelNode, "cuGraphAddKernelNode_v2", 12000, CUgraphNode*, CUgraph, const CUgraphNode*, std::size_t, \
       const CUDA_KERNEL_NODE_PARAMS_v2*)                                                                              \
  CALL(cuGraphAddChildGraphNode, "cuGraphAddChildGraphNode", 10000, CUgraphNode*, CUgraph, const CUgraphNode*,         \
       std::size_t, CUgraph)                                                                                           \
  CALL(cuGraphGetNodes, "cuGraphGetNodes", 10000, CUgraph, CUgraphNode*, std::size_t*)                                 \
  CALL(cuGraphNodeGetType, "cuGraphNodeGetType", 10000, CUgraphNode, CUgraphNodeType*)                                 \
  CALL(cuGraphMemcpyNodeGetParams, "cuGraphMemcpyNodeGetParams", 10000, CUgraphNode, CUDA_MEMCPY3D_v2*)                \
  CALL(cuGraphChildGraphNodeGetGraph, "cuGraphChildGraphNodeGetGraph", 10000, CUgraphNode, CUgraph*)                   \
  CALL(cuPointerGetAttribute, "cuPointerGetAttribute", 4000, void*, CUpointer_attribute, CUdeviceptr)                  \
  CALL(cuGraphInstantiateWithFlags, "cuGraphInstantiateWithFlags", 11040, CUgraphExec*, CUgraph, unsigned long long)   \
  CALL(cuGraphExecDestroy, "cuGraphExecDestroy", 10000, CUgraphExec)                                                   \
  CALL(cuGraphUpload, "cuGraphUpload", 11010, CUgraphExec, CUstream)                                                   \
  CALL(cuGraphLaunch, "cuGraphLaunch", 10000, CUgraphExec, CUstream)                                                   \
  CALL(cuGraphAddNode, "cuGraphAddNode", 12020, CUgraphNode*, CUgraph, const CUgraphNode*, std::size_t,                \
       CUgraphNodeParams*)                                                                                             \
  CALL(cuGraphConditionalHandleCreate, "cuGraphConditionalHandleCreate", 12030, CUgraphConditionalHandle*, CUgraph,    \
       CUcontext, unsigned, unsigned)

}  // namespace stepfuse::cuda
