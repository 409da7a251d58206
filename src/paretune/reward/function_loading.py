"""Finds a function by `package.module:name` or `file.py:name`, and imports its module."""

import hashlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from paretune.core.errors import ConfigError, first_line
from paretune.reward.function_calls import Attempt, line_of_error
from paretune.reward.function_files import home_files, imported_names, inner_function, source_files


@dataclass(frozen=True)
class LoadedObject:
    """Whatever a name in a module stands for, and the files that it rests on."""

    value: Any
    source: Path | None
    """File of the module; None for a module without source."""
    files: tuple[Path, ...]
    """That file, and those of all modules of one's own that it imports (`function_files.source_files`)."""


def load_object(reference: str, fits: Callable[[Any], bool] = callable) -> LoadedObject:
    """The object that `package.module:name` or `file.py:name` names.

    A file is imported as a module of its own, named after its path and content, with its folder on the path
    during the import; a module, with the working directory at the end of the path. The path is then as
    before. The module is run: its code must be as trustworthy as any other program.

    Args:
        reference: What names it.
        fits: Whether a value of the module may be meant, for the names that an error lists.

    Raises:
        ConfigError: The reference, the file, the module or the name is wrong, or the import fails.
    """
    location, separator, name = reference.rpartition(":")
    if not separator or not location or not name.isidentifier():
        raise ConfigError(
            f'"{reference}" names no function; fix: write package.module:name or path/to/file.py:name'
        )
    module = _import_file(Path(location)) if location.endswith(".py") else _import_module(location)
    if not hasattr(module, name):
        raise ConfigError(f'"{location}" has no "{name}"{_suggestion(module, name, fits)}')
    source = Path(module.__file__) if module.__file__ and module.__file__.endswith(".py") else None
    return LoadedObject(getattr(module, name), source, () if source is None else source_files(source))


def source_hash(value: Any, source: Path | None = None) -> str:
    """SHA-256 of all files that the code of a function rests on, however it was reached.

    Of a function in a notebook or in the program itself: of its source, or of its name, and of the modules
    of one's own that the program imports.

    Args:
        value: What is called.
        source: File of the module that it was taken from; it counts where it makes the value, as an object.
    """
    is_definition = inspect.isroutine(value) or inspect.isclass(value)
    is_made = not is_definition or "<" in value.__qualname__
    homes = (*home_files(value), *([source.resolve()] if source is not None and is_made else []))
    files = [file for home in homes for file in source_files(home)]
    digest = hashlib.sha256()
    if not homes:
        function = inner_function(value)
        try:
            text = inspect.getsource(function)
        except (OSError, TypeError):
            text = getattr(function, "__qualname__", type(function).__qualname__)
        digest.update(text.encode())
        program = getattr(sys.modules["__main__"], "__file__", None)
        if program and getattr(function, "__module__", "") == "__main__" and Path(program).is_file():
            files = list(source_files(Path(program))[1:])
    for file in dict.fromkeys(files):
        content = file.read_bytes()
        digest.update(len(content).to_bytes(8, "big") + content)
    return digest.hexdigest()


class _FreshLoader(SourceFileLoader):
    """Compiles the file as it is: cached bytecode counts as current if the file changed within a second."""

    def get_code(self, fullname: str) -> CodeType:
        """The code of the file, without a look into `__pycache__`."""
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        files = {file.name: str(file) for file in path.parent.glob("*.py")}
        hint = _did_you_mean(path.name, files)
        raise ConfigError(
            f'there is no file "{path}"{hint}; fix: give a path relative to the working directory'
        )
    path = path.resolve()
    # The content too: a file that was edited in the meantime is another module.
    digest = hashlib.sha256(str(path).encode() + b"\0" + path.read_bytes()).hexdigest()
    name = f"paretune_function_{digest[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    _check_modules_beside(path)
    spec = spec_from_file_location(name, path, loader=_FreshLoader(name, str(path)))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    # Dataclasses and pickles look up the module of a class there.
    sys.modules[name] = module
    with _on_path(path.parent, first=True):
        with Attempt() as attempt:
            spec.loader.exec_module(module)
        # Those that its functions import when they are called: the folder is not on the path then.
        late = [] if attempt.error else _modules_beside(path, with_folders=True)
    if attempt.error is not None:
        del sys.modules[name]
        raise _import_error(attempt.error, path, str(path))
    _late_imports.folders.update(dict.fromkeys(late, path.parent))
    if _late_imports not in sys.meta_path:
        sys.meta_path.insert(0, _late_imports)
    return module


