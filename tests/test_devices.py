"""One device, several, and several hosts: the same weights, and clear ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from kerastune_ft import devices, hosts
from kerastune_ft.errors import TrainingError

SCRIPT = Path(__file__).with_name("hosts_script.py")
LAUNCHED = {name for pair in hosts.LAUNCHERS.values() for name in pair if name}
LAUNCHED |= {"KFT_COORDINATOR", "XLA_FLAGS", "TPU_NAME", "COLAB_TPU_ADDR"}


def environment(backend, **more):
    kept = {name: value for name, value in os.environ.items() if name not in LAUNCHED}
    return kept | {
        "KERAS_BACKEND": backend,
        "PYTHONPATH": str(SCRIPT.parents[1]),
        "JAX_PLATFORMS": "cpu",
        "CUDA_VISIBLE_DEVICES": "-1",
        **{name: str(value) for name, value in more.items()},
    }


def train(out, backend, asked, **settings):
    """Runs the script to its end and returns the weights and what it printed."""
    command = [sys.executable, str(SCRIPT), str(out)]
    done = subprocess.run(
        [*command, json.dumps({"device": "cpu"} | asked), json.dumps({"epochs": 3} | settings)],
        env=environment(backend),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return weights(out), done.stdout


def python(code, backend="tensorflow", **variables):
    """Runs code in a fresh process; the line `import devices` is in it already."""
    head = "from kerastune_ft import devices, hosts\nfrom kerastune_ft.errors import KftError\n"
    body = "".join(f"    {line}\n" for line in code.strip().splitlines())
    return subprocess.run(
        [
            sys.executable,
            "-c",
            f"{head}try:\n{body}except KftError as e:\n    print(type(e).__name__, e)",
        ],
        env=environment(backend, TF_CPP_MIN_LOG_LEVEL=3, **variables),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout


def weights(path):
    with np.load(path) as stored:
        return [stored[name] for name in stored.files]


def difference(some, others):
    assert len(some) == len(others) > 4
    return max(float(np.abs(a - b).max()) for a, b in zip(some, others, strict=True))


def free_port():
    """A port that is free and whose next one is, below those that outgoing connections get."""
    for port in range(21000 + os.getpid() % 5000, 32000, 2):
        with socket.socket() as one, socket.socket() as two:
            try:
                one.bind(("", port))
                two.bind(("", port + 1))
            except OSError:
                continue
            return port
    raise AssertionError("no free port")


class Pair:
    """Two hosts of one run, on this machine."""

    def __init__(self, folder, port=None, **settings):
        self.folder = folder
        coordinator = f"127.0.0.1:{port or free_port()}"
        self.processes = []
        for rank in range(2):
            command = [sys.executable, str(SCRIPT), str(folder / f"{rank}.npz")]
            command += [json.dumps({"device": "cpu", "hosts": 2}), json.dumps(settings)]
            with (folder / f"{rank}.txt").open("w") as out:
                process = subprocess.Popen(
                    command,
                    env=environment("jax", KFT_HOST_RANK=rank, KFT_COORDINATOR=coordinator),
                    stdout=out,
                    stderr=out,
                )
            self.processes.append(process)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.wait()

    def said(self, rank):
        return (self.folder / f"{rank}.txt").read_text()

    def until(self, word, seconds=180):
        end = time.monotonic() + seconds
        while not all(word in self.said(rank) for rank in range(2)):
            codes = [process.poll() for process in self.processes]
            assert codes == [None, None], f"{codes}\n{self.said(0)}\n{self.said(1)}"
            assert time.monotonic() < end, f"{self.said(0)}\n{self.said(1)}"
            time.sleep(0.1)

    def waits_for(self, rank, seconds):
        """Returns the exit status and how long it took, in seconds."""
        start = time.monotonic()
        code = self.processes[rank].wait(seconds)
        spent = time.monotonic() - start
        time.sleep(0.7)  # the watchdog may outlive the training by a moment
        return code, spent


# One host, several replicas


@pytest.mark.slow
@pytest.mark.parametrize("class_weights", [False, True])
def test_two_mirrored_replicas_end_with_the_weights_of_one_device(tmp_path, class_weights):
    one, _ = train(tmp_path / "1.npz", "tensorflow", {}, class_weights=class_weights)
    two, said = train(
        tmp_path / "2.npz", "tensorflow", {"replicas": 2}, class_weights=class_weights
    )
    assert "2 CPU replicas (MirroredStrategy), float32" in said
    assert difference(one, two) < 1e-5
    longer, _ = train(
        tmp_path / "3.npz", "tensorflow", {}, class_weights=class_weights, examples=22
    )
    assert difference(one, longer) > 1e-3  # so close is not close by itself


@pytest.mark.slow
def test_two_jax_replicas_end_with_the_weights_of_one_device_and_may_accumulate(tmp_path):
    settings = {"optimizer": {"gradient_accumulation_steps": 3}}
    asked = {"accumulate_steps": 3}
    one, _ = train(tmp_path / "1.npz", "jax", asked, **settings)
    two, said = train(tmp_path / "2.npz", "jax", {"replicas": 2} | asked, **settings)
    assert "2 CPU replicas (DataParallel), float32" in said
    assert difference(one, two) < 1e-5


@pytest.mark.slow
def test_replicas_of_logical_cpus_are_used_where_they_exist_and_refused_in_a_used_process():
    code = """
