"""Prints what the package needs, so that an image can install it before the code is there.

python requirements.py setup.cfg gpu,jax > requirements.txt
"""

from __future__ import annotations

import configparser
import sys


def requirements(path: str, extras: str) -> list[str]:
    """Returns the requirements of a package, and those of its extras.

    Args:
        path: Of its `setup.cfg`.
        extras: Names with commas between them; "" for none.

    Raises:
        SystemExit: If there is no such extra.
    """
    found = configparser.RawConfigParser()
    with open(path, encoding="utf-8") as file:  # noqa: PTH123 - alone in an image, and short
        found.read_file(file)
    known = found["options.extras_require"]
    wanted = [name.strip() for name in extras.split(",") if name.strip()]
    for name in wanted:
        if name not in known:
            sys.exit(f"EXTRAS={extras}: '{name}' is unknown; expected some of {', '.join(known)}.")
    text = "\n".join([found["options"]["install_requires"], *(known[name] for name in wanted)])
    return [line.strip() for line in text.splitlines() if line.strip()]


if __name__ == "__main__":
    print("\n".join(requirements(sys.argv[1], sys.argv[2])))
