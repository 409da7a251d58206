"""Bounded number types, and stand-ins for classes of transformers and peft that load neither library.

The number types are for recipe keys and algorithm arguments; pydantic checks the bounds when a recipe is
loaded.

Importing transformers and peft takes longer than checking a whole recipe. The stand-ins serve in signatures
and `isinstance`: an object is an instance of a stand-in if it is an instance of the real class. As long as
the real module is not loaded, nothing is. Code that needs the class itself imports it inside the function.
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
"""Such as an upper bound of a probability ratio."""


if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
else:

    class _LazyType(type):
        """Metaclass that forwards `isinstance` to the class of the same name in `module_name`."""

        module_name: str

        def __instancecheck__(cls, instance: Any) -> bool:
            # getattr: a module that is still being imported may not have its class yet.
            real_class = getattr(sys.modules.get(cls.module_name), cls.__name__, None)
            return real_class is not None and isinstance(instance, real_class)

    class PeftModel(metaclass=_LazyType):
        """Stands for peft.PeftModel."""

        module_name = "peft.peft_model"

    class PreTrainedModel(metaclass=_LazyType):
        """Stands for transformers.PreTrainedModel."""

        module_name = "transformers.modeling_utils"

    class PreTrainedTokenizerBase(metaclass=_LazyType):
        """Stands for transformers.PreTrainedTokenizerBase."""

        module_name = "transformers.tokenization_utils_base"


__all__ = ["PeftModel", "PreTrainedModel", "PreTrainedTokenizerBase"]
