"""Measures how many texts a second a small BERT trains on, here and elsewhere.

The same weights (MiniLM), the same texts, batches of 32, AdamW, everything trained, float32. Each
way runs in a process of its own, one after another, in rounds; a figure is the texts of the
batches after the first few, which trace and warm up, divided by their time.

    python -m benchmarks.text_throughput texts.csv --rounds 3

Ways: `ours` (buckets of similar length), `keras_hub` (its TextClassifier's own preprocessing, 512
tokens), `keras_hub_longest` (the same padded to the longest text of the data) and `pytorch`
(transformers, every batch padded to its longest text). The last needs the extra `parity`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

BATCH = 32
WAYS = {"ours": (20, 120), "keras_hub": (1, 3), "keras_hub_longest": (4, 20), "pytorch": (10, 80)}
"""Batches before the clock starts, and batches that count."""

EPOCHS = 20
"""More than any way gets through."""


def folder() -> str:
    """Returns the folder of MiniLM's weights."""
    from kerastune_ft import backbones
    from kerastune_ft.backbones import weights

    return str(weights.fetch(backbones.get("bert"), "minilm"))


def read(path: str) -> tuple[list[str], list[int]]:
    """Returns texts and class numbers of a CSV file."""
    import pandas as pd

    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    names = sorted(frame["label"].unique())
    return list(frame["text"]), [names.index(label) for label in frame["label"]]


def clock(first: int, count: int) -> Any:
    """Returns a Keras callback that lets `first` batches pass, times `count`, and then stops."""
    import keras

    class Clock(keras.callbacks.Callback):
        seconds = 0.0
        batches = 0

        def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
            if logs is not None:
                float(logs["loss"])  # waits for the step
            self.batches += 1  # over all epochs
            if self.batches == first:
                self.begin = time.perf_counter()
            if self.batches == first + count:
                self.seconds = time.perf_counter() - self.begin
                self.model.stop_training = True
                raise _Done

    return Clock()


class _Done(Exception):  # noqa: N818
    """Says that enough batches were timed."""


def ours(
    texts: list[str], labels: list[int], counted: tuple[int, int] = WAYS["ours"]
) -> tuple[float, int]:
    """Returns seconds and texts of our training."""
    import keras

    import kerastune_ft as kft

    model = kft.text_classifier(
        "bert", len(set(labels)), weights="minilm", sequence_length=256, trainable_blocks=-1
    )
    data = model.preprocessor.dataset(texts, labels, batch_size=BATCH, seed=0, epochs=EPOCHS)
    return _fitted(model, counted, keras, x=data)


def keras_hub(
    texts: list[str],
    labels: list[int],
    way: str,
    layers: int | None = None,
    counted: tuple[int, int] | None = None,
) -> tuple[float, int]:
    """Returns seconds and texts of KerasHub's classifier.

    Args:
        texts: To train on.
        labels: Class numbers.
        way: `keras_hub` or `keras_hub_longest`.
        layers: How many layers, from the top, train beside the head; None is everything, as
            KerasHub leaves it.
        counted: Batches before the clock starts, and batches that count.
    """
    import keras
    import keras_hub

    place, classes = folder(), len(set(labels))
    if way == "keras_hub":
        model = keras_hub.models.BertTextClassifier.from_preset(place, num_classes=classes)
    else:
        tokenizer = keras_hub.models.BertTokenizer.from_preset(place)
        longest = max(int(tokenizer(text).shape[0]) for text in texts) + 2
        made = keras_hub.models.BertTextClassifierPreprocessor(
            tokenizer, sequence_length=min(longest, 256)
        )
        model = keras_hub.models.BertTextClassifier.from_preset(
            place, num_classes=classes, preprocessor=made
        )
    if layers is not None:
        _freeze_below(model.backbone, layers)
    counted = counted or WAYS[way]
    return _fitted(model, counted, keras, x=texts, y=labels, batch_size=BATCH, epochs=EPOCHS)


