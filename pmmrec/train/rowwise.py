"""Large tables of ids: a step reads few of their rows, and updates those alone."""
# Shapes: N rows of a table, K of them read in a step, D width.

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Adam

from pmmrec.errors import RecipeError
from pmmrec.launch import Spread
from pmmrec.requests import View
from pmmrec.row_table import RowTable
from pmmrec.train.task import TrainingTask

Tables = Literal["auto", "whole", "rows"]
LARGE = 100_000  # rows of a table, above which `auto` updates those alone that a step reads


class RowwiseAdam(Adam):
    """Fused Adam or AdamW that updates only those rows of a table that have a gradient, where the gradient is sparse.

    A row that a step does not read keeps its weights and its moments: nothing decays, and no momentum moves it. This is
    torch's SparseAdam with weight decay; where every row is read in every step it is torch's Adam or AdamW. The step
    count is that of the table, and the state is that of Adam, so that a run may go on with the other. To add up what
    equal rows get, the host waits for a GPU, once for each table.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], tables: Mapping[str, int], **settings: Any) -> None:
        """`tables`: names and numbers of rows of the tables with sparse gradients. The rest is Adam's.

        With `decoupled_weight_decay` it is AdamW.
        """
        # One kernel for all tensors, which can be told on the device that a step is to change nothing.
        super().__init__(groups, fused=True, **settings)
        self.tables = dict(tables)

    def words(self) -> str:
        """Which tables learn by rows, for the log; empty where none does."""
        named = ", ".join(f"{name} ({num_rows:,} rows)" for name, num_rows in self.tables.items())
        return f"; of {named} each step updates the rows that it reads" if named else ""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters. `found_inf`, if it is set, tells on the device that nothing is to change."""
        sparse = [
            (group, table, table.grad)
            for group in self.param_groups
            for table in group["params"]
            if table.grad is not None and table.grad.is_sparse
        ]
        for group, table, gradient in sparse:
            self._update(group, table, gradient.coalesce())
            table.grad = None  # Adam refuses sparse gradients
        result: Any = super().step(closure)
        for _, table, gradient in sparse:
            table.grad = gradient
        return result

    def _update(self, group: dict[str, Any], table: Tensor, gradient: Tensor) -> None:
        """Adam (arXiv 1412.6980) or AdamW (arXiv 1711.05101) on the rows of a sparse gradient."""
        state, (beta1, beta2) = self.state[table], group["betas"]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=table.device)  # as Adam's fused kernel
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(table), torch.zeros_like(table)
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        is_held = torch.zeros_like(state["step"]) if found_inf is None else found_inf.view(()).to(state["step"])
        state["step"] += 1 - is_held

        row_K, gradient_KD = gradient.indices()[0], gradient.values()
        before = [tensor.index_select(0, row_K) for tensor in (table, state["exp_avg"], state["exp_avg_sq"])]
        weight_KD, mean_KD, square_KD = before
        if group["decoupled_weight_decay"]:
            decayed_KD = weight_KD * (1 - group["lr"] * group["weight_decay"])
        else:
            decayed_KD, gradient_KD = weight_KD, gradient_KD + group["weight_decay"] * weight_KD
        mean_KD = mean_KD.lerp(gradient_KD, 1 - beta1)
        square_KD = square_KD.lerp(gradient_KD.square(), 1 - beta2)
        corrections = [(1 - beta ** state["step"].double()).to(table.dtype) for beta in (beta1, beta2)]
        direction_KD = mean_KD / corrections[0] / ((square_KD / corrections[1]).sqrt() + group["eps"])
        after = (decayed_KD - group["lr"] * direction_KD, mean_KD, square_KD)
        for tensor, old, new in zip((table, state["exp_avg"], state["exp_avg_sq"]), before, after, strict=True):
            tensor.index_copy_(0, row_K, torch.where(is_held > 0, old, new))


def choose_tables(task: TrainingTask, tables: Tables, spread: Spread) -> dict[str, int]:
    """Let the tables of ids that learn by rows give sparse gradients; returns their names and numbers of rows.

    Raises RecipeError where `rows` is asked for, and every step reads all rows, there is no such table, or the weights
    or gradients are exchanged between processes, which is done for whole tensors.
    """
    found = {
        part: table.vector
        for part, module in task.recommender.parts.items()
        for table in module.modules()
        if isinstance(table, RowTable) and table.vector.weight.requires_grad
    }
    reads_all = View.CATALOGUE in task.requests.views
    if tables == "rows":
        why = (
            "the model has no table of ids that learns"
            if not found
            else "every step reads the whole catalogue (a graph, or catalogue_ce)"
            if reads_all
            else f"under {spread.value} gradients are exchanged as whole tensors; train in one process"
            if spread is not Spread.ONE
            else None
        )
        if why is not None:
            raise RecipeError(f"train.optimizer.tables: rows has no effect: {why}; leave it out")
    may = tables != "whole" and not reads_all and spread is Spread.ONE
    for table in found.values():
        table.sparse = may and (tables == "rows" or table.num_embeddings > LARGE)
    return {name: table.num_embeddings for name, table in found.items() if table.sparse}


def dense_gradients(parameters: Iterable[nn.Parameter]) -> Iterator[Tensor]:
    """Tensors whose gradients, together, are those of the parameters, and share their memory; none is sparse."""
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is None or not gradient.is_sparse:
            yield parameter
            continue
        parameter.grad = gradient.coalesce()
        values = parameter.grad._values()
        stand_in = torch.empty_like(values)
        stand_in.grad = values
        yield stand_in
