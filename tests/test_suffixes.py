"""The rest of the contract of a backbone: whatever block training begins at, nothing changes.

A file of its own, so that two workers share what `test_contract.py` would take alone.
"""

from __future__ import annotations

import keras
import pytest
from test_contract import built, suffixes_equal_the_whole

from kerastune_ft.backbones import Backbone

__all__ = ["built"]  # the fixture


@pytest.mark.slow
def test_every_suffix_equals_the_whole(built: tuple[Backbone, keras.Model]) -> None:
    row, network = built
    inner = [c for c in row.cuts if network.get_layer(c).output is not network.output]
    assert len(inner) >= len(row.cuts) - 1
    suffixes_equal_the_whole(network, tuple(inner))
