"""Reads a Dockerfile, and does below a temporary root what needs no container engine.

Bases are left out: what is made lies below a folder, to which absolute paths of the image are
moved. Of BuildKit's rules those that our file relies on are kept: scopes of ARG, ENV before ARG,
what .dockerignore leaves out, stages that stand on others, contexts in place of a stage.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

WORDS = {"ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "RUN"}
WORDS |= {"USER", "WORKDIR"}
"""Instructions that our file may use."""

# Folders of the image that are made below the temporary root, wherever a command names them.
_PLACES = re.compile(r"(?<![\w.$}/-])/(?=(?:src|tmp|work|home|opt|models|export)(?:/|\b))")
_VARIABLE = re.compile(r"\$(?:\{(?P<braced>\w+)\}|(?P<plain>\w+))")


@dataclass(frozen=True)
class Step:
    """An instruction.

    Args:
        word: Its name.
        flags: Such as `{"from": "export"}`.
        text: What follows them.
        line: Where it begins, from 1.
    """

    word: str
    flags: Mapping[str, str]
    text: str
    line: int

    @property
    def listed(self) -> list[str] | None:
        """What follows as a list of words; None in shell form."""
        if not self.text.startswith("["):
            return None
        return [str(word) for word in json.loads(self.text)]


@dataclass
class Stage:
    """What begins with FROM."""

    name: str
    base: str
    steps: list[Step] = field(default_factory=list)


@dataclass
class Image:
    """What building a stage left.

    Args:
        root: Where the image's folders lie.
        environment: Of ENV.
        config: The last text of USER, WORKDIR, ENTRYPOINT, CMD and HEALTHCHECK.
    """

    root: Path
    environment: dict[str, str]
    config: dict[str, str]


class Dockerfile:
    """A parsed file.

    Raises:
        ValueError: If something in it is not known here.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.arguments: dict[str, str] = {}
        self.stages: dict[str, Stage] = {}
        stage: Stage | None = None
        for step in _steps(path.read_text(encoding="utf-8")):
            if step.word == "FROM":
                found = re.fullmatch(r"(\S+) AS (\S+)", step.text)
                if found is None or found[2] in self.stages:
                    raise ValueError(f"line {step.line}: expected FROM IMAGE AS NEW_NAME")
                base, name = found.groups()
                stage = self.stages[name] = Stage(name, substituted(base, self.arguments))
            elif stage is None:
                self.arguments |= _assignment(step)
            else:
                stage.steps.append(step)

    def chain(self, name: str) -> list[Stage]:
        """Returns a stage and those that it stands on, the lowest first."""
        stage = self.stages[name]
        return [*(self.chain(stage.base) if stage.base in self.stages else []), stage]

    def steps(self, name: str, *words: str) -> list[Step]:
        """Returns instructions of a stage and of those that it stands on, in their order."""
        return [step for stage in self.chain(name) for step in stage.steps if step.word in words]

    def last(self, name: str, word: str) -> Step:
        """Returns the instruction that counts where the last one does."""
        return self.steps(name, word)[-1]

    def build(
        self,
        name: str,
        root: Path,
        *,
        path: Sequence[Path] = (),
        arguments: Mapping[str, str] | None = None,
        contexts: Mapping[str, Path] | None = None,
        words: Sequence[str] = ("COPY", "RUN"),
    ) -> Image:
        """Does what a stage says below a folder.

        Args:
            name: Of the stage.
            root: Made if it is missing.
            path: Where programs are looked for first.
            arguments: As of `--build-arg`.
            contexts: As of `--build-context`.
            words: Which of COPY and RUN are done.

        Raises:
            subprocess.CalledProcessError: If a RUN fails.
        """
        image = Image(root, {}, {})
        for folder in ("tmp", "home", "opt"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        for stage in self.chain(name):
            scope: dict[str, str] = {}  # arguments are forgotten at every FROM
            for step in stage.steps:
                known = scope | image.environment  # ENV wins
                if step.word == "ARG":
                    scope |= {k: (arguments or {}).get(k, v) for k, v in _assignment(step).items()}
                elif step.word == "ENV":
                    words_ = shlex.split(substituted(step.text, known))
                    image.environment |= dict(word.split("=", 1) for word in words_)
                elif step.word == "COPY" and "COPY" in words:
                    self._copy(step, root, known, contexts or {})
                elif step.word == "RUN" and "RUN" in words:
                    self._run(step, image, scope, path)
                else:
                    image.config[step.word] = step.text
        return image

    def _copy(
        self, step: Step, root: Path, known: Mapping[str, str], contexts: Mapping[str, Path]
    ) -> None:
        *sources, target = substituted(step.text, known).split()
        place = root / target.lstrip("/")
        if "from" in step.flags:
            context = contexts.get(step.flags["from"])
            place.mkdir(parents=True, exist_ok=True)
            if context is not None:
                shutil.copytree(context, place, dirs_exist_ok=True)
            return
        for source in sources:
            for path in self.sent(source):
                inside = path.relative_to(self.path.parent / source)
                to = place / source.rsplit("/", 1)[-1] if target.endswith("/") else place
                to = to / inside if inside.parts else to
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, to)

    def _run(
        self, step: Step, image: Image, scope: Mapping[str, str], path: Sequence[Path]
    ) -> None:
        command = step.listed or ["/bin/sh", "-c", step.text]
        environment = {
            **os.environ,
            **{name: moved(text, image.root) for name, text in scope.items()},
            **{name: moved(text, image.root) for name, text in image.environment.items()},
            "HOME": str(image.root / "home"),
            "PATH": os.pathsep.join([*map(str, path), os.environ["PATH"]]),
            "TMPDIR": str(image.root / "tmp"),
        }
        environment.pop("PYTHONPATH", None)
        subprocess.run(
            [moved(word, image.root) for word in command],
            env=environment,
            cwd=image.root,
            check=True,
            capture_output=True,
            text=True,
        )

    def sent(self, source: str) -> list[Path]:
        """Returns the files of a COPY's source that reach the builder, ascending."""
        root = self.path.parent
        found = [root / source] if (root / source).is_file() else (root / source).rglob("*")
        lines = (root / ".dockerignore").read_text(encoding="utf-8").splitlines()
        files = [path for path in found if path.is_file()]
        return sorted(p for p in files if not ignored(str(p.relative_to(root)), lines))