import tensorflow as tf
first = devices.prepare("cpu", replicas=2)
tf.zeros(1) + 1
print(devices.prepare("cpu", replicas=2).names, first.replicas)
devices.prepare("cpu", replicas=3)"""
    said = python(code)
    assert "('CPU:0', 'CPU:1') 2" in said
    assert "TrainingError train.replicas: cannot be changed any more" in said
    assert "in use" in said


@pytest.mark.slow
def test_jax_replicas_are_refused_in_a_used_process():
    code = """
import jax
jax.numpy.zeros(1)
devices.prepare("cpu", replicas=2)"""
    assert "TrainingError train.replicas: cannot be changed any more" in python(code, "jax")


def test_what_a_backend_cannot_do_is_refused_with_the_way_round():
    code = """
def refused(**asked):
    try:
        print("ACCEPTED", devices.prepare(**asked))
    except KftError as error:
        print(error)
refused(device="cpu", hosts=2)
refused(device="cpu", replicas=2, accumulate_steps=4)
refused(device="gpu")"""
    hosts_line, accumulate_line, gpu_line = python(code).splitlines()
    assert "does not work under Keras 3" in hosts_line and "KERAS_BACKEND=jax" in hosts_line
    assert "merge_call" in accumulate_line and "train.accumulate_steps=1" in accumulate_line
    assert "TensorFlow sees no GPU" in gpu_line and "train.device=cpu" in gpu_line


def test_a_gpu_that_jax_does_not_see_is_named():
    said = python("devices.prepare('gpu')", "jax", JAX_PLATFORMS="")
    assert "TrainingError train.device: gpu: JAX finds none" in said


def test_torch_distributes_nothing():
    with pytest.raises(TrainingError, match=r"train.replicas: 2: .* on the torch backend; set"):
        devices._refuse("torch", 2, 1)
    with pytest.raises(TrainingError, match=r"train.hosts: 2: .*KERAS_BACKEND=tensorflow or jax"):
        devices._refuse("torch", None, 2)
    devices._refuse("torch", 1, 1)


def test_precision_is_set_and_a_cpu_gets_a_note():
    code = """
