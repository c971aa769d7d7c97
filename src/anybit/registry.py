"""One small registry, used for format families, scale rules, methods, layouts, kernels and model families."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Generic, TypeVar

from anybit.errors import UnknownNameError, UsageError, near_misses

T = TypeVar("T")


class Registry(Generic[T]):
    """Names to things. Importing the package `folder` fills it; a duplicate name is an error; an import error propagates.

    >>> fruits: Registry[int] = Registry("fruit")
    >>> fruits.add("apple", 1)
    >>> fruits["aple"]
    Traceback (most recent call last):
        ...
    anybit.errors.UnknownNameError: no fruit named 'aple'; did you mean apple?
    """

    def __init__(self, what: str, folder: str | None = None) -> None:
        self.what = what
        self._folder = self._package = folder
        self._items: dict[str, T] = {}

    def _load(self) -> None:
        if self._folder is not None:
            folder, self._folder = self._folder, None
            try:
                package = importlib.import_module(folder)
                for module in pkgutil.iter_modules(package.__path__):
                    importlib.import_module(f"{folder}.{module.name}")
            except ImportError:
                self._folder = folder  # the next one who asks hears it too, instead of finding half of the items
                raise

    def add_folder(self, path: str | Path) -> None:
        """Takes the .py files of another folder as if they lay in this registry's own, now or when it is first asked.

        UsageError: no such folder, or a file named as one that is there already; what a file itself raises propagates.
        """
        assert self._package is not None
        folder = Path(path).absolute()
        if not folder.is_dir():
            raise UsageError(f"{path}: no folder with {self.what} files; give one that holds .py files")
        package = importlib.import_module(self._package)
        if str(folder) in package.__path__:
            return
        taken = {module.name for module in pkgutil.iter_modules(package.__path__)}
        names = [module.name for module in pkgutil.iter_modules([str(folder)])]
        for name in names:
            if name in taken:
                raise UsageError(f"{folder / name}.py: there is a {self.what} file of this name already; rename yours")
        package.__path__.append(str(folder))
        importlib.invalidate_caches()  # the folder may be newer than what the import system has seen
        if self._folder is None:
            for name in names:
                importlib.import_module(f"{self._package}.{name}")

    def add(self, name: str, item: T) -> None:
        """Adds one item. ValueError: the name is taken."""
        if name in self._items:
            raise ValueError(f"two {self.what}s named '{name}'")
        self._items[name] = item

    def register(self, name: str) -> Callable[[T], T]:
        """The same as a decorator."""

        def add(item: T) -> T:
            self.add(name, item)
            return item

        return add

    def __getitem__(self, name: str) -> T:
        self._load()
        if name not in self._items:
            known = f"; there are {', '.join(self._items)}" if len(self._items) <= 8 else ""
            raise UnknownNameError(f"no {self.what} named '{name}'{near_misses(name, self._items) or known}")
        return self._items[name]

    def __contains__(self, name: object) -> bool:
        self._load()
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        self._load()
        return iter(self._items)

    def __len__(self) -> int:
        self._load()
        return len(self._items)
