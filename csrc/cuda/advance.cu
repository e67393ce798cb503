// What stands between two steps of a loop on the device: the next frame becomes the current one, or the loop ends.
// `first` starts at frame 0, so that a graph can be launched again. One block.
//
// Where it is compiled to advance.ptx.inl, and how: see csrc/cuda/advance.sh. cudaGraphSetConditional is the driver's
// own, as vprintf is: the assembler leaves it open, even linked against cudadevrt, and the driver fills it in.
extern "C" __global__ void stepfuse_advance(cudaGraphConditionalHandle condition, int* state, const unsigned* frames,
                                            unsigned* current, unsigned frame_words, int first) {
  const int next = first ? 0 : state[0] + 1;
  const int steps = state[1];
  __syncthreads();  // all have read which frame it was
  if (next < steps) {
    const unsigned* frame = frames + static_cast<unsigned long long>(next) * frame_words;
    for (unsigned i = threadIdx.x; i < frame_words; i += blockDim.x) current[i] = frame[i];
  }
  if (threadIdx.x == 0) {
    state[0] = next;
    cudaGraphSetConditional(condition, next < steps);
  }
}
