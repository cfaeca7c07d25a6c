"""The files for clusters: what Slurm's script starts and asks back, and that a Job of Kubernetes fits together."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from slurm import HOSTS, job, log_of, slurm_in

from pmmrec.launch import find_launch_file
from pmmrec.shipped import shipped_file

# What stands in for a run that ends on both machines: no signal takes its exit code.
ENDS = """#!/usr/bin/env bash
trap '' TERM
touch "$LOG-here-$SLURM_NODEID"
until [ -e "$LOG-here-0" ] && [ -e "$LOG-here-1" ]; do sleep 0.01; done
exit {code}
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    slurm_in(tmp_path)
    return tmp_path


def _sbatch(cluster: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(**job(cluster, *arguments, **environment), capture_output=True, check=False)


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
    assert log_of(cluster, "srun") == ["--kill-on-bad-exit=1"]


@pytest.mark.parametrize(("code", "is_requeued"), [(75, True), (2, False), (0, False)])
def test_slurm_is_asked_back_where_a_run_was_ended_early_and_only_there(
    cluster: Path, code: int, is_requeued: bool
) -> None:
    (cluster / "pmmrec").write_text(ENDS.format(code=code))
    assert _sbatch(cluster, "pretrain/tiny").returncode == code
    assert log_of(cluster, "scontrol") == ["requeue 123456"] * is_requeued


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
