"""Runs each way in a process of its own, and measures the process from outside.

    found = run("plain:transfer", {"seed": 0, ...}, Path("work"))
    found["whole"], found["memory"], found["training"]

The process that measures imports nothing large: what a new process weighs at its beginning, before
it becomes another program, would count in its peak memory.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]

NOISE = re.compile(r"^[IWE]\d{4} |oneDNN|TF_ENABLE|WARNING: All log messages|rebuild TensorFlow")
"""What TensorFlow prints whatever is asked of it."""


class FailedError(Exception):
    """Says why a process ended badly."""


def function(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Returns `module:function` of this folder."""
    module, _, wanted = name.partition(":")
    found: Callable[[dict[str, Any]], dict[str, Any]] = getattr(
        importlib.import_module(f"benchmarks.{module}"), wanted
    )
    return found


def run(
    name: str,
    settings: Mapping[str, Any],
    work: Path,
    environment: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Calls a function of this folder in a new process.

    Args:
        name: `module:function`. It is called with `settings` and `spawned`, the time at which the
            process was started, and returns figures.
        settings: What JSON can hold.
        work: A folder for what the process prints.
        environment: Variables beside those of this process.

    Returns:
        What it returned, and, unless it said otherwise, `whole` and `processor` (user and system)
        in seconds and the process's peak `memory` in GiB.

    Raises:
        FailedError: If it ended badly; with the last lines that it printed.
    """
    asked, answer, log = (work / f"process.{kind}" for kind in ("json", "answer", "log"))
    answer.unlink(missing_ok=True)
    variables = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **(environment or {})}
    command = [sys.executable, "-m", "benchmarks.processes", name, str(asked), str(answer)]
    with log.open("wb") as output:
        began = time.monotonic()
        asked.write_text(json.dumps({**settings, "spawned": began}), encoding="utf-8")
        process = subprocess.Popen(
            command, cwd=ROOT, env=variables, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            raise
        whole = time.monotonic() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode < 0:
        raise FailedError(f"killed by signal {-process.returncode}; is there enough memory?")
    if process.returncode or not answer.is_file():
        raise FailedError(said(log.read_text(encoding="utf-8", errors="replace")))
    assert isinstance(usage, resource.struct_rusage)
    measured = {
        "whole": whole,
        "processor": usage.ru_utime + usage.ru_stime,
        "memory": usage.ru_maxrss / 2**20,
    }
    return {**measured, **json.loads(answer.read_text(encoding="utf-8"))}


def said(log: str) -> str:
    """Returns the end of what a failed process printed, on one line."""
    lines = [line.strip() for line in log.splitlines() if line.strip() and not NOISE.search(line)]
    return " / ".join(lines[-2:])[:400] or "it printed nothing"


def main(name: str, asked: str, answer: str) -> None:
    """Calls the function and writes what it returns."""
    found = function(name)(json.loads(Path(asked).read_text(encoding="utf-8")))
    Path(answer).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
