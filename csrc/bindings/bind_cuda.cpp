#include "bind_cuda.h"

namespace stepfuse {

void bind_cuda(py::module_& m) {
  py::module_ sub =
      m.def_submodule("cuda", "The GPU through the CUDA driver, which is opened when it is first asked for.");
  bind_cuda_device(sub);
  bind_cuda_graphs(sub);
  bind_cuda_step(sub);
  bind_cuda_trajectory(sub);
}

}  // namespace stepfuse
