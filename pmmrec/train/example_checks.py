"""Refuse examples that lack what the objectives or the user encoder of a task read."""

from __future__ import annotations

from pmmrec.data.batches import DataConfig
from pmmrec.errors import RecipeError
from pmmrec.models.build import ModelConfig
from pmmrec.requests import Holding, Shown, View
from pmmrec.train.log import RunLog
from pmmrec.train.task import TrainingTask

READERS = {View.REWORDED.value: "sequence_contrast", View.SYNTHETIC.value: "target_contrast"}  # of training streams


def refuse_unasked(model: ModelConfig | None, task: TrainingTask) -> None:
    """RecipeError for a setting of a recipe's own model that only an objective would read, and none does."""
    settings = {} if model is None else model.item_encoder.for_objectives
    for setting, stream in settings.items():
        encoder = task.recommender.item_encoder
        if stream not in encoder.asked | encoder.graph_streams:
            raise RecipeError(
                f"model.item_encoder.{setting}: has no effect, no objective asks for {stream} vectors of items; leave "
                f"it out, or add an objective that does (such as {READERS.get(stream, f'bpr with stream: {stream}')})"
            )


def check_examples(data: DataConfig, task: TrainingTask, log: RunLog) -> None:
    """RecipeError where the model or an objective cannot read the examples; a warning where positions never train."""
    kind, encoder = data.kind, task.recommender.user_encoder
    for name, requests in task.requests_by_name.items():
        kind.refuse_unheld(requests, f"objectives.{name}")
    if not task.requests.passes:
        return
    if encoder.reads_history and Holding.HISTORY not in kind.holds:
        raise RecipeError(
            f"data.examples: {data.examples.type} have no history, but the user encoder reads one; choose "
            "data.examples=windows, or a user encoder that knows users by id (user_table)"
        )
    if encoder.reads_history:
        _check_length(data, encoder.max_inputs, log)
        return
    if kind.reads_window:
        raise RecipeError(
            f"data.examples: {data.examples.type} hold histories, which the user encoder does not read; choose "
            "data.examples=interactions"
        )
    if idle := sorted(kind.of_history & set(data.examples.model_dump(exclude_defaults=True))):
        raise RecipeError(
            f"data.examples.{idle[0]}: has no effect, the user encoder reads no history; leave it out, or choose a "
            "user encoder that reads one"
        )


def check_judged(data: DataConfig, task: TrainingTask) -> None:
    """RecipeError where a validation loss would count training items: those in the histories before impressions."""
    if Holding.CANDIDATES not in data.kind.holds:
        return
    for name, requests in task.requests_by_name.items():
        if not requests.passes or not all(isinstance(request, Shown) for request in requests.passes):
            raise RecipeError(
                f"validation.judge: loss reads what was clicked in impressions of validation, but objectives.{name} "
                "counts items of the histories before them, which are of training; judge by ranking, or take it away"
            )


def _check_length(data: DataConfig, max_inputs: int, log: RunLog) -> None:
    """RecipeError for more inputs than the user encoder reads; a warning for fewer."""
    kind, num_inputs = data.kind, data.kind.num_inputs
    setting = "data.window.size" if kind.reads_window else "data.examples.history"
    if num_inputs > max_inputs:
        raise RecipeError(
            f"{setting}: {kind.longest} gives {num_inputs} inputs, but the user encoder reads {max_inputs}; choose up "
            f"to {max_inputs + kind.longest - num_inputs}, or raise model.user_encoder.max_inputs"
        )
    if num_inputs < max_inputs:
        log.warn(
            f"{setting}: {kind.longest} trains {num_inputs} positions of the user encoder, but ranking uses "
            f"{max_inputs} (max_inputs): longer histories meet positions that this run never trains"
        )
