"""What the machine offers, and how to make it do the same thing twice."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = (
    "tensorflow",
    "keras",
    "keras-hub",
    "keras-nlp",
    "tensorflow-datasets",
    "numpy",
    "pandas",
    "scikit-learn",
    "pillow",
    "jax",
)


@contextlib.contextmanager
def quiet_start() -> Iterator[None]:
    """Keeps from the user what TensorFlow's C++ prints to stderr while it is imported.

    The lines come before any setting can silence them, some when TensorFlow first looks for a
    GPU: it is made to look here. If the import fails they are shown.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    saved = os.dup(2)
    with tempfile.TemporaryFile() as caught:
        os.dup2(caught.fileno(), 2)
        try:
            yield
            if "tensorflow" in sys.modules:
                sys.modules["tensorflow"].config.list_physical_devices()
        except BaseException:
            caught.seek(0)
            os.write(saved, caught.read())
            raise
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def set_seed(seed: int, deterministic: bool = True) -> None:
    """Seeds Python, NumPy and the backend, and asks for operations that repeat exactly.

    Args:
        seed: 0 or more.
        deterministic: On TensorFlow, refuse operations whose result depends on timing. It costs
            nothing measurable on a CPU.
    """
    import keras

    keras.utils.set_random_seed(seed)
    if deterministic and keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()


def versions() -> dict[str, str | None]:
    """Returns the versions of Python, of this package and of what it stands on."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in ("kerastune-ft", *_PACKAGES):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def environment() -> dict[str, Any]:
    """Returns what a run's `environment.json` records: versions, machine, backend, devices."""
    import keras

    return {
        "versions": versions(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "memory_gib": _memory_gib(),
        "backend": keras.backend.backend(),
        "devices": devices(),
        "precision": keras.config.dtype_policy().name,
    }


def devices() -> list[str]:
    """Returns the names of the devices that the Keras backend sees, such as `GPU:0`."""
    import keras

    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        found = tf.config.list_logical_devices()
        return [f"{device.device_type}:{device.name.rpartition(':')[2]}" for device in found]
    return [str(device) for device in keras.distribution.list_devices()]


def _memory_gib() -> float | None:
    info = Path("/proc/meminfo")
    if not info.exists():
        return None
    for line in info.read_text().splitlines():
        if line.startswith("MemTotal:"):
            return round(int(line.split()[1]) / 2**20, 1)
    return None
