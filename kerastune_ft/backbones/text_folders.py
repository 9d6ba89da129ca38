"""Finds the folder behind the weights of a language network, and reads it; imports no framework.

Four kinds of place hold a network: a folder in Hugging Face's format (config.json and
safetensors), one in KerasHub's, a run, and none at all. Names and addresses become one of
them: a wheel is fetched once, a preset lies in Kaggle's or Hugging Face's own cache or is
downloaded by their clients once their host is known to answer. Pickled weights are refused.

    place = located(backbones.get("bert"), "minilm")
    place.kind, place.folder                       # 'huggingface', ~/.cache/kerastune_ft/...
    layers_of_config(backbones.get("bert"), "folder/of/a/bert")           # 13
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import urllib.parse
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kerastune_ft.backbones import text_architectures
from kerastune_ft.backbones import weights as weights_cache
from kerastune_ft.backbones.facts import Backbone, Wheel
from kerastune_ft.backbones.text_architectures import Architecture
from kerastune_ft.errors import WeightsError

RANDOM_AS = "none:"
"""Before weights: their network with random numbers."""

_HOSTS = {"kaggle": "www.kaggle.com", "hf": "huggingface.co"}

TOKENIZER_FILES: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "wordpiece": (("tokenizer.json",), ("vocab.txt",)),
    "bpe": (("tokenizer.json",), ("vocab.json", "merges.txt")),
    "unigram": (("tokenizer.json",), ("spiece.model",), ("sentencepiece.bpe.model",)),
}
"""By kind of tokenizer: the sets of files of which one is enough."""

_WHOLE = ("model.safetensors", "model.safetensors.index.json")
_HUB_WHOLE = ("model.weights.h5", "model.weights.json")

DOWNLOADED = (
    "config.json",
    # Hugging Face's format
    *("model*.safetensors", "model.safetensors.index.json", "tokenizer*.json", "vocab.*"),
    *("merges.txt", "*.model", "special_tokens*", "added_tokens.json"),
    # KerasHub's
    *("metadata.json", "model*.weights.h5", "model.weights.json", "assets/*"),
)
"""What is taken of a repository on Hugging Face, as `fnmatch` has it; no pickles."""

NETWORK_FILE = "network.json"
"""Of a run: what its network is built like, written before there is a `model.keras`."""


@dataclass(frozen=True)
class Place:
    """Says where the files of a network are.

    Args:
        folder: That holds them; of a former run the run's. None for a network of random numbers
            that is like no other.
        kind: In whose format. A `run` has its network in `model.keras`, or before its first one
            is written what it is built like in `network.json`; `network_file` says in which.
        tag: What the network is called after its row: `bert.minilm` has the tag `minilm`.
    """

    folder: Path | None
    kind: Literal["huggingface", "keras_hub", "run", "none"]
    tag: str


def located(row: Backbone, weights: str) -> Place:
    """Returns where the files of some weights are; fetches them if they are not here.

    Args:
        row: Facts of the network.
        weights: A tag of the row or the name of a KerasHub preset, an address that begins with
            `hf://` or `kaggle://`, a folder, a `.keras` file, `none`, or `none:` and one of those.

    Raises:
        WeightsError: If there is no such thing, or it cannot be had.
    """
    random = weights.startswith(RANDOM_AS)
    if random:
        weights = weights.removeprefix(RANDOM_AS)
    if weights == "none":
        return Place(None, "none", "none")
    if weights in row.weights:
        facts = row.weights[weights]
        if isinstance(facts.source, Wheel):
            return _known(row, weights_cache.fetch(row, weights), weights)
        return _known(row, _downloaded(row, weights, _pinned(weights) or facts.source), weights)
    if "://" in weights:
        return _known(row, _downloaded(row, weights, weights), _slug(weights))
    path = Path(weights).expanduser()
    if path.suffix == ".h5":
        raise WeightsError(
            f"{path}: holds no architecture, only numbers; give the folder of the network or of "
            "the run, or the .keras file."
        )
    file = network_file(path)
    if path.suffix == ".keras" or file.is_file():
        if not file.is_file():
            raise WeightsError(f"{file}: no such file; check backbone.weights.")
        name = network_config(file, row)["name"]
        return Place(file.parent, "run", name.partition(".")[2])
    if path.is_dir():
        return _known(row, path, _slug(path.resolve().name), random)
    address = None if "/" in weights else _pinned(weights)
    if address is not None:
        _check_preset(row, weights)
        return _known(row, _downloaded(row, weights, address), weights)
    if "/" in weights or path.exists():
        raise WeightsError(
            f"{weights}: no such folder; give a folder of Hugging Face's or KerasHub's format or "
            f"of a former run, or one of the weights {', '.join([*row.weights, 'none'])}."
        )
    row.weights_of(weights)  # says which there are
    raise AssertionError(weights)


def _slug(text: str) -> str:
    """Returns what a folder or address is called in the name of a network."""
    parts = [part for part in text.split("/") if part]
    if text.startswith("kaggle://") and len(parts) == 6:
        parts.pop()  # the version
    return re.sub(r"[^A-Za-z0-9_-]+", "_", parts[-1]) if parts else "_"


def _pinned(name: str) -> str | None:
    """Returns the address of a preset in the version that the installed KerasHub can read."""
    with contextlib.suppress(ImportError):
        import keras_hub

        preset = keras_hub.models.Backbone.presets.get(name)
        return preset["kaggle_handle"] if preset else None
    return None


def _check_preset(row: Backbone, name: str) -> None:
    """Refuses a preset of KerasHub that is another family's before it is downloaded."""
    import keras_hub

    presets = {
        kind: getattr(keras_hub.models, kind).presets
        for kind in dir(keras_hub.models)
        if kind.endswith("Backbone") and kind != "Backbone"
    }
    # A class has the presets of those made of it, too: XLMRobertaBackbone is a RobertaBackbone.
    kinds = sorted(
        (kind for kind in presets if name in presets[kind]), key=lambda k: len(presets[k])
    )
    if kinds:
        text_architectures.check_hub_class(row, kinds[0], f"weights '{name}'")


