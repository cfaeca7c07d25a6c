"""Worker processes give the same batches as none, and killed workers are reported."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
import torch
from forked import in_child
from shops import NOISY, Shops, assert_same, epoch_of
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from pmmrec.contracts import Batch
from pmmrec.data import loader
from pmmrec.data.batches import BatchBuilder
from pmmrec.data.loader import BatchLoader, LostWorkerError
from pmmrec.requests import View


@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_workers_gives_the_same_batches(shops: Shops, workers: int) -> None:
    builder = shops.builder(NOISY, View.POPULARITY)
    state = torch.get_rng_state()
    loaded = list(BatchLoader(builder, workers).epoch(1))
    assert torch.equal(torch.get_rng_state(), state)
    assert len(loaded) == builder.steps_per_epoch == 4
    for found, expected in zip(loaded, epoch_of(builder, 1), strict=True):
        assert_same(found, expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_catalogue_is_read_once_and_sent_by_no_worker(shops: Shops, workers: int) -> None:
    builder = shops.builder(NOISY, View.CATALOGUE, parts=2)
    loaded = list(BatchLoader(builder, workers).epoch(0))
    again = epoch_of(shops.builder(NOISY, View.CATALOGUE, parts=2))
    assert builder.catalogue is not None
    for found, expected in zip(loaded, again, strict=True):
        assert_same(found, expected)
        for part in (found, *found.more):
            assert part.items is builder.catalogue


def kill_worker() -> None:
    """Kill the first worker; its signal has reached this process when this returns, and nobody has reaped it."""
    worker = min(process.pid for process in multiprocessing.active_children() if process.pid)
    os.kill(worker, signal.SIGKILL)
    os.waitid(os.P_PID, worker, os.WEXITED | os.WNOWAIT)


def end_a_program() -> None:
    """The system tells of it by the signal that also tells of a worker."""
    subprocess.run(["true"], check=True)


def read_on_after_a_loss(builder: BatchBuilder, workers: int) -> None:
    epoch = BatchLoader(builder, workers).epoch(0)
    next(epoch)
    kill_worker()
    end_a_program()
    with pytest.raises(LostWorkerError, match=r"DataLoader worker \(pid\(s\) \d+\) exited unexpectedly"):
        next(epoch)
    end_a_program()
    assert not multiprocessing.active_children()


def give_up_after_a_loss(builder: BatchBuilder, workers: int) -> None:
    epoch: Any = BatchLoader(builder, workers).epoch(0)
    next(epoch)
    kill_worker()
    epoch.close()
    end_a_program()
    assert not multiprocessing.active_children()


def lose_a_worker_while_waiting_for_it(builder: BatchBuilder, workers: int) -> None:
    build, here = builder.build, os.getpid()

    def deadly(epoch: int, step: int) -> Batch:
        if step == workers:
            assert os.getpid() != here
            os.kill(os.getpid(), signal.SIGKILL)
        return build(epoch, step)

    builder.build = deadly  # type: ignore[method-assign]
    with pytest.raises(LostWorkerError, match="DataLoader worker"):
        list(BatchLoader(builder, workers).epoch(0))
    end_a_program()
    assert not multiprocessing.active_children()


def lose_a_worker_that_holds_a_lock(builder: BatchBuilder, workers: int) -> None:
    """With the lock that all workers must take before they can end."""
    shared: list[Any] = []

    class Done(loader._Done):
        def __init__(self, event: Any) -> None:
            super().__init__(event)
            shared.append(event)

    loader._Done, loader.LOCK_S = Done, 0.1  # type: ignore[misc]
    epoch = BatchLoader(builder, workers).epoch(0)
    next(epoch)
    shared[0]._cond.acquire()
    kill_worker()
    with pytest.raises(LostWorkerError):
        list(epoch)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    "happens",
    [
        read_on_after_a_loss,
        give_up_after_a_loss,
        lose_a_worker_while_waiting_for_it,
        lose_a_worker_that_holds_a_lock,
    ],
)
def test_a_lost_worker_is_reported_once_and_only_while_a_batch_is_awaited(
    shops: Shops, happens: Callable[[BatchBuilder, int], None], workers: int
) -> None:
    """The loss happens in a process of its own, for the handler of torch raises wherever the main thread is."""
    builder = shops.builder()
    in_child(lambda: happens(builder, workers))


def test_an_error_inside_a_worker_is_not_reported_as_a_lost_worker(
    shops: Shops, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder = shops.builder()

    def broken(epoch: int, step: int) -> Batch:
        raise EOFError("no more bytes")

    monkeypatch.setattr(builder, "build", broken)
    with pytest.raises(EOFError, match="no more bytes"):
        next(BatchLoader(builder, workers=1).epoch(0))


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError(104, "Connection reset by peer"),
        EOFError("ended early"),
        OSError("got end of file during message"),
    ],
)
def test_a_worker_that_breaks_its_connection_is_reported_as_a_lost_worker(
    shops: Shops, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def break_off(batches: Any) -> None:
        raise error

    monkeypatch.setattr(_MultiProcessingDataLoaderIter, "__next__", break_off)
    with pytest.raises(LostWorkerError, match=rf"DataLoader worker exited unexpectedly .*{error.args[-1]}"):
        next(BatchLoader(shops.builder(), workers=1).epoch(0))


def test_an_error_of_the_system_in_this_process_is_no_lost_worker(
    shops: Shops, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(batches: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(_MultiProcessingDataLoaderIter, "__next__", fail)
    with pytest.raises(OSError, match="No space left on device"):
        next(BatchLoader(shops.builder(), workers=1).epoch(0))
