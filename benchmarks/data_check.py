"""Time and memory of `kft data check`, and how both grow with the number of pictures.

    python -m benchmarks.data_check                  # 10,000, 20,000 and 50,000 pictures
    python -m benchmarks.data_check --counts 2000 --side 64

The pictures are different crops of real photographs (../shared/assets/data/clothing10), or, where
those are not at hand, smooth noise; JPEG, 10 classes. Every check is a process of its own on an
empty cache, with all that needs a network (features at 96 pixels). The peak is that of the process.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

PHOTOS = Path(__file__).parents[2] / "shared" / "assets" / "data" / "clothing10" / "train"


def write_pictures(folder: Path, count: int, side: int, sources: list[Path] | None = None) -> None:
    """Writes `count` different JPEGs into class folders: crops of `sources`, or of `PHOTOS`."""
    rng = np.random.default_rng(0)
    sources = sorted(PHOTOS.rglob("*.jpg")) if sources is None else sources
    classes = sorted({path.parent.name for path in sources}) or [f"class {n}" for n in range(10)]
    opened: dict[Path, Image.Image] = {}
    for name in classes:
        (folder / name).mkdir(parents=True)
    for number in range(count):
        if sources:
            path = sources[number % len(sources)]
            if path not in opened:
                opened[path] = Image.open(path).convert("RGB")
            image, name = opened[path], path.parent.name
            size = int(rng.integers(min(side, min(image.size) - 1), min(image.size)))
            left = int(rng.integers(0, image.width - size + 1))
            top = int(rng.integers(0, image.height - size + 1))
            made = image.crop((left, top, left + size, top + size)).resize((side, side))
        else:
            name = classes[number % len(classes)]
            small = rng.integers(0, 255, (6, 6, 3), np.uint8)
            made = Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)
        made.save(folder / name / f"{number:06d}.jpg", quality=90)


def check(folder: Path, home: Path) -> tuple[float, float, str]:
    """Returns seconds, peak GiB and the last lines of one check."""
    words = [sys.executable, "-m", "kerastune_ft", "data", "check", str(folder)]
    words += ["backbone.image_size=96", "--output", str(home / "check")]
    environment = {**os.environ, "KFT_HOME": str(home), "TF_CPP_MIN_LOG_LEVEL": "3"}
    began = time.monotonic()
    with subprocess.Popen(
        words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        said = process.stdout.read()
        _, _, usage = os.wait4(process.pid, 0)
    assert isinstance(usage, resource.struct_rusage)
    return time.monotonic() - began, usage.ru_maxrss / 2**20, said


def main() -> None:
    """Prints a row per number of pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", type=int, nargs="+", default=[10_000, 20_000, 50_000])
    parser.add_argument("--side", type=int, default=96)
    chosen = parser.parse_args()
    print("| pictures | seconds | per 1,000 | peak GiB |\n|---|---|---|---|", flush=True)
    for count in chosen.counts:
        with tempfile.TemporaryDirectory() as work:
            write_pictures(Path(work) / "photos", count, chosen.side)
            seconds, peak, said = check(Path(work) / "photos", Path(work) / "home")
            if not (Path(work) / "home" / "check" / "findings.json").is_file():
                sys.exit(said)
        row = f"| {count:,} | {seconds:.0f} | {seconds / count * 1000:.1f} | {peak:.2f} |"
        print(row, flush=True)


if __name__ == "__main__":
    main()
