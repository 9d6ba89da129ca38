"""Files of other formats answer like the Keras model, in a process that has no Keras."""

from __future__ import annotations

import configparser
import contextlib
import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import fill_batch_norm_statistics

keras = pytest.importorskip("keras")
if keras.backend.backend() != "tensorflow":
    pytest.skip("models are exported on TensorFlow", allow_module_level=True)

from kerastune_ft import conversions, formats, models, text_models  # noqa: E402
from kerastune_ft.errors import ExportError  # noqa: E402
from kerastune_ft.formats import FORMATS, Artefact, Latency, Made, Trial  # noqa: E402
from kerastune_ft.tasks import Outputs  # noqa: E402

for row in FORMATS.values():
    for needed in row.needs:
        pytest.importorskip(needed, reason="pip install 'kerastune_ft[export]'")

ROOT = Path(__file__).parents[1]
SIDE, LENGTH, CLASSES = 32, 12, 3
EVERY = [(name, quantize) for name, row in FORMATS.items() for quantize in row.quantize]
FLOAT = [pair for pair in EVERY if pair[1] == "none"]
NARROW = [pair for pair in EVERY if pair[1] != "none"]
NAMES = ("a", "b", "c")


def served_of(model, activation="softmax"):
    """What `kft export` writes: the model with its activation."""
    last = keras.layers.Activation(activation, dtype="float32", name="probabilities")
    return keras.Model(model.input, last(model.output), name=model.name)


def spread(model, inputs, layer="logits"):
    """Makes the head of random weights decide: the inputs get different, clear answers."""
    head = model.get_layer(layer)
    logits = model.predict(inputs, verbose=0)
    kernel, bias = head.get_weights()
    head.set_weights([kernel * 4 / logits.std(axis=0), bias - 4 * (logits / logits.std(0)).mean(0)])
    said = np.asarray(served_of(model)(inputs))
    assert len(set(said.argmax(1))) == CLASSES, said.round(2)
    assert np.ptp(said, axis=0).min() > 0.5
    return model


def pictures(n=24, side=SIDE, seed=0):
    """Pictures of different colours, brightness and grain."""
    rng = np.random.default_rng(seed)
    colour = rng.uniform(0, 255, (n, 1, 1, 3))
    grain = rng.normal(0, rng.uniform(5, 90, (n, 1, 1, 1)), (n, side, side, 3))
    return np.clip(colour + grain, 0, 255).astype("float32")


def texts(n=24, length=LENGTH, seed=0, segments=True):
    rng = np.random.default_rng(seed)
    mask = (np.arange(length) < rng.integers(3, length + 1, (n, 1))).astype("int32")
    ids = rng.integers(5, 30, (n, length)).astype("int32") * mask
    found = {"token_ids": ids, "padding_mask": mask}
    return {**found, "segment_ids": mask * (ids % 2)} if segments else found


def picture_model(backbone="mobilenet_v2", filled=True, **options):
    keras.utils.set_random_seed(0)
    options = {"alpha": 0.35, "image_size": SIDE, **options}
    model = models.image_classifier(backbone, CLASSES, weights="none", seed=0, **options)
    if filled:
        fill_batch_norm_statistics(model)
    return model


def text_model(backbone="bert", **options):
    keras.utils.set_random_seed(0)
    return text_models.text_classifier(backbone, CLASSES, weights="none", seed=0, **options)


@pytest.fixture(scope="module")
def sighted():
    """A picture model, with pictures and what it says of them."""
    served = served_of(spread(picture_model(), pictures()))
    return served, pictures(), served.predict(pictures(), verbose=0)


@pytest.fixture(scope="module")
def reading():
    """A text model, with texts and what it says of them."""
    served = served_of(spread(text_model(), texts()))
    return served, texts(), served.predict(texts(), verbose=0)


