"""Which versions of a model are there, which are loaded, and who is still using them.

A new version is loaded beside the old one and takes over when it can answer; the old one goes when
its last request is answered. One that cannot be loaded says so in its status and changes nothing.

    registry = Registry("mobilenet", find(Path("runs/mobilenet")), policy("latest"), {"stable": 3})
    registry.refresh()                               # and again every few seconds
    with registry.borrow() as version: version.model.signature("").run(...)
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from kerastune_ft.errors import ServingError
from kerastune_ft.serving import refusals, signatures
from kerastune_ft.serving.refusals import RefusedError, invalid
from kerastune_ft.serving.signatures import Model

State = Literal["START", "LOADING", "AVAILABLE", "UNLOADING", "END"]
Policy = Literal["latest", "all"] | frozenset[int]
"""The newest version, all, or those of given numbers."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_LARGEST = 2**63 - 1
_MOST_STATUSES = 100


@dataclass(frozen=True)
class Export:
    """Where versions lie.

    Args:
        base: The folder with a folder for each version.
        only: Number and folder of the one version that is asked for.
    """

    base: Path
    only: tuple[int, Path] | None = None

    def versions(self) -> dict[int, Path]:
        """Returns the folder of each version; others, such as unfinished ones, are left out."""
        if self.only is not None:
            return dict([self.only])
        found = {}
        try:
            for folder in sorted(self.base.iterdir()):
                number = _number(folder.name)
                if number is not None and folder.is_dir():
                    found[number] = folder
        except OSError:
            return {}  # the folder is away for now: what is loaded goes on
        return found

    def name(self) -> str:
        """Returns what the model calls itself, or else what its folder is called."""
        for _, folder in sorted(self.versions().items(), reverse=True):
            with contextlib.suppress(OSError, ValueError):
                said = json.loads((folder / signatures.FACTS).read_text(encoding="utf-8"))
                if isinstance(said, dict) and is_name(said.get("name")):
                    return str(said["name"])
        base = self.base.resolve()
        if self.only is not None and _number(self.only[1].resolve().name) is None:
            base = self.only[1].resolve()
        name = base.parent.name if base.name == "export" else base.name
        return name if is_name(name) else "model"


@dataclass(frozen=True)
class Status:
    """How far a version got.

    Args:
        version: Its number.
        state: As TensorFlow Serving calls it.
        code: `OK`, or why it ended.
        message: What went wrong.
    """

    version: int
    state: State
    code: str = "OK"
    message: str = ""


@dataclass
class Version:
    """A version in memory.

    Args:
        name: Of the model.
        number: Its own.
        model: What answers.
        requests: How many use it now.
    """

    name: str
    number: int
    model: Model
    requests: int = 0


def find(path: Path) -> Export:
    """Returns the versions that a path stands for.

    Args:
        path: A base folder with numbered versions, one version's folder, or a run's folder, of
            which `export/` is taken.

    Raises:
        ServingError: If it is none of them.
    """
    if not path.is_dir():
        raise ServingError(
            f"'{path}' is no folder; give an export such as 'runs/mobilenet/export', or a run."
        )
    if (path / signatures.GRAPH).is_file():
        number = _number(path.resolve().name)
        return Export(path.resolve().parent, (1 if number is None else number, path))
    if Export(path).versions():
        return Export(path)
    if (path / "export").is_dir() and Export(path / "export").versions():
        return Export(path / "export")
    if (path / "recipe.yaml").is_file():
        raise ServingError(f"run '{path}' is not exported yet; 'kft export {path}' does it.")
    raise ServingError(
        f"'{path}' holds no version of a SavedModel: neither '{signatures.GRAPH}' nor folders "
        "called 1, 2 and so on; 'kft export RUN' makes one."
    )


