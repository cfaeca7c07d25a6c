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
    is_valid_BS = batch.windows.is_valid_BS
    num_users, num_positions = is_valid_BS.shape
    return (
        f"step {step}: {is_valid_BS.device} is out of memory at {num_users} users, {num_positions - 1} inputs and "
        f"{batch.items.num_items} items; lower train.batch_users (now {batch_users}) or data.window.size, train fewer "
        "blocks, set machine.precision=bf16, or prefix_cache=off if states are kept"
    )
