"""Numbers with bounds, for keys of recipes and arguments of algorithms; checked where a recipe is read."""

from typing import Annotated

from pydantic import Field

PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
UnitInterval = Annotated[float, Field(ge=0, le=1)]
FloatAtLeastOne = Annotated[float, Field(ge=1)]
"""The largest that the probability of a token may have become, relative to what it was."""