class _LateImports(MetaPathFinder):
    """Finds modules beside files that were loaded, for imports inside functions: nothing is run before."""

    def __init__(self) -> None:
        self.folders: dict[str, Path] = {}
        """Top-level name -> folder."""

    def find_spec(self, fullname: str, path: object, target: ModuleType | None = None) -> ModuleSpec | None:
        """The module, if it is one of them."""
        is_known = path is None and fullname in self.folders
        return PathFinder.find_spec(fullname, [str(self.folders[fullname])]) if is_known else None


_late_imports = _LateImports()


def _import_module(name: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise ConfigError(f'"{name}" is no name of a module; fix: write package.module:name or file.py:name')
    with _on_path(Path.cwd(), first=False), Attempt() as attempt:
        attempt.value = import_module(name)
    error = attempt.error
    if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
        hint = _did_you_mean(error.name, {file.stem: file.stem for file in Path.cwd().glob("*.py")})
        raise ConfigError(
            f'there is no module "{error.name}"{hint}; fix: install its package, or start in its folder'
        ) from error
    if error is not None:
        source = getattr(sys.modules.get(name), "__file__", None) or _innermost_file(error)
        raise _import_error(error, Path(source) if source else None, name)
    module: ModuleType = attempt.value
    return module


def _import_error(error: BaseException, source: Path | None, name: str) -> ConfigError:
    line = line_of_error(error, source)
    place = f"{source}:{line}" if line else name
    fix = (
        f"install the package of {error.name}"
        if isinstance(error, ModuleNotFoundError)
        else "make sure that the module can be imported"
    )
    result = ConfigError(f"{place}: {type(error).__name__}: {first_line(error)}; fix: {fix}")
    result.__cause__ = error
    return result


def _innermost_file(error: BaseException) -> str | None:
    if isinstance(error, SyntaxError):
        return error.filename
    traceback, file = error.__traceback__, None
    while traceback is not None:
        name = traceback.tb_frame.f_code.co_filename
        file = name if not name.startswith("<") and "importlib" not in name and name != __file__ else file
        traceback = traceback.tb_next
    return file


@contextmanager
def _on_path(folder: Path, *, first: bool) -> Iterator[None]:
    entry = str(folder)
    if entry in sys.path:
        yield
        return
    sys.path.insert(0 if first else len(sys.path), entry)
    try:
        yield
    finally:
        if entry in sys.path:  # the module may have changed the path itself
            sys.path.remove(entry)


def _modules_beside(path: Path, *, with_folders: bool = False) -> list[str]:
    """Top-level names of the modules in the folder of a file that it imports, also through each other.

    Args:
        path: The file.
        with_folders: Also folders without __init__.py, where no package of their name comes before them.
    """
    found, files = set(), source_files(path)
    for file in files:
        for each in imported_names(file) if file.is_relative_to(path.parent) else ():
            top = path.parent / each.name.partition(".")[0]
            if each.level or not each.name or top == path.with_suffix(""):
                continue
            is_module = (top / "__init__.py").is_file() or top.with_suffix(".py").is_file()
            if is_module or (with_folders and any(other.is_relative_to(top) for other in files)):
                found.add(top.name)
    return sorted(found)


def _check_modules_beside(path: Path) -> None:
    """Two modules of one name would be one module for Python: whichever came first."""
    for name in _modules_beside(path):
        late = _late_imports.folders.get(name, path.parent) / name
        if name in sys.modules or late.parent != path.parent:
            other = getattr(sys.modules[name], "__file__", None) if name in sys.modules else late
            other = other or "part of Python"
            if not Path(other).is_relative_to(path.parent):
                raise ConfigError(
                    f'"{path.name}" imports "{name}", a module beside it and the name of another module '
                    f"({other}); fix: rename the one beside it"
                )


def _suggestion(module: ModuleType, wrong: str, fits: Callable[[Any], bool]) -> str:
    functions = sorted(
        name for name, value in vars(module).items() if _is_own(value, module, name) and fits(value)
    )
    hint = _did_you_mean(wrong, {name: name for name in functions})
    return f"{hint}; fix: one of {', '.join(functions[:10])}" if functions else "; fix: define it there"


def _did_you_mean(wrong: str, names: Mapping[str, str]) -> str:
    """The nearest name as a part of a message; "" if none is near.

    Args:
        wrong: What was written.
        names: What it may have been -> how it is written.
    """
    match = next(iter(get_close_matches(wrong, names, 1)), "")
    return f'; did you mean "{names[match]}"?' if match else ""


def _is_own(value: Any, module: ModuleType, name: str) -> bool:
    return not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
