#include "bindings.h"

PYBIND11_MODULE(_core, m) {
  m.doc() = "The compiled core of stepfuse: the fused step, the noise, the planner and the loop.";
  stepfuse::bind_errors(m);
  stepfuse::bind_step(m);
  stepfuse::bind_noise(m);
  stepfuse::bind_stepper(m);
  stepfuse::bind_planner(m);
  stepfuse::bind_events(m);
  stepfuse::bind_request(m);
  stepfuse::bind_server(m);
  stepfuse::bind_replay(m);
  stepfuse::bind_cuda(m);
  stepfuse::bind_cuda_loop(m);
}