def _known(row: Backbone, folder: Path, tag: str, random: bool = False) -> Place:
    """Returns a folder with its format; `random` if nobody wants its weights."""
    config = folder / "config.json"
    if not config.is_file():
        preflight(row, folder, tokenizer=True)
    kind: Literal["huggingface", "keras_hub"]
    kind = "keras_hub" if "registered_name" in read_config(config) else "huggingface"
    whole = any((folder / name).is_file() for name in _WHOLE)
    if kind == "huggingface" and not (random or whole or _has_tokenizer(row, folder)):
        # Otherwise the tokenizer would be missed first, and the weights when it is there.
        preflight(row, folder, tokenizer=True)
    return Place(folder, kind, tag)


def network_file(path: Path) -> Path:
    """Returns the file of a run that says what its network is built like.

    Args:
        path: Of a `.keras` file, or a folder.

    Returns:
        `model.keras` of a folder, unless it has a `network.json` alone; it need not exist.
    """
    path = path.expanduser()
    if path.suffix == ".keras":
        return path
    weights_cache.check_single(path)
    file, early = path / "model.keras", path / NETWORK_FILE
    return early if early.is_file() and not file.is_file() else file


def _downloaded(row: Backbone, weights: str, address: str) -> Path:
    """Returns the folder that an address stands for, downloaded if need be."""
    scheme, _, place = address.partition("://")
    if scheme not in _HOSTS:
        raise WeightsError(
            f"weights '{weights}' of {row.name}: addresses that begin with '{scheme}://' are "
            f"unknown; they begin with {' or '.join(f'{known}://' for known in _HOSTS)}."
        )
    cached = _cached(scheme, place)
    if cached is not None:
        return cached
    host = _HOSTS[scheme]
    if scheme == "hf" and os.environ.get("HF_ENDPOINT"):
        host = urllib.parse.urlsplit(os.environ["HF_ENDPOINT"]).hostname or host
    if not weights_cache.check_reachable(host):
        raise _unreachable(row, weights, host, scheme, place)
    try:
        if scheme == "kaggle":
            import kagglehub

            return Path(kagglehub.model_download(place))
        import huggingface_hub

        return Path(huggingface_hub.snapshot_download(place, allow_patterns=list(DOWNLOADED)))
    except ImportError as error:
        package = {"kaggle": "kagglehub", "hf": "huggingface_hub"}[scheme]
        raise WeightsError(
            f"weights '{weights}' of {row.name}: the package {package} is not installed; "
            f"'pip install {package}' installs it."
        ) from error
    except Exception as error:  # their clients raise what their libraries raise
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise WeightsError(
            f"weights '{weights}' of {row.name}: {address} cannot be downloaded ({line[:300]}); "
            "check the name, or give a local folder."
        ) from error


def _unreachable(row: Backbone, weights: str, host: str, scheme: str, place: str) -> WeightsError:
    command = {
        "hf": f"'hf download {place} --local-dir FOLDER'",
        "kaggle": f"python -c 'import kagglehub; print(kagglehub.model_download(\"{place}\"))'",
    }[scheme]
    wheels = [
        f"'{tag}' come from the package index"
        for tag, facts in row.weights.items()
        if isinstance(facts.source, Wheel)
    ]
    others = ", ".join([*wheels, "'none' trains from scratch"])
    return WeightsError(
        f"weights '{weights}' of {row.name}: {host} cannot be reached from this machine; on one "
        f"with network run {command}, bring the folder here and set backbone.weights to it; "
        f"or weights {others}."
    )


