"""What the machine offers, what of it a run uses, and how to do the same thing twice.

Every batch is the batch of all devices together: on the same batches, several devices end with the
weights that one ends with. What a backend cannot do is refused before anything is built.

    found = devices.prepare("auto", replicas=2, precision="float32")
    with found.scope():
        model = ...
    batch_size, per_device = devices.shard(32, found)
    batches = devices.even_batches(batches, found.replicas * found.hosts)
"""

from __future__ import annotations

import contextlib
import importlib
import os
import platform
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, TypeAlias

from kerastune_ft import hosts as meeting
from kerastune_ft.errors import TrainingError

Kind = Literal["auto", "cpu", "gpu", "tpu"]
Precision = Literal["float32", "mixed_bfloat16", "mixed_float16"]
Tensor: TypeAlias = Any  # neither TensorFlow nor Keras ships types

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


# Where a TPU's address is found: Cloud TPU, Colab, Kubernetes.
_TPU_VARIABLES = ("TPU_NAME", "COLAB_TPU_ADDR", "KUBE_GOOGLE_CLOUD_TPU_ENDPOINTS")
_TPU_SECONDS = 5


@dataclass(frozen=True)
class Devices:
    """What a run trains on.

    Args:
        kind: `cpu`, `gpu` or `tpu`.
        replicas: Devices of this host that each take a part of every batch.
        hosts: Processes that train together.
        rank: This one's number, 0 for the one that writes the run.
        precision: Keras's name of the dtype policy.
        names: Of this host's devices, such as `GPU:0`.
        note: What the user should know, or an empty string.
        strategy: TensorFlow's strategy or Keras's distribution; None for a single device.
    """

    kind: str
    replicas: int = 1
    hosts: int = 1
    rank: int = 0
    precision: str = "float32"
    names: tuple[str, ...] = ()
    note: str = ""
    strategy: Any = field(default=None, repr=False, compare=False)

    @property
    def parts(self) -> int:
        """How many devices share a batch, over all hosts."""
        return self.replicas * self.hosts

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """Returns the context in which models are built, compiled and trained."""
        if self.strategy is None:
            return contextlib.nullcontext()
        scope: contextlib.AbstractContextManager[Any] = self.strategy.scope()
        return scope

    def describe(self) -> str:
        """Returns one line, such as `2 CPU replicas (MirroredStrategy), float32`."""
        what = f"1 {self.kind.upper()}"
        if self.replicas > 1:
            what = f"{self.replicas} {self.kind.upper()} replicas"
        if self.hosts > 1:
            what = f"host {self.rank} of {self.hosts}, {what} each"
        if self.strategy is not None:
            what += f" ({type(self.strategy).__name__})"
        return f"{what}, {self.precision}" + (f"; {self.note}" if self.note else "")


def prepare(
    device: Kind = "auto",
    replicas: int | None = None,
    precision: Precision = "float32",
    hosts: int | None = None,
    accumulate_steps: int = 1,
    join: bool = True,
) -> Devices:
    """Chooses the devices of a run and sets the precision. Once, before anything is built.

    Args:
        device: `auto` takes every GPU there is, else the CPU.
        replicas: Devices to train on, on this host. None takes every one of an accelerator, and
            one CPU. Several CPU replicas share the processors: they try the way without GPUs.
        precision: Keras's dtype policy.
        hosts: Processes that train one model together, JAX only; see `hosts.find`.
        accumulate_steps: As the recipe says, to refuse what does not go together.
        join: Whether to meet the other hosts now; a mere plan does not.

    Raises:
        TrainingError: If the devices are not there, are in use already, or the backend cannot.
    """
    import keras

    backend = keras.backend.backend()
    hosts = 1 if hosts is None else hosts
    assert hosts >= 1 and (replicas is None or replicas >= 1) and accumulate_steps >= 1
    _refuse(backend, replicas, hosts)
    if backend == "tensorflow":
        kind, names, strategy = _prepare_tensorflow(device, replicas, accumulate_steps)
        place = None
    elif backend == "jax":
        place = meeting.find(hosts) if hosts > 1 and join else None
        kind, names, strategy = _prepare_jax(device, replicas, place)
    else:
        kind, names, strategy = _prepare_torch(device)
        place = None
    keras.config.set_dtype_policy(precision)
    return Devices(
        kind=kind,
        replicas=len(names),
        hosts=hosts,
        rank=place.rank if place else 0,
        precision=precision,
        names=tuple(names),
        note=_note(kind, len(names), precision),
        strategy=strategy,
    )