@pytest.fixture(scope="module")
def small():
    """A small network of the layers that MobileNets are made of, with what it says of pictures.

    Rounding of activations grows from layer to layer in deep networks with random weights, as it
    does not in trained ones: whether int8 is right shows in a shallow one.
    """
    keras.utils.set_random_seed(0)
    layers = keras.layers
    inputs = keras.Input((SIDE, SIDE, 3), name="image")
    x = layers.Rescaling(1 / 127.5, -1.0)(inputs)
    widths = iter((32, 256, 128))
    for layer in (
        layers.Conv2D(next(widths), 3, strides=2, padding="same", use_bias=False),
        layers.Conv2D(next(widths), 1, use_bias=False),
        layers.DepthwiseConv2D(3, padding="same", use_bias=False),
        layers.Conv2D(next(widths), 1, use_bias=False),
    ):
        x = layers.BatchNormalization(momentum=0.0)(layer(x))
        x = layers.ReLU(6.0)(x)
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, layers.Dense(CLASSES, name="logits")(x), name="small")
    model(pictures(), training=True)  # fills the statistics
    served = served_of(spread(model, pictures()))
    return served, pictures(), served.predict(pictures(), verbose=0)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory, request):
    """Writes every file of the models once, when it is asked for."""
    held = {}
    samples = pictures(48, seed=1)
    models_of = {"pictures": "sighted", "texts": "reading", "small": "small"}

    def get(kind, name, quantize="none"):
        key = (kind, name, quantize)
        if key not in held:
            path = tmp_path_factory.mktemp("-".join(key)) / FORMATS[name].file
            served = request.getfixturevalue(models_of[kind])[0]
            options = {"samples": lambda: iter([samples])} if quantize == "int8" else {}
            options |= {"length": LENGTH} if kind == "texts" else {}
            held[key] = formats.write(name, served, path, quantize=quantize, **options)
        return held[key]

    return get


ELSEWHERE = """
import sys
import numpy as np
from pathlib import Path
from kerastune_ft import formats
inputs = dict(np.load(sys.argv[1]))
inputs = inputs.get("images", inputs)
answers = formats.open_artefact(sys.argv[3], Path(sys.argv[4]))
found = []
for rows in (slice(0, 1), slice(1, 4), slice(4, 12), slice(12, None)):
    if isinstance(inputs, dict):
        found.append(answers({name: array[rows] for name, array in inputs.items()}))
    else:
        found.append(answers(inputs[rows]))
np.save(sys.argv[2], np.concatenate(found))
print([name for name in ("keras", "tensorflow", "jax", "torch") if name in sys.modules])
"""


def elsewhere(artefact, inputs, folder):
    """What a file says in a fresh process, in batches of 1, 3, 8 and the rest."""
    arrays = inputs if isinstance(inputs, dict) else {"images": inputs}
    np.savez(folder / "inputs.npz", **arrays)
    files = [str(folder / "inputs.npz"), str(folder / "said.npy")]
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, *files, artefact.format, str(artefact.path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    return np.load(folder / "said.npy")


@pytest.mark.parametrize(("name", "quantize"), FLOAT)
@pytest.mark.parametrize("kind", ["pictures", "texts"])
def test_a_file_answers_like_keras_in_a_fresh_process(
    kind, name, quantize, shelf, sighted, reading, tmp_path
):
    artefact = shelf(kind, name, quantize)
    _, inputs, expected = sighted if kind == "pictures" else reading
    said = elsewhere(artefact, inputs, tmp_path)
    assert said.dtype == np.float32
    np.testing.assert_allclose(said, expected, rtol=0, atol=1e-4)


def agrees(said, expected, largest):
    """Decides the same wherever the model is sure of it."""
    best = np.sort(expected, axis=-1)
    sure = best[..., -1] - best[..., -2] > 2 * largest
    assert sure.mean() > 0.5
    assert (said.argmax(-1) == expected.argmax(-1))[sure].all()
    assert np.abs(said - expected).max() < largest


def test_an_int8_file_decides_like_keras_and_is_smaller(shelf, small, tmp_path):
    artefact, whole = shelf("small", "litert", "int8"), shelf("small", "litert")
    said = elsewhere(artefact, small[1], tmp_path)
    agrees(said, small[2], 0.2)
    assert artefact.bytes < 0.4 * whole.bytes
    assert artefact.made.calibrated_on == 48
    assert np.ptp(said, axis=0).min() > 0.5


LARGEST = {"float16": 0.02, "int8_weights": 0.1}
SHARE = {"float16": 0.7, "int8_weights": 0.55}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "name", "quantize"),
    [(kind, *pair) for kind in ("small", "texts") for pair in NARROW if pair[1] != "int8"],
)
def test_a_narrow_file_decides_like_keras_and_is_smaller(
    kind, name, quantize, shelf, small, reading, tmp_path
):
    artefact, whole = shelf(kind, name, quantize), shelf(kind, name)
    _, inputs, expected = small if kind == "small" else reading
    agrees(elsewhere(artefact, inputs, tmp_path), expected, LARGEST[quantize])
    # What a tiny network of texts computes takes more room than its weights.
    assert artefact.bytes < (SHARE[quantize] if kind == "small" else 1.0) * whole.bytes


