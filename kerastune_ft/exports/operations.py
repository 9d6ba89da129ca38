"""Makes sure that a server can run every operation of a SavedModel.

TensorFlow Serving links TensorFlow's own operations and those of TensorFlow Text. Python is not
among them: a graph with a `PyFunc` loads in this process, and fails in every other one.

    check(folder)       # raises `ExportError` with the names of the others
"""

from __future__ import annotations

from pathlib import Path

import tensorflow as tf

from kerastune_ft.errors import ExportError

_PYTHON = frozenset({"PyFunc", "EagerPyFunc", "PyFuncStateless"})
_TEXT = "TFText>"
# Those of TensorFlow Text that have no prefix, as `vocabularies` uses them.
_UNPREFIXED = frozenset(
    {
        "FastBertNormalize", "FastWordpieceTokenizeWithOffsets", "NormalizeUTF8",
        "RegexSplitWithOffsets", "SentencepieceDetokenizeOp", "SentencepieceOp",
        "SentencepieceTokenizeOp",
    }
)  # fmt: skip


def check(folder: Path) -> None:
    """Checks the graphs of a SavedModel.

    Args:
        folder: Of a version.

    Raises:
        ExportError: If there are operations that TensorFlow Serving does not have.
    """
    strange = sorted(name for name in used(folder) if not linked(name))
    if strange:
        raise ExportError(
            f"'{folder}': TensorFlow Serving has no operation {', '.join(strange)}; this is a "
            "fault of kft, please report it."
        )


def linked(name: str) -> bool:
    """Returns whether TensorFlow Serving links an operation."""
    if name in _PYTHON:
        return False
    return name.startswith(_TEXT) or name in _UNPREFIXED or hasattr(tf.raw_ops, name)


def used(folder: Path) -> set[str]:
    """Returns the names of all operations of a SavedModel."""
    from tensorflow.core.protobuf import saved_model_pb2

    model = saved_model_pb2.SavedModel()
    model.ParseFromString((folder / "saved_model.pb").read_bytes())
    found: set[str] = set()
    for graph in model.meta_graphs:
        functions = {function.signature.name for function in graph.graph_def.library.function}
        found |= {node.op for node in graph.graph_def.node} - functions
        for function in graph.graph_def.library.function:
            found |= {node.op for node in function.node_def} - functions
    return found
