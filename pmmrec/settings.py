"""Turn YAML and `a.b=c` overrides into typed, frozen settings, reporting every problem at once."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    ModelWrapValidatorHandler,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import InitErrorDetails, PydanticCustomError
from typing_extensions import Self
from yaml.reader import ReaderError

from pmmrec.errors import RecipeError
from pmmrec.homes import expanded

MAX_YAML_BYTES = 1_000_000
MAX_EXTENDS = 8

# What pydantic says of these speaks of Python; people write YAML.
PLAIN = {
    "model_type": "must be a mapping, such as {key: value}",
    "dict_type": "must be a mapping, such as {key: value}",
    "tuple_type": "must be a list, such as [a, b]",
    "list_type": "must be a list, such as [a, b]",
    "path_type": "must be a path; quote it if it looks like something else",
    "string_type": "must be text; quote it if it looks like something else",
}


def _at_home(path: Path) -> Path:
    """A leading `~` is the home folder; a folder of that name would be a trap for whoever removes it."""
    try:
        return expanded(path)
    except RecipeError as error:
        raise ValueError(str(error)) from error


Place = Annotated[Path, AfterValidator(_at_home)]  # a file or a folder that a setting names
FeatureName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100)]
Tree = dict[str, Any]
_C = TypeVar("_C", bound="Config")


class Config(BaseModel):
    """Settings of one owner: frozen, no unknown keys, rules checked at birth."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)

    @model_validator(mode="wrap")
    @classmethod
    def _name_nearest_key(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        switches = [_no_number(name, value[name]) for name in cls._numbers_that_are_switches(value)]
        try:
            made = handler(value)
        except ValidationError as error:
            found = [problem for problem in error.errors() if not _counts_valid_entries_alone(problem)]
            problems = [_with_nearest_key(problem, list(cls.model_fields)) for problem in found]
            raise ValidationError.from_exception_data(cls.__name__, [*problems, *switches]) from error
        if switches:
            raise ValidationError.from_exception_data(cls.__name__, switches)
        return made

    @classmethod
    def _numbers_that_are_switches(cls, value: Any) -> list[str]:
        """Names of fields that want a number and are given `yes` or `true`, which pydantic would read as 1."""
        given = value if isinstance(value, Mapping) else {}
        return [name for name, field in cls.model_fields.items() if _is_switch_for_number(given.get(name), field)]


class PartConfig(Config):
    """Settings of one member of a family; `type` names the member.

    `examples` are small settings, beside `type`, with which the conformance tests build the part.
    """

    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({},)

    type: str


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses duplicate keys and aliases, and reads 1e-4 as a number."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]  # untyped in types-PyYAML
            raise RecipeError(f"{mark.name}: line {mark.line + 1}: YAML aliases are not read; write the value out")
        return super().compose_node(parent, index)

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        place = f"{node.start_mark.name}: line {node.start_mark.line + 1}"
        try:
            value = super().construct_object(node, deep)
        except (ValueError, KeyError, AttributeError) as error:  # PyYAML's own, of 2024-13-45 and `!!int x`
            kind, shown = node.tag.rpartition(":")[2], _shown(node.value)
            raise RecipeError(f"{place}: {shown} is no {kind}; quote it if it is meant as text") from error
        if isinstance(value, str) and "\0" in value:
            raise RecipeError(f"{place}: {_shown(value)} holds a NUL, which no name or path may; remove it")
        if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
            raise RecipeError(f"{place}: {_shown(value)} holds half a letter (a surrogate); write the letter itself")
        return value

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, list | dict):
                raise RecipeError(f"{node.start_mark.name}: line {key_node.start_mark.line + 1}: a key must be a word")
            if key in seen:
                line = key_node.start_mark.line + 1
                raise RecipeError(f"{node.start_mark.name}: line {line}: key {key!r} stands twice; keep one")
            seen.add(key)
        return super().construct_mapping(node, deep)


