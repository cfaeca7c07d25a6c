"""Write the model card of a checkpoint: description, training data, results, how to load each part."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from pmmrec.zoo.folder import PART_TENSORS

LIBRARY = "pmmrec"
TASK = {"type": "recommendation", "name": "Sequential recommendation"}
ITEM_TABLE, USER_TABLE = "item_table", "user_table"  # parts, or types of parts, that look up rows by id
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+!|~])")
_UNPLAIN = re.compile(r"[^\w./:@-]+")
_FENCE = re.compile(r"`{3,}")


@dataclass(frozen=True)
class CardDomain:
    """One domain that a checkpoint was trained on."""

    name: str
    num_users: int
    num_items: int
    num_interactions: int
    modalities: tuple[str, ...]


@dataclass(frozen=True)
class CardFigure:
    """One test figure with its confidence interval, as in the model index of the Hub."""

    domain: str
    metric: str  # such as `hr@10`; in 0..1
    value: float
    low: float
    high: float
    level: float  # confidence level of the interval
    num_users: int


def make_card(
    *,
    name: str,
    system: str,
    summary: str,
    parts: Mapping[str, str],
    domains: Sequence[CardDomain],
    recipe: str,
    results: str = "",
    licence: str = "apache-2.0",
    tags: Sequence[str] = (),
    commands: Sequence[str] = (),
    figures: Sequence[CardFigure] = (),
    base_model: str | None = None,
) -> str:
    """The card as markdown, with the metadata block that the Hugging Face Hub reads.

    Args:
        name: Place to load it from: a name in the hub, a folder, `s3://...`, `hf://user/name`.
        system: Name of the recommender system.
        summary: What it is, in a sentence or two of plain text.
        parts: Type of each part by its name, as in the index (`{"text_encoder": "hf_text"}`).
        domains: What it was trained on.
        recipe: YAML of the run, shown verbatim.
        results: A markdown table; HTML tags in it are escaped.
        licence: SPDX identifier as the Hub spells it.
        tags: Further tags for the Hub.
        commands: Command lines that use the checkpoint, shown verbatim.
        figures: Figures that the Hub shows beside the card.
        base_model: Repository of the Hub that it was fine-tuned from.
    """
    metadata = _metadata(name, licence, tags, [domain.name for domain in domains], figures, base_model)
    sections = [
        f"# {escaped(name)}",
        f"{escaped(summary)}\n\nA recommender of the system **{escaped(system)}**. {_reach(parts)}",
        f"## Parts\n\n{_parts_table(parts)}",
        f"## Trained on\n\n{_domains_table(domains)}",
        f"## Results\n\n{results.replace('<', '&lt;').strip() or 'None were measured.'}",
        f"## Use\n\n{_use(name, parts, commands)}",
        f"## Recipe\n\n{fenced(recipe, 'yaml')}",
    ]
    head = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)
    return f"---\n{head}---\n\n" + "\n\n".join(sections) + "\n"


def _metadata(
    name: str,
    licence: str,
    tags: Sequence[str],
    datasets: Sequence[str],
    figures: Sequence[CardFigure],
    base_model: str | None,
) -> dict[str, Any]:
    """The metadata in the format of the Hub, without empty entries, which its parser rejects."""
    by_domain: dict[str, list[CardFigure]] = {}
    for figure in figures:
        if math.isfinite(figure.value):
            by_domain.setdefault(figure.domain, []).append(figure)
    results = [
        {
            "task": TASK,
            "dataset": {"type": _plain(domain), "name": _plain(domain), "split": "test"},
            "metrics": [_measured(figure) for figure in found],
        }
        for domain, found in by_domain.items()
    ]
    return {
        "license": licence,
        "library_name": LIBRARY,
        "tags": list(dict.fromkeys(["recommendation", LIBRARY, *tags])),
        **({"base_model": base_model} if base_model else {}),
        **({"datasets": [_plain(dataset) for dataset in datasets]} if datasets else {}),
        **({"model-index": [{"name": _plain(name), "results": results}]} if results else {}),
    }


def _measured(figure: CardFigure) -> dict[str, Any]:
    interval = {"interval": [round(figure.low, 6), round(figure.high, 6)], "level": figure.level}
    return {
        "type": figure.metric,
        "name": figure.metric.upper(),
        "value": round(figure.value, 6),
        "args": {**interval, "users": figure.num_users},
    }


def _plain(name: str) -> str:
    """A name with only the characters that the Hub allows."""
    return _UNPLAIN.sub("-", name).strip("-")


def escaped(text: str) -> str:
    """Untrusted text on one line, with markdown and HTML escaped."""
    return _MARKDOWN.sub(r"\\\1", html.escape(" ".join(text.split()), quote=False))


def fenced(text: str, language: str) -> str:
    """A code block whose fence is longer than any fence in the text."""
    fence = "`" * max([3, *(len(found) + 1 for found in _FENCE.findall(text))])
    return f"{fence}{language}\n{text.strip()}\n{fence}"


def _reach(parts: Mapping[str, str]) -> str:
    if USER_TABLE in parts.values():
        return "It looks up users by id, so it serves only the users it was trained on."
    if ITEM_TABLE in parts:
        return "It looks up items by id, so it serves only the catalogue it was trained on."
    return "It reads the content of items, not their ids, so its parts transfer to platforms it has never seen."


def _parts_table(parts: Mapping[str, str]) -> str:
    rows = [f"| {escaped(name)} | {escaped(kind)} |" for name, kind in parts.items()]
    return "\n".join(["| part | type |", "|---|---|", *rows])


def _domains_table(domains: Sequence[CardDomain]) -> str:
    if not domains:
        return "No data: its weights are the initial ones."
    rows = [
        f"| {escaped(domain.name)} | {domain.num_users:,} | {domain.num_items:,} | {domain.num_interactions:,} | "
        f"{escaped(', '.join(domain.modalities))} |"
        for domain in domains
    ]
    return "\n".join(["| domain | users | items | interactions | modalities |", "|---|---:|---:|---:|---|", *rows])


def _use(name: str, parts: Mapping[str, str], commands: Sequence[str]) -> str:
    alone = [part for part in parts if "/" not in part]  # adapters cannot be used without their base
    backbones = [part for part in alone if parts[part].startswith("hf_")]
    lines = [
        "from pathlib import Path",
        "",
        "import pmmrec",
        "from pmmrec.zoo.hub import find_checkpoint",
        "from safetensors.torch import load_file",
        *(["from transformers import AutoModel"] if backbones else []),
        "",
        f"system = pmmrec.load({name!r})  # the whole system",
        "",
        "",
        "def part(which):  # one part: nothing of the others is fetched",
        f"    return find_checkpoint({name!r}, Path('hub'), parts=[which]) / which",
        "",
        "",
        *(f"{part} = AutoModel.from_pretrained(part({part!r}))" for part in backbones),
        *(f"{part}_tensors = load_file(part({part!r}) / '{PART_TENSORS}')" for part in alone),
    ]
    blocks = [fenced("\n".join(lines if alone else lines[:8]), "python")]
    if commands:
        blocks.append(fenced("\n".join(commands), "sh"))
    return "\n\n".join(blocks)