import keras
found = devices.prepare("auto", precision="mixed_bfloat16")
print(found.describe())
layer = keras.layers.Dense(1); print(layer(keras.ops.ones((1, 2))).dtype)"""
    said = python(code)
    assert "1 CPU, mixed_bfloat16; mixed_bfloat16 saves memory and is slower" in said
    assert "bfloat16" in said.splitlines()[-1]


# TPU


def test_a_tpu_that_nothing_names_is_missed_at_once():
    start = time.monotonic()
    with pytest.raises(TrainingError, match=r"no /dev/accel0 and none of TPU_NAME, COLAB_TPU_ADDR"):
        devices.tpu_address({})
    with pytest.raises(TrainingError, match="TPU_NAME=local and no /dev/accel0"):
        devices.tpu_address({"TPU_NAME": "local"})
    assert time.monotonic() - start < 1


@pytest.mark.parametrize("name", ["grpc://127.0.0.1:9", "192.0.2.1:8470", "my-tpu"])
def test_a_tpu_that_does_not_answer_is_missed_within_seconds(name):
    start = time.monotonic()
    with pytest.raises(TrainingError, match=rf"the TPU that TPU_NAME={name} names: .* not answer"):
        devices.tpu_address({"TPU_NAME": name})
    assert time.monotonic() - start < devices._TPU_SECONDS + 2


def test_a_tpu_that_answers_is_handed_to_tensorflow():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        assert devices.tpu_address({"COLAB_TPU_ADDR": address}) == f"grpc://{address}"


def test_preparing_a_tpu_without_one_ends_before_tensorflow_tries():
    assert "TrainingError train.device: tpu: TensorFlow finds no TPU" in python(
        "devices.prepare('tpu')"
    )


# Batches


@pytest.mark.parametrize(
    ("batch_size", "replicas", "hosts", "good"),
    [(30, 4, 1, "28 or 32"), (3, 4, 1, "4"), (10, 2, 4, "8 or 16")],
)
def test_a_batch_that_does_not_divide_names_the_sizes_that_would(batch_size, replicas, hosts, good):
    found = devices.Devices("cpu", replicas, hosts)
    with pytest.raises(TrainingError, match=rf"data.batch_size: {batch_size} .*; set {good}\."):
        devices.shard(batch_size, found)


def test_a_batch_that_divides_is_split():
    assert devices.shard(32, devices.Devices("gpu", 4, 2)) == (32, 4)
    assert devices.shard(7, devices.Devices("cpu")) == (7, 7)


@pytest.mark.parametrize("replicas", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_mean_of_even_parts_is_the_mean_of_the_examples(replicas, weighted):
    import tensorflow as tf

    rng = np.random.default_rng(0)
    x = rng.normal(size=(17, 3)).astype("float32")
    y, w = x.sum(1), rng.uniform(1, 2, 17).astype("float32")
    given = tf.data.Dataset.from_tensor_slices((x, y, w) if weighted else (x, y)).batch(6)
    rows = list(devices.even_batches(given, replicas).as_numpy_iterator())
    assert len(rows) == 3
    for (even_x, even_y, even_w), start in zip(rows, (0, 6, 12), strict=True):
        n = min(6, 17 - start)
        assert len(even_x) % replicas == 0 and len(even_x) - n < replicas
        np.testing.assert_array_equal(even_x[:n], x[start : start + n])
        assert (even_w[n:] == 0).all()
        means = [(p * q).mean() for p, q in zip(
            np.split(even_y, replicas), np.split(even_w, replicas), strict=True
        )]  # fmt: skip
        real = y[start : start + n] * (w[start : start + n] if weighted else 1)
        np.testing.assert_allclose(np.mean(means), real.mean(), rtol=1e-5)
        if n % replicas == 0:
            np.testing.assert_array_equal(even_w, w[start : start + n] if weighted else 1)


def test_even_batches_take_nested_inputs_and_keep_their_shapes():
    import tensorflow as tf

    x = {"ids": np.zeros((5, 4), "int32"), "mask": np.ones((5, 4), bool)}
    given = tf.data.Dataset.from_tensor_slices((x, np.zeros((5, 2), "float32"))).batch(5)
    even = devices.even_batches(given, 2)
    assert even.element_spec[0]["ids"].shape == (None, 4)
    assert even.element_spec[1].shape == (None, 2)
    assert next(iter(even))[0]["mask"].shape == (6, 4)


def test_the_hosts_rows_make_up_the_batch_in_order():
    import tensorflow as tf

    given = tf.data.Dataset.range(20).map(lambda i: (i, 2 * i)).batch(8)
    parts = [list(devices.local_rows(given, 4, rank).as_numpy_iterator()) for rank in range(4)]
    for whole, *own in zip(given.as_numpy_iterator(), *parts, strict=True):
        for place in range(2):
            np.testing.assert_array_equal(np.concatenate([o[place] for o in own]), whole[place])


# Several hosts: who is who


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"KFT_HOST_RANK": "1", "KFT_COORDINATOR": "a:7"}, (1, "a:7", "kft")),
        ({"KFT_HOST_RANK": "0", "KFT_COORDINATOR": "a"}, (0, f"a:{hosts.PORT}", "kft")),
        (
            {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_STEP_NODELIST": "gpu[07-08],x1"},
            (1, f"gpu07:{hosts.PORT}", "SLURM"),
        ),
        (
            {"SLURM_PROCID": "0", "SLURM_JOB_NODELIST": "n1,n2", "SLURM_JOB_ID": "3"},
            (0, f"n1:{hosts.PORT + 6}", "SLURM"),
        ),
        (
            {"SLURM_PROCID": "1", "SLURM_STEP_NODELIST": "n1,n2", "KFT_COORDINATOR": "b:9"},
            (1, "b:9", "SLURM"),
        ),
        (
            {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "KFT_COORDINATOR": "c:1"},
            (1, "c:1", "Open MPI"),
        ),
        ({"PMI_RANK": "0", "PMI_SIZE": "2", "KFT_COORDINATOR": "[::1]:5"}, (0, "[::1]:5", "PMI")),
        (
            {"JOB_COMPLETION_INDEX": "1", "KFT_COORDINATOR": "job-0.svc:80"},
            (1, "job-0.svc:80", "Kubernetes"),
        ),
        (
            {"KFT_HOST_RANK": "0", "SLURM_PROCID": "1", "KFT_COORDINATOR": "a:7"},
            (0, "a:7", "kft"),
        ),
    ],
)
def test_the_place_comes_from_the_launcher(variables, expected):
    place = hosts.find(2, variables)
    assert (place.rank, place.coordinator, place.launcher) == expected
    assert place.hosts == 2


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({}, "none of KFT_HOST_RANK, SLURM_PROCID, OMPI_COMM_WORLD_RANK, PMI_RANK, JOB_COMPL"),
        ({"KFT_HOST_RANK": "0"}, "KFT_HOST_RANK is set and KFT_COORDINATOR is not; set"),
        ({"JOB_COMPLETION_INDEX": "0"}, "JOB_COMPLETION_INDEX is set and KFT_COORDINATOR is not"),
        ({"SLURM_PROCID": "0"}, "KFT_COORDINATOR or SLURM_STEP_NODELIST is not"),
        ({"KFT_HOST_RANK": "two"}, "KFT_HOST_RANK: expected an integer, got 'two'"),
        ({"KFT_HOST_RANK": "2"}, r"expected 0\.\.1 with train.hosts: 2, got 2"),
        ({"PMI_RANK": "0", "PMI_SIZE": "3"}, "PMI_SIZE says that 3 processes"),
        ({"KFT_HOST_RANK": "0", "KFT_COORDINATOR": "a:b"}, "'NAME_OF_HOST_0:PORT', such as"),
    ],
)
def test_a_place_that_is_not_clear_is_refused(variables, message):
    with pytest.raises(TrainingError, match=message):
        hosts.find(2, variables)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node001", "node001"),
        ("node001,host2", "node001"),
        ("node[001-0015],host2", "node001"),
        ("node[001,007-015],host2", "node001"),
        ("a1,node[001-003]", "a1"),
        ("rack[1-2]node[03-04]", "rack1node03"),
        ("gpu[3]-ib,x", "gpu3-ib"),
    ],
)
def test_the_first_node_of_a_slurm_list(nodes, first):
    assert hosts.first_node(nodes) == first


# Several hosts: together, and alone


@pytest.mark.slow
def test_two_jax_hosts_end_with_the_weights_of_one_and_wait_for_each_other(tmp_path):
    one, _ = train(tmp_path / "one.npz", "jax", {}, class_weights=True)
    with Pair(tmp_path, epochs=3, class_weights=True, sleep=[3, 0]) as pair:
        assert [process.wait(240) for process in pair.processes] == [0, 0], pair.said(0)
        assert "host 0 of 2, 1 CPU each (DataParallel), float32" in pair.said(0)
        assert "finished" in pair.said(1)
    for rank in range(2):
        assert difference(one, weights(tmp_path / f"{rank}.npz")) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_host_that_is_killed_ends_the_other_with_its_name(tmp_path, victim):
    with Pair(tmp_path, epochs=100_000) as pair:
        pair.until("ready")
        pair.processes[victim].send_signal(signal.SIGKILL)
        code, spent = pair.waits_for(1 - victim, 30)
        assert code != 0 and spent < 10
        said = pair.said(1 - victim)
        assert f"host {victim} was lost, so host {1 - victim} ends too" in said
        assert "Start the same command on every host with --resume." in said


@pytest.mark.slow
def test_a_host_that_fails_is_the_one_that_is_named(tmp_path):
    with Pair(tmp_path, epochs=100_000, fails_on=1) as pair:
        code, _ = pair.waits_for(0, 240)
        assert code != 0
        assert "host 1 was lost" in pair.said(0)
        assert pair.processes[1].wait(10) == 1
        assert "this host has a bug" in pair.said(1)
        assert "was lost" not in pair.said(1)


@pytest.mark.slow
def test_a_host_whose_machine_stops_is_lost_within_thirty_seconds(tmp_path):
    with Pair(tmp_path, epochs=3, sleep=[0, 600]) as pair:
        pair.until("ready")
        while not (tmp_path / "0.npz").exists():
            time.sleep(0.1)
        training = pair.processes[1].pid
        children = Path(f"/proc/{training}/task/{training}/children").read_text().split()
        assert len(children) == 1  # its watchdog
        for process in [training, *map(int, children)]:
            os.kill(process, signal.SIGSTOP)
        try:
            code, spent = pair.waits_for(0, 60)
        finally:
            for process in [training, *map(int, children)]:
                os.kill(process, signal.SIGCONT)
        assert code == 2 and 5 < spent < 30
        assert "host 1 was lost, so host 0 ends too" in pair.said(0)


@pytest.mark.slow
def test_hosts_that_do_not_come_and_ports_that_are_taken_are_told():
    code = """
