"""torch.cuda on the recording driver: streams, graphs, pools, generators, and how torch leaves them where it fails."""

import contextlib
import weakref

from stepfuse._core import cuda


def tape():
    """A mode that records operations, to be repeated on the tensors that they had and gave."""
    import torch
    from torch.overrides import TorchFunctionMode
    from torch.utils._python_dispatch import TorchDispatchMode

    aten = torch.ops.aten
    operations = (aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default)
    functions = (torch.Tensor.tolist, torch.Tensor.cpu)  # which dispatch nothing for tensors of the host
    waits = {*operations, *functions}

    def require_no_wait(called):
        if called in waits:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    class Calls(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            require_no_wait(function)
            return function(*args, **(kwargs or {}))

    class Tape(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.operations, self.calls = [], Calls()

        def __enter__(self):
            self.calls.__enter__()
            return super().__enter__()

        def __exit__(self, *error):
            super().__exit__(*error)
            self.calls.__exit__(*error)

        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            require_no_wait(operation)
            given = operation(*args, **(kwargs or {}))
            self.operations.append((operation, args, kwargs or {}, given))
            return given

        def replay(self):
            with torch.no_grad():
                for operation, args, kwargs, given in self.operations:
                    aliases = [one.alias_info for one in operation._schema.arguments if one.alias_info is not None]
                    if aliases and not any(alias.is_write for alias in aliases):
                        continue  # a view shows what its memory holds
                    anew = operation(*args, **kwargs)
                    if not aliases:
                        pairs = zip(given, anew, strict=True) if isinstance(given, list | tuple) else [(given, anew)]
                        for before, after in pairs:
                            if isinstance(before, torch.Tensor):
                                before.copy_(after)

    return Tape()


class Gpu:
    """What of torch.cuda is used, in the host's memory. ``log`` holds what was asked for, in order.

    A graph holds what was launched on the recording driver, and torch's own operations on the host's tensors, which a
    replay repeats on the same memory: so it sees values that change in place, and nothing else that changes.

    As torch 2.11 does, it leaves its allocator directed, its pool used, its generators capturing and its allocator of
    pinned memory with a reference to the graph where the end of a capture fails.

    Attributes:
        directed: The pool that allocations go to.
        users: Captures a pool that have not given it back.
        capturing: Whether the generators wait for the end of a capture.
        filters: Graphs that the allocator of pinned memory refers to.
        drawn: Random numbers that were drawn.
    """

    def __init__(self, fake):
        self.context, self.log, self.peak = fake.open(), [], 1000
        self.directed, self.users, self.capturing, self.filters, self.drawn = None, {}, False, [], 0
        stream = cuda.Stream(self.context)
        log, gpu = self.log, weakref.proxy(self)

        class Stream:
            cuda_stream = stream.address

            def __init__(self, device=None):
                pass

            def wait_stream(self, other):
                pass

            synchronize = staticmethod(stream.synchronize)

        class Graph:
            def __init__(self, keep_graph):
                assert keep_graph

            def capture_begin(self, pool, capture_error_mode):
                assert capture_error_mode == "thread_local"
                log.append(f"begin {pool}")
                gpu.directed, gpu.capturing = pool, True
                gpu.users[pool] = gpu.users.get(pool, 0) + 1
                gpu.filters.append(weakref.ref(self))
                self.pool, self.capture, self.tape = pool, cuda.Capture(stream), tape()
                self.tape.__enter__()

            def capture_end(self):
                log.append("end")
                self.tape.__exit__(None, None, None)
                capture, self.capture = self.capture, None
                self.graph = capture.end()  # what follows is left undone if it raises
                gpu.directed, gpu.capturing = None, False
                gpu.filters.remove(weakref.ref(self))
                self.ended = True

            def __del__(self):
                if getattr(self, "ended", False):
                    with contextlib.suppress(ReferenceError, AttributeError):
                        gpu.users[self.pool] -= 1

            def raw_cuda_graph(self):
                return self.graph.address

            def instantiate(self):
                self.instance = cuda.GraphExec(self.graph)

            def replay(self):
                log.append("replay")
                self.instance.launch(stream)
                self.tape.replay()

        self.stream, self.Stream, self.CUDAGraph = stream, Stream, Graph
        self.pools = 0

    def graph_pool_handle(self):
        self.pools += 1
        return self.pools

    def randn(self):
        """Draws a number, as torch's generator of the GPU does."""
        if self.capturing and not any(line.startswith("begin") for line in self.log[-1:]):
            raise RuntimeError("Offset increment outside graph capture encountered unexpectedly.")
        self.drawn += 1

    def leave(self, device, pool):
        """The allocator is directed to no pool."""
        self.log.append(f"leave {pool}")
        self.directed = None

    def release(self, device, pool):
        """A user of the pool gives it back."""
        self.log.append(f"release {pool}")
        self.users[pool] -= 1

    def patch(self, patch):
        import torch
        import torch._dynamo.device_interface  # before it could keep what is put in place here

        from stepfuse.backends.cuda import torch_capture

        for name in ("Stream", "CUDAGraph", "graph_pool_handle"):
            patch.setattr(torch.cuda, name, getattr(self, name))
        patch.setattr(torch.cuda, "init", lambda: None)
        patch.setattr(torch.cuda, "current_stream", lambda device: self.Stream())
        patch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
        patch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
        patch.setattr(torch.cuda, "max_memory_allocated", lambda device: self.peak)
        for name in ("reset_peak_memory_stats", "empty_cache"):
            patch.setattr(torch.cuda, name, lambda *arguments: None)
        patch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
        patch.setattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: self.log.append("clear"), raising=False)
        patch.setattr(torch._C, "_cuda_endAllocateToPool", self.leave, raising=False)
        patch.setattr(torch._C, "_cuda_releasePool", self.release, raising=False)
        patch.setattr(torch.cuda, "get_rng_state", lambda device: torch.tensor([self.drawn]))
        patch.setattr(torch_capture, "_failed", [])
        patch.setattr(cuda, "open", lambda device: self.context)
