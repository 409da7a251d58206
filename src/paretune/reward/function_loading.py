"""Finds a function by `package.module:name` or `file.py:name`, and imports its module."""

import hashlib
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from paretune.core.errors import ConfigError, first_line
from paretune.reward.function_calls import Attempt, line_of_error
from paretune.reward.function_files import home_files, imported_names, innermost, source_files


@dataclass(frozen=True)
class LoadedObject:
    """Whatever a name in a module stands for, and the files that it rests on."""

    value: Any
    source: Path | None
    """File of the module; None for a module without source."""
    files: tuple[Path, ...]
    """That file, and those of all modules of one's own that it imports (`function_files.source_files`)."""


def load_object(reference: str) -> LoadedObject:
    """The object that `package.module:name` or `file.py:name` names.

    A file is imported as a module of its own, named after its path and content, with its folder on the path
    during the import; a module, with the working directory at the end of the path. The path is then as
    before. The module is run: its code must be as trustworthy as any other program.

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
        raise ConfigError(f'"{location}" has no "{name}"{_suggestion(module)}')
    source = Path(module.__file__) if module.__file__ and module.__file__.endswith(".py") else None
    return LoadedObject(getattr(module, name), source, () if source is None else source_files(source))


def source_hash(value: Any) -> str:
    """SHA-256 of all files that the code of a function rests on, however it was reached.

    Without files, as in a notebook and in the program itself: of its source, or of its name.
    """
    digest = hashlib.sha256()
    homes = home_files(value)
    for file in dict.fromkeys(file for home in homes for file in source_files(home)):
        content = file.read_bytes()
        digest.update(len(content).to_bytes(8, "big") + content)
    if not homes:
        function = innermost(value)
        try:
            text = inspect.getsource(function)
        except (OSError, TypeError):
            text = getattr(function, "__qualname__", type(function).__qualname__)
        digest.update(text.encode())
    return digest.hexdigest()


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ConfigError(f'there is no file "{path}"; fix: give a path relative to the working directory')
    path = path.resolve()
    # The content too: a file that was edited in the meantime is another module.
    digest = hashlib.sha256(str(path).encode() + b"\0" + path.read_bytes()).hexdigest()
    name = f"paretune_function_{digest[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    _check_modules_beside(path)
    spec = spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    # Dataclasses and pickles look up the module of a class there.
    sys.modules[name] = module
    with _on_path(path.parent, first=True):
        with Attempt() as attempt:
            spec.loader.exec_module(module)
        # Those that its functions import when they are called: the folder is not on the path then.
        for beside in () if attempt.error else _modules_beside(path, late=True):
            with Attempt():
                import_module(beside)
    if attempt.error is not None:
        del sys.modules[name]
        raise _import_error(attempt.error, path, str(path))
    return module


def _import_module(name: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise ConfigError(f'"{name}" is no name of a module; fix: write package.module:name or file.py:name')
    with _on_path(Path.cwd(), first=False), Attempt() as attempt:
        attempt.value = import_module(name)
    error = attempt.error
    if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
        raise ConfigError(
            f'there is no module "{error.name}"; fix: install its package, or start in its folder'
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


def _modules_beside(path: Path, *, late: bool = False) -> list[str]:
    """Modules in the folder of a file that it imports, also through each other.

    Args:
        path: The file.
        late: Full names of those that functions import when they are called; else all top-level names.
    """
    found = set()
    for file in source_files(path):
        if file.is_relative_to(path.parent):
            for each in imported_names(file):
                top = path.parent / each.name.partition(".")[0]
                is_beside = (top.is_dir() and any(top.glob("**/*.py"))) or top.with_suffix(".py").is_file()
                if each.level == 0 and each.name and is_beside and top != path.with_suffix(""):
                    found.update([each.name] if late and each.in_function else [])
                    found.update([] if late else [top.name])
    return sorted(found)


def _check_modules_beside(path: Path) -> None:
    """Two modules of one name would be one module for Python: whichever came first."""
    for name in _modules_beside(path):
        if name in sys.modules:
            other = getattr(sys.modules[name], "__file__", None) or "part of Python"
            if not Path(other).is_relative_to(path.parent):
                raise ConfigError(
                    f'"{path.name}" imports "{name}", a module beside it and the name of another module '
                    f"({other}); fix: rename the one beside it"
                )


def _suggestion(module: ModuleType) -> str:
    functions = sorted(
        name for name, value in vars(module).items() if callable(value) and _is_own(value, module, name)
    )
    return f"; fix: one of {', '.join(functions[:10])}" if functions else "; fix: define it there"


def _is_own(value: Any, module: ModuleType, name: str) -> bool:
    return not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
