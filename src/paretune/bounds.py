"""Numbers with bounds, for keys of recipes and arguments of algorithms; checked where a recipe is read."""

from typing import Annotated

from pydantic import Field

Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Ratio = Annotated[float, Field(ge=1)]
"""The largest that the probability of a token may have become, relative to what it was."""
