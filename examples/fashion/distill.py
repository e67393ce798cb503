"""Distil the embedded model ``fashion`` to a student of eight DDIM steps, which are eight passes, guidance included.

    python distill.py train      # from the embedded bundle's weights; goes on from its checkpoint when started again
    python export.py --checkpoint out/distill/checkpoint.pt --target ../../engine/models/fashion-8step
    python distill.py compare    # student and teacher before the judge; writes results-8step.json

Progressive distillation (Salimans & Ho, 2022): a student of N steps learns to do in one DDIM step what its teacher does
in two, then becomes the teacher of a student of N/2. The first teacher is guided, so that its student also learns the
blend of both passes (Meng et al., 2023, here for one guidance scale).
"""

from __future__ import annotations

import copy
import csv
import json
import platform
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from data import CLASS_NAMES, DATASET, OUT, load
from model import NULL_CLASS, NUM_TRAIN_TIMESTEPS, Denoiser, alphas_cumprod
from numpy.typing import NDArray
from plot import plot_losses, save_grid
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from run import load_bundle_weights
from torch import Tensor
from train import Batch, batch

TEACHER = Path(__file__).parents[2] / "engine" / "models" / "fashion"
DISTILLED = OUT / "distill"
RESULTS = Path(__file__).parent / "results-8step.json"
EMA_DECAY = 0.999
WARMUP_STEPS = 100
LOG_EVERY = 50
COLUMNS = ("student_steps", "step", "seconds", "learning_rate", "loss", "grad_norm")

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@dataclass
class Distillation:
    """A run through the stages: ``student_steps`` names the present one, ``stage_step`` counts its training steps.

    ``teacher`` is guided in the first stage and the averaged student of the stage before in all others; ``step`` counts
    the training steps and ``seconds`` the training time over all stages and starts.
    """

    teacher: Denoiser
    model: Denoiser
    ema: Denoiser
    optimizer: torch.optim.AdamW
    first: int
    student_steps: int
    guidance_scale: float
    stage_step: int = 0
    step: int = 0
    seconds: float = 0.0
    log: list[dict[str, float]] = field(default_factory=list)

    @classmethod
    def fresh(cls, device: torch.device, weights: Path, first: int, guidance_scale: float) -> Distillation:
        """Start at the first stage, of ``first`` student steps, with the bundle at ``weights`` as its teacher."""
        teacher = Denoiser()
        load_bundle_weights(teacher, weights)
        teacher.to(device, memory_format=torch.channels_last).requires_grad_(False)  # type: ignore[call-overload]
        model, ema = copy.deepcopy(teacher).requires_grad_(True), copy.deepcopy(teacher)
        return cls(teacher, model, ema, new_optimizer(model), first, first, guidance_scale)

    @property
    def guidance(self) -> float:
        """The guidance scale that the present teacher is run with; a student has it folded in."""
        return self.guidance_scale if self.student_steps == self.first else 1.0

    def next_stage(self) -> None:
        """Make the averaged student the teacher of one of half as many steps that starts from the same weights."""
        weights = self.ema.state_dict()
        for net in (self.teacher, self.model):
            net.load_state_dict(weights)
        self.optimizer = new_optimizer(self.model)
        self.student_steps, self.stage_step = self.student_steps // 2, 0

    def save(self, path: Path) -> None:
        """Write the checkpoint atomically, and ``loss.csv`` and ``loss.png`` beside it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        names = ("first", "student_steps", "guidance_scale", "stage_step", "step", "seconds", "log")
        state: dict[str, Any] = {name: getattr(self, name) for name in names}
        state |= {name: getattr(self, name).state_dict() for name in ("teacher", "model", "ema", "optimizer")}
        unfinished = path.with_suffix(".tmp")
        torch.save(state, unfinished)
        unfinished.replace(path)
        with (path.parent / "loss.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows({name: f"{row[name]:.6g}" for name in COLUMNS} for row in self.log)
        plot_losses(self.log, path.parent / "loss.png")

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint that ``save`` wrote.

        Raises:
            typer.BadParameter: If it was started with another first stage or guidance scale.
        """
        state = torch.load(path, map_location="cpu", weights_only=True)
        for name in ("first", "guidance_scale"):
            if state[name] != getattr(self, name):
                raise typer.BadParameter(f"{name} must be that of {path}, {state[name]}, got {getattr(self, name)}")
        for name in ("teacher", "model", "ema", "optimizer"):
            getattr(self, name).load_state_dict(state.pop(name))
        for name, value in state.items():
            setattr(self, name, value)

    def update_ema(self) -> None:
        """Move the averaged weights towards the current ones, faster while the stage is young."""
        weight = 1.0 - min(EMA_DECAY, (1 + self.stage_step) / (10 + self.stage_step))
        torch._foreach_lerp_(list(self.ema.parameters()), list(self.model.parameters()), weight)