def test_an_int8_file_takes_float32_and_has_a_range_for_every_depthwise_channel(shelf):
    from ai_edge_litert.interpreter import Interpreter

    artefact = shelf("small", "litert", "int8")
    interpreter = Interpreter(model_path=str(artefact.path))
    for detail in (*interpreter.get_input_details(), *interpreter.get_output_details()):
        assert detail["dtype"] is np.float32
    kernels = {
        tuple(map(int, detail["shape"])): len(detail["quantization_parameters"]["scales"])
        for detail in interpreter.get_tensor_details()
        if detail["dtype"] is np.int8 and tuple(detail["shape"][:3]) == (1, 3, 3)
    }
    assert kernels == {(1, 3, 3, 256): 256}
    assert artefact.made.float_operations == ()


def test_operations_that_stay_float_are_named(tmp_path):
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(4, 3)(inputs)
    x = keras.ops.sin(x)  # which LiteRT computes in float32 alone
    served = keras.Model(inputs, keras.layers.Softmax()(keras.layers.GlobalMaxPooling2D()(x)))
    samples = np.random.default_rng(0).uniform(0, 255, (4, 8, 8, 1))
    path = tmp_path / "model.tflite"
    made = formats.write("litert", served, path, quantize="int8", samples=lambda: [samples])
    assert made.made.float_operations == ("SIN (1)",)
    assert made.remarks == ("litert: computed in float32: SIN (1).",)