def shard(batch_size: int, devices: Devices) -> tuple[int, int]:
    """Returns a batch's size over all devices of all hosts, and that of each device.

    Raises:
        TrainingError: If it does not divide.
    """
    parts = devices.replicas * devices.hosts
    if batch_size % parts:
        below = batch_size // parts * parts
        sizes = f"{below} or {below + parts}" if below else f"{parts}"
        over = f"{devices.replicas} replicas"
        if devices.hosts > 1:
            over = f"{devices.hosts} hosts of {devices.replicas} replicas"
        raise TrainingError(
            f"data.batch_size: {batch_size} does not divide over {over}; set {sizes}."
        )
    return batch_size, batch_size // parts


def even_batches(dataset: Any, replicas: int, *, scaled: bool = True) -> Any:
    """Fills up batches that do not divide, such that the mean over replicas stays the mean.

    Of a batch of `n` examples that is filled up to `n_p` by repeating some, the added ones weigh 0
    and the others `n_p / n`. The loss and its gradient are then those of the `n` alone, provided
    that no statistic of the batch is trained on (BatchNormalization frozen). Metrics must be
    compiled as `weighted_metrics`: others would count the added examples.

    Args:
        dataset: Of batches `(x, y)` or `(x, y, weights)`, the weights `(batch,)`.
        replicas: Over all hosts.
        scaled: Whether the real examples of a filled batch weigh `n_p / n`, as training needs it,
            or 1, as figures over all batches do.

    Returns:
        Batches `(x, y, weights)`, weights `float32 (batch,)`, 1 where a batch divides.
    """
    import tensorflow as tf

    def even(x: Tensor, y: Tensor, weights: Tensor = None) -> tuple[Tensor, Tensor, Tensor]:
        n = tf.shape(tf.nest.flatten(y)[0])[0]
        even_n = (n + replicas - 1) // replicas * replicas
        if weights is None:
            weights = tf.ones([n])
        rows = tf.range(even_n)
        scale = tf.cast(even_n, tf.float32) / tf.cast(n, tf.float32) if scaled else 1.0

        def filled(part: Tensor) -> Tensor:
            full = tf.cond(
                tf.equal(even_n, n), lambda: part, lambda: tf.gather(part, rows % n, axis=0)
            )
            return tf.ensure_shape(full, (None, *part.shape[1:]))

        weights = tf.where(rows < n, filled(tf.cast(weights, tf.float32)) * scale, 0.0)
        x, y = tf.nest.map_structure(filled, (x, y))
        return x, y, weights

    return dataset.map(even, num_parallel_calls=1, deterministic=True).prefetch(1)


def local_rows(dataset: Any, hosts: int, rank: int) -> Any:
    """Keeps one host's rows of every batch: the `rank`-th of `hosts` runs of neighbours.

    Args:
        dataset: Of batches that divide by `hosts`, of any structure.
        hosts: How many there are.
        rank: Which one this is.
    """
    import tensorflow as tf

    def rows(part: Tensor) -> Tensor:
        each = tf.shape(part)[0] // hosts
        return part[rank * each : (rank + 1) * each]

    def local(*batch: Tensor) -> Tensor:
        kept = tf.nest.map_structure(rows, batch)
        return kept if len(batch) > 1 else kept[0]

    return dataset.map(local, num_parallel_calls=1, deterministic=True).prefetch(1)


def distribute(dataset: Any, devices: Devices, *, training: bool) -> Any:
    """Returns what this host gives to `fit` of batches that all devices share.

    Args:
        dataset: Of the batches of all hosts together.
        devices: Which share them; a single one takes them as they are.
        training: Whether gradients are taken, or figures over all batches.
    """
    if devices.parts > 1:
        dataset = even_batches(dataset, devices.parts, scaled=training)
    return local_rows(dataset, devices.hosts, devices.rank) if devices.hosts > 1 else dataset


def finish() -> None:
    """Waits until every host is done. Call it last: who ends without it counts as lost."""
    meeting.finish()


def alone() -> None:
    """Lets this host go on without the others: what is built from here on is on its devices."""
    import keras

    keras.distribution.set_distribution(None)


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


def _refuse(backend: str, replicas: int | None, hosts: int) -> None:
    if backend == "tensorflow" and hosts > 1:
        raise TrainingError(
            f"train.hosts: {hosts}: TensorFlow's multi-worker strategy does not work under Keras 3 "
            "(fit ends with 'PerReplica ... unsupported type'); set KERAS_BACKEND=jax, or "
            "train.hosts=null."
        )
    if backend not in ("tensorflow", "jax") and (hosts > 1 or (replicas or 1) > 1):
        key, value = ("hosts", hosts) if hosts > 1 else ("replicas", replicas)
        raise TrainingError(
            f"train.{key}: {value}: Keras distributes nothing on the {backend} backend; set "
            f"KERAS_BACKEND=tensorflow or jax, or train.{key}=null."
        )


