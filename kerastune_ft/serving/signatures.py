"""Loads one version of a SavedModel: its signatures, what it says of itself, its warm-up.

A SavedModel is a program; what is loaded here is trusted. One that fails its own warm-up requests
(`assets.extra/tf_serving_warmup_requests`) is not served, as TensorFlow Serving has it.

    model = load(Path("export/3"))
    model.signatures["serving_default"].run({"text": array})    # {"label": ..., ...}
"""

from __future__ import annotations

import importlib
import itertools
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kerastune_ft.errors import ServingError
from kerastune_ft.serving import examples, messages, refusals
from kerastune_ft.serving.refusals import RefusedError
from kerastune_ft.serving.tensors import Arrays, Tensor

DEFAULT = "serving_default"
"""The signature of requests that name none."""

GRAPH = "saved_model.pb"
FACTS = Path("assets.extra", "kft.json")
WARM_UP = Path("assets.extra", "tf_serving_warmup_requests")

_TAG = "serve"
_MOST_WARM_UP_REQUESTS = 1000
_LARGEST_WARM_UP_BYTES = 2**30


@dataclass(frozen=True, eq=False)
class Signature:
    """One thing that a model can be asked; the same one alone is equal.

    Args:
        name: As clients call it.
        method: `tensorflow/serving/predict`, `.../classify` or `.../regress`.
        inputs: By name, in alphabetical order.
        outputs: Likewise.
        run: Takes an array for each input and returns one for each output; strings are `bytes` in
            arrays of objects. May be called by several threads at once.
    """

    name: str
    method: str
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    run: Callable[[Mapping[str, Any]], Arrays]


@dataclass(frozen=True)
class Model:
    """A SavedModel in memory.

    Args:
        signatures: By name.
        definitions: `SignatureDef` protobufs by name, as the file has them.
        facts: What `kft.json` says; empty if there is none.
    """

    signatures: Mapping[str, Signature]
    definitions: Mapping[str, Any]
    facts: Mapping[str, Any]

    def signature(self, name: str) -> Signature:
        """Returns a signature; an empty name means the default one.

        Raises:
            RefusedError: If there is none of that name.
        """
        found = self.signatures.get(name or DEFAULT)
        if found is None:
            known = ", ".join(sorted(self.signatures)) or "none"
            raise RefusedError(
                "FAILED_PRECONDITION",
                f'Serving signature name: "{(name or DEFAULT)[:60]}" not found in signature def; '
                f"there are: {known}.",
            )
        return found


def require(package: str, purpose: str) -> Any:
    """Imports an optional package.

    Raises:
        ServingError: If it is not installed.
    """
    try:
        with warnings.catch_warnings():
            # Protobuf warns of generated code that is one version older than itself.
            warnings.filterwarnings("ignore", message="Protobuf gencode version")
            return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise ServingError(
            f"{purpose} needs the package '{error.name}'; run "
            "'pip install \"kerastune_ft[serve]\"'."
        ) from error


def load(path: Path) -> Model:
    """Loads a version and runs its warm-up requests.

    Args:
        path: The folder with `saved_model.pb`.

    Raises:
        ServingError: If it is no SavedModel, or fails its warm-up.
        Exception: Whatever TensorFlow raises while it loads.
    """
    import tensorflow as tf

    definitions = _definitions(path)
    restored = _restored(path)
    signatures = {
        name: _signature(name, definitions[name], function, restored)
        for name, function in restored.signatures.items()
        if name in definitions
    }
    if not signatures:
        raise ServingError(f"'{path}' has no signatures; export it again with 'kft export'.")
    model = Model(signatures, definitions, _facts(path / FACTS))
    if (path / WARM_UP).is_file():
        _warm_up(model, path / WARM_UP, tf)
    return model