@pytest.mark.parametrize(
    ("name", "quantize"), [("litert", "int8"), ("onnx", "none"), ("openvino", "float16")]
)
def test_writing_changes_nothing_in_the_model_and_says_nothing(
    name, quantize, small, tmp_path, recwarn, capfd
):
    served = small[0]
    before = [weight.copy() for weight in served.get_weights()]
    path = tmp_path / FORMATS[name].file
    artefact = formats.write(name, served, path, quantize=quantize, samples=lambda: [small[1]])
    for old, new in zip(before, served.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    files = sorted(tmp_path.iterdir())
    assert files == ([path.with_suffix(".bin"), path] if name == "openvino" else [path])
    assert artefact.bytes == sum(file.stat().st_size for file in files)
    formats.open_artefact(name, path)(small[1])
    assert "".join(capfd.readouterr()) == ""
    assert [str(w.message) for w in recwarn if "lite" in str(w.message)] == []


def test_an_onnx_file_names_its_opset_and_its_open_sides(shelf):
    import onnx

    artefact = shelf("texts", "onnx")
    model = onnx.load(str(artefact.path))
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [17]
    assert artefact.made.opset == 17
    sides = {
        held.name: [side.dim_param for side in held.type.tensor_type.shape.dim]
        for held in model.graph.input
    }
    assert sides == {
        name: ["batch", "length"] for name in ("token_ids", "padding_mask", "segment_ids")
    }
    assert [held.name for held in model.graph.output] == ["probabilities"]


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_a_text_file_takes_texts_of_any_length(name, shelf, reading):
    answers = formats.open_artefact(name, shelf("texts", name).path)
    for length in (4, 12, 33):
        inputs = texts(5, length)
        expected = reading[0].predict(inputs, verbose=0)
        np.testing.assert_allclose(answers(inputs), expected, rtol=0, atol=1e-4)


def test_a_litert_file_fills_short_texts_up_and_refuses_long_ones(shelf, reading):
    answers = formats.open_artefact("litert", shelf("texts", "litert").path)
    short = texts(5, 4)
    expected = reading[0].predict(short, verbose=0)
    np.testing.assert_allclose(answers(short), expected, rtol=0, atol=1e-4)
    with pytest.raises(ExportError, match="have 13 tokens, and this model was written for 12"):
        answers(texts(2, 13))


# What is refused


def unconvertible():
    """A model with an operation that no other runtime has."""
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.GlobalMaxPooling2D()(keras.layers.Conv2D(3, 3)(inputs))
    x = keras.ops.erfinv(keras.ops.tanh(x))
    return keras.Model(inputs, keras.layers.Softmax()(x), name="odd")


@pytest.mark.parametrize("name", FORMATS)
def test_a_failed_conversion_leaves_what_was_there(name, tmp_path):
    path = tmp_path / FORMATS[name].file
    path.write_text("of old")
    with pytest.raises(ExportError, match=f"{name}: model 'odd' cannot be converted: .*[Ee]rfinv"):
        formats.write(name, unconvertible(), path)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_text() == "of old"


@pytest.mark.parametrize("name", FORMATS)
def test_a_missing_package_is_named_with_the_command(name, tmp_path, monkeypatch):
    needs = {"no_such_module": "no-such-package"}
    monkeypatch.setitem(FORMATS, name, dataclasses.replace(FORMATS[name], needs=needs))
    wanted = (
        f"{name}: needs the package no-such-package, which is not installed; "
        r"'pip install \"kerastune_ft\[export\]\"'"
    )
    with pytest.raises(ExportError, match=wanted):
        formats.write(name, unconvertible(), tmp_path / FORMATS[name].file)
    with pytest.raises(ExportError, match=wanted):
        formats.open_artefact(name, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_the_extra_installs_what_formats_need():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    extras = config["options.extras_require"]
    assert FORMATS
    for row in FORMATS.values():
        for package in row.needs.values():
            assert f"\n{package}>=" in extras[row.extra], package


@pytest.mark.parametrize(
    ("name", "file", "options", "said"),
    [
        ("onx", "model.onnx", {}, "format 'onx' is unknown; did you mean 'onnx'.*litert, onnx"),
        ("onnx", "model.onnx", {"quantize": "int8"}, "expected none or float16, got 'int8'"),
        ("openvino", "model.xml", {"quantize": "int8_weights"}, "expected none or float16"),
        ("litert", "model.tflite", {"quantize": "int4"}, "got 'int4'; did you mean 'int8'"),
        ("openvino", "model", {}, r"expected a name that ends with \.xml"),
        ("litert", "model.tflite", {"length": 0}, "expected 1 or more tokens, got 0"),
        ("litert", "model.tflite", {"quantize": "int8"}, "int8 wants examples"),
        (
            "litert",
            "model.tflite",
            {"quantize": "int8", "samples": lambda: [np.zeros((2, 9, 9, 1))]},
            r"expected batches of pictures \(None, 8, 8, 1\), got \(2, 9, 9, 1\)",
        ),
    ],
)
def test_what_a_format_cannot_do_is_refused(name, file, options, said, tmp_path):
    with pytest.raises(ExportError, match=said):
        formats.write(name, unconvertible(), tmp_path / file, **options)
    assert list(tmp_path.iterdir()) == []


def test_texts_without_a_length_and_texts_in_int8_are_refused(reading, tmp_path):
    path = tmp_path / "model.tflite"
    with pytest.raises(ExportError, match=r"want a fixed number of tokens.*give length"):
        formats.write("litert", reading[0], path)
    with pytest.raises(ExportError, match=r"int8 would ruin texts.*'int8_weights' is as small"):
        options = {"quantize": "int8", "samples": lambda: [texts()]}
        formats.write("litert", reading[0], path, length=LENGTH, **options)
    assert list(tmp_path.iterdir()) == []


def test_models_that_take_something_else_are_refused(tmp_path):
    anywhere = keras.Input((None, None, 3), name="image")
    open_size = keras.Model(anywhere, keras.layers.GlobalMaxPooling2D()(anywhere))
    with pytest.raises(ExportError, match="of a fixed size"):
        formats.write("onnx", open_size, tmp_path / "model.onnx")
    writer = text_models.text_to_text("t5", weights="none")
    with pytest.raises(ExportError, match="Models that write texts are served as they are"):
        formats.write("onnx", writer, tmp_path / "model.onnx")
    picture = keras.Input((8, 8, 3))
    several = keras.Model(picture, [keras.layers.Flatten()(picture)] * 2)
    with pytest.raises(ExportError, match="returns 2 arrays; expected one"):
        formats.write("onnx", several, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_that_is_gone_or_damaged_says_so(name, tmp_path):
    path = tmp_path / FORMATS[name].file
    with pytest.raises(ExportError, match="does not exist; 'kft export' writes it"):
        formats.open_artefact(name, path)
    path.write_bytes(b"\x08nonsense")
    with pytest.raises(ExportError, match=f"is no file that {name} can run"):
        formats.open_artefact(name, path)


def test_inputs_that_are_missing_are_named(shelf):
    answers = formats.open_artefact("onnx", shelf("texts", "onnx").path)
    inputs = texts(2)
    del inputs["padding_mask"], inputs["segment_ids"]
    with pytest.raises(ExportError, match="padding_mask, segment_ids are missing"):
        answers(inputs)


# In float32, without LoRA


@contextlib.contextmanager
def policy_of(name):
    """Lets layers be built under a policy of precision."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    yield
    keras.config.set_dtype_policy(before)


def adapted(policy="float32"):
    """A small model of many kinds of layers, some with LoRA that does something."""
    keras.utils.set_random_seed(1)
    with policy_of(policy):
        inputs = keras.Input((8, 8, 3))
        x = keras.layers.Rescaling(1 / 255, dtype="float32")(inputs)
        x = keras.layers.Conv2D(8, 3, activation="relu", name="conv")(x)
        x = keras.layers.BatchNormalization()(x)
        inner = keras.Input((6, 6, 8))
        y = keras.layers.GlobalAveragePooling2D()(inner)
        y = keras.ops.cast(y, y.dtype)
        y = keras.layers.Dense(16, activation="gelu", name="dense")(y)
        x = keras.Model(inner, y, name="inner")(x)
        x = keras.layers.Dropout(0.5)(x)
        x = keras.layers.Dense(CLASSES, dtype="float32", name="logits")(x)
        model = keras.Model(inputs, keras.layers.Softmax(dtype="float32")(x), name="small")
    for layer in (model.get_layer("conv"), model.get_layer("inner").get_layer("dense")):
        layer.enable_lora(2)
        for weight in layer.weights:
            if weight.name.startswith("lora"):
                weight.assign(np.random.default_rng(2).normal(0, 0.5, weight.shape))
    return model


@pytest.mark.parametrize(("policy", "largest"), [("float32", 1e-6), ("mixed_bfloat16", 0.05)])
def test_a_plain_model_computes_the_same_in_float32_without_lora(policy, largest):
    model = adapted(policy)
    inputs = np.random.default_rng(0).uniform(0, 255, (16, 8, 8, 3)).astype("float32")
    expected = model.predict(inputs, verbose=0)
    assert np.ptp(expected, axis=0).max() > 0.02
    plain = conversions.plain(model)
    assert plain is not model
    for layer in plain._flatten_layers():
        assert layer.compute_dtype == "float32"
        assert not getattr(layer, "lora_enabled", False)
    assert not [weight for weight in plain.weights if "lora" in weight.name]
    np.testing.assert_allclose(plain.predict(inputs, verbose=0), expected, rtol=0, atol=largest)
    np.testing.assert_array_equal(model.predict(inputs, verbose=0), expected)


def test_a_model_with_nothing_to_change_is_taken_as_it_is(sighted):
    assert conversions.plain(sighted[0]) is sighted[0]


# Measuring


def test_latencies_are_those_of_one_answer():
    calls = []

    def answers(inputs):
        calls.append(len(inputs))
        time.sleep(0.05 if len(calls) in (1, 10) else 0.01)
        return inputs

    found = formats.measure(answers, np.zeros((4, 1)), rounds=10)
    assert calls == [4] * 13
    assert 10 <= found.median_ms < 25
    assert found.median_ms < found.p95_ms < 60


def test_a_trial_answers_every_example_and_measures_one_and_eight():
    sizes = []

    def answers(inputs):
        sizes.append(len(inputs))
        return inputs[:, :1] * 2

    artefact = Artefact("onnx", Path("model.onnx"), "none", 2**20, Made())
    trial = formats.try_out(artefact, answers, np.arange(22.0).reshape(11, 2), rounds=2)
    np.testing.assert_array_equal(trial.said, np.arange(0.0, 44, 4)[:, None])
    assert sizes == [8, 3, *[1] * 5, *[8] * 5]


def trial(said, quantize="none"):
    artefact = Artefact("litert", Path("model.tflite"), quantize, 3 * 2**19, Made())
    return Trial(artefact, np.asarray(said), Latency(1.5, 2.0), Latency(8.0, 9.0))


def test_the_table_compares_with_the_model_and_with_what_is_true():
    expected = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.4, 0.3, 0.3], [0.0, 0.1, 0.9]])
    said = expected.copy()
    said[2] = [0.3, 0.4, 0.3]
    labels = np.array([0, 1, 1, 0])
    (row,) = formats.table(
        [trial(said, "int8")], expected, "image_classification", Outputs(NAMES), labels
    )
    assert row == {
        "format": "litert",
        "quantize": "int8",
        "size_mib": 1.5,
        "latency_ms_1": 1.5,
        "latency_ms_8": 8.0,
        "agreement": 0.75,
        "accuracy": 0.75,
        "float_accuracy": 0.5,
        "largest_difference": pytest.approx(0.1),
    }


def test_the_table_of_labels_counts_sets_and_that_of_numbers_has_no_agreement():
    expected = np.array([[0.9, 0.2, 0.6], [0.4, 0.2, 0.1]])
    said = np.array([[0.8, 0.4, 0.55], [0.6, 0.2, 0.1]])
    (row,) = formats.table(
        [trial(said)],
        expected,
        "image_multilabel",
        Outputs(NAMES, thresholds=(0.5, 0.3, 0.5)),
        np.array([[1, 0, 1], [0, 1, 0]]),
    )
    assert row["agreement"] == 0.0
    assert row["macro_f1"] < row["float_macro_f1"]
    numbers = Outputs(("size",), mean=(5.0,), std=(2.0,))
    true = np.array([[1.0], [4.0], [9.0]])
    (row,) = formats.table([trial(true + 0.5)], true, "image_regression", numbers, true)
    assert row["agreement"] is None
    assert row["largest_difference"] == pytest.approx(0.5)
    assert row["r2"] < row["float_r2"] == 1.0


def test_the_table_of_words_leaves_out_what_fills_texts_up():
    expected = np.tile([0.5, 0.3, 0.2], (1, 3, 1))
    said = expected.copy()
    said[0, 2] = [0.0, 0.0, 1.0]
    places = np.array([[True, True, False]])
    options = (expected, "token_classification", Outputs(NAMES), None)
    (row,) = formats.table([trial(said)], *options, places)
    assert (row["agreement"], row["largest_difference"]) == (1.0, 0.0)
    (row,) = formats.table([trial(said)], *options)
    assert row["agreement"] == pytest.approx(2 / 3)
    assert row["f1"] is None


def test_a_record_is_plain_data(shelf):
    artefact = shelf("small", "litert", "int8")
    found = json.loads(json.dumps(artefact.record()))
    assert found["path"] == "model.tflite"
    assert found["bytes"] == artefact.path.stat().st_size
    assert (found["batch"], found["opset"], found["calibrated_on"]) == (None, None, 48)
    assert set(found["versions"]) == {"ai-edge-litert"}


# Other networks


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    ("backbone", "options"),
    [
        ("mobilenet", {"alpha": 0.25, "channels": 1, "pooling": "gem"}),
        ("mobilenet_v3_small", {"alpha": 0.75}),
        # With statistics of a few pictures it multiplies a difference of 0.001 by a million.
        ("efficientnet_b0", {"alpha": None, "image_size": 64, "filled": False}),
        ("resnet50", {"alpha": None}),
        ("convnext_tiny", {"alpha": None}),
    ],
)
def test_other_networks_of_pictures_answer_like_keras(name, backbone, options, tmp_path):
    inputs = pictures(side=options.get("image_size", SIDE))[..., : options.get("channels", 3)]
    served = served_of(spread(picture_model(backbone, **options), inputs))
    artefact = formats.write(name, served, tmp_path / FORMATS[name].file)
    expected = served.predict(inputs, verbose=0)
    said = elsewhere(artefact, inputs, tmp_path)
    np.testing.assert_allclose(said, expected, rtol=0, atol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    ("backbone", "pooling"),
    [("roberta", "max"), ("distilbert", "token"), ("electra", None), ("xlnet", None),
     ("gpt2", "last"), ("t5", None)],
)  # fmt: skip
def test_other_networks_of_texts_answer_like_keras(name, backbone, pooling, tmp_path):
    model = text_model(backbone, pooling=pooling)
    inputs = {key: value for key, value in texts().items() if key in model.input}
    served = served_of(spread(model, inputs))
    options = {"length": LENGTH} if name == "litert" else {}
    artefact = formats.write(name, served, tmp_path / FORMATS[name].file, **options)
    expected = served.predict(inputs, verbose=0)
    said = elsewhere(artefact, inputs, tmp_path)
    np.testing.assert_allclose(said, expected, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_numbers_labels_and_words_go_through_as_well(name, tmp_path):
    keras.utils.set_random_seed(0)
    regressor = models.image_regressor(
        "mobilenet", 2, mean=[10.0, -3.0], std=[4.0, 0.5], weights="none", image_size=SIDE,
        alpha=0.25,
    )  # fmt: skip
    fill_batch_norm_statistics(regressor)
    words = text_models.token_classifier("bert", CLASSES, weights="none", seed=0)
    tagged = served_of(words)
    for number, (served, inputs, output) in enumerate(
        ((regressor, pictures(), "values"), (tagged, texts(), "probabilities"))
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        options = {"length": LENGTH} if name == "litert" and number else {}
        path = folder / FORMATS[name].file
        artefact = formats.write(name, served, path, output=output, **options)
        expected = served.predict(inputs, verbose=0)
        assert np.ptp(expected, axis=0).max() > 1e-3
        said = elsewhere(artefact, inputs, folder)
        spread_of = 4.0 if output == "values" else 1.0
        np.testing.assert_allclose(said, expected, rtol=0, atol=2e-4 * spread_of)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_models_of_mixed_precision_and_lora_are_written_in_float32(name, tmp_path):
    model = adapted("mixed_bfloat16")
    inputs = np.random.default_rng(0).uniform(0, 255, (16, 8, 8, 3)).astype("float32")
    artefact = formats.write(name, model, tmp_path / FORMATS[name].file)
    expected = conversions.plain(model).predict(inputs, verbose=0)
    said = elsewhere(artefact, inputs, tmp_path)
    np.testing.assert_allclose(said, expected, rtol=0, atol=1e-4)
    assert artefact.remarks[0].startswith(f"{name}: computes in float32, with LoRA merged")


@pytest.mark.parametrize("name", FORMATS)
def test_a_reloaded_model_is_written_like_the_one_that_was_saved(name, small, tmp_path):
    served, inputs, expected = small
    model = keras.Model(served.input, served.get_layer("logits").output)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    for number, last in enumerate((again, keras.Sequential([again, keras.layers.Softmax()]))):
        folder = tmp_path / str(number)
        folder.mkdir()
        if number:
            last.build((None, SIDE, SIDE, 3))
        artefact = formats.write(name, last, folder / FORMATS[name].file)
        said = formats.open_artefact(name, artefact.path)(inputs)
        wanted = expected if number else np.asarray(model(inputs))
        np.testing.assert_allclose(said, wanted, rtol=0, atol=1e-4)


def test_models_of_lists_of_one_are_written(tmp_path):
    inputs = keras.Input((8, 8, 3))
    listed = keras.Model([inputs], [keras.layers.GlobalMaxPooling2D()(inputs)])
    artefact = formats.write("onnx", listed, tmp_path / "model.onnx")
    example = np.random.default_rng(0).uniform(0, 255, (2, 8, 8, 3)).astype("float32")
    said = formats.open_artefact("onnx", artefact.path)(example)
    np.testing.assert_array_equal(said, example.max(axis=(1, 2)))
