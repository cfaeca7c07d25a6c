"""Read the search space from a file and check it against the recipe before anything runs."""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, model_validator
from typing_extensions import Self

from pmmrec.errors import RecipeError
from pmmrec.recipe import RunRecipe
from pmmrec.renamed import RenamedSettingWarning, renamed_recipe
from pmmrec.settings import Config, Tree, overlay, read_yaml, validate

Real = Annotated[float, Field(strict=True)]
Positive = Annotated[float, Field(strict=True, gt=0)]
MOST = 2**53  # proposals are stored as floats, which represent every whole number up to here
Whole = Annotated[int, Field(strict=True, ge=-MOST, le=MOST)]
PositiveRange = tuple[Positive, Positive]
RealRange = tuple[Real, Real]
WholeRange = tuple[Whole, Whole]

SOMEWHERE = 0.3819660112501051  # not whole between whole ends: reveals settings that need whole numbers

_KEY = re.compile(r'"([^"]+)"(?:\.|$)|([^."]+)(?:\.|$)')
_KINDS = ("log", "uniform", "int", "choice")
_FIXED = {
    "name": "every trial has its own name",
    "runs": "trials are written below the search",
    "hub": "it changes nothing that is learned",
    "cache": "it changes nothing that is learned",
    "licence": "it changes nothing that is learned",
    "system": "it changes nothing that is learned",
    "publish_as": "trials are not published",
    "replace": "trials are not published",
    "rank_test": "trials do not rank test targets",
    "seed": "the best of several seeds is luck that does not repeat",
    "validation.metric": "trials must be judged by the same metric",
    "validation.seen": "trials must be judged by the same metric",
    "data.sources": "trials must be judged on the same users",
    "data.holdout": "trials must be judged on the same users",
    "data.users": "trials must be judged on the same users",
}


class Dimension(Config):
    """The values to try for one setting: exactly one of these fields."""

    log: PositiveRange | None = Field(None, description="From, to; uniform in the logarithm.")
    uniform: RealRange | None = Field(None, description="From, to.")
    int: WholeRange | None = Field(None, description="From, to, both inclusive.")
    choice: tuple[Any, ...] | None = Field(None, min_length=2, description="These values.")

    @model_validator(mode="after")
    def _is_one_kind(self) -> Self:
        given = [kind for kind in _KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(f"give one of {', '.join(_KINDS)}; found {' and '.join(given) or 'none'}")
        return self

    @model_validator(mode="after")
    def _holds_more_than_one_value(self) -> Self:
        if self.range is not None and not self.range[0] < self.range[1]:
            raise ValueError(f"the first end must be below the second, found {list(self.range)}")
        texts, same = self.choice_texts, [(type(value) is bool, value) for value in self.choice or ()]  # True == 1
        doubled = [text for place, text in enumerate(texts) if text in texts[:place] or same[place] in same[:place]]
        if doubled:
            raise ValueError(f"choice: {doubled[0]} is listed twice; keep one")
        return self

    @property
    def range(self) -> RealRange | WholeRange | None:
        """Both ends; None for choices."""
        return self.log or self.uniform or self.int

    @property
    def choice_texts(self) -> list[str]:
        """The choices as JSON, which is how they are stored: a choice may be a list or a mapping."""
        return [json.dumps(value, default=str) for value in self.choice or ()]

    @property
    def points(self) -> Sequence[Any] | None:
        """Every value, as stored; None for a continuous range."""
        if self.int is not None:
            return range(self.int[0], self.int[1] + 1)
        return self.choice_texts or None

    @property
    def probes(self) -> tuple[Any, ...]:
        """Values to check against the recipe: both ends and one between, or every choice."""
        if self.range is not None and self.int is None:
            low, high = self.range
            return (low, low + (high - low) * SOMEWHERE, high)
        return self.range or self.choice or ()


class _SpaceFile(Config):
    """A space file: any keys, each with a dimension."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Dimension] = Field(init=False)

    @property
    def dimensions(self) -> dict[str, Dimension]:
        return dict(self.__pydantic_extra__ or {})


@dataclass(frozen=True)
class Space:
    """The dimensions of a search, by the path of their setting."""

    source: Path
    dimensions: Mapping[str, Dimension]

    @property
    def num_points(self) -> int | None:
        """Number of different trials; None: unlimited."""
        points = [dimension.points for dimension in self.dimensions.values()]
        return None if any(some is None for some in points) else math.prod(len(some or ()) for some in points)

    def tree(self, values: Mapping[str, Any]) -> Tree:
        """Turn values by path into a mapping that overlays a recipe."""
        tree: Tree = {}
        for path, value in values.items():
            tree = overlay(tree, _nested(path, value))
        return tree

    def values_in(self, tree: Mapping[str, Any]) -> dict[str, Any]:
        """The values that a recipe, as it is written, gives the settings of the space."""
        return {path: _at(tree, keys_of(path)) for path in self.dimensions}

    def own_values(self, recipe: RunRecipe, tree: Mapping[str, Any]) -> dict[str, Any]:
        """The recipe's own values where they lie in their dimension. `tree`: what the recipe was read from."""
        written = recipe.model_dump(mode="json")
        found: dict[str, Any] = {}
        for path, dimension in self.dimensions.items():
            if dimension.range is None:
                same = [value for value in dimension.choice or () if self._tried(recipe, tree, path, value) == recipe]
                if same:
                    found[path] = same[0]
                continue
            value, (low, high) = _at(written, keys_of(path)), dimension.range
            fits = isinstance(value, int) if dimension.int else isinstance(value, int | float)
            if fits and not isinstance(value, bool) and low <= value <= high:
                found[path] = value
        return found

    def refuse_invalid(self, recipe: RunRecipe, tree: Mapping[str, Any]) -> None:
        """Try the ends or choices of each dimension in the recipe. RecipeError that lists every problem."""
        tried = [(path, value) for path, dimension in self.dimensions.items() for value in dimension.probes]
        problems = [problem for path, value in tried for problem in self._problems(recipe, tree, path, value)]
        _refuse(self.source, list(dict.fromkeys(problems)))

    def _problems(self, recipe: RunRecipe, tree: Mapping[str, Any], path: str, value: Any) -> list[str]:
        try:
            self._tried(recipe, tree, path, value)
        except RecipeError as error:
            first, *more = str(error).splitlines()
            return [_told_of(path, value, line.strip()) for line in more or [first]]
        return []

    def _tried(self, recipe: RunRecipe, tree: Mapping[str, Any], path: str, value: Any) -> RunRecipe:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RenamedSettingWarning)  # the runs of the trials tell of it
            return validate(type(recipe), renamed_recipe(overlay(tree, _nested(path, value))), str(self.source))