def _freeze_below(backbone: Any, layers: int) -> None:
    """Freezes embeddings and all but the topmost layers; the pooler is the head's."""
    names = [one.name for one in backbone.layers if one.name.startswith("transformer_layer")]
    unfrozen = {*names[len(names) - layers :], "pooled_dense"}
    for layer in backbone.layers:
        layer.trainable = layer.name in unfrozen


def _fitted(model: Any, counted: tuple[int, int], keras: Any, **data: Any) -> tuple[float, int]:
    model.compile(
        keras.optimizers.AdamW(2e-5), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    timed = clock(*counted)
    with contextlib.suppress(_Done):
        model.fit(**data, verbose=0, callbacks=[timed])
    assert timed.seconds, "there are too few texts for so many batches"
    return timed.seconds, counted[1] * BATCH


def pytorch(
    texts: list[str],
    labels: list[int],
    frozen: bool = False,
    counted: tuple[int, int] = WAYS["pytorch"],
) -> tuple[float, int]:
    """Returns seconds and texts of transformers with PyTorch; `frozen` trains the head alone."""
    import numpy as np
    import torch
    import transformers

    place = folder()
    tokenizer = transformers.AutoTokenizer.from_pretrained(place)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        place, num_labels=len(set(labels))
    )
    if frozen:
        model.bert.requires_grad_(False)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, 2e-5)
    model.train()
    order = np.random.default_rng(0).permutation(len(texts))
    first, count = counted
    begin = 0.0
    for batch in range(first + count):
        if batch == first:
            begin = time.perf_counter()
        rows = [int(order[(batch * BATCH + i) % len(texts)]) for i in range(BATCH)]
        inputs = tokenizer(
            [texts[row] for row in rows], padding=True, truncation=True, max_length=256,
            return_tensors="pt",
        )  # fmt: skip
        target = torch.tensor([labels[row] for row in rows])
        optimizer.zero_grad()
        loss = model(**inputs, labels=target).loss
        loss.backward()
        optimizer.step()
        loss.item()
    return time.perf_counter() - begin, count * BATCH


def one(way: str, path: str) -> None:
    """Measures one way in this process and prints texts per second."""
    texts, labels = read(path)
    if way == "ours":
        seconds, count = ours(texts, labels)
    elif way == "pytorch":
        seconds, count = pytorch(texts, labels)
    else:
        seconds, count = keras_hub(texts, labels, way)
    print(json.dumps({"way": way, "texts_per_second": count / seconds}))


def main() -> None:
    """Runs every way in rounds and prints the ratios of ours to each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", help="A CSV file with the columns text and label.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", nargs="*", default=list(WAYS))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        one(chosen.one, chosen.path)
        return
    figures: dict[str, list[float]] = {way: [] for way in chosen.ways}
    for number in range(chosen.rounds):
        for way in chosen.ways:
            command = [sys.executable, "-m", "benchmarks.text_throughput", chosen.path]
            done = subprocess.run(
                [*command, "--one", way],
                capture_output=True,
                text=True,
                check=False,
                cwd=Path(__file__).parents[1],
            )
            if done.returncode:
                sys.exit(f"{way}: {done.stderr[-2000:]}")
            found = json.loads(done.stdout.splitlines()[-1])["texts_per_second"]
            figures[way].append(found)
            print(f"round {number + 1} {way}: {found:.1f} texts/s", file=sys.stderr, flush=True)
    print("| way | texts per second, median | ours is faster by, median of rounds | range |")
    print("|---|---|---|---|")
    for way, found in figures.items():
        ratios = sorted(a / b for a, b in zip(figures["ours"], found, strict=True))
        middle = statistics.median(ratios)
        print(
            f"| {way} | {statistics.median(found):.1f} | {middle:.2f} | "
            f"{ratios[0]:.2f} to {ratios[-1]:.2f} |"
        )


if __name__ == "__main__":
    main()
