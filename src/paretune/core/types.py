"""Numbers with bounds, for keys of recipes and arguments of algorithms; checked where a recipe is read.

Classes of transformers and peft for signatures and `isinstance`, without loading either.

Loading the two takes longer than checking a recipe. A class here has those instances that the class of its
name has over there: as long as that one is not loaded there are none. A function that needs the class itself
imports it when it is called.
"""

import sys
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
UnitInterval = Annotated[float, Field(ge=0, le=1)]
FloatAtLeastOne = Annotated[float, Field(ge=1)]
"""The largest that the probability of a token may have become, relative to what it was."""


if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
else:

    class _Elsewhere(type):
        """The type of a class that stands for the one of its name in another module."""

        home: str

        def __instancecheck__(cls, instance: Any) -> bool:
            # While that module is being loaded it may not have its class yet.
            there = getattr(sys.modules.get(cls.home), cls.__name__, None)
            return there is not None and isinstance(instance, there)

    class PeftModel(metaclass=_Elsewhere):
        """A model with adapters around it."""

        home = "peft.peft_model"

    class PreTrainedModel(metaclass=_Elsewhere):
        """A network of transformers."""

        home = "transformers.modeling_utils"

    class PreTrainedTokenizerBase(metaclass=_Elsewhere):
        """A tokenizer of transformers."""

        home = "transformers.tokenization_utils_base"


__all__ = ["PeftModel", "PreTrainedModel", "PreTrainedTokenizerBase"]