def _note(kind: str, replicas: int, precision: str) -> str:
    notes = []
    if kind == "cpu" and precision != "float32":
        notes.append(f"{precision} saves memory and is slower on most CPUs")
    if kind == "cpu" and replicas > 1:
        notes.append("CPU replicas share the processors and are no faster than one")
    return "; ".join(notes)


def _absent(device: str, backend: str, what: str) -> TrainingError:
    return TrainingError(
        f"train.device: {device}: {backend} {what}; set train.device=cpu, or run 'kft doctor' to "
        "see what is found."
    )


def _too_many(replicas: int, there: int, kind: str) -> TrainingError:
    return TrainingError(
        f"train.replicas: {replicas}, but this host has {there} {kind.upper()}"
        f"{'s' if there != 1 else ''}; set train.replicas={there}, or train.device=cpu to try "
        "replicas without them."
    )


def _in_use(key: str) -> TrainingError:
    return TrainingError(
        f"{key}: cannot be changed any more, because the devices of this process are in use; "
        "choose before anything is built, in a fresh process."
    )


def _prepare_tensorflow(
    device: str, replicas: int | None, accumulate_steps: int
) -> tuple[str, list[str], Any]:
    import tensorflow as tf

    if device == "tpu":
        return _prepare_tensorflow_tpu(replicas, accumulate_steps)
    gpus = [] if device == "cpu" else tf.config.list_physical_devices("GPU")
    if device == "gpu" and not gpus:
        raise _absent(device, "TensorFlow", "sees no GPU; install kerastune-ft[gpu] and a driver")
    kind = "gpu" if gpus else "cpu"
    count = replicas or len(gpus) or 1
    _refuse_accumulation(accumulate_steps, count)
    if gpus and count > len(gpus):
        raise _too_many(count, len(gpus), kind)
    try:
        tf.config.set_visible_devices(gpus[:count], "GPU")
    except RuntimeError as error:
        if tf.config.get_visible_devices("GPU") != gpus[:count]:
            raise _in_use("train.device") from error
    if kind == "cpu":
        _split_tensorflow_cpu(count)
    names = [f"{kind.upper()}:{number}" for number in range(count)]
    if count == 1:
        return kind, names, None
    return kind, names, tf.distribute.MirroredStrategy(names)


def _split_tensorflow_cpu(count: int) -> None:
    """Makes logical CPUs. A process that is in use keeps those that it has."""
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    present = tf.config.get_logical_device_configuration(cpu)
    if count == 1 or (present is not None and len(present) == count):
        return
    try:
        one = tf.config.LogicalDeviceConfiguration()
        tf.config.set_logical_device_configuration(cpu, [one] * count)
    except RuntimeError as error:
        raise _in_use("train.replicas") from error


def _refuse_accumulation(accumulate_steps: int, replicas: int) -> None:
    if accumulate_steps > 1 and replicas > 1:
        raise TrainingError(
            f"train.accumulate_steps: {accumulate_steps} with {replicas} replicas: Keras's "
            "gradient accumulation fails under TensorFlow's strategies (RuntimeError about "
            "merge_call); set train.accumulate_steps=1, or train.replicas=1, or "
            "KERAS_BACKEND=jax."
        )


def _prepare_tensorflow_tpu(
    replicas: int | None, accumulate_steps: int
) -> tuple[str, list[str], Any]:
    import tensorflow as tf

    address = tpu_address(os.environ)
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(address)
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except (ValueError, RuntimeError, tf.errors.OpError) as error:
        reason = str(error).splitlines()[0]
        raise _absent("tpu", "TensorFlow", f"cannot use the TPU '{address}' ({reason})") from error
    strategy = tf.distribute.TPUStrategy(resolver)
    count = strategy.num_replicas_in_sync
    if replicas not in (None, count):
        raise TrainingError(
            f"train.replicas: {replicas}, but the TPU has {count} cores and TensorFlow uses all; "
            f"set train.replicas={count} or null."
        )
    _refuse_accumulation(accumulate_steps, count)
    return "tpu", [f"TPU:{number}" for number in range(count)], strategy


