"""Writes requests that TensorFlow Serving sends itself before a version is ready.

    write(folder / "assets.extra", "mobilenet", {"image_bytes": tf.constant([data])})

The file is a TFRecord of `PredictionLog`. Its few fields are written here by hand, so that an
export does not need TensorFlow Serving's package.

Reference:
    https://www.tensorflow.org/tfx/serving/saved_model_warmup
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

NAME = "tf_serving_warmup_requests"

# Numbers of fields in tensorflow_serving/apis: prediction_log, predict, model.
_PREDICT_LOG = 6
_REQUEST = 1
_MODEL_SPEC, _INPUTS = 1, 2
_MODEL_NAME, _SIGNATURE = 1, 3
_KEY, _VALUE = 1, 2


def write(folder: Path, name: str, requests: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Writes the requests of a version.

    Args:
        folder: `assets.extra` of the version.
        name: Of the model.
        requests: Signature and inputs of each, batched.
    """
    with tf.io.TFRecordWriter(str(folder / NAME)) as writer:
        for signature, inputs in requests:
            writer.write(_log(name, signature, inputs))


def _log(name: str, signature: str, inputs: Mapping[str, Any]) -> bytes:
    spec = _field(_MODEL_NAME, name.encode()) + _field(_SIGNATURE, signature.encode())
    request = _field(_MODEL_SPEC, spec)
    for key, value in inputs.items():
        tensor = tf.make_tensor_proto(value).SerializeToString()
        request += _field(_INPUTS, _field(_KEY, key.encode()) + _field(_VALUE, tensor))
    return _field(_PREDICT_LOG, _field(_REQUEST, request))


def _field(number: int, content: bytes) -> bytes:
    """Returns a field of bytes, text or a message, as protocol buffers write it."""
    return _whole(number << 3 | 2) + _whole(len(content)) + content


def _whole(number: int) -> bytes:
    made = bytearray()
    while number > 0x7F:
        made.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*made, number])