def new_optimizer(model: Denoiser) -> torch.optim.AdamW:
    """Make the optimiser of one stage."""
    return torch.optim.AdamW(model.parameters(), betas=(0.9, 0.99), fused=True)


def trailing_timesteps(steps: int) -> Tensor:
    """List the ``steps`` timesteps of DDIM with trailing spacing and where the last one leads, 999 to -1, (steps + 1,).

    Those of ``steps`` are among those of ``2 * steps``, so that two of the teacher's steps end where one of the student
    does.
    """
    edges = torch.arange(steps, -1, -1, dtype=torch.float64) * (NUM_TRAIN_TIMESTEPS / steps)
    return edges.round().long() - 1


def angles(timesteps: Tensor) -> Tensor:
    """Compute phi of z = cos(phi)·x0 + sin(phi)·eps at each timestep, (B, 1, 1, 1) float64; -1 is the clean sample."""
    a = torch.cat([alphas_cumprod(), torch.ones(1, dtype=torch.float64)])[timesteps]
    return torch.acos(a.sqrt())[:, None, None, None]


def ddim(z: Tensor, velocity: Tensor, delta: Tensor) -> Tensor:
    """Step to the angle that is ``delta`` smaller: DDIM with eta 0, as a rotation (Salimans & Ho, 2022, appendix D)."""
    return delta.cos().float() * z - delta.sin().float() * velocity


def guided_velocity(net: Denoiser, z: Tensor, timesteps: Tensor, labels: Tensor, guidance: float) -> Tensor:
    """Predict the velocity, float32, with the guidance of Ho & Salimans (2022), which blends it as it blends noise."""
    with torch.autocast(z.device.type, torch.bfloat16):
        if guidance == 1.0:
            return net.velocity(z, timesteps.float(), labels).float()
        labels = torch.cat([labels, torch.full_like(labels, NULL_CLASS)])
        both = net.velocity(torch.cat([z, z]), timesteps.float().repeat(2), labels)
    cond, uncond = both.float().chunk(2)
    return uncond + guidance * (cond - uncond)


@torch.no_grad()
def target_velocity(run: Distillation, z: Tensor, start: Tensor, middle: Tensor, end: Tensor, labels: Tensor) -> Tensor:
    """Compute the velocity that takes ``z`` in one step from ``start`` to where the teacher's two steps lead.

    Its x0 is the target of Salimans & Ho (2022), algorithm 2.
    """
    phi_start, phi_middle, phi_end = (angles(t).to(z.device) for t in (start, middle, end))
    start, middle = start.to(z.device), middle.to(z.device)
    half = ddim(z, guided_velocity(run.teacher, z, start, labels, run.guidance), phi_start - phi_middle)
    whole = ddim(half, guided_velocity(run.teacher, half, middle, labels, run.guidance), phi_middle - phi_end)
    delta = phi_start - phi_end
    return (delta.cos().float() * z - whole) / delta.sin().float()


