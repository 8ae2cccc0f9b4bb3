"""Several processes: however a batch is divided, by whatever library, the loss curve is that of one process.

Everything runs in fp32 on CPUs, two processes with gloo. A sum in another order moves a loss by its rounding: 1e-6 was
seen, 1e-4 is allowed.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from teaching import losses_of, school, weights_of

from eagle.train.checkpoint_head import export
from eagle.train.distributed import accelerator, deepspeed_settings
from eagle.train.run import run_of
from eagle.train.settings import Settings

pytestmark = pytest.mark.usefixtures("on_cpu")
TOLERANCE = 1e-4
SMALL = {
    "head_dtype": "float32",
    "max_steps": 6,
    "lr": 0.01,
    "warmup_steps": 2,
    "save_every": 4,
    "log_every": 1,
    "ttt_length": 3,
}


def flags(settings: dict[str, object]) -> list[str]:
    return [f"--{name}={value}" for name, value in settings.items()]


def launch(settings: dict[str, object], **environment: str) -> None:
    """Train in two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    command += ["--standalone", "-m", "eagle.train.main", *flags(settings)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", **environment}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]


def assert_same_run(folder: Path, other: Path) -> None:
    assert losses_of(other) == pytest.approx(losses_of(folder), rel=TOLERANCE)
    weights = weights_of(other)
    for name, weight in weights_of(folder).items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-3, atol=1e-4)


def stage(folder: Path, number: int) -> str:
    path = folder / f"stage{number}.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": number}}))
    return str(path)


FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}  # what `accelerate launch --use_fsdp` sets
NIGHTLY = pytest.mark.nightly


def launch_by(how: str, folder: Path, settings: dict[str, object]) -> None:
    """Train in two processes, divided by "ddp", "fsdp", "zero-2" or "zero-3"."""
    if how.startswith("zero"):
        pytest.importorskip("deepspeed")
        settings = {**settings, "deepspeed_config": stage(folder, int(how[-1]))}
    launch(settings, **(FSDP if how == "fsdp" else {}))


@pytest.mark.parametrize("how", ["ddp", "fsdp", "zero-2", pytest.param("zero-3", marks=NIGHTLY)])
def test_two_processes_train_as_one_does(tmp_path, how):
    chosen = {**SMALL, **school(tmp_path), "kind": "eagle3"}
    run_of(Settings(**{**chosen, "bs": 10}))
    # 24 texts: the last step of an epoch has four, all of one process's first micro-batch, and the rest is empty.
    divided = {**chosen, "bs": 5, "cpdir": str(tmp_path / "two"), "testpath": chosen["tmpdir"], "eval_tokens": 8}
    divided |= {"eval_every": 100}  # once, at the end: nothing is chosen
    launch_by(how, tmp_path, divided)
    assert_same_run(Path(chosen["cpdir"]), tmp_path / "two")
    export(tmp_path / "two" / "checkpoints" / "step_00000006", tmp_path / "exported")
    whole, taken_out = weights_of(tmp_path / "two"), weights_of(tmp_path / "exported")
    assert whole.keys() == taken_out.keys() and all(torch.equal(whole[name], taken_out[name]) for name in whole)
    if how == "fsdp":
        with pytest.raises(ValueError, match="fsdp=True, now False"):
            run_of(Settings(**{**divided, "bs": 10}))


@NIGHTLY
@pytest.mark.parametrize("how", ["ddp", "fsdp", "zero-2", "zero-3"])
def test_two_processes_accumulate_and_go_on_after_a_checkpoint(tmp_path, how):
    chosen = {**SMALL, **school(tmp_path), "kind": "eagle3"}
    run_of(Settings(**{**chosen, "bs": 12}))
    folder = tmp_path / "two"
    divided = {
        **chosen,
        "bs": 3,
        "gradient_accumulation_steps": 2,
        "gradient_checkpointing": True,
        "cpdir": str(folder),
    }
    launch_by(how, tmp_path, divided)
    assert_same_run(Path(chosen["cpdir"]), folder)
    whole = weights_of(folder)
    shutil.rmtree(folder / "checkpoints" / "step_00000006")
    (folder / "model.safetensors").unlink()
    launch_by(how, tmp_path, divided)
    assert all(torch.equal(weight, whole[name]) for name, weight in weights_of(folder).items())


def test_deepspeed_is_told_what_the_run_is_told(tmp_path):
    chosen = {"bs": 3, "gradient_accumulation_steps": 2, "max_grad_norm": 0.7, "deepspeed_config": stage(tmp_path, 2)}
    told = deepspeed_settings(Settings(**chosen))
    assert (told["train_micro_batch_size_per_gpu"], told["gradient_accumulation_steps"]) == (3, 2)
    assert told["gradient_clipping"] == 0.7


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ({"train_micro_batch_size_per_gpu": 9}, "train_micro_batch_size_per_gpu=9, the run 4: let it be 'auto'"),
        ({"optimizer": {"type": "Adam"}}, "optimizer of its own"),
    ],
)
def test_a_file_for_deepspeed_that_contradicts_the_run_is_refused(tmp_path, file, words):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(file))
    with pytest.raises(ValueError, match=words):
        deepspeed_settings(Settings(deepspeed_config=str(path)))


def test_what_cannot_be_sharded_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="optimizer='muon' cannot be sharded"):
        deepspeed_settings(Settings(deepspeed_config=stage(tmp_path, 2), optimizer="muon"))
    with pytest.raises(FileNotFoundError, match=r"none\.json does not exist"):
        deepspeed_settings(Settings(deepspeed_config=str(tmp_path / "none.json")))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="optimizer='muon' cannot be sharded by FSDP"):
        accelerator(Settings(optimizer="muon"))
    with pytest.raises(ValueError, match="choose the second, --fsdp_version 2"):
        accelerator(Settings())
