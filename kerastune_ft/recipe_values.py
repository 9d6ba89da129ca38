"""What values of recipes have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel, ConfigDict

from kerastune_ft.recipe_checks import NAME, SETTINGS

Text = Annotated[str, MinLen(1)]
Count = Annotated[int, Ge(1)]
# NumPy, scikit-learn and Keras all take seeds of 32 bits.
Seed = Annotated[int, Ge(0), Le(2**32 - 1)]
Share = Annotated[float, Ge(0), Le(1)]
ShareBelowOne = Annotated[float, Ge(0), Lt(1)]
Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]


def name_or_settings(value: object) -> str | None:
    """Tells the two ways apart in which some keys can be written."""
    if isinstance(value, str):
        return NAME
    return SETTINGS if isinstance(value, Mapping | BaseModel) else None


class Section(BaseModel):
    """Is strict and cannot be changed: what a recipe said stays what it said."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