def moved(text: str, root: Path) -> str:
    """Returns a command or value whose absolute paths of the image lie below a folder."""
    return _PLACES.sub(lambda _: f"{root}/", text)


def substituted(text: str, known: Mapping[str, str]) -> str:
    """Returns a text with its variables; those that are unknown are empty, as Docker has it."""
    return _VARIABLE.sub(lambda found: known.get(found["braced"] or found["plain"], ""), text)


def ignored(path: str, lines: Sequence[str]) -> bool:
    """Returns whether a .dockerignore leaves a path out: the last line that fits it decides."""
    pure = PurePosixPath(path)
    above = [str(part) for part in (pure, *pure.parents) if str(part) != "."]
    verdict = False
    for line in map(str.strip, lines):
        if line and not line.startswith("#"):
            pattern = _pattern(line.removeprefix("!").strip("/"))
            if any(pattern.fullmatch(part) for part in above):
                verdict = not line.startswith("!")
    return verdict


def _pattern(line: str) -> re.Pattern[str]:
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^]]*\])", line)
    known = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile(
        "".join(
            known.get(part, part if part.startswith("[") else re.escape(part)) for part in parts
        )
    )


def _steps(text: str) -> list[Step]:
    found: list[Step] = []
    parts: list[str] = []
    began = 0
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue  # also in the middle of an instruction
        began = number if not parts else began
        parts.append(line.removesuffix("\\"))
        if line.endswith("\\"):
            continue
        word, _, rest = "".join(parts).strip().partition(" ")
        parts = []
        if word not in WORDS:
            raise ValueError(f"line {began}: '{word}' is not known")
        flags = {}
        while flag := re.match(r"\s*--([a-z-]+)=(\S+)\s+", rest):
            flags[flag[1]] = flag[2]
            rest = rest[flag.end() :]
        found.append(Step(word, flags, rest.strip(), began))
    if parts:
        raise ValueError(f"line {began}: the last line ends with a backslash")
    return found


def _assignment(step: Step) -> dict[str, str]:
    if step.word != "ARG":
        raise ValueError(f"line {step.line}: expected ARG before the first FROM, not {step.word}")
    name, equals, text = step.text.partition("=")
    if not equals:
        raise ValueError(f"line {step.line}: ARG {name} has no default")
    return {name: text.strip('"')}
