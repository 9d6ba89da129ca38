"""Finds presets of KerasHub: by name, by address or in a folder.

Nothing is waited for in vain: a host is asked for a connection before KerasHub asks it for a
file, and a preset that Kaggle's or Hugging Face's own cache holds needs no network.

    presets()[0].name                              # 'cspnet_...'
    located(backbones.get("keras_hub:my_preset"))  # 'my_preset', a folder
    slug(backbones.get("keras_hub:kaggle://keras/vit/keras/vit_base/2"))    # 'vit_base'
"""

from __future__ import annotations

import contextlib
import os
import re
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from kerastune_ft.backbones import HUB
from kerastune_ft.backbones import weights as weights_cache
from kerastune_ft.backbones.facts import Backbone
from kerastune_ft.errors import ModelError, WeightsError, did_you_mean

HOSTS = {
    "kaggle": "www.kaggle.com",
    "hf": "huggingface.co",
    "modelscope": "www.modelscope.cn",
    "gs": weights_cache.KERAS_HOST,
}
"""Which host serves the addresses of a scheme."""


@dataclass(frozen=True)
class Preset:
    """Holds what KerasHub says about a preset without loading it.

    Args:
        name: What follows `keras_hub:`.
        description: In KerasHub's words.
        parameters: Of the backbone; None where it is not said.
    """

    name: str
    description: str
    parameters: int | None


def presets() -> list[Preset]:
    """Lists the presets of KerasHub that classify pictures, by name."""
    import keras_hub

    return [
        Preset(name, facts["metadata"].get("description", ""), facts["metadata"].get("params"))
        for name, facts in sorted(keras_hub.models.ImageClassifier.presets.items())
    ]


def slug(row: Backbone) -> str:
    """Returns what a preset is called in the name of a network: its folder, without versions."""
    preset = row.name.removeprefix(f"{HUB}:")
    parts = [part for part in preset.split("/") if part]
    if preset.startswith("kaggle://") and len(parts) == 6:
        parts.pop()  # the version
    return re.sub(r"[^A-Za-z0-9_-]+", "_", parts[-1]) if parts else "_"


def located(row: Backbone) -> str:
    """Returns what KerasHub can load without waiting in vain: a folder, or an address.

    Raises:
        ModelError: If the preset is unknown or known to take no pictures.
        WeightsError: If its host cannot be reached.
    """
    import keras_hub

    preset = row.name.removeprefix(f"{HUB}:")
    known = keras_hub.models.Backbone.presets
    if preset in known and not Path(preset).is_dir():
        if preset not in keras_hub.layers.ImageConverter.presets:
            raise takes_no_pictures(row)
        preset = known[preset]["kaggle_handle"]
    if "://" not in preset:
        folder = Path(preset).expanduser()
        if (folder / "config.json").is_file():
            return str(folder)
        if folder.is_dir():
            raise ModelError(
                f"backbone '{row.name}': the folder holds no config.json; give a folder that "
                "KerasHub's save_to_preset has written."
            )
        names = [entry.name for entry in presets()]
        raise ModelError(
            f"backbone '{row.name}': no preset of KerasHub and no folder has that name"
            f"{did_you_mean(preset, names) or '.'} 'kft ls presets' lists all."
        )
    cached = _cached(preset)
    if cached is not None:
        return str(cached)
    scheme = preset.partition("://")[0]
    if scheme not in HOSTS:
        raise ModelError(
            f"backbone '{row.name}': addresses that begin with '{scheme}://' are unknown; "
            f"they begin with one of {', '.join(f'{known}://' for known in HOSTS)}."
        )
    host = HOSTS[scheme]
    if scheme == "hf" and os.environ.get("HF_ENDPOINT"):
        host = urllib.parse.urlsplit(os.environ["HF_ENDPOINT"]).hostname or host
    if not weights_cache.check_reachable(host):
        raise WeightsError(
            f"backbone '{row.name}': {host} cannot be reached from this machine; on one with "
            f"network run {_download(preset)}, bring the folder here and set backbone.name to "
            f"'{HUB}:FOLDER'; or take a backbone of 'kft ls backbones' whose weights come from "
            "the package index."
        )
    return preset


