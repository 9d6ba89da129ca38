"""Writes what TensorFlow Serving is started with, beside the versions of a model.

    write(Path("runs/mobilenet/export"), "mobilenet", {1: 11.0, 8: 60.0, 32: 230.0})

`models.config` names the model, `batching.config` joins requests where that was measured to pay,
`monitoring.config` opens the page that Prometheus reads.

Reference:
    https://www.tensorflow.org/tfx/serving/serving_config
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from kerastune_ft import files

MODELS, BATCHING, MONITORING = "models.config", "batching.config", "monitoring.config"

_PAYS = 0.9
"""Requests are joined if an example of a larger batch takes less than this share of its time
alone."""

_WAIT = 0.1
"""How long a request waits for others, as a share of what it takes alone."""


def write(base: Path, name: str, latency: Mapping[int | str, float]) -> None:
    """Writes the three files.

    Args:
        base: The folder of versions, which a container finds at `/models/<name>`.
        name: Of the model.
        latency: Milliseconds of a request, by its number of examples.
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
    """Returns the content of `batching.config`."""
    known = {int(size): ms for size, ms in latency.items()}
    alone = known[1]
    pays = [size for size, ms in known.items() if ms / size < _PAYS * alone]
    largest = max(pays, default=1)
    wait = int(1000 * _WAIT * alone) if largest > 1 else 0
    return f"""# Measured where it was exported, ms of a request by its examples: {known}.
max_batch_size {{ value: {largest} }}
batch_timeout_micros {{ value: {wait} }}
max_enqueued_batches {{ value: 100 }}
num_batch_threads {{ value: {os.cpu_count() or 1} }}
"""


_MONITORING = """prometheus_config {
  enable: true
  path: "/monitoring/prometheus/metrics"
}
"""
