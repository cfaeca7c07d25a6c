"""How a backbone of transformers is configured, opened, written and read: local folders and safetensors only."""

from __future__ import annotations

import difflib
import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from pmmrec.context import Backbone
from pmmrec.encoders.backbone import is_dry_run
from pmmrec.encoders.pins import settle
from pmmrec.encoders.trainable import Layout
from pmmrec.encoders.weights import refuse_broken_numbers, refuse_integers, refuse_leftovers
from pmmrec.errors import CheckpointError, RecipeError

MAX_JSON_BYTES = 10_000_000
MAX_BLOCKS = 1000
BUILT_IN_ATTENTION = (None, "eager", "sdpa")
# Keys that can make transformers fetch or run what is not in the folder.
RUNS_CODE = ("auto_map", "custom_pipelines", "quantization_config")
BOOKKEEPING = "relative_position_index"  # in older files of weights, and computed since
# Encoders whose configuration `AutoModel` takes for a whole of two halves, or does not know.
ENCODERS = {
    "mt5": "MT5EncoderModel",
    "siglip_text_model": "SiglipTextModel",
    "t5": "T5EncoderModel",
    "umt5": "UMT5EncoderModel",
}
CHOOSES_KERNEL = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")


def read_json(path: Path) -> dict[str, Any]:
    """A small JSON object in a backbone's folder; CheckpointError when it is missing, broken or asks for code."""
    tree = read_tree(path)
    if not isinstance(tree, dict):
        raise CheckpointError(f"{path}: must hold an object, found a {type(tree).__name__}")
    _refuse_code(path, tree)
    return tree


