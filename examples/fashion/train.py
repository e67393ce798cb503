"""Train the embedded Fashion-MNIST denoiser; stops by itself, and goes on from its checkpoint when started again.

    python train.py --minutes 80                                # a fresh run, or the rest of an interrupted one
    python train.py --minutes 160                               # another 80 minutes on top
    python train.py --from-bundle ../../engine/models/fashion   # a fresh run that starts from the committed weights

Linear betas, T = 1000 (Ho et al., 2020), class dropped for 10 % of the images (Ho & Salimans, 2022). The batch of step
``n`` depends on the seed and on ``n`` alone, so an interrupted run sees the same batches as one that went through.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from data import DATASET, OUT, Split, load
from model import NULL_CLASS, NUM_TRAIN_TIMESTEPS, Denoiser, alphas_cumprod
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from run import COLUMNS, Run
from torch import Tensor

CLASS_DROPOUT = 0.1
SNR_CAP = 5.0
WARMUP_STEPS = 500
DECAY_SHARE = 0.4
LOG_EVERY = 50

Batch = tuple[Tensor, Tensor, Tensor, Tensor]


def batch(train: Split, step: int, size: int, seed: int) -> Batch:
    """Draw clean images in [-1, 1], labels with some dropped, timesteps (one a stratum) and noise of one step."""
    epoch, position = divmod(step, len(train.labels) // size)
    order = torch.randperm(len(train.labels), generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
    chosen = order[position * size : (position + 1) * size].numpy()
    rng = torch.Generator().manual_seed((seed << 32) + step)
    x0 = torch.from_numpy(train.images[chosen]).float() / 127.5 - 1.0
    labels = torch.from_numpy(train.labels[chosen])
    labels = labels.masked_fill(torch.rand(size, generator=rng) < CLASS_DROPOUT, NULL_CLASS)
    strata = (torch.arange(size) + torch.rand(size, generator=rng)) / size
    timesteps = (strata * NUM_TRAIN_TIMESTEPS).long().clamp_max(NUM_TRAIN_TIMESTEPS - 1)
    return x0, labels, timesteps, torch.randn(x0.shape, generator=rng)


def loss_fn(model: Denoiser, a: Tensor, x0: Tensor, labels: Tensor, timesteps: Tensor, noise: Tensor) -> Tensor:
    """Compute the velocity error, which weighs that of x0 with SNR + 1, here capped (cf. Hang et al., 2023).

    ``a`` is ``alphas_cumprod`` at ``timesteps``, (B, 1, 1, 1).
    """
    sample = a.sqrt() * x0 + (1 - a).sqrt() * noise
    target = a.sqrt() * noise - (1 - a).sqrt() * x0
    with torch.autocast(x0.device.type, torch.bfloat16):
        velocity = model.velocity(sample, timesteps.float(), labels)
    weight = ((SNR_CAP + 1) * (1 - a)).clamp_max(1.0)  # min(SNR + 1, cap + 1) / (SNR + 1), and SNR + 1 = 1 / (1 - a)
    return (weight * (velocity.float() - target).square()).mean()


def learning_rate_factor(step: int, progress: float) -> float:
    """Rise linearly to a plateau, and decay linearly to zero over the last ``DECAY_SHARE`` of the budget.

    The plateau makes a finished run extensible: with a larger budget it goes back to the plateau and decays once more.
    """
    return min(1.0, (step + 1) / WARMUP_STEPS, max(0.0, 1.0 - progress) / DECAY_SHARE)


def train_step(run: Run, inputs: Batch, rate: float) -> tuple[Tensor, Tensor]:
    """Take a step of AdamW and of the average; return the loss and the gradient's norm before clipping."""
    device = next(run.model.parameters()).device
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    x0, labels, timesteps, noise = inputs
    a = alphas_cumprod()[timesteps][:, None, None, None].float()
    loss = loss_fn(run.model, *(tensor.to(device) for tensor in (a, x0, labels, timesteps, noise)))
    loss.backward()  # type: ignore[no-untyped-call]
    norm = torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
    run.optimizer.step()
    run.optimizer.zero_grad()
    run.update_ema()
    run.step += 1
    return loss.detach(), norm


def fit(
    run: Run,
    next_batch: Callable[[int], Batch],
    checkpoint: Path,
    *,
    budget: float,
    peak: float,
    save: float,
) -> None:
    """Train until ``run.seconds`` reaches ``budget`` seconds or a signal asks to stop; a checkpoint every ``save``."""
    stop: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, _: stop.append(received))
    means: list[Tensor] = []
    saved = run.seconds
    with Progress(TextColumn("step {task.fields[step]}"), BarColumn(), TimeElapsedColumn()) as bar:
        task = bar.add_task("train", total=budget, completed=int(run.seconds), step=run.step)
        while run.seconds < budget and not stop:
            started = time.perf_counter()
            rate = peak * learning_rate_factor(run.step, run.seconds / budget)
            means.append(torch.stack(train_step(run, next_batch(run.step), rate)))
            run.seconds += time.perf_counter() - started
            if run.step % LOG_EVERY == 0:
                row = (run.step, run.seconds, rate, *torch.stack(means).mean(0).tolist())
                run.log.append(dict(zip(COLUMNS, row, strict=True)))
                means.clear()
                bar.update(task, completed=run.seconds, step=run.step)
            if run.seconds - saved > save:
                run.save(checkpoint)
                saved = run.seconds
                bar.console.print(", ".join(f"{name} {value:.4g}" for name, value in run.log[-1].items()))
    run.save(checkpoint)


def main(
    minutes: Annotated[float, typer.Option(help="Training time in all, earlier starts of the run counted in.")] = 80.0,
    batch_size: Annotated[int, typer.Option(min=1)] = 128,
    learning_rate: Annotated[float, typer.Option(help="Of the plateau.")] = 1e-3,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    dataset: Annotated[Path, typer.Option(help="The .npz that data.py wrote.")] = DATASET,
    out: Annotated[Path, typer.Option(help="Folder of the checkpoint, loss.csv and loss.png.")] = OUT,
    from_bundle: Annotated[Path | None, typer.Option(help="Start from this bundle's weights.")] = None,
    save_minutes: Annotated[float, typer.Option(help="Training time between two checkpoints.")] = 3.0,
) -> None:
    """Train the denoiser."""
    checkpoint = out / "checkpoint.pt"
    if from_bundle is not None and checkpoint.exists():
        raise typer.BadParameter(f"it starts a fresh run, but {checkpoint} exists: pass another --out")
    run = Run.fresh(torch.device("cuda" if torch.cuda.is_available() else "cpu"), seed, from_bundle)
    if checkpoint.exists():
        run.restore(checkpoint)
    train, _ = load(dataset)
    fit(
        run,
        lambda step: batch(train, step, batch_size, seed),
        checkpoint,
        budget=60 * minutes,
        peak=learning_rate,
        save=60 * save_minutes,
    )


if __name__ == "__main__":
    typer.run(main)
