"""Runs every speed comparison of the project, in turn, each way in a process of its own.

    python -m benchmarks --photos photos/ --texts texts.csv              # all, in 20 minutes
    python -m benchmarks head gradual --rounds 3 --photos photos/        # these, at full size
    python -m benchmarks head30 --ways "kft fit" "Keras script" --photos photos/
    python -m benchmarks --size tiny --photos photos/ --texts texts.csv  # does everything run?

A round runs every way once (A B A B ...), and its number is the seed; comparisons take turns within
a round. Without names, rounds after the first are run as far as the time goes. Written are a
Markdown table of medians, spread and ratios per comparison and, beside it as JSON, what every
process gave. Every `kft fit` begins with an empty cache. What is not installed, not given or out of
time is listed with the reason. Ends with 1 if something failed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks import processes, tables
from benchmarks.comparisons import COMPARISONS, Comparison
from benchmarks.tables import Result
from benchmarks.ways import Preparation, Way

PACKAGES = ("tensorflow", "keras", "keras-hub", "jax", "torch", "transformers", "numpy")


class Session:
    """What a call of the command has made and found so far.

    Args:
        options: Of the command line.
        work: A folder for everything that is made.
    """

    def __init__(self, options: argparse.Namespace, work: Path) -> None:
        self.options = options
        self.work = work
        self.began = time.monotonic()
        self.load = os.getloadavg()
        self.chosen = {name: COMPARISONS[name] for name in options.names or COMPARISONS}
        self.numbers = {name: self._numbers(name) for name in self.chosen}
        wanted = options.ways
        self.ways = {
            name: [
                way
                for way in comparison.ways(**self.numbers[name])
                if not wanted or way.name in wanted
            ]
            for name, comparison in self.chosen.items()
        }
        self.results = {name: {way.name: Result() for way in self.ways[name]} for name in self.ways}
        self.once: dict[str, dict[str, Any]] = {name: {} for name in self.chosen}
        self.spent: dict[str, float] = {}
        self._prepared: dict[str, dict[str, Any] | str] = {}

    def _numbers(self, name: str) -> dict[str, Any]:
        numbers = dict(COMPARISONS[name].sizes[self.options.size])
        if name == "memory" and self.options.largest:
            numbers["counts"] = [*numbers["counts"], self.options.largest]
        return numbers

    def _in_time(self, seconds: float) -> bool:
        """Whether so many more seconds end before the time is over."""
        minutes = self.options.minutes
        spent = time.monotonic() - self.began
        return minutes is None or spent + seconds < minutes * 60

    def run(self) -> None:
        """Runs all rounds, and writes what is known after each comparison."""
        for number in range(self.options.rounds):
            for name, comparison in self.chosen.items():
                if number and not self._in_time(self.spent[name]):
                    self._say(f"round {number + 1} {name}: no time is left for it")
                    continue
                began = time.monotonic()
                if number == 0 and comparison.once and self._in_time(0):
                    self._measure_once(name, comparison)
                for way in self.ways[name]:
                    self._run_way(name, way, number)
                self.spent[name] = time.monotonic() - began
                self.write()

    def _measure_once(self, name: str, comparison: Comparison) -> None:
        assert comparison.once is not None
        function, settings = comparison.once(**self.numbers[name])
        try:
            self.once[name] = processes.run(function, {**settings, "seed": 0}, self.work)
        except processes.FailedError as error:
            self.once[name] = {"reason": str(error)}
            self._say(f"{name}: {function} failed: {error}")

    def _run_way(self, name: str, way: Way, number: int) -> None:
        result = self.results[name][way.name]
        if result.failed or (result.reason and not result.runs):
            return
        missing = [package for package in way.needs if not importlib.util.find_spec(package)]
        if missing:
            result.reason = f"{' and '.join(missing)} not installed"
        elif getattr(self.options, way.data.source) is None:
            result.reason = f"needs --{way.data.source}"
        elif number == 0 and not self._in_time(0):
            result.reason = f"the {self.options.minutes:g} minutes were over"
        if result.reason:
            self._say(f"round {number + 1} {name}: {way.name}: skipped: {result.reason}")
            return
        try:
            settings = {**self._prepare(way.data), **way.settings, "seed": number}
            environment = {"KFT_HOME": str(self._fresh_home()), **way.environment}
            found = processes.run(way.run, settings, self.work, environment)
        except processes.FailedError as error:
            result.reason, result.failed = str(error), True
            self._say(f"round {number + 1} {name}: {way.name}: failed: {error}")
            return
        result.runs.append({"round": number, "seed": number, **found})
        columns = self.chosen[name].columns
        shown = [f"{c.title} {found[c.key]:.3g}" for c in columns if found.get(c.key) is not None]
        self._say(f"round {number + 1} {name}: {way.name}: {', '.join(shown)}")

    def _prepare(self, wanted: Preparation) -> dict[str, Any]:
        """Makes what a way reads."""
        source = str(getattr(self.options, wanted.source).resolve())
        return self._made(wanted.run, {**wanted.settings, wanted.source: source})

    def _made(self, function: str, settings: dict[str, Any]) -> dict[str, Any]:
        """Runs a preparation, once; what could not be made fails every way that wants it."""
        key = json.dumps([function, settings], sort_keys=True)
        if key not in self._prepared:
            into = str(self.work / f"data-{len(self._prepared)}")
            try:
                found = processes.run(function, {**settings, "into": into}, self.work)
            except processes.FailedError as error:
                self._prepared[key] = f"{function}: {error}"
            else:
                self._prepared[key] = found
                self._say(f"{function} took {found['whole']:.0f} s")
        made = self._prepared[key]
        if isinstance(made, str):
            raise processes.FailedError(made)
        return made

    def _fresh_home(self) -> Path:
        """Returns an empty cache with the weights of the real one, which are fetched if need be."""
        home = self.work / "home"
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir()
        weights = self._made("preparation:weights", {})["weights"]
        (home / "weights").symlink_to(weights, target_is_directory=True)
        return home

    def _say(self, line: str) -> None:
        print(f"{time.monotonic() - self.began:6.0f} s  {line}", file=sys.stderr, flush=True)

    @property
    def failed(self) -> bool:
        """Whether a process ended badly."""
        results = [each for found in self.results.values() for each in found.values()]
        return any(r.failed for r in results) or any("reason" in o for o in self.once.values())

    def write(self) -> None:
        """Writes table and JSON."""
        path = self.options.output
        path.parent.mkdir(parents=True, exist_ok=True)
        text = self.text()
        path.write_text(text, encoding="utf-8")
        path.with_suffix(".json").write_text(json.dumps(self.record(), indent=2), encoding="utf-8")

    def text(self) -> str:
        """Returns all tables."""
        parts = ["# Comparisons", self._machine()]
        for name, comparison in self.chosen.items():
            results = self.results[name]
            against = {way.name: way.against for way in self.ways[name] if way.against}
            rows = tables.summary(results, comparison.columns, against)
            parts += [f"## `{name}`: {comparison.title}", comparison.text]
            parts += [f"Size `{self.options.size}`: {_shown(self.numbers[name])}."]
            parts += [tables.markdown(rows, comparison.columns)]
            if comparison.more:
                parts.append(comparison.more(results, self.once[name], self.numbers[name]))
            if "reason" in self.once[name]:
                parts.append(f"- what is measured once failed: {self.once[name]['reason']}")
        return "\n\n".join(part for part in parts if part) + "\n"

    def _machine(self) -> str:
        facts = machine()
        versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
        return (
            f"{facts['processors']} processors ({facts['processor']}), {facts['memory_gib']} GiB, "
            f"load {self.load[0]:.1f} at the start; Python {facts['python']}, {versions}. "
            f"{self.options.rounds} rounds at most, {(time.monotonic() - self.began) / 60:.1f} "
            "minutes. Figures are medians, with the lowest and the highest of several rounds; a "
            "ratio is that of the median to the median of the first way of its kind: 4.00 took "
            "four times as long."
        )

    def record(self) -> dict[str, Any]:
        """Returns everything for `json`."""
        found = {}
        for name, comparison in self.chosen.items():
            against = {way.name: way.against for way in self.ways[name] if way.against}
            rows = tables.summary(self.results[name], comparison.columns, against)
            found[name] = {
                "numbers": self.numbers[name],
                "ways": tables.record(rows),
                "runs": {way: result.runs for way, result in self.results[name].items()},
                "once": self.once[name],
            }
        options = {"size": self.options.size, "rounds": self.options.rounds}
        return {"machine": machine(), "load": self.load, **options, "comparisons": found}


def machine() -> dict[str, Any]:
    """Returns what ran, without its name."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "processors": len(os.sched_getaffinity(0)),
        "processor": _processor(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "python": platform.python_version(),
        "versions": versions,
    }


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _shown(numbers: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in numbers.items())


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line; named comparisons have other defaults than all of them."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    known = ", ".join(COMPARISONS)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {known}; all by default")
    parser.add_argument("--ways", nargs="+", metavar="WAY", help="these alone, by their full names")
    parser.add_argument("--photos", type=Path, help="a folder of class folders, or of such parts")
    parser.add_argument("--texts", type=Path, help="a CSV file with the columns text and label")
    parser.add_argument("--rounds", type=int, default=3, help="at most; 3 by default")
    parser.add_argument("--size", choices=("tiny", "small", "full"), help="full if names are given")
    parser.add_argument("--minutes", type=float, help="start nothing later; 18 for all")
    parser.add_argument("--largest", type=int, help="pictures of one more way of memory: 50000")
    parser.add_argument("--output", type=Path, default=Path("runs") / "benchmarks.md")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.names if name not in COMPARISONS]:
        parser.error(f"unknown: {', '.join(unknown)}; choose from {known}")
    if options.ways:
        rows = [COMPARISONS[name] for name in options.names or COMPARISONS]
        ways = [way.name for row in rows for way in row.ways(**row.sizes["full"])]
        if unknown := [name for name in options.ways if name not in ways]:
            parser.error(f"--ways: unknown: {', '.join(unknown)}; choose from {'; '.join(ways)}")
    for name in ("photos", "texts"):
        path = getattr(options, name)
        if path is not None and not path.exists():
            parser.error(f"--{name}: '{path}' does not exist")
    options.size = options.size or ("full" if options.names else "small")
    if options.minutes is None and not options.names:
        options.minutes = 18.0
    return options


def main() -> int:
    """Runs what was asked for and prints the tables."""
    options = parse()
    with tempfile.TemporaryDirectory(prefix="kft-benchmarks-") as folder:
        session = Session(options, Path(folder))
        try:
            session.run()
        finally:
            session.write()
    print(session.text())
    return int(session.failed)


if __name__ == "__main__":
    sys.exit(main())
