"""The files for clusters: what Slurm's script starts and asks back, and that a Job of Kubernetes fits together."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import SMALL, sources

from pmmrec.launch import find_launch_file
from pmmrec.shipped import shipped_file

HOSTS = ("gpu-3", "gpu-7")
SRUN = """#!{python}
# A task on each machine with what Slurm tells it. The first that fails ends the others; the highest code is its own.
import os, subprocess, sys, time

log, words = os.environ["LOG"], sys.argv[2:]
tasks = []
for rank in "01":
    with open(f"{{log}}-{{rank}}", "w") as said:
        environment = {{**os.environ, "SLURM_NODEID": rank}}
        tasks.append(subprocess.Popen(words, env=environment, stdout=said, stderr=subprocess.STDOUT))
with open(log, "a") as file:
    file.write(f"srun {{sys.argv[1]}}\\n")
    file.write("".join(f"task {{task.pid}}\\n" for task in tasks))
since_s = None
while left := [task for task in tasks if task.poll() is None]:
    if since_s is None and any(task.returncode for task in tasks):
        since_s = time.monotonic()
        for task in left:
            task.terminate()
    if since_s is not None and time.monotonic() - since_s > 30:
        for task in left:
            task.kill()
    time.sleep(0.01)
for rank in "01":
    with open(f"{{log}}-{{rank}}") as said:
        print(said.read(), end="")
sys.exit(max(task.returncode if task.returncode >= 0 else 128 - task.returncode for task in tasks))
"""
# What stands in for a run that ends on both machines: no signal takes its exit code.
ENDS = """#!/usr/bin/env bash
trap '' TERM
touch "$LOG-here-$SLURM_NODEID"
until [ -e "$LOG-here-0" ] && [ -e "$LOG-here-1" ]; do sleep 0.01; done
exit {code}
"""
SCONTROL = """#!/usr/bin/env bash
if [ "$1" = show ]; then printf "$HOSTS"; else echo "scontrol $*" >> "$LOG"; fi
"""
# What a tracker does that is long in closing, as over a slow network.
SLOW_WANDB = """
import time

def init(**_settings):
    return Run()

class Run:
    def log(self, values, step=None, **_more): ...
    def finish(self):
        time.sleep(5)
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    """A folder that stands in for Slurm: its commands, and `pmmrec` as it is installed."""
    pmmrec = f'#!/usr/bin/env bash\nexec {sys.executable} -c "from pmmrec.cli import app; app()" "$@"\n'
    srun = SRUN.format(python=sys.executable)
    for name, text in {"srun": srun, "scontrol": SCONTROL, "pmmrec": pmmrec}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return tmp_path


def _job(cluster: Path, *arguments: str, hosts: tuple[str, str] = HOSTS, **environment: str) -> dict[str, Any]:
    """What runs the script as Slurm would."""
    slurm = {"SLURM_JOB_NODELIST": "gpu-[3,7]", "SLURM_JOB_ID": "123456", "LOG": str(cluster / "log")}
    path = {"PATH": f"{cluster}:{os.environ['PATH']}", "HOSTS": "".join(f"{host}\\n" for host in hosts)}
    words = ["bash", str(shipped_file("launch/slurm.sh")), *arguments]
    return {"args": words, "env": {**os.environ, **slurm, **path, **environment}, "text": True}


