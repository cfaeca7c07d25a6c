"""Read settings that earlier versions wrote under other names, and say what replaced them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from pmmrec.errors import RecipeError

Tree = dict[str, Any]
NOISED = ("noise_detection", "robustness")  # objectives that read windows with noise
NO_NOISE_CHANGED = {"shuffle": 0.15, "replace": 0.05, "replace_from": "domain"}


class RenamedSettingWarning(UserWarning):
    """A setting was read under its earlier name."""


def renamed_recipe(tree: Tree) -> Tree:
    """A recipe with today's names; one warning for each setting that has another name now.

    | before | today |
    |---|---|
    | `data.corruption` | `noise` of the objectives `noise_detection` and `robustness` |
    | `model.user_encoder.is_causal` | `model.user_encoder.attends` |
    | `adapters.PART: null` | nothing |

    Raises RecipeError where a setting of before has no effect.
    """
    model, data, objectives = tree.get("model"), tree.get("data"), tree.get("objectives")
    if isinstance(tree.get("adapters"), Mapping):
        tree = {**tree, "adapters": {part: one for part, one in tree["adapters"].items() if one is not None}}
    encoder = model.get("user_encoder") if isinstance(model, Mapping) else None
    if isinstance(model, Mapping) and isinstance(encoder, Mapping) and encoder.get("type") == "transformer":
        tree = {**tree, "model": {**model, "user_encoder": _attention_of(encoder)}}
    if not isinstance(data, Mapping) or "corruption" not in data:
        return tree
    corruption = data["corruption"]
    tree = {**tree, "data": {name: value for name, value in data.items() if name != "corruption"}}
    terms = objectives if isinstance(objectives, Mapping) else {}
    noised = [name for name, term in terms.items() if isinstance(term, Mapping) and term.get("type") in NOISED]
    if not isinstance(corruption, Mapping):
        raise RecipeError(
            f"data.corruption: must be a mapping, found {corruption!r}; say objectives.NAME.noise instead"
        )
    if corruption.items() <= NO_NOISE_CHANGED.items():
        return tree
    if not noised:
        raise RecipeError("data.corruption: has no effect, no objective reads windows with noise; leave it out")
    twice = [name for name in noised if "noise" in terms[name]]
    if twice:
        raise RecipeError(
            f"data.corruption: is the earlier name of objectives.{twice[0]}.noise, which is given too; leave one out"
        )
    warn_of_rename("data.corruption", " and ".join(f"objectives.{name}.noise" for name in noised))
    tree["objectives"] = {
        name: {"noise": dict(corruption), **term} if name in noised else term for name, term in terms.items()
    }
    return tree


def _attention_of(encoder: Mapping[str, Any]) -> Any:
    try:
        return renamed_attention(encoder)
    except ValueError as error:
        raise RecipeError(f"model.user_encoder.{error}") from error


def renamed_attention(settings: Any) -> Any:
    """Settings of the Transformer user encoder with `attends` in place of `is_causal`."""
    if not isinstance(settings, Mapping) or "is_causal" not in settings:
        return settings
    rest, is_causal = {name: value for name, value in settings.items() if name != "is_causal"}, settings["is_causal"]
    if not isinstance(is_causal, bool):
        told = f"is_causal: must be true or false, found {is_causal!r}; say attends: past or all instead"
        raise ValueError(told)  # noqa: TRY004 - pydantic reports a ValueError
    if "attends" in rest:
        raise ValueError("is_causal: is the earlier name of attends, which stands beside it; leave is_causal out")
    if is_causal:  # the default of then and of today
        return rest
    warn_of_rename("user_encoder.is_causal: false", "user_encoder.attends: all")
    return {"attends": "all", **rest}


def warn_of_rename(before: str, today: str) -> None:
    """Say once that a setting was renamed."""
    warnings.warn(f"{before} is called {today} now; it was read as such", RenamedSettingWarning, stacklevel=2)