hosts.START_SECONDS = 2.0
try:
    hosts.join(hosts.Place({}, 3, '127.0.0.1:{}', 'kft'))
except KftError as error:
    print(error)"""
    port = free_port()
    said = python(code.format(0, port), "jax")
    assert f"host 0 waited 2 s at 127.0.0.1:{port} for host 1, 2, in vain" in said
    assert "for host 0, in vain; check" in python(code.format(1, port), "jax")
    with socket.create_server(("", port + 1)):
        assert f"cannot listen on port {port + 1} (Address already in use)" in python(
            code.format(0, port), "jax"
        )


def test_finishing_where_no_others_were_joined_does_nothing():
    devices.finish()


def test_strangers_at_the_watchdogs_port_are_ignored():
    port = free_port()
    command = [sys.executable, "-I", "-S", str(Path(hosts.watchdog.__file__))]
    own, other = [
        subprocess.Popen(
            [*command, str(rank), "2", "127.0.0.1", str(port), "20"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    assert own.stdout.readline() == other.stdout.readline() == b"met\n"
    with socket.create_connection(("127.0.0.1", port)) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\nhello 99\nlost x\ndone\n")
    for watchdog in (own, other):
        watchdog.stdin.write(b"done\n")
        watchdog.stdin.flush()
    assert own.stdout.readline() == other.stdout.readline() == b"all\n"
    assert own.wait(10) == other.wait(10) == 0
