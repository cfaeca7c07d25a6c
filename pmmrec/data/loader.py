"""Load the batches of an epoch with worker processes, and notice workers that were killed."""

from __future__ import annotations

import dataclasses
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch._C import _remove_worker_pids, _set_worker_pids
from torch.utils.data import DataLoader, Dataset, get_worker_info

from pmmrec.contracts import Batch, ItemInputs
from pmmrec.data.batches import BatchBuilder
from pmmrec.errors import MachineError

NO_ITEMS = ItemInputs(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64), {})
LOCK_S = 5.0  # to wait for a lock that is held for microseconds, unless its holder was killed


class LostWorkerError(MachineError):
    """A worker process ended before it had read all its batches; the system may have killed it for lack of memory."""


class BatchLoader:
    """Batches of an epoch in order, read ahead by `workers` processes; their number does not change the batches."""

    def __init__(self, builder: BatchBuilder, workers: int = 0) -> None:
        self._builder = builder
        self._workers = workers

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """The batches of `epoch` from its step `first` on, both counted from 0.

        The iterator raises LostWorkerError if a worker was killed.
        """
        steps = range(first, self._builder.steps_per_epoch)
        if self._workers and steps:
            # Before the fork, so that workers share the memory of a large order and of a catalogue.
            self._builder.draw(epoch, first)
            _ = self._builder.catalogue
        # Elsewhere the default of the platform: forking is not safe on every system.
        context = "fork" if self._workers and sys.platform == "linux" else None
        loader: DataLoader[Batch] = DataLoader(
            _Steps(self._builder, epoch),
            batch_size=None,
            sampler=steps,
            num_workers=self._workers,
            worker_init_fn=_ignore_signals if self._workers else None,
            collate_fn=_unchanged,  # type: ignore[arg-type]  # with batch_size=None it gets one sample
            multiprocessing_context=context,
            generator=torch.Generator(),  # its own, so that loading does not advance the global one
        )
        if not self._workers:
            return iter(loader)
        batches, catalogue = _Workers(iter(loader)).read(len(steps)), self._builder.catalogue
        return batches if catalogue is None else map(partial(_with_items, catalogue), batches)


class _Workers:
    """The worker processes of one epoch; `batches` is torch's iterator over them.

    torch's SIGCHLD handler raises in the main thread, at any line, when a worker on torch's list was killed. Workers
    are on that list only while the main thread waits for a batch, so the error never interrupts other work, such as
    writing a state.
    """

    def __init__(self, batches: Any) -> None:
        self._batches = batches
        batches._workers_done_event = _Done(batches._workers_done_event)  # torch has no public access to it
        self._unlist()

    def read(self, steps: int) -> Iterator[Batch]:
        """The next `steps` batches. Closes the workers at the end, or when the iterator is closed."""
        try:
            for _ in range(steps):
                yield self._next()
        finally:
            self._close()

    def _next(self) -> Batch:
        try:
            with self._listed():
                batch: Batch = next(self._batches)
        except (RuntimeError, OSError, EOFError) as error:
            if not _is_of_lost_worker(error):
                raise
            # A worker that was killed while it sent a batch may show only as a connection that broke.
            told = error if isinstance(error, RuntimeError) else f"DataLoader worker exited unexpectedly ({error})"
            raise LostWorkerError(str(told)) from error
        return batch

    @contextmanager
    def _listed(self) -> Iterator[None]:
        workers = self._batches._workers
        _set_worker_pids(id(self._batches), tuple(worker.pid for worker in workers))
        self._batches._worker_pids_set = True
        try:
            # No signal reports workers that ended while they were not on the list.
            lost = [str(worker.pid) for worker in workers if not worker.is_alive()]
            if lost:
                raise LostWorkerError(f"DataLoader worker (pid(s) {', '.join(lost)}) exited unexpectedly")
            yield
        finally:
            self._unlist()

    def _unlist(self) -> None:
        if self._batches._worker_pids_set:
            _remove_worker_pids(id(self._batches))
            self._batches._worker_pids_set = False

    def _close(self) -> None:
        """End the workers. If one was killed, the others may wait for a lock that it held, so they are killed too."""
        workers = self._batches._workers
        if not all(worker.is_alive() for worker in workers):
            for worker in workers:
                worker.kill()
        self._batches._shutdown_workers()


class _Done:
    """Replaces the event that ends the workers: a killed worker may never release the lock of the shared event."""

    def __init__(self, shared: Any) -> None:
        self._shared, self._is_set = shared, False

    def is_set(self) -> bool:
        return self._is_set  # only this process sets it

    def set(self) -> None:
        self._is_set = True
        setting = threading.Thread(target=self._shared.set, daemon=True)
        setting.start()
        setting.join(LOCK_S)


class _Steps(Dataset[Batch]):
    def __init__(self, builder: BatchBuilder, epoch: int) -> None:
        self._builder = builder
        self._epoch = epoch

    def __getitem__(self, step: int) -> Batch:
        batch = self._builder.build(self._epoch, step)
        is_sent = get_worker_info() is not None and self._builder.catalogue is not None
        return _with_items(NO_ITEMS, batch) if is_sent else batch


def _with_items(items: ItemInputs, batch: Batch) -> Batch:
    """The batch, and each of its parts, with these items: a worker does not send a catalogue that all batches share."""
    return dataclasses.replace(batch, items=items, more=tuple(_with_items(items, part) for part in batch.more))


def _is_of_lost_worker(error: Exception) -> bool:
    """Whether torch reports a lost worker, or data of a worker ended early; its own errors begin with `Caught`."""
    if isinstance(error, RuntimeError):
        return "DataLoader worker (pid" in str(error)
    # A message that was cut off is an OSError without a number; one with a number, such as a full disk, is of here.
    is_cut_off = not isinstance(error, OSError) or isinstance(error, ConnectionError) or error.errno is None
    return is_cut_off and not str(error).startswith("Caught ")


def _ignore_signals(_worker: int) -> None:
    """Ignore signals to the process group that ask the run to stop: it needs its workers until it has stopped."""
    for sign in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(sign, signal.SIG_IGN)


def _unchanged(batch: Batch) -> Batch:
    return batch