def read_tree(path: Path) -> Any:
    """A small JSON file in a backbone's folder; CheckpointError when it is missing or broken."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(f"{path}: larger than {MAX_JSON_BYTES:,} bytes; a configuration is a short text")
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}; a backbone's folder has one") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON: {error}") from error


def write_json(path: Path, tree: Mapping[str, Any] | Sequence[Any]) -> None:
    """Write a configuration the way transformers does; its folder need not be there yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tree, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_config(folder: Path, halves: Mapping[str, str] | None = None) -> Any:
    """The configuration in `folder`; `halves` names the part of a two-sided model that is wanted (clip -> its vision).

    Raises CheckpointError for a configuration that is broken, unknown, would run code, or is refused (`pins`).
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    path = folder / "config.json"
    tree = read_json(path)
    if "configuration_files" in tree:
        raise CheckpointError(f"{path}: configuration_files: names other files, which are never read; remove the key")
    half = (halves or {}).get(str(tree.get("model_type")))
    config_class = AutoConfig if half is None else CONFIG_MAPPING[half]
    try:
        config = config_class.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # hub, validation and key errors alike: the file is at fault
        raise CheckpointError(f"{path}: not a configuration of transformers: {in_one_line(error)}") from error
    for one in (config, *halves_of(config).values()):
        settle(one, str(path), CheckpointError)
    return config


def halves_of(config: Any) -> dict[str, Any]:
    """The configurations inside that of a two-sided model, by their keys."""
    from transformers import PreTrainedConfig

    return {key: value for key, value in vars(config).items() if isinstance(value, PreTrainedConfig)}


def new_config(architecture: Mapping[str, Any], **fitted: Any) -> Any:
    """A configuration for a fresh backbone. RecipeError for an unknown model type, an unknown key or a wrong value.

    `fitted`: what follows from other settings; a mapping holds that of a configuration inside the whole.
    """
    from transformers import AutoConfig

    tree = dict(architecture)
    model_type = tree.pop("model_type", None)
    if not isinstance(model_type, str):
        raise RecipeError("architecture: needs `model_type`, a name that transformers knows, such as bert or vit")
    try:
        known = AutoConfig.for_model(model_type)
    except (ValueError, KeyError) as error:
        raise RecipeError(f"architecture.model_type: transformers knows no {model_type!r}") from error
    tree = _with_fitted(tree, fitted, known, "architecture")
    try:
        config = AutoConfig.for_model(model_type, **tree)
    except Exception as error:  # each version of the library has its own kind of validation error
        raise RecipeError(f"architecture: {model_type} cannot be configured so: {in_one_line(error)}") from error
    for one in (config, *halves_of(config).values()):
        settle(one, "architecture", RecipeError)
    return config


def _with_fitted(tree: Mapping[str, Any], fitted: Mapping[str, Any], known: Any, where: str) -> dict[str, Any]:
    """The settings of a configuration with those that are fitted; RecipeError for a key that `known` does not have."""
    names = set(known.to_dict()) | set(known.attribute_map)
    inner = halves_of(known)
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if key not in names:
            near = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else "see the configuration class in transformers"
            raise RecipeError(f"{where}.{key}: {known.model_type} has no such setting; {hint}")
        if key in fitted and key not in inner:
            raise RecipeError(f"{where}.{key}: is set for you, from the settings beside `architecture`")
        found[key] = value
        if key in inner:
            if not isinstance(value, Mapping):
                raise RecipeError(f"{where}.{key}: must hold settings, found {value!r}")
            found[key] = _with_fitted(value, fitted.get(key, {}), inner[key], f"{where}.{key}")
    for key, value in fitted.items():
        if key in inner and key not in tree:
            found[key] = _with_fitted({}, value, inner[key], f"{where}.{key}")
        elif key in names and key not in inner:
            found[key] = value
    return found


def open_model(
    backbone: Backbone, config: Any, layout: Layout, warn: Callable[[str], object], *, with_pooler: bool = False
) -> Any:
    """The backbone in float32: its weights from the folder, or drawn fresh; none are read when dry.

    `with_pooler`: with the layers that make one vector of all states, where the class has a choice. `warn` hears of
    tensors in the blocks of the folder that the backbone does not have.
    """
    _refuse_many_blocks(config, str(backbone.folder))
    if backbone.is_pretrained:
        refuse_leftovers(backbone.folder)
    if backbone.is_pretrained and not is_dry_run():
        model, unused = _load(backbone.folder, config, layout, with_pooler=with_pooler)
        if unused:
            warn(
                f"{backbone.folder}: {len(unused)} tensors of its blocks are not used, such as {unused[0]}: they were "
                f"trained with something that {type(model).__name__} does not compute"
            )
        refuse_integers(backbone.folder)
        refuse_broken_numbers(model, backbone.folder)
        return model
    return new_model(config, str(backbone.folder), with_pooler=with_pooler)


def new_model(config: Any, where: str, *, with_pooler: bool = False) -> Any:
    """A backbone whose weights are drawn fresh. RecipeError for a configuration that none can have."""
    _refuse_many_blocks(config, where)
    try:
        return _class_of(config)._from_config(config, dtype=torch.float32, **_pooler_option(config, with_pooler))
    except Exception as error:  # each architecture has its own way to refuse a setting, KeyError among them
        reason = f"{type(error).__name__}: {in_one_line(error)}"
        raise RecipeError(f"{where}: no {config.model_type} can be built so: {reason}") from error


def _refuse_many_blocks(config: Any, where: str) -> None:
    num_blocks = max(getattr(one, "num_hidden_layers", 0) for one in (config, *halves_of(config).values()))
    if num_blocks > MAX_BLOCKS:
        raise RecipeError(f"{where}: num_hidden_layers: {num_blocks:,} blocks; at most {MAX_BLOCKS:,} are built")


def save_model(model: Any, folder: Path, state: Mapping[str, Tensor]) -> None:
    """Write `config.json` and `model.safetensors` with the tensors of `state`; those of `model` are not looked at."""
    check_names(model, state, folder)
    with quietly():
        model.save_pretrained(folder, state_dict=dict(state))


def read_state(folder: Path, config: Any, layout: Layout, model: nn.Module) -> dict[str, Tensor]:
    """The tensors in `folder`, by the names that `model` has for them."""
    with_pooler = getattr(model, "pooler", None) is not None
    with torch.device("cpu"):
        state: dict[str, Tensor] = _load(folder, config, layout, with_pooler=with_pooler)[0].state_dict()
    check_names(model, state, folder)
    return state


@contextmanager
def quietly() -> Iterator[None]:
    """Keep the progress bars and reports of transformers off the terminal: what matters in them is raised here."""
    from transformers.utils import logging

    verbosity, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if has_bars:
            logging.enable_progress_bar()


def in_one_line(error: Exception) -> str:
    """What a library says, as a part of a message."""
    return " ".join(str(error).split())


def check_names(model: nn.Module, state: Mapping[str, Tensor], folder: Path) -> None:
    """CheckpointError unless `state` has exactly the tensors of `model`."""
    differing = sorted(set(state) ^ set(model.state_dict()))
    if differing:
        raise CheckpointError(f"{folder}: {len(differing)} tensors do not fit the backbone, such as {differing[0]}")


def _load(folder: Path, config: Any, layout: Layout, *, with_pooler: bool) -> tuple[Any, list[str]]:
    """The backbone with its weights, and the tensors of blocks in the folder that it does not have."""
    try:
        with quietly():
            model, info = _class_of(config).from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused below, by their names
                **_pooler_option(config, with_pooler),
            )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: its model.safetensors cannot be opened: {in_one_line(error)}") from error
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        LookupError,
        TypeError,
    ) as error:  # of a setting that no model can have
        told = f"{type(error).__name__}: {in_one_line(error)}"
        raise CheckpointError(f"{folder}/config.json: no {config.model_type} can be built so: {told}") from error
    for name, found, wanted in sorted(info["mismatched_keys"]):
        raise CheckpointError(
            f"{folder}: tensor {name} has shape {tuple(found)}, but config.json asks for {tuple(wanted)}; the two do "
            "not belong together"
        )
    missing = sorted(name for name in info["missing_keys"] if not re.fullmatch(layout.unused, name))
    if missing:
        raise CheckpointError(f"{folder}: {len(missing)} tensors are missing, such as {missing[0]}")
    in_block = re.compile(rf"(?:{re.escape(model.base_model_prefix)}\.)?(?:{layout.blocks})\.(?!.*{BOOKKEEPING}$)")
    return model, sorted(name for name in info["unexpected_keys"] if in_block.match(name))


def _class_of(config: Any) -> Any:
    """The class of transformers that reads this configuration."""
    import transformers

    name = ENCODERS.get(config.model_type)
    return transformers.MODEL_MAPPING[type(config)] if name is None else getattr(transformers, name)


def _pooler_option(config: Any, wanted: bool) -> dict[str, bool]:
    takes = inspect.signature(_class_of(config).__init__).parameters
    return {"add_pooling_layer": wanted} if "add_pooling_layer" in takes else {}


def _refuse_code(path: Path, tree: Any) -> None:
    """Walk a configuration, halves of two-sided models included, and refuse what would fetch or run code."""
    if not isinstance(tree, Mapping):
        return
    for key, value in tree.items():
        if key in RUNS_CODE or (key in CHOOSES_KERNEL and value not in BUILT_IN_ATTENTION):
            raise CheckpointError(f"{path}: {key} asks for code outside the folder, which is never run; remove it")
        _refuse_code(path, value)


def checkpoint_blocks(backbone: Any) -> None:
    """Switch transformers' own checkpointing on; RecipeError where an architecture has none."""
    older = "gradient_checkpointing_enable"  # its name in earlier versions of transformers 5
    switch = getattr(backbone, "activation_checkpointing_enable", None) or getattr(backbone, older)
    try:
        switch({"use_reentrant": False})
    except ValueError as error:
        raise RecipeError(f"train.checkpoint_activations: {type(backbone).__name__} cannot: {error}") from error
    # The switch makes embeddings ask for gradients, so that frozen blocks keep activations; nothing of ours needs it.
    if hasattr(backbone, "_require_grads_hooks") or hasattr(backbone, "_require_grads_hook"):
        backbone.disable_input_require_grads()
