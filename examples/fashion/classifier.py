"""A small convolutional classifier of real Fashion-MNIST images: the judge of the generated ones.

    python classifier.py        # a few minutes on a CPU; writes out/classifier.pt

It is trained on the 60,000 training images of data.py, and its accuracy on the other 10,000 is what a perfect generator
could be expected to reach.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from data import CLASS_NAMES, DATASET, OUT, Split, load
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

CLASSIFIER = OUT / "classifier.pt"


class Classifier(nn.Module):
    """Images (N, 1, 28, 28) in [-1, 1] -> logits (N, 10)."""

    def __init__(self, widths: tuple[int, ...] = (32, 64, 128)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in zip((1, *widths), widths, strict=False):
            layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
            layers += [nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers, nn.Flatten(), nn.Linear(9 * widths[-1], 128), nn.ReLU(), nn.Dropout(0.3))
        self.logits = nn.Linear(128, len(CLASS_NAMES))

    def forward(self, images: Tensor) -> Tensor:
        """Score each class."""
        logits: Tensor = self.logits(self.features(images))
        return logits


def to_model_range(images: NDArray[np.uint8]) -> Tensor:
    """Convert uint8 0..255 to float32 -1..1."""
    return torch.from_numpy(images).float() / 127.5 - 1.0


@torch.inference_mode()
def classify(model: Classifier, images: Tensor) -> NDArray[np.int64]:
    """Name the class of each image, (N,)."""
    model.eval()
    return torch.cat([model(part).argmax(1) for part in torch.split(images, 500)]).numpy()


def fit(model: Classifier, train: Split, *, epochs: int, batch_size: int, learning_rate: float) -> None:
    """Train with AdamW on a one-cycle schedule; images are mirrored at random."""
    images, labels = to_model_range(train.images), torch.from_numpy(train.labels)
    steps = len(labels) // batch_size
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=epochs * steps)
    model.train()
    for epoch in range(epochs):
        order = torch.randperm(len(labels))[: steps * batch_size].view(steps, batch_size)
        for chosen in track(order, f"epoch {epoch + 1}/{epochs}"):
            batch = images[chosen]
            mirrored = torch.rand(batch_size, 1, 1, 1) < 0.5
            loss = cross_entropy(model(torch.where(mirrored, batch.flip(3), batch)), labels[chosen])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()


def load_classifier(path: Path = CLASSIFIER) -> Classifier:
    """Load the trained classifier, ready to judge."""
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; run `python classifier.py` first")
    model = Classifier()
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval()


def main(
    epochs: Annotated[int, typer.Option(min=1)] = 5,
    batch_size: Annotated[int, typer.Option(min=1)] = 128,
    learning_rate: Annotated[float, typer.Option(help="Peak of the cycle.")] = 3e-3,
    seed: Annotated[int, typer.Option()] = 0,
    dataset: Annotated[Path, typer.Option(help="The .npz that data.py wrote.")] = DATASET,
    target: Annotated[Path, typer.Option(help="The .pt to write.")] = CLASSIFIER,
) -> None:
    """Train the classifier and print its accuracy on the real test images."""
    torch.manual_seed(seed)
    train, test = load(dataset)
    model = Classifier()
    fit(model, train, epochs=epochs, batch_size=batch_size, learning_rate=learning_rate)
    accuracy = float((classify(model, to_model_range(test.images)) == test.labels).mean())
    torch.save(model.state_dict(), target)
    typer.echo(f"{target}: {accuracy:.2%} of {len(test.labels)} real test images classified correctly")


if __name__ == "__main__":
    typer.run(main)
