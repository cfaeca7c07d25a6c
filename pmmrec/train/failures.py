"""Error messages for failures of the machine during training."""

from __future__ import annotations

from pmmrec.contracts import Batch


def lost_worker(step: int, error: Exception) -> str:
    """A data worker process was killed."""
    return (
        f"step {step}: a process that reads data was ended, perhaps for want of memory ({error}); lower data.workers, "
        "then go on with --resume"
    )


def out_of_memory(step: int, batch: Batch, batch_users: int) -> str:
    """The device is too small for `batch`, which lies on it."""
    return (
        f"step {step}: {batch.device} is out of memory at {batch.describe()}; lower train.batch_users "
        f"(now {batch_users}) or data.window.size, train fewer blocks, set machine.precision=bf16, or prefix_cache=off "
        "if states are kept"
    )
