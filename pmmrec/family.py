"""A family: the parts that can take one place in a model, found by name."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoints, entry_points
from typing import Annotated, Any, Generic, Literal, TypeAlias, TypeVar

from pydantic import BeforeValidator, SerializeAsAny

from pmmrec.errors import RecipeError
from pmmrec.settings import PartConfig, validate

PartT = TypeVar("PartT")
_Decorated = TypeVar("_Decorated", bound=type)

PLUGIN_GROUP = "pmmrec.parts"
PartGroup: TypeAlias = Literal["items", "users", "propagation", "scorer", "objectives"]


@dataclass(frozen=True)
class Entry(Generic[PartT]):
    """A registered part: its name, its settings and the class built from them."""

    name: str
    config_class: type[PartConfig]
    part_class: type[PartT]

    @property
    def summary(self) -> str:
        """First line of the part's docstring."""
        return (self.part_class.__doc__ or "").strip().split("\n")[0]


@cache
def _plugins() -> EntryPoints:
    """The modules of plugins: found once for all families, since it reads the metadata of every installed package."""
    return entry_points(group=PLUGIN_GROUP)


class Family(Generic[PartT]):
    """Name -> part. The modules of `home` are imported at the first look-up, then those of plugins.

    A plugin names its module under the entry point group `pmmrec.parts`; importing it registers its parts.

    Args:
        name: What messages and checkpoints call the family.
        home: The package of its parts.
        group: What its parts work on; None for families whose members are no parts of a model.
    """

    def __init__(self, name: str, home: str, group: PartGroup | None = None) -> None:
        self.name, self.group = name, group
        self._home = home
        self._entries: dict[str, Entry[PartT]] = {}
        self._is_complete = False

    def register(self, type_name: str, config_class: type[PartConfig]) -> Callable[[_Decorated], _Decorated]:
        """Class decorator that adds a part under `type_name`; a name taken twice is an error."""

        def add(part_class: _Decorated) -> _Decorated:
            taken = self._entries.get(type_name)
            if taken is not None:
                other = f"{taken.part_class.__module__}.{taken.part_class.__qualname__}"
                raise RecipeError(f"{self.name} {type_name!r} is registered twice: by {other} and {part_class!r}")
            self._entries[type_name] = Entry(type_name, config_class, part_class)
            return part_class

        return add

    def __iter__(self) -> Iterator[Entry[PartT]]:
        self._complete()
        return iter(self._entries.values())

    def __getitem__(self, type_name: str) -> Entry[PartT]:
        """The part called `type_name`; RecipeError with the nearest name when there is none."""
        self._complete()
        if type_name not in self._entries:
            raise RecipeError(self._no_such_part(type_name))
        return self._entries[type_name]

    def config(self, tree: Mapping[str, Any]) -> PartConfig:
        """Settings of the part that `tree["type"]` names."""
        return validate(self[str(tree.get("type"))].config_class, tree, self.name)

    @property
    def field(self) -> Any:
        """Type of a settings field that holds any part of this family and keeps all its settings when dumped."""
        return Annotated[SerializeAsAny[PartConfig], BeforeValidator(self._resolve)]

    def part_class(self, config: PartConfig) -> type[PartT]:
        """The class that `config` is meant for."""
        return self[config.type].part_class

    def _resolve(self, value: Any) -> PartConfig:
        if isinstance(value, PartConfig):
            return value
        if not isinstance(value, Mapping) or "type" not in value:
            raise ValueError(f"must be a mapping with `type`, one of: {', '.join(entry.name for entry in self)}")
        try:
            config_class = self[str(value["type"])].config_class
        except RecipeError as error:
            raise ValueError(str(error)) from error
        return config_class.model_validate(value)

    def _complete(self) -> None:
        if self._is_complete:
            return
        self._is_complete = True  # first, so that a home that looks itself up while importing does not recurse
        package = importlib.import_module(self._home)
        for module in pkgutil.iter_modules(package.__path__, prefix=f"{self._home}."):
            importlib.import_module(module.name)
        for plugin in _plugins():
            plugin.load()

    def _no_such_part(self, type_name: str) -> str:
        names = sorted(self._entries)
        near = difflib.get_close_matches(type_name, names, n=1, cutoff=0.5)
        hint = (
            f"did you mean {near[0]!r}?"
            if near
            else f"there are: {', '.join(names)}; a plugin's are known once it is installed"
        )
        return f"no {self.name} is called {type_name!r}; {hint}"
