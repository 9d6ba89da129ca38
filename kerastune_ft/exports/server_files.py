"""Writes what TensorFlow Serving is started with, beside the versions of a model.

    write(Path("runs/mobilenet/export"), "mobilenet", {1: 11.0, 8: 60.0, 32: 230.0})

`models.config` names the model, `batching.config` says how a server that was started with
`--enable_batching` joins requests, `monitoring.config` opens the page that Prometheus reads, at the
REST port.

Reference:
    https://www.tensorflow.org/tfx/serving/serving_config
    tensorflow_serving/servables/tensorflow/session_bundle_config.proto: BatchingParameters
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from kerastune_ft import files

MODELS, BATCHING, MONITORING = "models.config", "batching.config", "monitoring.config"

_PAYS = 0.9
"""Requests are joined if an example of a larger batch takes less than this share of its time
alone."""

_WAIT = 0.1
"""How long a request waits for others, as a share of what it takes alone."""

_REQUEST = 1024
"""Examples of a request. A server that joins requests refuses larger ones."""

_QUEUE = 4096
"""Examples that wait. What would be more is refused at once, with UNAVAILABLE."""


def write(base: Path, name: str, latency: Mapping[int | str, float]) -> None:
    """Writes the three files.

    Args:
        base: The folder of versions, which a container finds at `/models/<name>`.
        name: Of the model.
        latency: Milliseconds of a request, by its number of examples; {} if none was measured.
    """
    files.write_text(base / MODELS, models(name))
    files.write_text(base / BATCHING, batching(latency))
    files.write_text(base / MONITORING, _MONITORING)


def models(name: str) -> str:
    """Returns the content of `models.config`."""
    return f"""model_config_list {{
  config {{
    name: {json.dumps(name)}
    base_path: {json.dumps(f"/models/{name}")}
    model_platform: "tensorflow"
    model_version_policy {{ latest {{ num_versions: 1 }} }}
  }}
}}
"""


def batching(latency: Mapping[int | str, float]) -> str:
    """Returns the content of `batching.config`.

    `max_batch_size` is that of a request, not of what is computed together: without
    `enable_large_batch_splitting` a server refuses requests with more examples than it joins
    (tensorflow/serving#1401). Tensors are never padded to a common shape, because padding repeats
    a tensor's first number, which in a padding mask is a 1.
    """
    known = {int(size): ms for size, ms in latency.items()}
    alone = known.get(1, 0.0)
    pays = [size for size, ms in known.items() if ms / size < _PAYS * alone]
    largest = max(pays, default=1)
    wait = int(1000 * _WAIT * alone) if largest > 1 else 0
    verdict = "pays here" if largest > 1 else "does not pay here: leave --enable_batching away"
    verdict = verdict if known else "was not tried: leave --enable_batching away"
    return f"""# Read with --enable_batching alone. Measured where it was exported, ms of a
# request by its examples: {known}. Joining requests {verdict}.
# A request that fails fails those that it was joined with: a picture that cannot be read, or arrays
# and tokens of another shape than the others'.
max_batch_size {{ value: {_REQUEST} }}
enable_large_batch_splitting {{ value: true }}
max_execution_batch_size {{ value: {largest} }}
batch_timeout_micros {{ value: {wait} }}
max_enqueued_batches {{ value: {_QUEUE // largest} }}
# num_batch_threads is the number of the server's processors unless it is given.
"""


_MONITORING = """prometheus_config {
  enable: true
  path: "/monitoring/prometheus/metrics"
}
"""