def train_step(run: Distillation, inputs: Batch, rate: float) -> tuple[Tensor, Tensor]:
    """Take a step of AdamW and of the average; return the loss and the gradient's norm before clipping.

    The loss is the error of the velocity, which is that of x0 weighed with SNR + 1.
    """
    device = next(run.model.parameters()).device
    x0, labels, timesteps, noise = inputs
    index = 2 * (timesteps * run.student_steps // NUM_TRAIN_TIMESTEPS)
    grid = trailing_timesteps(2 * run.student_steps)
    start, middle, end = grid[index], grid[index + 1], grid[index + 2]
    phi = angles(start)
    z = (phi.cos().float() * x0 + phi.sin().float() * noise).to(device)
    labels = labels.to(device)
    target = target_velocity(run, z, start, middle, end, labels)
    loss = (guided_velocity(run.model, z, start.to(device), labels, 1.0) - target).square().mean()
    loss.backward()  # type: ignore[no-untyped-call]
    norm = torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    run.optimizer.step()
    run.optimizer.zero_grad()
    run.update_ema()
    run.stage_step += 1
    run.step += 1
    return loss.detach(), norm


def fit_stage(
    run: Distillation,
    next_batch: Callable[[int], Batch],
    checkpoint: Path,
    *,
    steps: int,
    peak: float,
    save: float,
) -> bool:
    """Train the present stage to its end, the rate falling linearly to zero; a checkpoint every ``save`` seconds.

    Returns False if a signal asked to stop before the end.
    """
    stop: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, _: stop.append(received))
    means: list[Tensor] = []
    saved = run.seconds
    with Progress(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()) as bar:
        task = bar.add_task(f"{run.student_steps} steps", total=steps, completed=run.stage_step)
        while run.stage_step < steps and not stop:
            started = time.perf_counter()
            rate = peak * min(1.0, (run.stage_step + 1) / WARMUP_STEPS) * (1.0 - run.stage_step / steps)
            means.append(torch.stack(train_step(run, next_batch(run.step), rate)))
            run.seconds += time.perf_counter() - started
            if run.stage_step % LOG_EVERY == 0:
                row = (run.student_steps, run.step, run.seconds, rate, *torch.stack(means).mean(0).tolist())
                run.log.append(dict(zip(COLUMNS, row, strict=True)))
                means.clear()
                bar.update(task, completed=run.stage_step)
            if run.seconds - saved > save:
                run.save(checkpoint)
                saved = run.seconds
                if run.log:
                    bar.console.print(", ".join(f"{name} {value:.6g}" for name, value in run.log[-1].items()))
    run.save(checkpoint)
    return run.stage_step >= steps


