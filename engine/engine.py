"""The engine: a network and a loop, and what a user calls."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from importlib import import_module
from types import TracebackType
from typing import Any, NoReturn, cast

import numpy as np
import numpy.typing as npt

from stepfuse import samplers
from stepfuse.arguments import hinted, number, require_seconds, whole_number
from stepfuse.backends.base import Backend
from stepfuse.backends.cuda.config import Cuda, device_of
from stepfuse.backends.host.callable import CallableBackend, DenoiserFunction
from stepfuse.backends.host.config import AUTO, Cpu, OpenVino
from stepfuse.backends.host.network import as_network, open_network
from stepfuse.bundle.bundle import DENOISER, Bundle, checked_in_use
from stepfuse.bundle.cond_input import CondInput
from stepfuse.bundle.identity import ModelIdentity
from stepfuse.bundle.model_info import ModelInfo
from stepfuse.bundle.outline import defaults_in_words, facts_of_model
from stepfuse.extras import pip_install
from stepfuse.lora.adapters import Adapters
from stepfuse.lora.networks import AdaptedNetworks
from stepfuse.lora.registry import LoraRegistry
from stepfuse.notebook import html_table
from stepfuse.requests.bundle_defaults import check_defaults
from stepfuse.requests.editing import as_images
from stepfuse.requests.guidance import require_guidable
from stepfuse.requests.interpolation import Path, interpolate_noise
from stepfuse.requests.request import Request
from stepfuse.requests.resolution import Compiler, resolve, starting_state
from stepfuse.requests.sampler_defaults import default_options, default_steps
from stepfuse.samplers.coefficients import PredictionType
from stepfuse.samplers.schedule import NoiseSchedule
from stepfuse.samplers.table import StepTable
from stepfuse.serving.at_exit import GRACE, is_interrupt
from stepfuse.serving.batch import Callback, Observers, SampleBatch, StateCallback
from stepfuse.serving.calibration import measure_cost
from stepfuse.serving.config import GPU_ROWS, HOST_ROWS, CostCurve, Serving
from stepfuse.serving.future import ImageFuture, as_completed
from stepfuse.serving.in_flight import Images, InFlightSample, ResultHandle
from stepfuse.serving.reporting import Observer
from stepfuse.serving.service import Service
from stepfuse.serving.stats import EngineStats
from stepfuse.serving.stream import Stream

#: Withdraws a request, if it has not ended.
Withdraw = Callable[[], None]

#: Whether every engine checks its loop's invariants after each turn: slow, for tests.
CHECK_INVARIANTS = False


class Engine(LoraRegistry):
    """Draws samples from one network. A context manager, or to be closed.

    Leaving the context draws what was submitted; Ctrl-C and the cancellation of a task give it up.

    Calls from any number of threads are safe. One thread of the engine's own runs the network and the loop: requests
    join and leave it between steps, and share its forwards whatever their samplers, steps and guidance scales.

    Attributes:
        info: What the network is.
        serving: How requests share the engine.
        model: Name and digests of the bundle that was loaded; None for a network of Python's.

    Examples:
        >>> with sf.Engine.load("fashion") as engine:
        ...     images = engine.sample(2, cond="sneaker", steps=4, seed=0)
        >>> images.shape, images.dtype
        ((2, 1, 28, 28), dtype('float32'))
    """

    def __init__(
        self, info: ModelInfo, backend: Backend, serving: Serving, *, model: ModelIdentity | None = None
    ) -> None:
        self.info = info
        self.serving = serving
        self.model = model
        self._compiler = Compiler(info)
        self._service = Service(info, backend, serving, check=CHECK_INVARIANTS)

    @classmethod
    @hinted
    def load(
        cls,
        name_or_path: str | os.PathLike[str] | Bundle,
        *,
        device: str | Cuda = "cpu",
        shape: tuple[int, ...] | None = None,
        tokens: int | None = None,
        max_rows: int | None = None,
        deterministic: bool | None = None,
        serving: Serving | None = None,
        backend: str | OpenVino = "onnxruntime",
        precision: str = "float32",
        threads: int = 0,
        spinning: bool | None = None,
        verify: bool = True,
        session: Any = None,
        lora_bytes: int = 0,
    ) -> Engine:
        """Loads an embedded model by name or a bundle by path.

        Args:
            name_or_path: Such as ``"fashion"``, a folder with a ``manifest.json``, or a bundle that is loaded already.
            device: ``cpu``, ``cuda``, ``cuda:1``, or a ``Cuda`` that says how the network runs there.
            shape: Shape of one sample, where the network draws more sizes than the manifest's; None is the manifest's.
                Conditioning inputs that are pictures follow it (``CondInput.free``).
            tokens: Of conditioning inputs whose length is free, likewise.
            max_rows: Most rows of one forward; a guided sample takes two. More samples than fit take turns. On a GPU 16
                unless said otherwise, and fewer, with a warning, if memory does not suffice.
            deterministic: Whether forwards are padded to ``max_rows`` rows, or with OpenVINO computed row by row, so
                that an image is the same to the bit whatever shares them. By default its last bits may differ with the
                number of rows, as the network library computes each number of rows in its own way.
            serving: More of how requests share the engine; ``max_rows`` and ``deterministic`` change what it says.
            backend: What runs the network on the CPU: ``onnxruntime``, ``openvino``, an ``OpenVino`` that says how it
                runs there, or ``auto``, the fastest of those that are installed and compute in ``precision``, which is
                measured in a few seconds, kept for the next process, and logged.
            precision: What the network is computed in: ``float32``, or with OpenVINO ``bf16`` or ``f16`` where the
                processor has them. The engine's states and its step are float32 in any case.
            threads: The back end's threads inside an operator on the CPU, at most four a processor or 64; 0 is its own
                choice, a thread a core, or one for each processor that the process may use, if it is held to some of
                them or its control group has a quota.
            spinning: How ONNX Runtime's threads wait for each other: None is actively for a moment and then asleep,
                which is near the best whatever else the machine does; True is actively for longer, which can be faster
                on a machine of its own; False is asleep at once.
            verify: Whether checksums are compared; False trusts the files' sizes, which spares reading huge ones twice.
            session: The network, for engines of several shapes to share one: on the CPU of
                ``stepfuse.backends.host.network.open_network`` or ``open_session`` of
                ``stepfuse.backends.host.onnxruntime``, and the four arguments above ``verify`` are then its own; on a
                GPU a ``stepfuse.backends.cuda.bundle_network.OpenedNetwork`` on this ``device``. None opens one.
            lora_bytes: Memory that the factors of LoRAs may take which ``add_lora`` registers, on the CPU in ONNX
                Runtime; while one set of them is put together for forwards it takes as much again. 0: the network takes
                none while it runs. Its graph then has three more operators for each weight that a LoRA may change.

        Raises:
            LoraError: If ``lora_bytes`` is given and the bundle takes no LoRA: it is in int8, or not of
                ``stepfuse export``.
            BundleError: If the bundle cannot be used, or its network not with this shape; the message names file, rule
                and value.
            ValueError: If an argument is out of bounds or has no effect, the processor has not ``precision``, or
                ``session`` is not on ``device``.
            ImportError: If OpenVINO is asked for, or ``precision`` needs it, and it is missing.
            CudaError: If there is no driver or it is too old.
            KernelError: If there is no compiled step for the GPU.
            CaptureError: If the network cannot be captured, and the device says that it must.
            DenoiserError: If the library that is to run the network on the GPU cannot.

        Examples:
            >>> engine = sf.Engine.load("fashion", max_rows=8, threads=1)
            >>> engine.info.shape, engine.serving.max_rows
            ((1, 28, 28), 8)
            >>> engine.close()
        """
        gpu = device_of(device)
        of_session = {
            "backend": backend != Cpu.backend,
            "precision": precision != Cpu.precision,
            "threads": threads != 0,
            "spinning": spinning is not None,
        }
        of_session["lora_bytes"] = lora_bytes != 0
        refuse_unused(of_session if gpu else {}, f"an engine on {device!r}")
        refuse_unused(of_session if session is not None else {}, "a session of its own")
        cpu = Cpu(backend, precision, threads, spinning)
        with checked_in_use(name_or_path, verify=verify) as bundle:
            check_defaults(bundle)
            info = bundle.info.resized(bundle.info.shape if shape is None else shape, tokens)
            serving = _serving(serving, max_rows, deterministic, GPU_ROWS if gpu else HOST_ROWS)
            if gpu is not None:
                from stepfuse.backends.cuda.bundle_network import OpenedNetwork

                opened = OpenedNetwork(bundle, gpu) if session is None else session
                if getattr(opened, "device", None) != gpu:
                    raise ValueError(f"session must be an OpenedNetwork on {gpu}, got {session!r}")
                on_gpu = opened.network(info, serving.row_limit)
                return cls._on_gpu(info, on_gpu, gpu, serving, ModelIdentity.of(bundle))

            if cpu.backend == AUTO and not lora_bytes:
                from stepfuse.backends.host.auto import choose  # what it measures with is needed here alone

                cpu = choose(cpu, bundle, info, serving.row_limit, deterministic=serving.deterministic)
            if session is None:
                adapted = AdaptedNetworks.of(bundle, [DENOISER], lora_bytes, cpu.backend)
                network = open_network(bundle, cpu, adapted)
            else:
                network = as_network(session, bundle)
            on_host = network.backend(info, serving.row_limit, deterministic=serving.deterministic)
            return cls(info, on_host, serving, model=ModelIdentity.of(bundle, network.computed_by))

    @classmethod
    @hinted
    def from_callable(
        cls,
        fn: DenoiserFunction,
        *,
        shape: tuple[int, ...],
        schedule: NoiseSchedule,
        prediction_type: str = "epsilon",
        cond: Mapping[str, CondInput] | None = None,
        timestep_dtype: str = "float32",
        data_range: tuple[float, float] | None = None,
        guidance: str = "classifier_free",
        max_rows: int | None = None,
        deterministic: bool | None = None,
        serving: Serving | None = None,
    ) -> Engine:
        """Makes any Python function the network.

        Args:
            fn: ``fn(x (R, *shape) float32, t (R,), {name: (R, ...)}) -> prediction (R, *shape)``, a row a pass. It is
                called on the engine's own thread: what is set for a thread, such as torch.no_grad(), is set inside it.
            shape: Shape of one sample, without the batch.
            schedule: Noise levels that ``fn`` was made for.
            prediction_type: ``epsilon``, ``v_prediction``, ``sample``, or ``flow`` with a flow schedule.
            cond: Conditioning inputs by name; without them the dict that ``fn`` gets is empty.
            timestep_dtype: ``float32``, or ``int64`` to have timesteps rounded.
            data_range: Least and greatest value of its samples, to which images given are held; None: unknown.
            guidance: As in ``ModelInfo``: whether ``guidance_scale`` blends predictions, or is an input of ``fn``.
            max_rows: Most rows of one call.
            deterministic: As in ``load``.
            serving: As in ``load``.

        Raises:
            ValueError: If ``ModelInfo`` refuses what is said of the network, or ``max_rows`` is below 1.

        Examples:
            >>> def fn(x, t, cond):  # (R, 2), (R,), {} -> the predicted noise, (R, 2)
            ...     return 0.5 * x
            >>> with sf.Engine.from_callable(fn, shape=(2,), schedule=sf.NoiseSchedule.linear()) as engine:
            ...     engine.sample(3, steps=10, seed=0).shape
            (3, 2)
        """
        info = _info(shape, schedule, prediction_type, cond, timestep_dtype, data_range, guidance)
        serving = _serving(serving, max_rows, deterministic, HOST_ROWS)
        return cls(info, CallableBackend(fn, info, serving.row_limit), serving)

    @classmethod
    @hinted
    def from_torch(
        cls,
        module: Any,
        *,
        shape: tuple[int, ...],
        schedule: NoiseSchedule,
        prediction_type: str = "epsilon",
        cond: Mapping[str, CondInput] | None = None,
        timestep_dtype: str = "float32",
        data_range: tuple[float, float] | None = None,
        guidance: str = "classifier_free",
        device: str | Cuda | None = None,
        max_rows: int | None = None,
        deterministic: bool | None = None,
        serving: Serving | None = None,
    ) -> Engine:
        """Makes a torch module the network that is on a GPU, in evaluation mode and in the dtype that it is to run in.

        Its forwards are captured as CUDA graphs, so it may neither wait for the device nor change what it reads but in
        place. It may be compiled (``torch.compile``, without graphs of its own).

        Args:
            module: ``module(sample (R, *shape), timestep (R,), **cond)`` to the prediction, or a tuple of which that is
                the first. Floating-point inputs but the timestep and an embedded guidance scale have the dtype of its
                parameters.
            shape: Shape of one sample, without the batch.
            schedule: Noise levels that it was trained with.
            prediction_type: As in ``from_callable``.
            cond: Conditioning inputs by name.
            timestep_dtype: ``float32``, or ``int64`` to have timesteps rounded.
            data_range: As in ``from_callable``.
            guidance: Likewise.
            device: Where the module is: ``cpu``, ``cuda``, ``cuda:1``, or a ``Cuda`` that says how it is captured. None
                is the GPU that it is on. A ``Cuda`` names no ``backend`` or ``options``: the module is the network.
            max_rows: Most rows of one forward; 16 unless said otherwise, and fewer, with a warning, if memory does not
                suffice.
            deterministic: As in ``load``.
            serving: As in ``load``.

        Raises:
            ImportError: If torch is missing.
            ValueError: If ``ModelInfo`` refuses what is said of the network, ``max_rows`` is below 1, or the module is
                not where ``device`` says, or not on one GPU.
            TypeError: If it computes in a type that the step has no kernel for.
            CaptureError: If it cannot be captured, and ``device`` says that it must.
            CudaError: If there is no driver or it is too old.
            KernelError: If there is no compiled step for the GPU.

        Examples:
            >>> engine = sf.Engine.from_torch(  # doctest: +SKIP
            ...     unet.to("cuda", torch.bfloat16).eval(),
            ...     shape=(4, 64, 64),
            ...     schedule=sf.NoiseSchedule.scaled_linear(),
            ...     cond={"encoder_hidden_states": sf.CondInput(dtype="float32", shape=(77, 768), null=0.0)},
            ... )
        """
        info = _info(shape, schedule, prediction_type, cond, timestep_dtype, data_range, guidance)
        return cls._of_module(module, info, device, serving, max_rows, deterministic)

    @classmethod
    @hinted
    def from_diffusers(
        cls,
        pipe_or_folder: Any,
        *,
        device: str | Cuda | None = None,
        precision: str | None = None,
        size: int | tuple[int, int] | None = None,
        max_rows: int | None = None,
        deterministic: bool | None = None,
        serving: Serving | None = None,
    ) -> Engine:
        """Makes the network of a diffusers pipeline, in torch, the engine's, without an export.

        Shape, schedule, sampler, defaults and conditioning inputs are read from the pipeline's configurations, as
        ``stepfuse.export.from_diffusers`` reads them: ``info`` shows them. ``cond`` of ``sample`` then takes what the
        network does, such as the prompt's embeddings of ``pipe.encode_prompt``, and samples of a latent model are
        latents, which ``pipe.vae`` decodes. ``TextToImage`` takes prompts, of a bundle.

        Args:
            pipe_or_folder: A pipeline whose class ``stepfuse export`` covers, or a folder of its ``save_pretrained``. A
                pipeline's weights are shared, not copied. Change them in place alone: what is loaded into the pipeline
                later does not act here.
            device: ``cpu``, ``cuda``, ``cuda:1``, or a ``Cuda``, as in ``from_torch``. A pipeline must be there
                already (``pipe.to("cuda")``). None is where the pipeline is, and the CPU for a folder.
            precision: What a folder's weights are loaded as: ``float32``, ``bf16`` or ``f16``; None is ``float32``.
                A pipeline has its own.
            size: Default size of pictures in pixels: a side or (width, height); None is the model's own.
            max_rows: As in ``from_torch``.
            deterministic: As in ``load``.
            serving: As in ``load``.

        Raises:
            ImportError: If torch, diffusers or transformers is missing.
            ExportError: If the pipeline, a component or a setting is not covered.
            ValueError: If the pipeline is in training mode, moved by accelerate's hooks or not where ``device`` says;
                or ``size`` or ``precision`` is none, or has no effect.
            CaptureError: As in ``from_torch``, as are CudaError, KernelError and TypeError.

        Examples:
            >>> import diffusers
            >>> pipe = diffusers.DiffusionPipeline.from_pretrained("stable-diffusion-folder")
            >>> texts = [text.detach().numpy()[0] for text in pipe.encode_prompt("a red cat", "cpu", 1, True, "")]
            >>> with sf.Engine.from_diffusers(pipe) as engine:
            ...     latents = engine.sample(1, cond=texts[0], negative_cond=texts[1], steps=2, guidance_scale=5.0)
            >>> latents.shape
            (1, 4, 8, 8)
        """
        # By name: what reads pipelines is in the room of exports, which stands on this one.
        read_network = import_module("stepfuse.export.pipelines.live").read_network
        gpu = None if device is None else device_of(device)
        named = "cpu" if gpu is None else f"cuda:{gpu.index}"
        module, info = read_network(pipe_or_folder, size=size, precision=precision, device=named)
        if device is None and next(module.parameters()).device.type == "cpu":
            device = "cpu"
        return cls._of_module(module, info, device, serving, max_rows, deterministic)

    @classmethod
    def _of_module(
        cls,
        module: Any,
        info: ModelInfo,
        device: str | Cuda | None,
        serving: Serving | None,
        max_rows: int | None,
        deterministic: bool | None,
    ) -> Engine:
        gpu = Cuda() if device is None else device_of(device)
        serving = _serving(serving, max_rows, deterministic, GPU_ROWS if gpu else HOST_ROWS)
        try:
            if gpu is None:
                from stepfuse.backends.host.torch import module_on_cpu

                return cls(info, CallableBackend(module_on_cpu(module, info), info, serving.row_limit), serving)
            from stepfuse.backends.cuda.torch import TorchNetwork
        except ModuleNotFoundError as error:
            raise ImportError(f"a torch module needs {error.name}: {pip_install('kernels')}") from error
        network = TorchNetwork(module, info, serving.row_limit, device=None if device is None else gpu)
        return cls._on_gpu(info, network, gpu, serving)

    @classmethod
    def _on_gpu(
        cls, info: ModelInfo, network: Any, device: Cuda, serving: Serving, model: ModelIdentity | None = None
    ) -> Engine:
        from stepfuse.backends.cuda.kernels import StepKernels
        from stepfuse.backends.cuda.loop import LoopBackend, capture_forwards

        rows = capture_forwards(info, network, device, serving.row_limit, serving.most_running)
        serving = replace(serving, max_rows=rows)
        backend = LoopBackend(network, info, StepKernels.of(network, device.cubins), rows)
        return cls(info, backend, serving, model=model)

    def sample(
        self,
        n: int = 1,
        *,
        cond: Any = None,
        negative_cond: Any = None,
        sampler: str | Sequence[str] | None = None,
        steps: int | Sequence[int] | None = None,
        guidance_scale: float | Sequence[float] | None = None,
        eta: float | Sequence[float] | None = None,
        seed: int | Sequence[int] | None = None,
        table: StepTable | Sequence[StepTable] | None = None,
        noise: npt.ArrayLike | None = None,
        image: npt.ArrayLike | None = None,
        mask: npt.ArrayLike | None = None,
        strength: float | Sequence[float] | None = None,
        lora: Mapping[str, float] | Sequence[Mapping[str, float] | None] | None = None,
        progress: bool = False,
        callback: Callback | None = None,
        on_state: StateCallback | None = None,
        **options: Any,
    ) -> Images:
        """Draws ``n`` samples. Every argument up to ``table`` is one value for all, or a sequence of one each.

        Args:
            n: Number of samples.
            cond: Conditioning: a class name or index, an array, or None for the null value, where the network has one
                conditioning input; a dict of these by name otherwise.
            negative_cond: Conditioning of guidance's unconditional pass, as ``cond``; None is the null value.
            sampler: A name of ``stepfuse.samplers.SAMPLERS``; None is the model's default.
            steps: Number of steps S; None is the model's default, and T for ``ddpm``.
            guidance_scale: Classifier-free guidance, at least 0; None is the model's default. Unconditional
                samples cost one pass a step whatever it is, and so do those of a network that takes it as an input
                (``ModelInfo.guidance``).
            eta: Share of added noise of samplers that have one, 0 to 1; None is the model's default, or the sampler's.
            seed: 0 to 2^64 - 1. With one seed s for all, sample i has seed s + i; None draws one.
            table: A compiled sampler, instead of the four arguments above.
            noise: Starting noise, shape (n, *shape), standard normal; None draws it from the seed.
            image: What the samples begin as, noised (image to image; Meng et al., 2022), or what ``mask`` keeps of
                them: one of the model's shape for all, or (n, *shape), floating point, in the model's data range.
            mask: 1 where ``image`` is to be drawn anew, 0 where it is kept, between to blend; of the model's shape or
                one plane (H, W) for all channels, with n in front for one a sample. What is kept is put back, noised
                to the state's level, after every step (Lugmayr et al., 2022, Eq. 8a).
            strength: Share of the steps that an image leaves to be done, above 0 to 1, one value or one a sample. Left
                out it is 0.8, and 1 with a mask, where 1 begins as noise alone.
            lora: Scales of LoRAs that ``add_lora`` has registered, by name; one dict for all, or one a sample. Their
                changes of the network add up, each times its scale, which may be negative; 0 leaves it out. Samples
                with the same LoRAs and scales share forwards.
            progress: Whether a bar is shown.
            callback: Called in this thread after each forward that any of the samples stepped in, with the number of
                these, how many there will be (an estimate while others use the engine) and the clean samples implied so
                far, shape (n, *shape), zero where one has not begun. The samples rest meanwhile. If it returns False or
                raises StopIteration, the run stops and that preview is returned.
            on_state: Called like ``callback``, before it, with the states themselves in place of the preview, shape
                (n, *shape), which it may change in place: the next forward sees the change.
            **options: The sampler's own: ``spacing``, ``clip``, ``variance``, ``karras``, ..., and what every sampler
                takes: ``guidance_interval``; ``guidance_rescale``, ``dynamic_threshold``, ``apg``, ``apg_form``,
                ``cfg_zero_star`` and ``cfg_renorm`` of ``StepTable.adapt``; ``zero_init``, the steps of
                ``StepTable.with_zero_init``.

        Returns:
            Shape (n, *shape), float32, in the model's data range.

        Raises:
            ValueError: If ``n`` is below 1, a sequence has not n values, there is no such sampler or it refuses an
                argument, a seed is not within 0 to 2^64 - 1, ``cond`` is none of the network's values, ``noise``,
                ``image`` or ``mask`` has another shape than the model's, is not finite or out of range, ``lora`` names
                one that is not registered or a scale that is not finite, or ``table`` comes with what it says already.
            TypeError: If an argument is of the wrong kind.
            DenoiserError: If the network returns a wrong shape or a number that is not finite, or ONNX Runtime fails.
                What a Python function raises comes through as it is.
            EngineClosed: If the engine is closed.
            RuntimeError: If the engine has no thread yet and the system none left; a later call tries again.

        Examples:
            >>> engine = sf.Engine.load("fashion")
            >>> images = engine.sample(4, cond="sneaker", sampler="ddim", steps=4, guidance_scale=3.0, seed=0)
            >>> mixed = engine.sample(3, cond=["bag", "coat", None], sampler=["ddim", "unipc", "ddpm"], steps=[4, 3, 5])
            >>> boots = engine.sample(2, cond="ankle boot", image=images[:2], strength=0.6, steps=5)  # image to image
            >>> images.shape, mixed.shape, boots.shape
            ((4, 1, 28, 28), (3, 1, 28, 28), (2, 1, 28, 28))
            >>> engine.close()
        """
        return self._batch(
            n,
            cond=cond,
            negative_cond=negative_cond,
            sampler=sampler,
            steps=steps,
            guidance_scale=guidance_scale,
            eta=eta,
            seed=seed,
            table=table,
            noise=noise,
            image=image,
            mask=mask,
            strength=strength,
            lora=lora,
            options=options,
            observers=Observers(progress, callback, on_state),
        ).run()

    def _batch(
        self, n: int, *, noise: npt.ArrayLike | None, observers: Observers, on_device: bool = False, **arguments: Any
    ) -> SampleBatch:
        """The samples of one call of ``sample``, yet to be queued; ``on_device`` as in ``SampleBatch``."""
        requests = resolve(self._compiler, n, **arguments)
        self._service.require_other_thread()
        return SampleBatch(
            self._service,
            requests,
            starting_state((len(requests), *self.info.shape), noise),
            noise is not None,
            iterations=self._service.iterations_alone(requests) if observers.any else 0,
            observers=observers,
            on_device=on_device,
        )

    @hinted
    def submit(self, request: Request, *, wait: float = 0.0) -> Future[Images]:
        """Queues one image to be drawn with whatever else is drawn then.

        Args:
            request: What to draw.
            wait: Seconds to wait for room in the queue.

        Returns:
            Holds the image, shape ``info.shape``, or the exception that drawing it alone would raise. Cancelling works
            until it is there: the request leaves between two steps. What is added with ``add_done_callback`` runs on
            the engine's thread, which waits for it.

        Raises:
            ValueError: If a value of ``request`` is one that ``sample`` refuses, its deadline has passed, its timeout
                is not above 0, or ``wait`` is negative.
            TypeError: If an argument is of the wrong kind.
            QueueFull: If ``serving.max_queue`` requests wait to begin.
            DeadlineError: If the deadline cannot be met, by ``calibrate``'s costs or those of the forwards of late.
            EngineClosed: If the engine is closed.
            RuntimeError: If the engine has no thread yet and the system none left; a later call tries again.

        Examples:
            >>> with sf.Engine.load("fashion") as engine:
            ...     future = engine.submit(sf.Request(cond="bag", steps=4, seed=3))
            ...     future.result(timeout=60).shape
            (1, 28, 28)
        """
        resolved = self._compiler.one(request)
        return ImageFuture(self._service, resolved, *self._state(request), checked_wait(wait))

    @hinted
    def stream(self, request: Request, *, wait: float = 0.0) -> Stream:
        """Queues one image and gives previews of it as it comes into being, the last one the image itself.

        Args:
            request: What to draw.
            wait: Seconds to wait for room in the queue.

        Returns:
            To be walked with ``for`` or ``async for``. A slow reader misses previews and holds nothing up.

        Raises:
            Exception: As ``submit`` does; walking it raises what the future of ``submit`` would hold.

        Examples:
            >>> with sf.Engine.load("fashion") as engine:
            ...     steps = [preview.step for preview in engine.stream(sf.Request(cond="bag", steps=4, seed=3))]
            >>> steps[-1]
            4
        """
        resolved = self._compiler.one(request)
        return Stream(self._service, resolved, *self._state(request), checked_wait(wait))

    def as_completed(self, requests: Iterable[Request]) -> Iterator[tuple[Request, Future[Images]]]:
        """Draws any number of requests and yields each as it ends, with its settled future.

        They are taken from ``requests`` as room becomes free: an endless iterator is fine. The future of one that
        ``submit`` refuses holds the refusal. Leaving the loop early withdraws what has not ended.

        Examples:
            >>> requests = (sf.Request(cond=i, steps=2, seed=i) for i in range(3))
            >>> with sf.Engine.load("fashion") as engine:
            ...     sorted(request.seed for request, future in engine.as_completed(requests))
            [0, 1, 2]
        """
        self._service.require_other_thread()
        return as_completed(lambda request: self.submit(request, wait=math.inf), requests, self.serving.max_queue)

    async def asample(self, **arguments: Any) -> Images:
        """One image, awaited: ``submit`` of a ``Request`` with these arguments. It does not wait for room in the queue.

        Returns:
            Shape ``info.shape``, float32.

        Raises:
            Exception: As ``submit`` and ``sample`` do.

        Examples:
            >>> import asyncio
            >>> async def draw():
            ...     with sf.Engine.load("fashion") as engine:
            ...         return await engine.asample(cond="bag", steps=4, seed=3)
            >>> asyncio.run(draw()).shape
            (1, 28, 28)
        """
        import asyncio  # slow to import, and needed here alone

        return await asyncio.wrap_future(self.submit(Request(**arguments)))

    def encode(
        self,
        images: npt.ArrayLike,
        *,
        steps: int | None = None,
        cond: Any = None,
        guidance_scale: float = 1.0,
        refinements: int = 1,
        lora: Mapping[str, float] | Sequence[Mapping[str, float] | None] | None = None,
        progress: bool = False,
        **options: Any,
    ) -> Images:
        """Finds the noise that each image comes from, by DDIM backwards.

        ``engine.sample(n, noise=z, sampler="ddim", steps=steps, cond=cond, guidance_scale=guidance_scale)`` with the
        same arguments returns the images, up to an error that falls with ``steps`` and with ``refinements``.

        Args:
            images: Shape (n, *shape), floating point, in the model's data range.
            steps: DDIM steps to invert; None is the model's default.
            cond: Conditioning, as in ``sample``.
            guidance_scale: As in ``sample``; 1 inverts best.
            refinements: Further network evaluations a step, towards its exact inverse; 0 is plain DDIM inversion.
            lora: As in ``sample``.
            progress: Whether a bar is shown.
            **options: More of ``samplers.ddim_inverse``: ``spacing``, ``timesteps``, ... What is not said here is the
                model's default.

        Returns:
            Noise of shape (n, *shape), float32.

        Raises:
            ValueError: If ``images`` have not the model's shape or lie outside of its data range, ``refinements`` is
                negative, or ``sample`` or ``samplers.ddim_inverse`` refuses an argument.
            TypeError: If an argument is of the wrong kind.
            DenoiserError: As in ``sample``.

        Examples:
            >>> with sf.Engine.load("fashion") as engine:
            ...     images = engine.sample(1, cond="bag", steps=10, seed=3)
            ...     noise = engine.encode(images, steps=10, cond="bag")  # what these images come from
            ...     again = engine.sample(1, cond="bag", steps=10, guidance_scale=1.0, noise=noise)
            >>> noise.shape, again.shape
            ((1, 1, 28, 28), (1, 1, 28, 28))
        """
        guidance_scale = number("guidance_scale", guidance_scale)
        require_guidable(self.info, guidance_scale)
        given = as_images(self.info, images, "images")
        if steps is None and options.get("timesteps") is None:
            steps = default_steps(self.info, "ddim")
        table = samplers.ddim_inverse(
            self.info.schedule,
            steps,
            prediction_type=cast("PredictionType", self.info.prediction_type),
            refinements=refinements,
            guidance_scale=guidance_scale,
            **{**default_options(self.info, samplers.ddim_inverse), **options},
        )
        return self.sample(len(given), cond=cond, table=table, noise=given, seed=0, lora=lora, progress=progress)

    def interpolate(
        self, z0: npt.ArrayLike, z1: npt.ArrayLike, n: int = 10, *, path: Path = "slerp", **arguments: Any
    ) -> Images:
        """Samples along a walk from one noise to another, both included.

        Args:
            z0: Noise of one sample, the model's shape.
            z1: The same.
            n: Number of samples, at least 2.
            path: ``slerp`` (great circle) or ``lerp`` (straight line).
            **arguments: Those of ``sample`` but ``noise``. With a deterministic sampler the walk is smooth.

        Returns:
            Shape (n, *shape), float32.

        Raises:
            ValueError: If ``z0`` and ``z1`` differ in shape, ``n`` is below 2, ``path`` is neither of the two, slerp
                meets opposite noises, or ``sample`` refuses an argument.

        Examples:
            >>> z0, z1 = sf.normal(0, (1, 28, 28)), sf.normal(1, (1, 28, 28))
            >>> with sf.Engine.load("fashion") as engine:
            ...     engine.interpolate(z0, z1, n=5, cond="sneaker", steps=4).shape
            (5, 1, 28, 28)
        """
        return self.sample(n, noise=interpolate_noise(z0, z1, n, path), **arguments)

    def table(
        self,
        *,
        sampler: str | None = None,
        steps: int | None = None,
        guidance_scale: float | None = None,
        eta: float | None = None,
        **options: Any,
    ) -> StepTable:
        """The table that ``sample`` would run with these arguments on this model.

        Raises:
            ValueError: If there is no such sampler, or it refuses an argument.
            TypeError: If the sampler does not have one of the options.

        Examples:
            >>> with sf.Engine.load("fashion") as engine:
            ...     table = engine.table(sampler="unipc", steps=8, karras=True)
            ...     images = engine.sample(1, table=table, seed=0)
            >>> table.sampler, len(table), table.passes
            ('unipc', 8, 16)
        """
        return self._compiler.compile(sampler, steps, guidance_scale, eta, options)

    @hinted
    def warmup(self, rows: Sequence[int] = (1, 2)) -> None:
        """Runs a forward of each of these row counts, so that the first sample does not pay for what is made once.

        Waits until nothing is left to draw: call it before serving.

        Raises:
            ValueError: If a count is below 1 or above ``max_rows``.
            EngineClosed: If the engine is closed.

        Examples:
            >>> with sf.Engine.load("fashion") as engine:
            ...     engine.warmup(rows=[1, 2, 4])
        """
        limit = self.serving.row_limit
        counts = [whole_number("rows", count) for count in rows]
        for count in counts:
            if not 1 <= count <= limit:
                raise ValueError(f"rows must be between 1 and {limit}, got {count}")

        def run(backend: Backend) -> None:
            for count in counts:
                backend.forward(count)

        self._service.run_alone(run)

    @hinted
    def calibrate(self, cost: CostCurve | None = None) -> CostCurve:
        """Has the planner choose how many rows a forward is worth, and deadlines be judged, by the network's cost.

        Without it every forward takes as many rows as there are. Where a row costs much and a forward little, smaller
        forwards answer sooner: a request then waits for fewer others at each step.

        Args:
            cost: What an earlier call on the same machine and network returned; None measures it, on eight forwards
                each of 1, 2, 4, ... ``max_rows`` rows. That waits until nothing is left to draw: call it before
                serving.

        Returns:
            The cost in use from now on.

        Raises:
            EngineClosed: If the engine is closed, and has to measure.

        Examples:
            >>> with sf.Engine.load("fashion", max_rows=4) as engine:
            ...     cost = engine.calibrate()  # measured here, and to be given to other engines of this model
            ...     cost.seconds(4) > 0
            True
        """
        if cost is None:
            limit = self.serving.row_limit
            cost = self._service.run_alone(lambda backend: measure_cost(backend.forward, limit))
        self._service.set_cost(cost)
        return cost

    def stats(self) -> EngineStats:
        """Counts since the engine was made, as of the last finished iteration of the loop.

        Examples:
            >>> with sf.Engine.load("fashion") as engine:
            ...     images = engine.sample(2, steps=3, guidance_scale=1.0)
            ...     engine.stats().steps
            6
        """
        return self._service.stats()

    def observe(self, observer: Observer | None) -> None:
        """Has each iteration reported: which requests shared it, those that are streamed or have just ended.

        Args:
            observer: Takes the ``Progress`` of each, on the engine's thread, which waits for it; one that was given
                before is called no more. None ends it.

        Examples:
            >>> seen = []
            >>> with sf.Engine.load("fashion") as engine:
            ...     engine.observe(seen.append)
            ...     images = engine.sample(1, steps=3, guidance_scale=1.0)
            >>> len(seen) > 0
            True
        """
        self._service.observe(observer)

    @hinted
    def close(self, *, abort: bool = False, timeout: float | None = None) -> None:
        """Draws what was submitted, then frees the network; closing twice is fine.

        Args:
            abort: Whether what was submitted is given up instead: its futures raise ``EngineClosed``.
            timeout: Seconds that this may take; None: as long as it takes. What is not drawn by then is given up, and a
                forward that is still in progress has one second more, with ``abort`` none, to return. If it does not,
                the engine's thread is abandoned: all futures raise ``EngineClosed``, and the network and the memory
                that it writes to are freed when it returns, if ever.

        Raises:
            RuntimeError: If called from the network, a future's own callback, or a callback of ``sample``.
            ValueError: If ``timeout`` is negative or not a number.

        Examples:
            >>> engine = sf.Engine.load("fashion")
            >>> future = engine.submit(sf.Request(steps=4))
            >>> engine.close()  # draws what was submitted; abort=True gives it up
            >>> future.done()
            True
        """
        self._service.close(abort=abort, timeout=timeout)

    def enqueue(
        self,
        request: Request,
        handle: ResultHandle,
        *,
        x0: bool = False,
        context: Any = None,
        on_device: bool = False,
    ) -> Withdraw:
        """Queues one image, however full the queue is, for a result handle that is not of the engine's own.

        Args:
            request: What to draw.
            handle: Takes its progress, on the engine's thread.
            x0: Whether that comes with the clean sample implied so far.
            context: The tracing context of its caller.
            on_device: Whether the sample stays in the GPU's memory, too: ``progress.sample.on_device``, which is None
                where the engine is on the CPU or the GPU has no memory left for it.

        Returns:
            Withdraws it.

        Raises:
            Exception: As ``submit`` does, but no ``QueueFull``.

        Examples:
            >>> import threading
            >>> ended = threading.Event()
            >>> class Handle:
            ...     def on_progress(self, iteration):  # what an iteration has made of this handle's samples
            ...         if any(one.ended for one in iteration):
            ...             ended.set()
            >>> with sf.Engine.load("fashion") as engine:
            ...     withdraw = engine.enqueue(sf.Request(steps=3), Handle())
            ...     ended.wait(60)
            True
        """
        resolved, (x, has_noise), id = self._compiler.one(request), self._state(request), self._service.new_id()
        preview = np.zeros_like(x) if x0 else None
        sample = InFlightSample(id, resolved, x, has_noise, handle, preview, watched=True, context=context)
        sample.on_device = self._service.device_sample() if on_device else None
        self._service.submit(sample, None)
        return lambda: self._service.cancel([id])

    def _adapters(self) -> Adapters | None:
        return self._service.adapters

    def _require_open(self) -> None:
        self._service.require_open()

    def _state(self, request: Request) -> tuple[Images, bool]:
        return starting_state(self.info.shape, request.noise), request.noise is not None

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        interrupted = is_interrupt(error)
        self.close(abort=interrupted, timeout=GRACE if interrupted else None)

    def __repr__(self) -> str:
        state = "closed" if self._service.closed else f"up to {self.serving.row_limit} rows"
        return f"<Engine {self.info.shape} {self.info.prediction_type}, {state}>"

    def _repr_html_(self) -> str:
        """What a notebook shows: what the network is, and how requests share the engine."""
        facts = [*facts_of_model(self.info), ("defaults", defaults_in_words(self.info))]
        if self.model is not None:
            facts.insert(0, ("model", self.model.name))
        return html_table(repr(self), [(name, value) for name, value in facts if value])

    def __reduce__(self) -> NoReturn:
        raise TypeError("an engine can be neither pickled nor copied: load it in each process")


def checked_wait(wait: float) -> float:
    """Seconds to wait for room in a queue.

    Raises:
        ValueError: If they are negative or NaN.
        TypeError: If that is not a number.
    """
    require_seconds("wait", wait)
    return float(wait)


def _info(
    shape: tuple[int, ...],
    schedule: NoiseSchedule,
    prediction_type: str,
    cond: Mapping[str, CondInput] | None,
    timestep_dtype: str,
    data_range: tuple[float, float] | None,
    guidance: str,
) -> ModelInfo:
    return ModelInfo(
        tuple(shape),
        schedule,
        prediction_type,
        dict(cond or {}),
        timestep_dtype,
        data_range or (-1.0, 1.0),
        range_known=data_range is not None,
        guidance=guidance,
    )


def _serving(serving: Serving | None, max_rows: int | None, deterministic: bool | None, default_rows: int) -> Serving:
    """What the caller asks for, in full: ``max_rows`` and ``deterministic`` change what ``serving`` says."""
    asked = serving or Serving()
    rows = asked.max_rows if max_rows is None else max_rows
    return replace(
        asked,
        max_rows=default_rows if rows is None else rows,
        deterministic=asked.deterministic if deterministic is None else deterministic,
    )


def refuse_unused(given: Mapping[str, bool], by: str) -> None:
    """Refuses arguments that would have no effect."""
    if named := [name for name, is_given in given.items() if is_given]:
        raise ValueError(f"{' and '.join(named)} must be left out for {by}, where nothing would use them")
