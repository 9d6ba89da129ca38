"""Writes a finished run in every format: how large, how fast and how right each file is.

    python -m benchmarks.formats runs/clothing
    python -m benchmarks.formats runs/clothing --calibration 16 64 200 --seeds 3
    python -m benchmarks.formats runs/trec6 --length 64

Every file is opened in a process of its own, without Keras, and answers the whole test split
there, eight examples at a time. Latencies are medians of one batch that is given again and again;
the first line is the Keras model. With `--calibration` full int8 alone is written, once for every
number of training pictures and seed by which they are drawn. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kerastune_ft import formats
from kerastune_ft.formats import FORMATS, Artefact, Trial

_CHILD = """
import pickle, sys
from benchmarks import formats
formats.child(*sys.argv[1:])
"""


def child(question: str, answer: str) -> None:
    """Answers in a process of its own: what a file says of examples, and how fast."""
    artefact, inputs, rounds = pickle.loads(Path(question).read_bytes())
    answers = formats.open_artefact(artefact.format, artefact.path)
    trial = formats.try_out(artefact, answers, inputs, rounds)
    Path(answer).write_bytes(pickle.dumps(trial))


def tried(artefact: Artefact, inputs: Any, rounds: int) -> Trial:
    """Tries a file out in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        question, answer = Path(folder) / "question", Path(folder) / "answer"
        question.write_bytes(pickle.dumps((artefact, inputs, rounds)))
        subprocess.run([sys.executable, "-c", _CHILD, str(question), str(answer)], check=True)
        trial = pickle.loads(answer.read_bytes())
        assert isinstance(trial, Trial)
        return trial


class Subject:
    """A run, what its model takes, and what is true.

    Args:
        folder: Of the run.
        length: Tokens of a text, for formats that want a number.
    """

    def __init__(self, folder: str, length: int | None) -> None:
        import keras

        from kerastune_ft import predictions, workflow
        from kerastune_ft.data import feeding
        from kerastune_ft.runs import Run
        from kerastune_ft.tasks import TASKS

        run = Run.open(folder)
        self.recipe, self.outputs = predictions.contract(run)
        self.task = self.recipe.task.name
        model = predictions.load_model(run)
        activation = {"class": "softmax", "classes": "sigmoid"}.get(TASKS[self.task].labels)
        last = keras.layers.Activation(activation or "linear", dtype="float32")
        self.served = keras.Model(model.input, last(model.outputs[0]), name=model.name)
        splits = workflow.read(self.recipe)
        self.labels = np.asarray(splits.test.labels)
        self.length = None
        if TASKS[self.task].modality == "text":
            content = splits.test.content
            self.length = length or model.preprocessor.sequence_length
            self.inputs: Any = model.preprocessor(content.first, content.second)
            self.inputs = {name: array[:, : self.length] for name, array in self.inputs.items()}
            self.train = None
        else:
            batches = feeding.dataset(splits.test, self.recipe, len(self.outputs.names))
            self.inputs = np.concatenate([np.asarray(batch) for batch, *_ in batches])
            self.train = splits.train
        self.expected = self.served.predict(self.inputs, verbose=0)

    def samples(self, count: int, seed: int) -> np.ndarray:
        """Returns pictures of the training data, drawn at random."""
        from kerastune_ft.data import feeding

        assert self.train is not None
        rows = np.random.default_rng(seed).permutation(len(self.train))[:count]
        found = feeding.pictures(self.train, self.recipe, rows.tolist(), [None])
        return np.stack([views[0] for views in found])

    def write(self, name: str, quantize: Any, folder: Path, count: int, seed: int) -> Artefact:
        """Writes the model as a file of a format."""
        samples = None
        if quantize == "int8":
            pictures = self.samples(count, seed)
            samples = lambda: [pictures]  # noqa: E731
        path = folder / FORMATS[name].file
        return formats.write(
            name, self.served, path, quantize=quantize, samples=samples, length=self.length
        )

    def by_keras(self, rounds: int) -> Trial:
        """Tries the Keras model itself out."""
        artefact = Artefact("keras", Path("model.keras"), "none", 0, formats.Made())
        return formats.try_out(artefact, self.served.predict_on_batch, self.inputs, rounds)


def written(subject: Subject, options: argparse.Namespace) -> Iterator[tuple[str, Trial]]:
    """Yields every file as it was tried out, with what is special about it."""
    if not options.calibration:
        yield "", subject.by_keras(options.rounds)
    pairs = [(name, quantize) for name, row in FORMATS.items() for quantize in row.quantize]
    for name, quantize in pairs:
        for count in options.calibration or [100]:
            for seed in range(options.seeds if options.calibration else 1):
                if quantize == "int8" and subject.train is None:
                    continue
                if options.calibration and quantize != "int8":
                    continue
                with tempfile.TemporaryDirectory() as folder:
                    made = subject.write(name, quantize, Path(folder), count, seed)
                    note = f"{count} pictures, seed {seed}" if quantize == "int8" else ""
                    for remark in made.remarks:
                        print(remark, file=sys.stderr)
                    yield note, tried(made, subject.inputs, options.rounds)


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Form)
    parser.add_argument("run", help="folder of a finished run")
    parser.add_argument("--calibration", type=int, nargs="+", help="training pictures for int8")
    parser.add_argument("--seeds", type=int, default=3, help="drawings of these pictures")
    parser.add_argument("--rounds", type=int, default=50, help="of each measurement")
    parser.add_argument("--length", type=int, help="tokens of a text, for LiteRT")
    options = parser.parse_args()
    subject = Subject(options.run, options.length)
    shown = False
    for note, trial in written(subject, options):
        facts = (subject.expected, subject.task, subject.outputs, subject.labels)
        (row,) = formats.table([trial], *facts)
        cells = {"": note, **row, "p95_ms_1": trial.one.p95_ms, "p95_ms_8": trial.eight.p95_ms}
        if not shown:
            print("| " + " | ".join(cells) + " |\n|" + "---|" * len(cells))
            shown = True
        print("| " + " | ".join(map(_cell, cells.values())) + " |", flush=True)
        if trial.artefact.format != "keras":
            facts_of_file = dataclasses.asdict(trial.artefact.made)
            print(facts_of_file, file=sys.stderr)


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class _Form(argparse.RawDescriptionHelpFormatter):
    pass


if __name__ == "__main__":
    main()