def read_space(source: Path) -> Space:
    """Read a space file. RecipeError that lists every problem."""
    tree = read_yaml(source)
    strange = [key for key in tree if not isinstance(key, str)]
    if strange or not tree:
        found = f"found {strange[0]!r}" if strange else "found nothing"
        raise RecipeError(
            f"{source}: must hold lines like `train.optimizer.learning_rate: {{log: [1e-4, 1e-2]}}`, {found}"
        )
    dimensions = validate(_SpaceFile, tree, str(source)).dimensions
    _refuse(source, [problem for path in dimensions for problem in _problems_of_path(path, list(dimensions))])
    return Space(source, dimensions)


def keys_of(path: str) -> list[str]:
    """The keys of the path of a setting: two for `a.b` and for `a."b.c"`. ValueError if it is not a path."""
    matches = list(_KEY.finditer(path))
    covered = "".join(match.group() for match in matches)
    if not matches or covered != path or path.endswith("."):
        raise ValueError('is not the path of a setting; write a.b.c, and a."b.c".d for a key that contains dots')
    return [match.group(1) or match.group(2) for match in matches]


def _problems_of_path(path: str, others: list[str]) -> Iterator[str]:
    try:
        keys = keys_of(path)
    except ValueError as error:
        yield f"{path}: {error}"
        return
    for fixed, reason in _FIXED.items():
        if _overlap(keys, fixed.split(".")):
            yield f"{path}: {fixed} cannot be searched: {reason}"
    for other in others[others.index(path) + 1 :]:
        if _overlap(keys, _keys_if_any(other)):
            yield f"{path}: overlaps with {other}; a value of one would overwrite that of the other"


def _told_of(path: str, value: Any, problem: str) -> str:
    """A problem of a recipe, with the value that caused it if the problem does not name the setting."""
    plain, where = path.replace('"', ""), problem.partition(":")[0]
    if plain == where:
        return problem
    if plain.startswith(f"{where}."):
        hint = ' (a key that contains dots is written in quotes: a."b.c".d)' if "unknown key" in problem else ""
        return f"{problem}{hint}"
    return f"{path}={value}: {problem}"


def _keys_if_any(path: str) -> list[str]:
    try:
        return keys_of(path)
    except ValueError:
        return [path]


def _overlap(first: list[str], other: list[str]) -> bool:
    """Whether one path leads to or through the other."""
    shared = min(len(first), len(other))
    return first[:shared] == other[:shared]


def _nested(path: str, value: Any) -> Tree:
    nested: Any = value
    for key in reversed(keys_of(path)):
        nested = {key: nested}
    tree: Tree = nested
    return tree


def _at(tree: Any, keys: list[str]) -> Any:
    for key in keys:
        if not isinstance(tree, Mapping) or key not in tree:
            return None
        tree = tree[key]
    return tree


def _refuse(source: Path, problems: list[str]) -> None:
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise RecipeError(f"{source}: {count}\n" + "\n".join(f"  {problem}" for problem in problems))