def _cached(scheme: str, place: str) -> Path | None:
    """Returns the folder that Kaggle's or Hugging Face's own cache holds whole."""
    folder = None
    if scheme == "kaggle":
        cache = Path(os.environ.get("KAGGLEHUB_CACHE", "~/.cache/kagglehub")).expanduser()
        folder = cache / "models" / place
        if place.count("/") == 3:  # without a version
            versions = [path for path in folder.glob("*") if path.name.isdecimal()]
            folder = max(versions, key=lambda path: int(path.name), default=folder)
    else:
        with contextlib.suppress(ImportError, ValueError):  # not installed; no such address
            import huggingface_hub

            found = huggingface_hub.try_to_load_from_cache(place, "config.json")
            folder = Path(found).parent if isinstance(found, str) else None
    if folder is None or not (folder / "config.json").is_file():
        return None
    return folder if any((folder / name).exists() for name in (*_WHOLE, *_HUB_WHOLE)) else None


def preflight(row: Backbone, folder: Path, *, tokenizer: bool = False) -> None:
    """Refuses a folder in Hugging Face's format that lacks files, and names every one.

    Args:
        row: Facts of the network.
        folder: To look into.
        tokenizer: Whether the tokenizer's files are needed, too.

    Raises:
        WeightsError: If any is missing, or the weights are pickled.
    """
    if not folder.is_dir():
        raise WeightsError(f"{folder}: no such folder; check backbone.weights.")
    missing = [] if (folder / "config.json").is_file() else ["config.json"]
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = {index.parent / name for name in _shards(index).values()}
        missing += sorted(shard.name for shard in shards if not shard.is_file())
    elif not (folder / "model.safetensors").is_file():
        if list(folder.glob("pytorch_model*.bin")):
            raise WeightsError(
                f"{folder}: holds its weights in pytorch_model.bin alone, a pickle, which may run "
                "anything and is never opened; get model.safetensors of the same network, or "
                "write it with transformers: AutoModel.from_pretrained(FOLDER)"
                ".save_pretrained(FOLDER, safe_serialization=True)."
            )
        missing.append("model.safetensors")
    if tokenizer and row.language is not None and not _has_tokenizer(row, folder):
        sets = TOKENIZER_FILES[row.language.tokenizer]
        missing.append(" or ".join(" and ".join(names) for names in sets))
    if missing:
        raise WeightsError(
            f"{folder}: lacks {', '.join(missing)}; copy all files of the network into one folder."
        )


def _has_tokenizer(row: Backbone, folder: Path) -> bool:
    assert row.language is not None, row.name
    sets = TOKENIZER_FILES[row.language.tokenizer]
    return any(all((folder / name).is_file() for name in names) for names in sets)


def read_config(path: Path) -> dict[str, Any]:
    """Reads a `config.json`.

    Raises:
        WeightsError: If it cannot be read or holds no settings.
    """
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: cannot be read ({error}); get the file again.") from error
    if not isinstance(settings, dict):
        raise WeightsError(f"{path}: holds no settings; get the file again.")
    return settings


def architecture(row: Backbone, place: Place) -> Architecture:
    """Returns what the network in a folder is built like.

    Args:
        row: Facts of the network.
        place: Of Hugging Face's or KerasHub's format.

    Raises:
        WeightsError: If it is of another family or not supported.
    """
    assert place.folder is not None, place
    path = place.folder / "config.json"
    settings = read_config(path)
    if place.kind == "keras_hub":
        return text_architectures.from_keras_hub(row, settings, str(path))
    return text_architectures.from_huggingface(row, settings, str(path))


def layers_of_config(row: Backbone, weights: str, *, decoder: bool = False) -> int:
    """Returns how many blocks a network will have, before anything of it is loaded.

    Args:
        row: Facts of the network.
        weights: As for `located`. The default tags answer without a look at their files.
        decoder: Whether a decoder comes along, as in `text_networks.seq2seq`.

    Returns:
        The embeddings, each transformer layer, and each of the decoder's.

    Raises:
        WeightsError: If the weights are unknown or cannot be had.
    """
    name = weights.removeprefix(RANDOM_AS)
    if name == "none":
        shape = text_architectures.tiny(row)
        return 1 + shape.layers + (shape.decoder_layers if decoder else 0)
    known = row.weights[name].layers if name in row.weights else None
    if known is not None:
        return 1 + known * (2 if decoder else 1)
    place = located(row, name)
    if place.kind == "run":
        file = network_file(Path(name))
        names = [str(layer.get("name")) for layer in network_config(file, row)["layers"]]
        found = {m[0] for m in (re.match(r"(layer|decoder)_\d+_", name) for name in names) if m}
        wanted = found if decoder else {prefix for prefix in found if prefix[0] == "l"}
        return 1 + len(wanted)
    shape = architecture(row, place)
    return 1 + shape.layers + (shape.decoder_layers if decoder else 0)