def _definitions(path: Path) -> dict[str, Any]:
    """Reads the signatures' definitions, which a loaded model keeps in part alone."""
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import saved_model_pb2

    try:
        content = (path / GRAPH).read_bytes()
    except OSError as error:
        raise ServingError(f"'{path}' has no readable '{GRAPH}': {error.strerror}.") from error
    try:
        graphs = saved_model_pb2.SavedModel.FromString(content).meta_graphs
    except DecodeError as error:
        raise ServingError(f"'{path / GRAPH}' is damaged; export the model again.") from error
    for graph in graphs:
        if _TAG in graph.meta_info_def.tags:
            return dict(graph.signature_def)
    raise ServingError(f"'{path / GRAPH}' holds no graph for serving; export the model again.")


def _restored(path: Path) -> Any:
    """Loads the SavedModel; operations of TensorFlow Text are known once it is imported."""
    import tensorflow as tf

    try:
        return tf.saved_model.load(str(path), tags=[_TAG])
    except Exception as error:
        if "Op type not registered" not in str(error):
            raise
        try:
            importlib.import_module("tensorflow_text")
        except ModuleNotFoundError:
            raise ServingError(
                f"'{path}' uses operations that TensorFlow lacks, probably those of TensorFlow "
                "Text; run 'pip install tensorflow-text'."
            ) from error
        return tf.saved_model.load(str(path), tags=[_TAG])


def _signature(name: str, definition: Any, function: Any, keeper: Any) -> Signature:
    import tensorflow as tf

    inputs, outputs = _tensors(definition.inputs), _tensors(definition.outputs)

    def run(arrays: Mapping[str, Any]) -> Arrays:
        # The function knows its variables weakly: `keeper`, the whole model, keeps them.
        assert keeper is not None
        given = {key: tf.constant(array, inputs[key].kind) for key, array in arrays.items()}
        found = messages.as_arrays(function(**given))
        return {key: found[key] for key in outputs}

    return Signature(name, definition.method_name, inputs, outputs, run)


def _tensors(infos: Mapping[str, Any]) -> dict[str, Tensor]:
    import tensorflow as tf

    found = {}
    for name in sorted(infos):
        kind = tf.as_dtype(infos[name].dtype)
        shape = infos[name].tensor_shape
        sizes = tuple(None if dim.size < 0 else int(dim.size) for dim in shape.dim)
        dtype = np.dtype(object) if kind == tf.string else np.dtype(kind.as_numpy_dtype)
        found[name] = Tensor(name, kind.name, dtype, None if shape.unknown_rank else sizes)
    return found


def _facts(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ServingError(f"'{path}' is damaged: {error}; export the model again.") from error
    if not isinstance(content, dict):
        raise ServingError(f"'{path}' is damaged: no object; export the model again.")
    return content


def _warm_up(model: Model, path: Path, tf: Any) -> None:
    """Answers the requests that the model brings along, so that no client waits for tracing."""
    logs = require("tensorflow_serving.apis.prediction_log_pb2", "warming up")
    records = tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
    try:
        for record in itertools.islice(records, _MOST_WARM_UP_REQUESTS):
            _replay(model, logs.PredictionLog.FromString(record))
    except Exception as error:
        said = refusals.plain(str(getattr(error, "message", error)))
        raise ServingError(f"its own warm-up requests fail, '{path}': {said}") from error


def _replay(model: Model, log: Any) -> None:
    kind = log.WhichOneof("log_type")
    if kind == "predict_log":
        request = log.predict_log.request
        signature = model.signature(request.model_spec.signature_name)
        arrays = messages.request_arrays(request.inputs, signature.inputs, _LARGEST_WARM_UP_BYTES)
        signature.run(arrays)
    elif kind in ("classify_log", "regress_log"):
        request = getattr(log, kind).request
        signature = model.signature(request.model_spec.signature_name)
        name = examples.check(kind.removesuffix("_log"), signature.method, signature.inputs)
        signature.run({name: messages.strings(messages.serialized(request.input))})
    # Logs of other kinds warm up what only TensorFlow Serving offers.