def _download(address: str) -> str:
    """Returns the command that downloads the folder of a preset."""
    scheme, _, place = address.partition("://")
    if scheme == "hf":
        return f"'hf download {place} --local-dir FOLDER'"
    if scheme == "kaggle":
        return f"python -c 'import kagglehub; print(kagglehub.model_download(\"{place}\"))'"
    return f"a download of {address}"


def _cached(address: str) -> Path | None:
    """Returns the folder of a preset that Kaggle's or Hugging Face's own cache holds whole."""
    scheme, _, place = address.partition("://")
    folder = None
    if scheme == "kaggle":
        cache = Path(os.environ.get("KAGGLEHUB_CACHE", "~/.cache/kagglehub")).expanduser()
        folder = cache / "models" / place
        if place.count("/") == 3:  # without a version
            versions = [path for path in folder.glob("*") if path.name.isdecimal()]
            folder = max(versions, key=lambda path: int(path.name), default=folder)
    elif scheme == "hf":
        with contextlib.suppress(ImportError, ValueError):  # not installed; no such address
            import huggingface_hub

            found = huggingface_hub.try_to_load_from_cache(place, "config.json")
            folder = Path(found).parent if isinstance(found, str) else None
    if folder is None or not (folder / "config.json").is_file():
        return None
    whole = ("model.weights.h5", "model.weights.json", "model.safetensors")
    return folder if any((folder / name).exists() for name in whole) else None


@contextlib.contextmanager
def _explained(row: Backbone) -> Iterator[None]:
    """Turns what KerasHub raises about a preset into an error of ours, with its reason."""
    try:
        yield
    except (AttributeError, ImportError, KeyError, OSError, TypeError, ValueError) as error:
        raise ModelError(
            f"backbone '{row.name}': KerasHub cannot load it: {reason(error)}"
        ) from error


def reason(error: Exception) -> str:
    """Returns the telling line of an error that Keras may have wrapped."""
    # Keras prints some of them bold, TensorFlow names the operation before and behind.
    text = re.sub(r"\x1b\[\d*m|\{\{.*?\}\} ?| ?\[Op:\w+\]", "", str(error))
    lines = [line.strip() for line in text.splitlines()]
    telling = [
        line
        for line in lines
        if line and not line.endswith(":") and not line.startswith("Exception encountered when")
    ]
    line = (telling or [type(error).__name__])[0].removeprefix("Exception encountered: ")
    return (line.rstrip(".") if len(line) <= 300 else f"{line[:300]} ...") + "."


def configuration(row: Backbone) -> tuple[type | None, Mapping[str, Any]]:
    """Returns class and settings of the backbone in a preset; no class for a foreign format.

    Raises:
        ModelError: If the preset is unknown, damaged or of an unknown class.
        WeightsError: If its host cannot be reached.
    """
    from keras_hub.src.utils import preset_utils  # there is no public way to read them

    with _explained(row):
        config = preset_utils.load_json(located(row))
        if not isinstance(config, dict):
            raise ValueError("its config.json holds no settings")
        if "registered_name" not in config:
            return None, {}  # KerasHub converts those of timm and of Hugging Face
        cls = keras.saving.get_registered_object(config["registered_name"])
        if cls is None:
            raise ValueError(f"its class {config['registered_name']} is unknown")
        return cls, config.get("config", {})


def takes_no_pictures(row: Backbone) -> ModelError:
    """Returns the error for the preset of a text model, or of one that wants more than pictures."""
    return ModelError(
        f"backbone '{row.name}': takes no pictures; 'kft ls presets' lists those that do."
    )


def converter(row: Backbone) -> Any | None:
    """Returns the image converter of a preset; None if it has none.

    Raises:
        ModelError: If the preset is unknown or damaged.
        WeightsError: If its host cannot be reached.
    """
    import keras_hub
    from keras_hub.src.utils import preset_utils

    cls, _ = configuration(row)
    place = located(row)
    with _explained(row):
        own = preset_utils.IMAGE_CONVERTER_CONFIG_FILE
        if cls is not None and not preset_utils.check_file_exists(place, own):
            return None
        return keras_hub.layers.ImageConverter.from_preset(place)