def network_config(file: Path, row: Backbone) -> dict[str, Any]:
    """Returns the settings of the network of a row inside a file; nothing is run.

    Args:
        file: A `.keras` file or a `network.json`.
        row: Facts of the network.

    Raises:
        WeightsError: If the file cannot be read or holds no such network, or another one.
    """
    try:
        if file.suffix == ".json":
            whole = json.loads(file.read_bytes())
        else:
            with zipfile.ZipFile(file) as archive:
                whole = json.loads(archive.read("config.json"))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise WeightsError(
            f"{file}: is damaged or was not written by Keras 3 ({error}); save it again."
        ) from error
    from kerastune_ft.backbones import BACKBONES, HUB

    found = {config["name"]: config for config in _networks(whole)}
    ours = {name: c for name, c in found.items() if name.startswith(f"{row.name}.")}
    if len(ours) == 1:
        return next(iter(ours.values()))
    others = [n for n in found if "." in n and n.partition(".")[0] in {*BACKBONES, HUB}]
    if others:
        family = others[0].partition(".")[0]
        raise WeightsError(
            f"{file}: holds the network '{others[0]}', which does not fit backbone '{row.name}'; "
            f"set backbone.name to '{family}'."
        )
    raise WeightsError(
        f"{file}: holds no network of this package (named like '{row.name}.none'); give the "
        "folder of a finished run, or a folder in Hugging Face's format."
    )


def _networks(settings: Any) -> Iterator[dict[str, Any]]:
    """Yields the settings of every functional network, outermost first."""
    if isinstance(settings, dict):
        config = settings.get("config")
        if isinstance(config, dict) and "layers" in config and isinstance(config.get("name"), str):
            yield config
        for value in settings.values():
            yield from _networks(value)
    elif isinstance(settings, list):
        for value in settings:
            yield from _networks(value)


def _shards(index: Path) -> dict[str, str]:
    """Returns which file holds which tensor."""
    found = read_config(index).get("weight_map")
    right = isinstance(found, dict) and all(
        isinstance(name, str) and Path(name).name == name for name in found.values()
    )
    if not right:
        raise WeightsError(f"{index}: names no files beside it; get the file again.")
    assert isinstance(found, dict)
    return found


class Safetensors:
    """Reads the tensors of a folder, one at a time, whether they lie in one file or in several."""

    def __init__(self, folder: Path) -> None:
        """Reads the names.

        Args:
            folder: That `preflight` has passed.

        Raises:
            WeightsError: If a file is damaged.
        """
        try:
            import safetensors
        except ImportError as error:
            raise WeightsError(
                f"{folder}: the package safetensors is not installed; "
                "'pip install safetensors' installs it."
            ) from error
        index = folder / "model.safetensors.index.json"
        single = folder / "model.safetensors"
        names = sorted(set(_shards(index).values())) if index.is_file() else [single.name]
        self._files: dict[str, tuple[Path, Any]] = {}
        for name in names:
            path = folder / name
            try:
                file: Any = safetensors.safe_open(path, framework="numpy")
                self._files.update(dict.fromkeys(file.keys(), (path, file)))
            except (OSError, safetensors.SafetensorError) as error:
                raise WeightsError(
                    f"{path}: is damaged or no safetensors file ({error}); get it again."
                ) from error

    def names(self) -> list[str]:
        """Returns the names of all tensors."""
        return list(self._files)

    def read(self, name: str) -> np.ndarray:
        """Returns a tensor; float32 where it holds numbers of any floating type.

        Raises:
            WeightsError: If it is of a type that holds no weights.
        """
        path, file = self._files[name]
        kind = file.get_slice(name).get_dtype()
        if kind == "BF16":  # NumPy has no such type
            return _bfloat16(path, name)
        if kind not in ("F16", "F32", "F64"):
            raise WeightsError(
                f"{path}: '{name}' is of type {kind}; float16, bfloat16, float32 and float64 are "
                "read. Quantised networks have to be saved in one of those."
            )
        return np.asarray(file.get_tensor(name), dtype="float32")


def _bfloat16(path: Path, name: str) -> np.ndarray:
    """Reads a tensor of bfloat16, the upper half of a float32, straight from the file."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")  # safetensors has checked the header
        entry = json.loads(file.read(size))[name]
        begin, end = entry["data_offsets"]
        file.seek(8 + size + begin)
        upper = np.frombuffer(file.read(end - begin), "<u2")
    return (upper.astype("<u4") << 16).view("<f4").reshape(entry["shape"]).astype("float32")
