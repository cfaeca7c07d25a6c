"""How the users of a step are divided over processes."""

from __future__ import annotations


def gathers(gather: bool | None, num_processes: int) -> bool:
    """Whether processes use each other's items and users: if there are several, unless the recipe forbids it."""
    return num_processes > 1 and gather is not False


def shared_out(batch_users: int, num_processes: int, gather: bool | None, unit: str = "users") -> str:
    """A line that says how the users of a step are divided, and whose items are negatives. `unit`: of examples."""
    if num_processes == 1:
        return f"a step: up to {batch_users:,} {unit}"
    least, more = divmod(batch_users, num_processes)
    each = f"{least:,} or {least + 1:,}" if more else f"{least:,}"
    whose = "all processes" if gathers(gather, num_processes) else f"each process's own {unit} alone"
    return f"a step: up to {batch_users:,} {unit}, {each} in each of {num_processes} processes; negatives: of {whose}"
