"""The ways of PyTorch: plain loops around transformers' networks, for how fast they are.

MobileNetV2 has random weights, which cost as much as real ones, pads as torchvision's does, and
reads photographs with Pillow in two processes of a `DataLoader`; its batch normalisation stays in
inference mode, as in the other ways. BERT is MiniLM; every batch is padded to its longest text. The
frozen network of a head runs without gradients.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

BATCH = 32


def pictures(settings: dict[str, Any]) -> dict[str, Any]:
    """Trains the head, then everything.

    Args:
        settings: `data`, a folder with train; `side`; `head_epochs`; `full_epochs`; `seed`.

    Returns:
        `head` and `full`: milliseconds of training per example, without the first epoch of each.
    """
    import torch
    import transformers

    torch.manual_seed(settings["seed"])
    folder = Path(settings["data"]) / "train"
    classes = sorted(path.name for path in folder.iterdir())
    loader = torch.utils.data.DataLoader(
        Photographs(folder, classes, settings["side"]),
        batch_size=BATCH,
        shuffle=True,
        num_workers=2,
        persistent_workers=True,
    )
    model = transformers.MobileNetV2ForImageClassification(
        transformers.MobileNetV2Config(
            image_size=settings["side"], num_labels=len(classes), tf_padding=False
        )
    )
    network = model.mobilenet_v2
    norms = [layer for layer in model.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    # Without statistics the features of random weights vanish, and such small numbers are slow.
    for layer in norms:
        layer.momentum = 1.0
    with torch.no_grad():
        model.train()(next(iter(loader))[0])
    found = {}
    for name, frozen in (("head", True), ("full", False)):
        model.train()
        for layer in norms:
            layer.eval()
        if frozen:
            network.eval()
        network.requires_grad_(not frozen)
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(trained, 1e-3, weight_decay=1e-4)
        seconds: list[float] = []
        for _ in range(settings[f"{name}_epochs"]):
            ends = []
            for images, labels in loader:
                optimizer.zero_grad()
                with torch.set_grad_enabled(not frozen):
                    features = network(images).pooler_output
                logits = model.classifier(model.dropout(features))
                loss = torch.nn.functional.cross_entropy(logits, labels)
                loss.backward()
                optimizer.step()
                loss.item()
                ends.append(time.monotonic())
            seconds.append((ends[-1] - ends[0]) / (len(ends) - 1))
        later = seconds[1:] or seconds
        found[name] = sum(later) / len(later) * 1000 / BATCH
    return found


class Photographs:
    """Reads photographs as a data set of PyTorch: normalised as ImageNet's, `(3, side, side)`.

    Args:
        folder: Of class folders.
        classes: Their names.
        side: In pixels.
    """

    def __init__(self, folder: Path, classes: list[str], side: int) -> None:
        self.side = side
        self.examples = [
            (path, number)
            for number, name in enumerate(classes)
            for path in sorted((folder / name).iterdir())
        ]

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """Returns a photograph and its class number."""
        import numpy as np
        from PIL import Image

        path, label = self.examples[index]
        with Image.open(path) as image:
            small = image.convert("RGB").resize((self.side, self.side), Image.Resampling.BILINEAR)
        pixels = np.asarray(small, np.float32) / 255
        pixels = (pixels - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
        return pixels.transpose(2, 0, 1).astype(np.float32), label


def texts(settings: dict[str, Any]) -> dict[str, Any]:
    """Trains the head, then everything.

    Args:
        settings: `data`, a table with the column `split`; `warm_up` and `timed` batches.

    Returns:
        `head` and `full`: milliseconds of training per text.
    """
    from benchmarks import text_throughput
    from benchmarks import texts as tables

    read, labels = tables.read(settings["data"])
    counted = settings["warm_up"], settings["timed"]
    found = {}
    for name in ("head", "full"):
        seconds, count = text_throughput.pytorch(read, labels, name == "head", counted)
        found[name] = seconds / count * 1000
    return found
