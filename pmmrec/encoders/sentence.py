"""What a folder of sentence-transformers says of its texts: how they are pooled, cut and lowercased."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pmmrec.encoders.huggingface import read_json, read_tree, write_json
from pmmrec.errors import CheckpointError

Pool = Literal["cls", "mean", "max", "last", "pooler"]
MODULES, POOLING, TEXTS, PROMPTS = (
    "modules.json",
    "1_Pooling",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
)
_POOLS: Mapping[str, Pool] = {"cls": "cls", "mean": "mean", "max": "max", "lasttoken": "last"}
# Where older releases keep one switch for each way to pool.
_SWITCHES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
# Modules that change no token: the first is the backbone. Normalize scales the whole vector, as the projection may.
_KNOWN = ("Transformer", "Pooling", "Normalize", "Dropout")
ABOVE = ("Dense", "Normalize")  # what may stand above the pooling and is computed here, if the recipe asks for it


@dataclass(frozen=True)
class SentenceSettings:
    """What the files of a folder say, and which file says it; None where none does."""

    pool: Pool | None = None
    lowercase: bool | None = None
    max_tokens: int | None = None
    home: Path | None = None  # the folder of modules.json; None: of another library
    above: tuple[tuple[str, str], ...] = ()  # kind and folder of each module above the pooling

    @classmethod
    def read(
        cls,
        folder: Path,
        asked: Pool | None,
        warn: Callable[[str], object],
        *,
        prompt: str = "",
        takes_modules: bool = False,
    ) -> SentenceSettings:
        """Read the folder; `asked` is the pooling that the recipe asks for, `prompt` what it puts before each text.

        `takes_modules`: what stands above the pooling is computed. `warn` hears of what sentence-transformers would do
        and nothing here does. CheckpointError for a pooling that is not known, where the recipe asks for none.
        """
        home = _home(folder)
        if home is None:
            return cls()
        modules = _modules(home / MODULES)
        for module in modules:
            kind = _kind(module)
            if kind not in _KNOWN and not (takes_modules and kind in ABOVE):
                hint = "; sentence_modules: true keeps it" if kind in ABOVE else ""
                warn(
                    f"{home / MODULES}: {kind} is left out; the projection to the width of the model takes its "
                    f"place{hint}"
                )
        _say_prompt(home / PROMPTS, prompt, warn)
        poolings = [
            home / str(module.get("path", "")) / "config.json" for module in modules if _kind(module) == "Pooling"
        ]
        texts = _texts(folder)
        pool = _pool(poolings[0], asked, warn) if poolings else None
        longest = texts.get("max_seq_length")
        lowercase = texts.get("do_lower_case")
        return cls(
            pool,
            lowercase if isinstance(lowercase, bool) else None,
            longest if isinstance(longest, int) else None,
            home,
            _above(modules),
        )


def write_sentence_settings(
    folder: Path,
    pool: Pool,
    width: int,
    max_tokens: int,
    *,
    lowercase: bool,
    prompt: str = "",
    above: Sequence[tuple[str, str]] = (),
) -> None:
    """Write them so that sentence-transformers pools as it is done here, and a later run too.

    Nothing is written of a pooler, which sentence-transformers does not have.
    """
    if pool == "pooler":
        return
    kinds = (("Transformer", ""), ("Pooling", POOLING), *above)
    modules = [
        {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for place, (kind, path) in enumerate(kinds)
    ]
    write_json(folder / MODULES, modules)
    switches = {switch: _POOLS.get(mode) == pool for switch, mode in _SWITCHES.items()}
    write_json(folder / POOLING / "config.json", {"word_embedding_dimension": width, **switches})
    write_json(folder / TEXTS, {"max_seq_length": max_tokens, "do_lower_case": lowercase})
    if prompt:
        write_json(folder / PROMPTS, {"prompts": {"item": prompt}, "default_prompt_name": "item"})


def _above(modules: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, str], ...]:
    found = [(_kind(module), str(module.get("path", ""))) for module in modules]
    places = [place for place, (kind, _) in enumerate(found) if kind == "Pooling"]
    return tuple(pair for pair in found[places[0] + 1 :] if pair[0] != "Dropout") if places else ()


def _home(folder: Path) -> Path | None:
    """Where modules.json lies: in the folder of the backbone, or above it, as older releases wrote."""
    if (folder / MODULES).is_file():
        return folder
    above = folder.parent / MODULES
    if above.is_file() and any(module.get("path") == folder.name for module in _modules(above)):
        return folder.parent
    return None


def _modules(path: Path) -> list[Mapping[str, Any]]:
    modules = read_tree(path)
    if not isinstance(modules, list) or not all(isinstance(module, Mapping) for module in modules):
        raise CheckpointError(f"{path}: must hold a list of modules; copy it again from where the folder came from")
    for module in modules:
        inside = PurePosixPath(str(module.get("path", "")))
        if inside.is_absolute() or ".." in inside.parts:
            raise CheckpointError(f"{path}: path {str(inside)!r} leads out of the folder; remove it")
    return modules


def _kind(module: Mapping[str, Any]) -> str:
    return str(module.get("type")).rpartition(".")[2]


def _texts(folder: Path) -> Mapping[str, Any]:
    """The file of its Transformer, which earlier releases named after the architecture."""
    paths = [folder / TEXTS, *sorted(folder.glob("sentence_*_config.json"))]
    return next((read_json(path) for path in paths if path.is_file()), {})


def _pool(path: Path, asked: Pool | None, warn: Callable[[str], object]) -> Pool | None:
    if asked is not None and not path.is_file():
        return None
    tree = read_json(path)
    modes = tree.get("pooling_mode", [mode for switch, mode in _SWITCHES.items() if tree.get(switch)] or "mean")
    found = [str(mode) for mode in (modes if isinstance(modes, list) else [modes])]
    if len(found) == 1 and found[0] in _POOLS:
        return _POOLS[found[0]]
    if asked is None:
        raise CheckpointError(
            f"{path}: pools by {' and '.join(found)}; texts are pooled by cls, mean, max or last here: "
            "choose one in the recipe, such as pool: mean, or another backbone"
        )
    warn(f"pool: the recipe says {asked}, {path} {' and '.join(found)}; the recipe counts")
    return None


def _say_prompt(path: Path, asked: str, warn: Callable[[str], object]) -> None:
    """A warning where another prompt is put before every text, unless the caller of the library says otherwise."""
    tree = read_json(path) if path.is_file() else {}
    name, prompts = tree.get("default_prompt_name"), tree.get("prompts")
    prompt = prompts.get(str(name)) if isinstance(prompts, Mapping) else None
    if prompt and prompt != asked:
        put = f"{asked!r} is put" if asked else f"none is put there here; prefix: {prompt!r} does"
        warn(f"{path}: it was trained with {prompt!r} before each text (default_prompt_name); {put}")
