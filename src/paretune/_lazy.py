"""Lazy public names of the package: `import paretune` loads nothing else until a name is used."""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from inspect import Signature, signature
from types import ModuleType
from typing import Any


class _CallablePackage(ModuleType):
    """A package that has the name of a function, such as `paretune.run`: calling it calls the function."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _function_of(self)(*args, **kwargs)

    @property
    def __signature__(self) -> Signature:
        return signature(_function_of(self))


class _LazyPackage(ModuleType):
    """A package with lazy names; a package inside that has the name of a function becomes callable."""

    def __setattr__(self, name: str, value: object) -> None:
        # Python sets a package as an attribute of the one that it is in when it is imported.
        if isinstance(value, ModuleType) and name in self.__dict__.get("_EXPORTS", ()):
            value.__class__ = _CallablePackage
        super().__setattr__(name, value)


def _function_of(package: ModuleType) -> Any:
    parent, _, name = package.__name__.rpartition(".")
    module = sys.modules[parent].__dict__["_EXPORTS"][name]
    return getattr(import_module(f"{parent}.{module}"), name)


def make_lazy(
    package: str,
    exports: Mapping[str, str],
    modules: Mapping[str, str],
    companions: Mapping[str, str],
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package whose exports are imported on first use.

    Args:
        package: Its name; its `exports` are its variable `_EXPORTS`.
        exports: Name -> module below the package that defines it.
        modules: Name -> module below the package that it stands for.
        companions: Name of a module -> module below the package that is imported with it.
    """
    sys.modules[package].__class__ = _LazyPackage

    def get_attribute(name: str) -> Any:
        if name in modules:
            if name in companions:
                import_module(f"{package}.{companions[name]}")
            return import_module(f"{package}.{modules[name]}")
        if name not in exports:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f"{package}.{exports[name]}"), name)
        # A package of this name, loaded by now or later, is what the name stands for.
        return sys.modules.get(f"{package}.{name}", value)

    def list_names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *exports, *modules})

    return get_attribute, list_names
