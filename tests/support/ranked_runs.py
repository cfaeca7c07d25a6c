"""Make run folders with given ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pmmrec.evaluation.outcome import DomainOutcome, Outcome, write_outcome
from pmmrec.evaluation.significance import Interval

MakeRun = Callable[..., Path]
BASELINE_FIGURES = {"item-kNN": {"hr@10": Interval(0.2, 0.1, 0.3), "ndcg@10": Interval(0.1, 0.0, 0.2)}}


def ranks(seed: int, num_users: int = 300, *, better: bool = False) -> list[int]:
    drawn = np.random.default_rng(seed).integers(1, 12 if better else 40, size=num_users)
    return drawn.tolist()


def runs_in(home: Path) -> MakeRun:
    """A function that makes run folders in `home` with given ranks, one per user unless `users` is given."""

    def make(
        name: str,
        ranks: Sequence[int],
        *,
        folder: str | None = None,
        domain: str = "shop",
        users: Sequence[str] | None = None,
        more: dict[str, Sequence[object]] | None = None,
        keeps_ranks: bool = True,
        **values: object,
    ) -> Path:
        place = home / (folder or name)
        place.mkdir()
        hits = [float(1 <= rank <= 10) for rank in ranks]
        gains = [hit / math.log2(rank + 1) if hit else 0.0 for hit, rank in zip(hits, ranks, strict=True)]
        metrics = {key: Interval(float(np.mean(v)), 0.0, 1.0) for key, v in (("hr@10", hits), ("ndcg@10", gains))}
        about = {"fingerprint": "f" * 8, "num_users": len(ranks), "num_items": 99, "seen_target": 0.0}
        found = {"domain": domain, **about, "metrics": metrics, "baselines": BASELINE_FIGURES}
        keys = ("seen", "scenario", "best_epoch", "num_epochs")
        of_outcome = {key: values.pop(key) for key in keys if key in values}
        domains = (DomainOutcome(**{**found, **values}),)
        write_outcome(place, Outcome(name=name, kind="finetune", domains=domains, **of_outcome))
        users = users or [f"u{place}" for place in range(len(ranks))]
        columns = {"user_id": users, "item_id": [f"i-{user}" for user in users], "rank": list(ranks)}
        if keeps_ranks:
            pq.write_table(pa.table({**columns, **(more or {})}), place / "ranks.parquet")
        return place

    return make