def is_name(name: object) -> bool:
    """Whether a model can be called so in an address."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def policy(text: str) -> Policy:
    """Reads `latest`, `all` or numbers such as `3,5`.

    Raises:
        ServingError: If it is neither.
    """
    if text == "latest":
        return "latest"
    if text == "all":
        return "all"
    numbers = [_number(word.strip()) for word in text.split(",")]
    if None in numbers:
        raise ServingError(
            f"--versions: expected latest, all, or numbers such as 3 or 3,5, got '{text}'."
        )
    return frozenset(number for number in numbers if number is not None)


class Registry:
    """The versions of one model. `refresh` is for one thread, the rest for any.

    Args:
        name: Of the model, as clients call it.
        export: Where versions lie.
        policy: Which are served.
        labels: Further names for versions, such as `stable`.
        load: Makes a model of a folder.
        say: Is told of versions that come, go or fail, in one line.
    """

    def __init__(
        self,
        name: str,
        export: Export,
        policy: Policy = "latest",
        labels: Mapping[str, int] | None = None,
        load: Callable[[Path], Model] = signatures.load,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.name = name
        self.export = export
        self.policy = policy
        self.labels = dict(labels or {})
        self._load = load
        self._say = say
        self._lock = threading.Lock()
        self._versions: dict[int, Version] = {}
        self._statuses: dict[int, Status] = {}
        self._failed: dict[int, object] = {}
        self.loading = False
        """Whether a version is being loaded, which cannot be interrupted."""

    @property
    def ready(self) -> bool:
        """Whether a version can answer."""
        return bool(self._versions)

    @property
    def numbers(self) -> list[int]:
        """The versions that can answer, in order."""
        with self._lock:
            return sorted(self._versions)

    def refresh(self) -> None:
        """Looks for versions, loads those that are wanted and lets go of the others.

        A version that failed is tried again when its folder changes. In place of the newest one,
        `latest` serves the newest that can be loaded. Without any wanted version that answers, the
        newest of those that do goes on.
        """
        present = self.export.versions()
        wanted = self._wanted(present)
        for number in sorted(wanted):
            self._answers(number, present[number])
        if self.policy == "latest":
            newest_first = sorted(present, reverse=True)
            found = (each for each in newest_first if self._answers(each, present[each]))
            wanted |= set(itertools.islice(found, 1))
        with self._lock:
            kept = wanted & self._versions.keys() or set(sorted(self._versions)[-1:])
            retired = [self._versions.pop(number) for number in self._versions.keys() - kept]
            for version in retired:
                self._retire(version)
            for number in sorted(self._statuses)[:-_MOST_STATUSES]:
                if self._statuses[number].state == "END":
                    del self._statuses[number]

    @contextlib.contextmanager
    def borrow(self, number: int | None = None, label: str | None = None) -> Iterator[Version]:
        """Yields a version, which stays in memory until the block ends.

        Args:
            number: The newest one if neither a number nor a label is given.
            label: One of `labels`.

        Raises:
            RefusedError: If it is not served.
        """
        if label is not None:
            if label not in self.labels:
                raise invalid(f"Unrecognized servable version label: {label[:60]}")
            number = self.labels[label]
        with self._lock:
            if number is None:
                asked = f"Latest({self.name})"
                number = max(self._versions, default=-1)
            else:
                asked = f"Specific({self.name}, {number})"
            found = self._versions.get(number)
            if found is None:
                raise RefusedError("NOT_FOUND", f"Servable not found for request: {asked}")
            found.requests += 1
        try:
            yield found
        finally:
            with self._lock:
                found.requests -= 1
                status = self._statuses.get(found.number)
                if found.requests == 0 and status is not None and status.state == "UNLOADING":
                    self._end(found)

    def statuses(self, number: int | None = None, label: str | None = None) -> list[Status]:
        """Returns how far versions got, the newest first.

        Args:
            number: One alone.
            label: Likewise.

        Raises:
            RefusedError: If there is none.
        """
        if label is not None:
            if label not in self.labels:
                raise invalid(f"Unrecognized servable version label: {label[:60]}")
            number = self.labels[label]
        with self._lock:
            found = [self._statuses[key] for key in sorted(self._statuses, reverse=True)]
        if number is not None:
            found = [status for status in found if status.version == number]
        if not found:
            what = "any versions" if number is None else f"version {number}"
            raise RefusedError("NOT_FOUND", f"Could not find {what} of model {self.name}")
        return found

    def _wanted(self, present: Collection[int]) -> set[int]:
        """Returns the versions that are served whether or not others can be loaded."""
        if isinstance(self.policy, frozenset):
            return set(self.policy) & set(present)
        if self.policy == "all":
            return set(present)
        return set(self.labels.values()) & set(present)

    def _answers(self, number: int, folder: Path) -> bool:
        """Whether a version is in memory, after it was tried if there is reason to."""
        if number not in self._versions:
            stamp = _stamp(folder)
            if self._failed.get(number) != stamp:
                self._try(number, folder, stamp)
        return number in self._versions

    def _try(self, number: int, folder: Path, stamp: object) -> None:
        """Loads a version, while the others go on answering."""
        self._note(Status(number, "LOADING"))
        self.loading = True
        place = folder.resolve()  # in a message, "3" may be anything
        try:
            model = self._load(place)
        except Exception as error:
            why = _why(error)
            # Clients see this: where the model lies is not their business.
            said = why.message.replace(str(place), f"{self.name}/{number}")
            self._failed[number] = stamp
            self._note(Status(number, "END", why.code, said))
            self._say(f"version {number} cannot be loaded: {why.message}")
            return
        finally:
            self.loading = False
        self._failed.pop(number, None)
        with self._lock:
            self._versions[number] = Version(self.name, number, model)
            self._statuses[number] = Status(number, "AVAILABLE")
        self._say(f"version {number} is served")

    def _note(self, status: Status) -> None:
        with self._lock:
            self._statuses[status.version] = status

    def _retire(self, version: Version) -> None:
        """Lets a version go once nobody uses it; under the lock."""
        self._statuses[version.number] = Status(version.number, "UNLOADING")
        if version.requests == 0:
            self._end(version)

    def _end(self, version: Version) -> None:
        status = self._statuses[version.number]
        self._statuses[version.number] = replace(status, state="END")
        self._say(f"version {version.number} is no longer served")


def _why(error: Exception) -> RefusedError:
    """Returns why a version cannot be loaded, as a status tells it."""
    if isinstance(error, RefusedError):
        return error
    message = getattr(error, "message", None) or str(error) or type(error).__name__
    return RefusedError(refusals.code_of(error) or "UNKNOWN", refusals.plain(str(message)))


def _number(text: str) -> int | None:
    """Returns the number of a version by its folder's name, `007` included."""
    if not text.isascii() or not text.isdigit() or len(text) > 20:
        return None
    return int(text) if int(text) <= _LARGEST else None


def _stamp(folder: Path) -> object:
    """Returns what changes when any file of a folder does."""
    marks: list[tuple[str, int, int]] = []
    for inside, _, names in os.walk(folder):
        for place in (Path(inside), *(Path(inside, name) for name in names)):
            with contextlib.suppress(OSError):
                found = place.stat()
                marks.append((str(place), found.st_mtime_ns, found.st_size))
    return tuple(sorted(marks))