# YAML 1.1 reads 1e-4 as text, for want of a dot; people who write learning rates mean a number.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def parse_yaml(text: str, name: str) -> Any:
    """The plain value of a YAML text; `name` stands in messages.

    Raises RecipeError for broken YAML, tags such as `!!python/object`, duplicate keys and aliases.
    """
    try:
        loader = _Loader(text)
    except ReaderError as error:
        line, problem = text.count("\n", 0, error.position) + 1, str(error).splitlines()[0]
        raise RecipeError(f"{name}: line {line}: not valid YAML: {problem}") from error
    loader.name = name
    try:
        return loader.get_single_data()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{name}: line {mark.line + 1}" if mark else name
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise RecipeError(f"{place}: not valid YAML: {problem}") from error
    except RecursionError as error:
        raise RecipeError(f"{name}: nested too deeply to be read; a recipe is a few levels deep") from error
    finally:
        loader.dispose()


def read_yaml(path: Path) -> Tree:
    """The mapping in a YAML file, as written, `extends:` included."""
    try:
        if path.exists() and not path.is_file():  # a device or a pipe may have no end
            raise RecipeError(f"{path}: is not a file; name one that holds `key: value` lines")
        if path.stat().st_size > MAX_YAML_BYTES:
            raise RecipeError(f"{path}: larger than {MAX_YAML_BYTES:,} bytes; a recipe is a short text")
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not UTF-8 text at byte {error.start}") from error
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}") from error
    tree = parse_yaml(text, str(path))
    if not isinstance(tree, dict):
        raise RecipeError(f"{path}: must hold `key: value` lines, found {_kind(tree)}")
    return tree


def read_extended(path: Path, shipped: Callable[[str], Path]) -> Tree:
    """The mapping in a YAML file laid over the file that its `extends:` names, and so on.

    A name is a path relative to the file, or else one that `shipped` knows; RecipeError where it is neither.
    """
    tree, seen = read_yaml(path), [path.resolve()]
    here = path
    while "extends" in tree:
        base_name = tree.pop("extends")
        if not isinstance(base_name, str):
            raise RecipeError(f"{here}: extends: must name one file, found {_kind(base_name)}")
        base = _base(here, base_name, shipped)
        if base.resolve() in seen:
            raise RecipeError(f"{here}: extends: {base_name} leads back to itself")
        if len(seen) >= MAX_EXTENDS:
            raise RecipeError(f"{here}: extends: more than {MAX_EXTENDS} files deep")
        seen.append(base.resolve())
        tree, here = overlay(read_yaml(base), tree), base
    return tree


def _base(here: Path, name: str, shipped: Callable[[str], Path]) -> Path:
    beside = here.parent / expanded(Path(name))
    if beside.is_file():
        return beside
    try:
        return shipped(name)
    except RecipeError as error:
        raise RecipeError(f"{here}: extends: no file {beside}; {error}") from error


def overlay(base: Mapping[str, Any], over: Mapping[str, Any]) -> Tree:
    """`base` with `over` laid on top, mapping by mapping.

    A mapping that names another `type` replaces the one below whole: settings of one part mean nothing to another.
    """
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            other_type = "type" in value and value["type"] != below.get("type")
            merged[key] = dict(value) if other_type else overlay(below, value)
        else:
            merged[key] = value
    return merged


def parse_overrides(overrides: Iterable[str], base: Mapping[str, Any]) -> Tree:
    """`["a.b=c", ...]`, to be laid over `base`, as one mapping; values are YAML (`[1, 2]`, `null`, `1e-4`)."""
    tree: Tree = {}
    for override in overrides:
        path, equals, text = override.partition("=")
        keys = path.split(".")
        if not equals or not all(keys):
            raise RecipeError(f"argument {override!r}: an override looks like a.b=value")
        _refuse_fields_of_a_word(overlay(base, tree), keys, override)
        value: Any = parse_yaml(text, f"argument {path}")
        for key in reversed(keys):
            value = {key: value}
        tree = overlay(tree, value)
    return tree


