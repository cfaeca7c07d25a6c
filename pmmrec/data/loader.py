"""Batches of an epoch, read ahead by worker processes, any of which may be killed."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._C import _remove_worker_pids, _set_worker_pids
from torch.utils.data import DataLoader, Dataset

from pmmrec.contracts import Batch
from pmmrec.data.batches import BatchBuilder
from pmmrec.errors import MachineError

LOCK_S = 5.0  # for a lock that is held for microseconds, unless its holder was killed


class LostWorkerError(MachineError):
    """A worker process ended before it had read all its batches, perhaps killed by the system for want of memory."""


class BatchLoader:
    """Batches of an epoch in order, read ahead by `workers` processes; any number of them gives the same batches."""

    def __init__(self, builder: BatchBuilder, workers: int = 0) -> None:
        self._builder = builder
        self._workers = workers

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """The batches of `epoch` from its step `first` on, both counted from 0.

        The iterator raises LostWorkerError where a worker was killed.
        """
        steps = range(first, self._builder.steps_per_epoch)
        if self._workers and steps:
            self._builder.draw(epoch, first)  # before they are forked: they share the order of a large platform
        # Elsewhere the platform's own way is taken: forking is not safe on every system.
        context = "fork" if self._workers and sys.platform == "linux" else None
        loader: DataLoader[Batch] = DataLoader(
            _Steps(self._builder, epoch),
            batch_size=None,
            sampler=steps,
            num_workers=self._workers,
            worker_init_fn=_leave_signals_to_the_run if self._workers else None,
            collate_fn=_as_it_is,  # type: ignore[arg-type]  # with batch_size=None it is given one sample
            multiprocessing_context=context,
            generator=torch.Generator(),  # its own: the global one must not depend on how batches are loaded
        )
        return _Workers(iter(loader)).read(len(steps)) if self._workers else iter(loader)


class _Workers:
    """The worker processes of one epoch, behind torch's iterator `batches`.

    torch's handler of SIGCHLD raises in the main thread, at whatever line that has come to, if one of the workers that
    torch has on its list was killed. They stand on that list only while a batch is waited for: nothing else, such as
    writing a state, is ever broken off.
    """

    def __init__(self, batches: Any) -> None:
        self._batches = batches
        batches._workers_done_event = _Done(batches._workers_done_event)  # torch offers no other way to it
        self._unlist()

    def read(self, steps: int) -> Iterator[Batch]:
        """The next `steps` batches. Closes the workers at the end, or where the iterator is given up."""
        try:
            for _ in range(steps):
                yield self._next()
        finally:
            self._close()

    def _next(self) -> Batch:
        try:
            with self._listed():
                batch: Batch = next(self._batches)
        except (RuntimeError, ConnectionError, EOFError) as error:
            if not _is_of_lost_worker(error):
                raise
            raise LostWorkerError(str(error)) from error
        return batch

    @contextmanager
    def _listed(self) -> Iterator[None]:
        workers = self._batches._workers
        _set_worker_pids(id(self._batches), tuple(worker.pid for worker in workers))
        self._batches._worker_pids_set = True
        try:
            # Of those that ended while they were not on the list no signal tells.
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
    """Tells workers that they are done. A killed worker may never release the lock of the event that they share."""

    def __init__(self, shared: Any) -> None:
        self._shared, self._is_set = shared, False

    def is_set(self) -> bool:
        return self._is_set  # this process alone sets it

    def set(self) -> None:
        self._is_set = True
        telling = threading.Thread(target=self._shared.set, daemon=True)
        telling.start()
        telling.join(LOCK_S)


class _Steps(Dataset[Batch]):
    def __init__(self, builder: BatchBuilder, epoch: int) -> None:
        self._builder = builder
        self._epoch = epoch

    def __getitem__(self, step: int) -> Batch:
        return self._builder.build(self._epoch, step)


def _is_of_lost_worker(error: Exception) -> bool:
    """Whether torch says so, or what a worker handed over was cut off. An error that a worker met begins otherwise."""
    if isinstance(error, RuntimeError):
        return "DataLoader worker (pid" in str(error)
    return not str(error).startswith("Caught ")


def _leave_signals_to_the_run(_worker: int) -> None:
    """A signal to a whole process group asks the run to end in good order, for which it needs its workers."""
    for sign in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(sign, signal.SIG_IGN)


def _as_it_is(batch: Batch) -> Batch:
    return batch