@app.command()
def train(
    first: Annotated[int, typer.Option(help="Steps of the first student; half of the guided teacher's.")] = 32,
    last: Annotated[int, typer.Option(min=1, help="Steps of the last student.")] = 8,
    steps: Annotated[int, typer.Option(min=1, help="Training steps of every stage but the last.")] = 800,
    last_steps: Annotated[int, typer.Option(min=1, help="Training steps of the last stage.")] = 3200,
    guidance_scale: Annotated[float, typer.Option(min=0.0, help="Folded into the students.")] = 3.0,
    batch_size: Annotated[int, typer.Option(min=1)] = 128,
    learning_rate: Annotated[float, typer.Option(help="At the start of a stage.")] = 5e-4,
    seed: Annotated[int, typer.Option(min=0)] = 1,
    dataset: Annotated[Path, typer.Option(help="The .npz that data.py wrote.")] = DATASET,
    teacher: Annotated[Path, typer.Option(help="The bundle to distil.")] = TEACHER,
    out: Annotated[Path, typer.Option(help="Folder of the checkpoint, loss.csv and loss.png.")] = DISTILLED,
    save_minutes: Annotated[float, typer.Option(help="Training time between two checkpoints.")] = 2.0,
) -> None:
    """Distil through the stages FIRST, FIRST/2, ..., LAST; an interrupted run goes on where it was."""
    stages = [first]
    while stages[-1] > last:
        stages.append(stages[-1] // 2)
    if first != last << (len(stages) - 1) or 2 * first > NUM_TRAIN_TIMESTEPS:
        raise typer.BadParameter(
            f"first must be last times a power of two, at most {NUM_TRAIN_TIMESTEPS // 2}, got {first} and {last}"
        )
    if NUM_TRAIN_TIMESTEPS % last:  # trailing spacing steps by the whole part of T / S
        raise typer.BadParameter(f"last must divide {NUM_TRAIN_TIMESTEPS}, got {last}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run = Distillation.fresh(device, teacher, first, guidance_scale)
    checkpoint = out / "checkpoint.pt"
    if checkpoint.exists():
        run.restore(checkpoint)
    if run.student_steps not in stages:
        raise typer.BadParameter(f"last must be at most {run.student_steps}, the stage of {checkpoint}, got {last}")
    images, _ = load(dataset)
    while fit_stage(
        run,
        lambda step: batch(images, step, batch_size, seed),
        checkpoint,
        steps=last_steps if run.student_steps == last else steps,
        peak=learning_rate,
        save=60 * save_minutes,
    ):
        if run.student_steps == last:
            break
        run.next_stage()


@app.command()
def compare(
    student: Annotated[str, typer.Option(help="An embedded model's name or a bundle folder.")] = "fashion-8step",
    teacher: Annotated[str, typer.Option(help="As STUDENT; it is guided.")] = "fashion",
    guidance_scale: Annotated[float, typer.Option(help="Of the teacher.")] = 3.0,
    per_class: Annotated[int, typer.Option(min=7, help="The distance needs more images than features.")] = 100,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    judge: Annotated[str, typer.Option(help="A judge's name or a folder that classifier.py wrote.")] = "fashion",
    target: Annotated[Path, typer.Option(help="The JSON to write.")] = RESULTS,
    grids: Annotated[Path, typer.Option(help="Folder of the pictures to draw.")] = DISTILLED,
) -> None:
    """Judge samples of the student, at its manifest's defaults, and of the teacher, all from the same noise."""
    from evaluate import accuracies  # with stepfuse, which training does without

    from stepfuse import Engine
    from stepfuse.analysis import Judge

    critic = Judge.load(judge)
    labels = np.repeat(np.arange(len(CLASS_NAMES)), per_class)
    ddim8 = {"sampler": "ddim", "steps": 8, "spacing": "trailing", "guidance_scale": guidance_scale}
    ddim50 = {"sampler": "ddim", "steps": 50, "guidance_scale": guidance_scale}
    runs: dict[str, tuple[str, dict[str, Any]]] = {
        "student": (student, {}),
        "teacher, 8 steps": (teacher, ddim8),
        "teacher, 50 steps": (teacher, ddim50),
        "teacher, 8 steps, no guidance": (teacher, {**ddim8, "guidance_scale": 1.0}),
    }
    images: dict[str, NDArray[np.float32]] = {}
    measured: dict[str, dict[str, Any]] = {}
    grids.mkdir(parents=True, exist_ok=True)
    for name, (model, settings) in runs.items():
        with Engine.load(model) as engine:
            images[name] = engine.sample(len(labels), cond=labels, seed=seed, progress=True, **settings)
            table, defaults = engine.table(**settings), dict(engine.info.defaults)
        measured[name] = {
            "model": model,
            **(settings or defaults),
            "passes_per_sample": table.passes,
            "accuracy_of_samples": accuracies(critic, images[name], labels),
            "frechet_distance_of_samples": critic.distance(images[name]),
        }
        grid = images[name].reshape(len(CLASS_NAMES), per_class, 28, 28)[:, :12]
        save_grid(grid, grids / f"{name.replace(', ', '-').replace(' ', '-')}.png")
    for name in runs:
        difference = images[name].astype(np.float64) - images["teacher, 50 steps"]
        measured[name]["mean_squared_difference_from_teacher_50"] = float(np.square(difference).mean())
    results = {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "command": "python distill.py compare",
        "samples": len(labels),
        "seed": seed,
        "measured": measured,
        "versions": {name: version(name) for name in ("stepfuse", "onnxruntime", "torch", "numpy")},
        "python": platform.python_version(),
    }
    target.write_text(json.dumps(results, indent=2) + "\n")
    typer.echo(json.dumps(results, indent=2))


if __name__ == "__main__":
    app()