def _sbatch(cluster: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(**_job(cluster, *arguments, **environment), capture_output=True, check=False)


def _log(cluster: Path, what: str) -> list[str]:
    """What was noted of calls of Slurm's commands, or of `srun` its tasks."""
    path = cluster / "log"
    lines = path.read_text().splitlines() if path.exists() else []
    return [line.removeprefix(f"{what} ") for line in lines if line.startswith(f"{what} ")]


def test_slurm_starts_every_machine_with_its_rank_and_one_rendezvous(cluster: Path) -> None:
    done = _sbatch(cluster, "pretrain/tiny", "name=a b", "--print-command", LAUNCH="zero2")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [shlex.split(line) for line in done.stdout.splitlines()]
    for rank, words in enumerate(lines):
        options = words[words.index("--config_file") : words.index("--main_process_port") + 2]
        told = dict(zip(options[::2], options[1::2], strict=True))
        assert told["--config_file"] == str(find_launch_file("zero2"))
        assert (told["--num_processes"], told["--num_machines"], told["--machine_rank"]) == ("16", "2", str(rank))
        assert (told["--main_process_ip"], told["--main_process_port"]) == (HOSTS[0], "23456")
        assert words[-4:] == [str(shipped_file("pretrain/run.py")), "pretrain/tiny", "name=a b", "--resume"]
    assert len(lines) == len(HOSTS)
    assert _log(cluster, "srun") == ["--kill-on-bad-exit=1"]


@pytest.mark.parametrize(("code", "is_requeued"), [(75, True), (2, False), (0, False)])
def test_slurm_is_asked_back_where_a_run_was_ended_early_and_only_there(
    cluster: Path, code: int, is_requeued: bool
) -> None:
    (cluster / "pmmrec").write_text(ENDS.format(code=code))
    assert _sbatch(cluster, "pretrain/tiny").returncode == code
    assert _log(cluster, "scontrol") == ["requeue 123456"] * is_requeued


def _free_job() -> str:
    """The number of a job whose port nobody has."""
    for number in range(os.getpid() % 5_000, 10_000):
        with socket.socket() as tried, suppress(OSError):
            tried.bind(("127.0.0.1", 20_000 + number))
            return str(number)
    raise AssertionError("no port is free")


def test_a_run_that_one_machine_was_told_to_end_is_asked_back_though_the_other_still_closes_its_trackers(
    cluster: Path, world: Path
) -> None:
    (cluster / "wandb.py").write_text(SLOW_WANDB)
    home = [f"{place}={cluster / place}" for place in ("runs", "hub", "cache")]
    settings = (*SMALL, *sources(world), *home, "name=told", "train.epochs=1000", "machine.trackers=[wandb]")
    path = f"{cluster}:{os.environ.get('PYTHONPATH', '')}"
    words = ("pretrain/tiny", *settings, "--processes-per-node", "1")
    told = {"LAUNCH": "two_cpu", "SLURM_JOB_ID": _free_job(), "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    with (cluster / "said").open("w") as said:
        job = subprocess.Popen(
            **_job(cluster, *words, hosts=("127.0.0.1", "127.0.0.1"), **told), stdout=said, stderr=subprocess.STDOUT
        )
    try:
        events, until_s = cluster / "runs/told/events.jsonl", time.monotonic() + 300
        while not (events.exists() and '"train"' in events.read_text()):
            assert job.poll() is None, (cluster / "said").read_text()
            assert time.monotonic() < until_s
            time.sleep(0.05)
        os.kill(int(_log(cluster, "task")[1]), signal.SIGUSR1)
        assert job.wait(timeout=120) == 75, (cluster / "said").read_text()
    finally:
        for task in map(int, _log(cluster, "task")):
            with suppress(ProcessLookupError):
                os.kill(task, signal.SIGINT)
        job.kill()
        job.wait()
    assert _log(cluster, "scontrol") == [f"requeue {told['SLURM_JOB_ID']}"]
    assert list((cluster / "runs/told/state").glob("step-*"))


@pytest.mark.parametrize("name", ["slurm.sh", "quickstart.sh"])
def test_a_script_is_one_that_bash_reads(name: str) -> None:
    subprocess.run(["bash", "-n", str(shipped_file(f"launch/{name}"))], check=True)


@pytest.fixture(scope="module")
def objects() -> dict[str, Any]:
    """The objects of the Kubernetes file by kind."""
    read = yaml.safe_load_all(shipped_file("launch/kubernetes.yaml").read_text())
    return {tree["kind"]: tree for tree in read}


def test_a_job_of_kubernetes_is_indexed_and_as_wide_as_its_launch(objects: dict[str, Any]) -> None:
    job = objects["Job"]
    assert (job["apiVersion"], job["spec"]["completionMode"]) == ("batch/v1", "Indexed")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    options = dict(
        word.removeprefix("--").split("=", 1) for word in container["args"] if word.startswith(("--launch", "--node"))
    )
    assert int(options["nodes"]) == job["spec"]["completions"] == job["spec"]["parallelism"]
    assert options["node-rank"] == "$(JOB_COMPLETION_INDEX)"
    assert "JOB_COMPLETION_INDEX" in {variable["name"] for variable in container["env"]}
    assert "--resume" in container["args"]


def test_pods_meet_at_pod_0_by_a_headless_service(objects: dict[str, Any]) -> None:
    service, job = objects["Service"], objects["Job"]
    assert service["apiVersion"] == "v1"
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}  # which Jobs put on their pods
    pod = job["spec"]["template"]["spec"]
    assert pod["subdomain"] == service["metadata"]["name"]
    (port,) = service["spec"]["ports"]
    meeting = f"--rendezvous={job['metadata']['name']}-0.{service['metadata']['name']}:{port['port']}"
    assert meeting in pod["containers"][0]["args"]


def test_a_pod_that_ends_early_is_replaced_and_one_with_a_wrong_recipe_is_not(objects: dict[str, Any]) -> None:
    job = objects["Job"]["spec"]
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never"  # what podFailurePolicy wants
    codes = {
        code: rule["action"]
        for rule in job["podFailurePolicy"]["rules"]
        for code in rule.get("onExitCodes", {}).get("values", [])
    }
    assert codes == {75: "Ignore", 2: "FailJob", 3: "FailJob"}
    names = {container["name"] for container in pod["containers"]}
    assert {
        rule["onExitCodes"]["containerName"] for rule in job["podFailurePolicy"]["rules"] if "onExitCodes" in rule
    } <= names
    assert pod["terminationGracePeriodSeconds"] >= 300


def test_what_a_pod_mounts_is_there(objects: dict[str, Any]) -> None:
    pod = objects["Job"]["spec"]["template"]["spec"]
    mounted = {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_the_command_of_a_pod_is_one_that_pmmrec_reads(objects: dict[str, Any], pmmrec) -> None:
    (container,) = objects["Job"]["spec"]["template"]["spec"]["containers"]
    words = [word.replace("$(JOB_COMPLETION_INDEX)", "1") for word in (*container["command"], *container["args"])]
    shown = pmmrec(*words[1:], "--print-command")
    assert shown.code == 0, shown.output
    assert " --machine_rank 1 --main_process_ip pmmrec-0.pmmrec --main_process_port 29500 " in shown.output
