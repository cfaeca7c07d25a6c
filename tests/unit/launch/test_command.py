"""The command of a launch: its words, the machines it names, its exit code, and stop signals before it starts."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import sys
from pathlib import Path

import psutil
import pytest
from forked import in_child
from launched import a_program

from pmmrec.errors import RecipeError, StoppedError
from pmmrec.launch import LaunchCommand, LaunchFile, Node, exit_code_after, stopped_before_run
from pmmrec.train import start

STARTER = "pmmrec.train.start"


def _command(name: str = "ddp", program: Path = Path("run.py"), *arguments: str, **options: object) -> LaunchCommand:
    return LaunchCommand.of(LaunchFile.read(name), program, arguments, **options)


def _options(command: LaunchCommand) -> dict[str, str]:
    words = command.words[: command.words.index("run.py")]
    return dict(zip(words[::2], words[1::2], strict=True))


def test_one_machine_takes_any_free_port() -> None:
    options = _options(_command())
    assert (options["--num_processes"], options["--num_machines"], options["--main_process_port"]) == ("8", "1", "0")
    assert "--machine_rank" not in options


def test_a_script_for_any_number_of_machines_may_have_one() -> None:
    options = _options(_command(num_nodes=1, node_rank=0, rendezvous="host-0:29500"))
    assert (options["--num_machines"], options["--main_process_port"]) == ("1", "29500")


def test_machines_count_their_processes_together() -> None:
    options = _options(_command("zero2", num_nodes=3, per_node=4, node_rank=2, rendezvous="host-0:29500"))
    assert (options["--num_processes"], options["--num_machines"], options["--machine_rank"]) == ("12", "3", "2")
    assert (options["--main_process_ip"], options["--main_process_port"]) == ("host-0", "29500")


def test_a_rendezvous_may_be_an_ipv6_address() -> None:
    options = _options(_command(num_nodes=2, node_rank=0, rendezvous="[fd00::1]:29500"))
    assert (options["--main_process_ip"], options["--main_process_port"]) == ("fd00::1", "29500")


def test_a_file_for_machines_asks_which_this_is() -> None:
    with pytest.raises(
        RecipeError, match=r"--nodes 2: each machine needs --node-rank, from 0 to 1, and .*--rendezvous"
    ):
        _command("nodes")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"num_nodes": 2, "node_rank": 2, "rendezvous": "h:1"}, "--node-rank 2: must be from 0 to 1, of 2 machines"),
        ({"num_nodes": 2, "node_rank": 0}, "the same --rendezvous HOST:PORT"),
        ({"num_nodes": 2, "node_rank": 0, "rendezvous": "host"}, "--rendezvous host: must be HOST:PORT"),
        ({"num_nodes": 2, "node_rank": 0, "rendezvous": "host:70000"}, "--rendezvous host:70000: must be HOST:PORT"),
        ({"node_rank": 1}, "--node-rank 1: there is one machine, which has rank 0; say --nodes"),
        ({"node_rank": 1, "rendezvous": "h:1"}, "--node-rank 1: there is one machine, which has rank 0"),
    ],
)
def test_incomplete_options_for_several_machines_are_refused(options: dict[str, object], told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        _command(**options)


def test_a_file_for_one_process_does_not_start_two() -> None:
    with pytest.raises(RecipeError, match=r"one_gpu.yaml: is for one process, not 2; choose a file for several"):
        _command("one_gpu", per_node=2)


def test_the_printed_command_is_read_by_a_shell_as_it_is_meant() -> None:
    command = _command("two_cpu", Path("a folder/run.py"), "recipe", "data.sources=[a, b c]", "name=it's")
    *assigned, python, _, module = (words := shlex.split(command.to_shell({})))[: words.index("--config_file")]
    assert dict(word.split("=", 1) for word in assigned) == command.environment
    assert (python, module) == (sys.executable, "accelerate.commands.launch")
    assert tuple(words[words.index("--config_file") :]) == command.words


def test_a_launch_on_the_cpu_keeps_off_the_gpus() -> None:
    assert _command("two_cpu").environment["CUDA_VISIBLE_DEVICES"] == ""
    assert _command("two_cpu").environment["ACCELERATE_USE_CPU"] == "true"
    assert "CUDA_VISIBLE_DEVICES" not in _command("ddp").environment


def _own_addresses() -> list[tuple[str, str]]:
    """Interfaces of this machine that others could reach it by, with their addresses."""
    return [
        (name, entry.address)
        for name, entries in psutil.net_if_addrs().items()
        for entry in entries
        if entry.family == socket.AF_INET and not entry.address.startswith("127.")
    ]


def test_processes_meet_on_the_interface_that_leads_to_machine_0() -> None:
    for name, address in _own_addresses():
        assert Node(0, address, 29500).interface == name


def test_an_address_of_this_machine_alone_names_no_interface() -> None:
    assert Node(0, "127.0.0.1", 29500).interface is None
    assert Node(1, "no-such-host.invalid", 29500).interface is None


def test_the_interface_that_the_user_named_is_left_alone() -> None:
    for name, address in _own_addresses()[:1]:
        command = _command("two_cpu", per_node=1, num_nodes=2, node_rank=1, rendezvous=f"{address}:29500")
        assert f"GLOO_SOCKET_IFNAME={name} " in command.to_shell({})
        assert "GLOO_SOCKET_IFNAME" not in command.to_shell({"GLOO_SOCKET_IFNAME": "mine"})


def test_the_exit_code_of_a_program_goes_through_and_each_process_is_told_how_many_there_are(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    program = a_program(
        tmp_path,
        "told = os.environ['PMMREC_PROCESSES'], os.environ['WORLD_SIZE'], os.environ['ACCELERATE_USE_CPU']\n"
        "(here / os.environ['RANK']).write_text(' '.join([*told, *sys.argv[1:]]))\n"
        "if os.environ['RANK'] == '1':\n"
        "    (here / 'fifo').read_text()\n"
        "    sys.exit(75)\n"
        "(here / 'fifo').write_text('told')\n"
        "signal.pause()\n",
    )
    command = _command("two_cpu", program, "a=b c")
    in_child(lambda: command.start(STARTER, os.environ), code=75)
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["2 2 true a=b c"] * 2


def test_of_processes_that_fail_together_the_one_that_lost_no_other_sets_the_exit_code(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    program = a_program(
        tmp_path,
        "import psutil\n"
        "if os.environ['RANK'] == '1':\n"
        "    (here / 'fifo').write_text(str(os.getpid()))\n"
        "    sys.exit(2)\n"
        "other = psutil.Process(int((here / 'fifo').read_text()))\n"
        # Of the end of a process that is no child of its own, a process is told by nobody.
        "while other.is_running() and other.status() != 'zombie': time.sleep(0.001)\n"
        "os._exit(4)\n",
    )
    in_child(lambda: _command("two_cpu", program).start(STARTER, os.environ), code=2)


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGUSR1])
def test_a_stop_signal_before_a_run_starts_ends_with_75(sign: signal.Signals) -> None:
    def asked() -> None:
        with stopped_before_run():
            signal.raise_signal(sign)

    in_child(asked, StoppedError.exit_code)
    assert signal.getsignal(sign) == signal.SIG_DFL
    assert exit_code_after(128 + sign, is_signalled=True) == 75
    assert [exit_code_after(code, is_signalled=True) for code in (0, 2, 4, 75, 128 + signal.SIGKILL)] == [
        0,
        2,
        4,
        75,
        137,
    ]
    assert exit_code_after(128 + sign, is_signalled=False) == 128 + sign  # by another hand


def _start(command: LaunchCommand) -> None:
    """Do in this process what the launcher of `command` does."""
    os.environ.update(command.environment)
    sys.argv = [STARTER, *command.words]
    start.main()


def test_too_many_gpus_are_refused_with_a_remedy(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    command = _command("ddp", a_program(tmp_path, ""), per_node=1000)
    in_child(lambda: _start(command), code=4)
    said = capfd.readouterr().err
    assert "ddp.yaml: wants 1000 GPU(s) on this machine, which has " in said
    assert said.rstrip().endswith("start fewer with --processes-per-node, or choose another file (two_cpu needs none)")


def test_a_key_unknown_to_accelerate_is_named(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    (tmp_path / "mine.yaml").write_text(
        "distributed_type: MULTI_GPU\nnum_processes: 2\nuse_cpu: true\nnum_process: 2\n"
    )
    command = _command(str(tmp_path / "mine.yaml"), a_program(tmp_path, ""))
    in_child(lambda: _start(command), code=2)
    assert "mine.yaml: accelerate refuses it: " in (said := capfd.readouterr().err)
    assert "num_process'" in said
