"""Tells what a bug report should begin with: versions, devices, folders, weights, reach."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from kerastune_ft import devices, listings
from kerastune_ft.backbones import weights
from kerastune_ft.errors import KftError

if TYPE_CHECKING:
    from rich.console import Console

_HOSTS = {
    "Keras's weights and TensorFlow Datasets": weights.KERAS_HOST,
    "Kaggle presets": "www.kaggle.com",
    "Hugging Face presets": "huggingface.co",
}


def report(console: Console) -> int:
    """Prints the state of the installation.

    Returns:
        0 if a recipe can run, 1 if something that every run needs is missing.
    """
    sound = True
    console.print("[bold]versions[/]")
    for package, version in devices.versions().items():
        console.print(f"  {package:<22}{version or 'not installed'}")
    environment = devices.environment()
    console.print("[bold]machine[/]")
    for key in ("platform", "processors", "memory_gib", "backend", "devices"):
        console.print(f"  {key:<22}{environment[key]}", markup=False)
    console.print("[bold]weights cache[/]")
    try:
        home = weights.home()
        free = shutil.disk_usage(home).free / 2**30
        console.print(f"  {'folder (KFT_HOME)':<22}{home}, {free:.0f} GiB free", markup=False)
        if not os.access(home, os.W_OK):
            raise KftError(f"'{home}' cannot be written; set KFT_HOME to another folder.")
    except KftError as error:
        console.print(f"  [red]{error}[/]")
        sound = False
    console.print("[bold]reach[/]")
    for what, host in _HOSTS.items():
        reached = weights.check_reachable(host, timeout_seconds=3)
        console.print(f"  {what}: {'yes' if reached else f'no ({host} does not answer)'}")
    console.print("[bold]weights[/]")
    listings.show(console, listings.rows("weights", Path()))
    return 0 if sound else 1