def _refuse_fields_of_a_word(tree: Any, keys: list[str], override: str) -> None:
    """An override of `a.b` where `a` is one plain value would silently throw that away."""
    for depth, key in enumerate(keys[:-1], 1):
        tree = tree.get(key)
        if tree is None:
            return
        if not isinstance(tree, Mapping):
            path = ".".join(keys[:depth])
            raise RecipeError(
                f"argument {override!r}: {path} is {_shown(tree)}, which has no {keys[depth]}; give all of it as "
                f"{path}=VALUE, where a VALUE with fields looks like {{{keys[depth]}: ...}}"
            )


def validate(config_class: type[_C], tree: Mapping[str, Any], source: str) -> _C:
    """Settings from a plain mapping. Raises RecipeError that lists every problem with its key path."""
    try:
        return config_class.model_validate(tree)
    except ValidationError as error:
        lines = [_explain(tree, problem) for problem in error.errors(include_url=False)]
        lines = list(dict.fromkeys(lines))
        count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
        raise RecipeError(f"{source}: {count}\n" + "\n".join(f"  {line}" for line in lines)) from error


def _with_nearest_key(problem: Any, known: list[str]) -> InitErrorDetails:
    message, kind = str(problem["msg"]), str(problem["type"])
    if kind == "extra_forbidden" and len(problem["loc"]) == 1:
        near = difflib.get_close_matches(str(problem["loc"][0]), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(sorted(known)) or 'nothing'}"
        message, kind = f"unknown key; {hint}", "unknown_key"
    if (least := _least(problem)) is not None:
        message = f"needs {least} or more entries"
    custom = PydanticCustomError(kind, "{message}", {"message": message})
    return InitErrorDetails(type=custom, loc=problem["loc"], input=problem["input"])


def _counts_valid_entries_alone(problem: Any) -> bool:
    """Whether a list is called too short though it is not: pydantic leaves out entries with problems of their own."""
    least = _least(problem)
    return least is not None and len(problem["input"]) >= least


def _least(problem: Any) -> int | None:
    """How many entries a list needs that is called too short; None for other problems, and for those told before."""
    least: int | None = problem.get("ctx", {}).get("min_length") if problem["type"] == "too_short" else None
    return least


def _is_switch_for_number(value: Any, field: FieldInfo) -> bool:
    if not isinstance(value, bool):
        return False
    kinds = {kind for part in (field.annotation, *get_args(field.annotation)) for kind in (part, *get_args(part))}
    return bool(kinds & {int, float}) and bool not in kinds


def _no_number(name: str, value: bool) -> InitErrorDetails:
    custom = PydanticCustomError("value_error", "must be a number, found {found}", {"found": str(value).lower()})
    return InitErrorDetails(type=custom, loc=(name,), input=value)


def _explain(tree: Mapping[str, Any], problem: Any) -> str:
    where = _path_in(tree, problem["loc"])
    message = PLAIN.get(problem["type"], str(problem["msg"]).removeprefix("Value error, "))
    is_ours = problem["type"] in ("missing", "value_error", "unknown_key")
    found = "" if is_ours else f" (found {_shown(problem.get('input'))})"
    return f"{_dotted(where) or 'recipe'}: {message[:1].lower() + message[1:]}{found}"


def _path_in(tree: Any, loc: Iterable[Any]) -> list[Any]:
    """The keys of an error's location, without the names of union members that pydantic puts between them."""
    path: list[Any] = []
    here: Any = tree
    entries = list(loc)
    for position, entry in enumerate(entries):
        is_key = isinstance(here, Mapping) and entry in here
        is_index = isinstance(here, list) and isinstance(entry, int) and entry < len(here)
        is_last_and_absent = position == len(entries) - 1 and isinstance(here, Mapping | list)
        if is_key or is_index:
            here = here[entry]
            path.append(entry)
        elif is_last_and_absent:
            path.append(entry)
    return path


def _dotted(where: Iterable[Any]) -> str:
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in where).removeprefix(".")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"
