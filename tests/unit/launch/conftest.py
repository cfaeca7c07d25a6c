"""What accelerate itself makes of a launch file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pmmrec.launch import LaunchCommand, LaunchFile

Told = Callable[[str], dict[str, str]]


@pytest.fixture
def told() -> Told:
    """The environment that accelerate's launcher would give every process of a launch file."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    def environment(name: str) -> dict[str, str]:
        file = LaunchFile.read(name)
        machines = {"node_rank": 0, "rendezvous": "localhost:29500"} if file.num_nodes > 1 else {}
        words = LaunchCommand.of(file, Path("run.py"), ["recipe"], **machines).words
        arguments, defaults, _ = _validate_launch_command(launch_command_parser().parse_args(words))
        if not arguments.use_deepspeed:
            return prepare_multi_gpu_env(arguments)
        arguments.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
        return prepare_deepspeed_cmd_env(arguments)[1]

    return environment