def tpu_address(environ: Mapping[str, str]) -> str:
    """Returns where TensorFlow finds the TPU, after seeing within seconds that something is there.

    TensorFlow itself would try for minutes.

    Raises:
        TrainingError: If no variable names one, or what is named does not answer.
    """
    given = next((name for name in _TPU_VARIABLES if environ.get(name)), None)
    if given is None:
        if any(Path("/dev").glob("accel[0-9]*")):
            return "local"
        raise _absent(
            "tpu", "TensorFlow", f"finds no TPU: no /dev/accel0 and none of {_listed()} is set"
        )
    address = environ[given].split(",")[0]
    if address == "local":
        if not any(Path("/dev").glob("accel[0-9]*")):
            raise _absent("tpu", "TensorFlow", f"finds no TPU: {given}=local and no /dev/accel0")
        return address
    host, colon, port = address.removeprefix("grpc://").rpartition(":")
    if colon and port.isdecimal():
        target, asked = (host, int(port)), address
    else:  # the name of a Cloud TPU, which only Google's metadata server can look up
        target, asked = ("metadata.google.internal", 80), "the metadata server of Google Cloud"
    if not _answers(target):
        raise _absent(
            "tpu",
            "TensorFlow",
            f"cannot reach the TPU that {given}={environ[given]} names: {asked} does not answer",
        )
    if colon and port.isdecimal() and "://" not in address:
        return f"grpc://{address}"
    return address


def _listed() -> str:
    return f"{', '.join(_TPU_VARIABLES[:-1])} and {_TPU_VARIABLES[-1]}"


def _answers(target: tuple[str, int]) -> bool:
    """Whether a connection opens in time; looking up a name has no time limit of its own."""
    answered = []

    def connect() -> None:
        with contextlib.suppress(OSError), socket.create_connection(target, timeout=_TPU_SECONDS):
            answered.append(True)

    attempt = threading.Thread(target=connect, daemon=True)
    attempt.start()
    attempt.join(_TPU_SECONDS)
    return bool(answered)


def _prepare_jax(
    device: str, replicas: int | None, place: meeting.Place | None
) -> tuple[str, list[str], Any]:
    import keras

    jax: Any = importlib.import_module("jax")  # half of it is typed

    _hide_gpus_from_tensorflow()
    try:
        if device == "cpu":
            jax.config.update("jax_platforms", "cpu")
        if device in ("auto", "cpu") and (replicas or 1) > 1:
            _split_jax_cpu(jax, replicas or 1)
        if place is not None:
            meeting.join(place)
        kind = device if device != "auto" else jax.default_backend()
        every = jax.devices(kind)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise _absent(device, "JAX", f"finds none ({reason})") from error
    local = [found for found in every if found.process_index == jax.process_index()]
    count = replicas or (1 if kind == "cpu" else len(local))
    if count > len(local):
        if kind == "cpu":  # JAX was in use with fewer
            raise _in_use("train.replicas")
        raise _too_many(count, len(local), kind)
    names = [f"{kind.upper()}:{found.id}" for found in local[:count]]
    if count == 1 and place is None:
        keras.distribution.set_distribution(None)
        if device != "auto":
            jax.config.update("jax_default_device", local[0])
        return kind, names, None
    by_host: dict[int, list[str]] = {}
    for found in every:
        by_host.setdefault(found.process_index, []).append(f"{found.platform}:{found.id}")
    chosen = [name for _, own in sorted(by_host.items()) for name in own[:count]]
    if place is not None and len(chosen) != count * place.hosts:
        raise TrainingError(
            f"train.replicas: {count} on each of {place.hosts} hosts, but they have "
            f"{', '.join(str(len(own)) for _, own in sorted(by_host.items()))} devices; set "
            f"train.replicas={min(map(len, by_host.values()))}."
        )
    # What comes from the data set is this host's part already: see `local_rows`.
    distribution = keras.distribution.DataParallel(devices=chosen, auto_shard_dataset=False)
    keras.distribution.set_distribution(distribution)
    return kind, names, distribution


def _split_jax_cpu(jax: Any, count: int) -> None:
    flag = "--xla_force_host_platform_device_count"
    if flag not in os.environ.get("XLA_FLAGS", ""):
        # In use already: what there is is counted by the caller.
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", count)


def _hide_gpus_from_tensorflow() -> None:
    """Keeps TensorFlow, which only reads the data, from taking the memory that JAX needs."""
    import tensorflow as tf

    with contextlib.suppress(RuntimeError):  # in use already
        tf.config.set_visible_devices([], "GPU")


def _prepare_torch(device: str) -> tuple[str, list[str], Any]:
    import torch

    there = torch.cuda.is_available()
    if device == "tpu" or (device == "gpu" and not there):
        raise _absent(device, "PyTorch", f"sees no {device.upper()}")
    kind = "gpu" if there and device != "cpu" else "cpu"
    return kind, [f"{kind.upper()}:0"], None
