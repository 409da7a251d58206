"""The source files that a Python object rests on: of its module, and of what that imports. Runs nothing."""

import ast
import inspect
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_IMPORTERS = ("import_module", "__import__")
_NEVER_TRUE = ("TYPE_CHECKING", "typing.TYPE_CHECKING", "__name__ == '__main__'")
"""Conditions that do not hold where a module is imported."""
_PACKAGE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class ImportedName:
    """A module that an import statement names, or may name."""

    name: str
    """Dotted; "" for `from . import x`."""
    level: int = 0
    """Dots of a relative import."""


def source_files(path: Path) -> tuple[Path, ...]:
    """A file, then the files of the modules that it imports, also through each other and inside functions.

    Modules are looked up where Python has loaded them from, else in the folder of the file, in that of its
    package, on the path and in the working directory. Files of Python, of installed packages and of
    paretune are left out: their versions stand for them. A name that is computed is not known.
    """
    path = path.resolve()
    roots = [path.parent, _root(path), *(Path(entry or ".") for entry in sys.path), Path.cwd()]
    search = list(dict.fromkeys(str(root) for root in roots))
    found: dict[Path, None] = {path: None}
    unread = [path]
    while unread:
        file = unread.pop()
        for other in (*_packages_of(file), *_imported_files(file, search)):
            if other not in found and _is_own(other):
                found[other] = None
                unread.append(other)
    return (path, *sorted(found.keys() - {path}))


def imported_names(path: Path) -> tuple[ImportedName, ...]:
    """What a file imports, except under `if TYPE_CHECKING` and `if __name__ == "__main__"`."""
    return _imported_by(path.read_bytes()) if path.suffix == ".py" else ()


@lru_cache(256)
def _imported_by(code: bytes) -> tuple[ImportedName, ...]:
    found: dict[ImportedName, None] = {}
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError):  # the import tells it
        return ()
    stack: list[ast.AST] = [tree]
    while stack:
        node = stack.pop()
        found |= {ImportedName(name, level): None for name, level in _names_of(node)}
        children: Sequence[ast.AST] = list(ast.iter_child_nodes(node))
        if isinstance(node, ast.If) and ast.unparse(node.test) in _NEVER_TRUE:
            children = node.orelse
        stack += children
    return tuple(found)


def inner_function(value: Any) -> Any:
    """The function behind `functools.partial` and bound methods."""
    while isinstance(value, partial) or inspect.ismethod(value):
        value = value.func if isinstance(value, partial) else value.__func__
    return value


def home_files(value: Any) -> tuple[Path, ...]:
    """The files that define a function, a class or the class of an object; none if they are not known.

    A function that runs as part of the program itself (`__main__`) has none: its own text stands for it.
    """
    definition = inner_function(value)
    if not (inspect.isroutine(definition) or inspect.isclass(definition)):
        definition = type(definition)
    module = getattr(definition, "__module__", None)
    if module == "__main__":
        return ()
    files = [getattr(sys.modules.get(str(module)), "__file__", None)]
    with suppress(TypeError):  # built in
        # Of the wrapper, where the function is decorated and names the module of what it wraps.
        files.append(inspect.getsourcefile(definition))
    paths = [Path(file) for file in files if isinstance(file, str)]
    return tuple(dict.fromkeys(p.resolve() for p in paths if p.suffix == ".py" and p.is_file()))


def function_name(value: Any, name: str = "") -> str:
    """The name of code in its module, however it was reached.

    Args:
        value: A function, a class or an object that is called.
        name: Its name in the module that it was taken from; needed where it has no unique one of its own.
    """
    value = inner_function(value)
    own = getattr(value, "__qualname__", "")
    if own and "<" not in own:
        return str(own)
    owner = value if own else type(value)
    module = sys.modules.get(str(getattr(owner, "__module__", "")))
    names = [n for n, each in vars(module).items() if each is value] if module else []
    if name or names:
        return name or names[0]
    code = getattr(value, "__code__", None)
    place = f" {code.co_firstlineno} {code.co_code.hex()} {code.co_names}" if code is not None else ""
    return f"{own or type(value).__qualname__}{place}"


def _names_of(node: ast.AST) -> Iterator[tuple[str, int]]:
    if isinstance(node, ast.Import):
        yield from ((alias.name, 0) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        module = node.module or ""
        yield module, node.level
        # `from package import module` looks like `from module import name`.
        yield from ((f"{module}.{alias.name}".lstrip("."), node.level) for alias in node.names)
    elif isinstance(node, ast.Call) and len(node.args) == 1 and isinstance(node.args[0], ast.Constant):
        function = node.func
        called = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        name = node.args[0].value
        if called in _IMPORTERS and isinstance(name, str):
            yield name, 0


def _imported_files(file: Path, search: list[str]) -> Iterator[Path]:
    for each in imported_names(file):
        if each.level:
            folder = file.parents[min(each.level, len(file.parents)) - 1]
            yield from _files_below([str(folder)], each.name)
        else:
            yield from _files_of(each.name, search)


def _files_of(name: str, search: list[str]) -> Iterator[Path]:
    """The files that are run when a module is imported, without importing anything."""
    top, _, rest = name.partition(".")
    if not top:
        return
    module = sys.modules.get(top)
    if module is not None and (origin := _file(getattr(module, "__file__", None))) is not None:
        yield origin
        locations = getattr(module, "__path__", ())
    elif module is not None and hasattr(module, "__path__"):  # a namespace package has no file
        locations = module.__path__
    else:
        spec = _spec(top, search)
        if spec is None:
            return
        if (origin := _file(spec.origin)) is not None:
            yield origin
        locations = spec.submodule_search_locations or ()
    folders = [str(folder) for folder in locations]
    if rest and folders and any(_is_own(Path(folder)) for folder in folders):
        yield from _files_below(folders, rest)


def _files_below(folders: list[str], name: str) -> Iterator[Path]:
    """The files of a module, and of its packages, in the folders of a package."""
    for part in name.split(".") if name else ():
        # By the last part of its name alone: a dotted name would ask for the loaded package.
        spec = PathFinder.find_spec(part, folders)
        if spec is None:
            return
        if (origin := _file(spec.origin)) is not None:
            yield origin
        folders = list(spec.submodule_search_locations or ())


def _spec(name: str, search: list[str]) -> ModuleSpec | None:
    spec = PathFinder.find_spec(name, search)
    if spec is None or spec.origin is None:
        # Finders of packages that are installed in place, and modules without a file.
        with suppress(ImportError, ValueError, AttributeError):
            return find_spec(name) or spec
    return spec


def _file(origin: Any) -> Path | None:
    return Path(origin).resolve() if isinstance(origin, str) and Path(origin).is_file() else None


def _root(path: Path) -> Path:
    """The folder from which the package of a file is imported."""
    folder = path.parent
    while (folder / "__init__.py").is_file() and folder != folder.parent:
        folder = folder.parent
    return folder


def _packages_of(path: Path) -> Iterator[Path]:
    folder, root = path.parent, _root(path)
    while folder != root:
        yield folder / "__init__.py"
        folder = folder.parent


@cache
def _library_folders() -> tuple[Path, ...]:
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    return tuple(Path(sysconfig.get_path(name)).resolve() for name in names)


def _is_own(path: Path) -> bool:
    """Whether a file belongs neither to Python, nor to an installed package, nor to paretune."""
    path = path.resolve()
    if {"site-packages", "dist-packages"} & set(path.parts):
        return False
    return not any(path.is_relative_to(folder) for folder in (*_library_folders(), _PACKAGE))
