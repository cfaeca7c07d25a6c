"""A search that is asked to end while a trial trains."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from command_line import Pmmrec
from optuna.trial import TrialState
from searches import command, study, trials

pytestmark = pytest.mark.long


def test_a_search_that_was_stopped_ends_its_trial_tries_it_again_and_prunes_it(
    home: Path, world: Path, pmmrec: Pmmrec
) -> None:
    endless = ("train.epochs=100000", "validation.patience=100000", "--prune-after", 1)
    words = command(world, *endless, trials=6)
    search = home / "runs" / "sasrec-tune"
    events = search / "trials" / "0000" / "events.jsonl"

    with (home / "said.log").open("w+") as said:
        program = subprocess.Popen([Path(sys.executable).with_name("pmmrec"), *words], stdout=said, stderr=said)
        while not (events.is_file() and "validation" in events.read_text()):
            assert program.poll() is None
            time.sleep(0.05)
        program.send_signal(signal.SIGTERM)
        assert program.wait() == 130
        said.seek(0)
        assert said.read() == "stopped\n"
    (stopped,) = study(search).get_trials(states=(TrialState.FAIL,))
    size = events.stat().st_size

    # Five trials that were better at every epoch, so that a median stands against the next.
    distributions = stopped.distributions
    for _ in range(5):
        values = dict.fromkeys(range(2000), 0.99)
        ending = {"best": 0.99, "best_epoch": 1, "num_epochs": 1999, "seconds": 1.0, "message": ""}
        params = {"train.optimizer.learning_rate": "0.01", "model.user_encoder.num_layers": 1}
        trial = optuna.trial.create_trial(
            value=0.99, params=params, distributions=distributions, intermediate_values=values
        )
        trial.set_user_attr("ending", ending)
        study(search).add_trial(trial)
    result = pmmrec(*words)
    assert result.code == 0, result.output
    assert events.stat().st_size == size  # nobody wrote after the stop
    pruned = trials(search)[0]
    assert (pruned["trial"], pruned["state"]) == ("0001", "pruned")
    assert int(pruned["epochs"]) >= 1
    assert "(ended early)" in result.output
    assert "the recipe's own values" in result.output
    assert not list(search.rglob("checkpoint"))
