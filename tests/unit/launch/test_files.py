"""The shipped launch files: what accelerate, DeepSpeed and torch read in them is what they promise."""

from __future__ import annotations

from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

from pmmrec.errors import RecipeError
from pmmrec.launch import LaunchFile, Spread
from pmmrec.shipped import shipped_launch_files

PROMISED = {
    "one_gpu": (Spread.ONE, 1, 1, False),
    "ddp": (Spread.DDP, 8, 1, False),
    "nodes": (Spread.DDP, 8, 2, False),
    "zero1": (Spread.ZERO1, 8, 1, False),
    "zero2": (Spread.ZERO2, 8, 1, False),
    "zero3": (Spread.ZERO3, 8, 1, False),
    "fsdp2": (Spread.FSDP2, 8, 1, False),
    "two_cpu": (Spread.DDP, 2, 1, True),
}
KINDS = {
    Spread.ONE: DistributedType.NO,
    Spread.DDP: DistributedType.MULTI_GPU,
    Spread.ZERO1: DistributedType.DEEPSPEED,
    Spread.ZERO2: DistributedType.DEEPSPEED,
    Spread.ZERO3: DistributedType.DEEPSPEED,
    Spread.FSDP2: DistributedType.FSDP,
}
WHOLE = """\
distributed_type: DEEPSPEED
num_processes: 2
deepspeed_config: {zero_stage: 2, zero3_init_flag: false, deepspeed_multinode_launcher: standard}
"""
SHARDED = """\
distributed_type: FSDP
num_processes: 2
fsdp_config: {fsdp_version: 2, fsdp_cpu_ram_efficient_loading: false}
"""


def test_every_shipped_launch_file_is_tested() -> None:
    assert set(shipped_launch_files()) == set(PROMISED)


@pytest.mark.parametrize("name", PROMISED)
def test_we_read_in_a_file_what_accelerate_reads(name: str) -> None:
    file = LaunchFile.read(name)
    assert (file.spread, file.per_node, file.num_nodes, file.on_cpu) == PROMISED[name]
    theirs = load_config_from_file(str(file.path))
    assert theirs.distributed_type == KINDS[file.spread]
    assert (theirs.num_processes, theirs.num_machines) == (file.per_node * file.num_nodes, file.num_nodes)
    assert theirs.use_cpu == file.on_cpu


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_deepspeed_reads_the_stage(stage: int, told, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("deepspeed", reason="the extra `deepspeed` is not installed")
    from accelerate.utils import DeepSpeedPlugin
    from deepspeed.runtime.config import DeepSpeedConfig

    for name, value in told(f"zero{stage}").items():
        if name.startswith("ACCELERATE_"):
            monkeypatch.setenv(name, value)
    plugin = DeepSpeedPlugin()
    assert not plugin.zero3_init_flag
    tree = {**plugin.deepspeed_config, "train_micro_batch_size_per_gpu": 1, "gradient_clipping": 1.0}
    read = DeepSpeedConfig({name: value for name, value in tree.items() if value != "auto"})
    assert read.zero_config.stage == stage
    assert read.gradient_accumulation_steps == 1
    assert read.zero_config.gather_16bit_weights_on_model_save == (stage == 3)


def test_torch_reads_the_second_fsdp(told, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = told("fsdp2")
    assert environment["ACCELERATE_USE_FSDP"] == "true"
    for name, value in environment.items():
        if name.startswith("FSDP_"):
            monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True


@pytest.mark.parametrize("name", ["zero2", "zero2.yaml", "launch/zero2", "launch/zero2.yaml"])
def test_a_shipped_file_goes_by_its_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert LaunchFile.read(name).path == shipped_launch_files()["zero2"]


def test_a_file_of_the_users_own_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "zero2.yaml").write_text("distributed_type: MULTI_GPU\nnum_processes: 3\n")
    assert LaunchFile.read("zero2.yaml").per_node == 3


@pytest.mark.parametrize(
    ("name", "told"), [("zero4", "did you mean 'zero"), ("kubernetes", "shipped launch files: ddp, fsdp2, nodes")]
)
def test_a_missing_file_is_refused_with_the_shipped_names(name: str, told: str) -> None:
    with pytest.raises(RecipeError, match=f"--launch {name}: no such file; .*{told}"):
        LaunchFile.read(name)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("distributed_type: MULTI_CPU\nnum_processes: 2\n", "distributed_type: .*'MULTI_GPU'.* .found 'MULTI_CPU'"),
        ("distributed_type: 'NO'\nnum_processes: 2\n", "NO starts one process; MULTI_GPU starts several"),
        ("distributed_type: MULTI_GPU\nnum_processes: 3\nnum_machines: 2\n", "3 cannot be divided by 2 machines"),
        ("distributed_type: MULTI_GPU\n", "num_processes: field required"),
        ("distributed_type: DEEPSPEED\nnum_processes: 2\n", "deepspeed_config: is missing"),
        ("distributed_type: FSDP\nnum_processes: 2\n", "fsdp_config: is missing"),
        (SHARDED.replace("version: 2", "version: 1"), "fsdp_config.fsdp_version"),
        (SHARDED.replace("loading: false", "loading: true"), "fsdp_config.fsdp_cpu_ram_efficient_loading"),
        (SHARDED.replace("{", "{fsdp_auto_wrap_policy: SIZE_BASED_WRAP, "), "fsdp_config.fsdp_auto_wrap_policy"),
        (WHOLE + "mixed_precision: bf16\n", "mixed_precision"),
        (WHOLE.replace("zero_stage: 2", "zero_stage: 3, zero3_save_16bit_model: false"), "no process has whole parts"),
        (WHOLE.replace("zero3_init_flag: false", "zero3_init_flag: true"), "zero3_init_flag"),
        (WHOLE.replace("standard", "pdsh"), "deepspeed_multinode_launcher"),
        (WHOLE.replace("zero_stage: 2", "zero_stage: 2, gradient_clipping: 2.0"), "gradient_clipping"),
    ],
)
def test_a_file_that_would_start_something_else_is_refused(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(RecipeError, match=f"mine.yaml: 1 problem\n.*{told}"):
        LaunchFile.read(str(tmp_path / "mine.yaml"))


def test_a_whole_file_is_not_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(WHOLE)
    assert LaunchFile.read(str(tmp_path / "mine.yaml")).spread is Spread.ZERO2
