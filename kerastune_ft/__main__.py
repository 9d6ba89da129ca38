"""Lets `python -m kerastune_ft` be `kft`."""

from kerastune_ft.cli import main

main()
