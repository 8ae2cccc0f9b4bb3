"""Features on disk: what they are, the same files from any processes and kills, refusals, disks that fill up."""

import json
import multiprocessing
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from architectures import LONGROPE_SWITCH, VOCABULARY, base_model
from places import PAIR, environment
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig

from eagle.data.batches import Bucketed, Packed
from eagle.data.features import load_features
from eagle.data.folder import Counts, write_shard, write_summary
from eagle.data.samples import Sample
from eagle.ge_data import allocation, disk
from eagle.ge_data.plan import planned, ranges
from eagle.ge_data.shards import batches
from eagle.ge_data.target_embeddings import output
from eagle.model.support.output_transform import transformed
from eagle.model.target import TargetModel

TARGET = str(PAIR / "target")
LENGTHS = (23, 9, 40, 3, 31, 5, 17, 12, 33, 2, 28)
SMALL = ["--shard-mb", "0.02", "--bs", "3"]  # several shards of several batches
ENVIRONMENT = environment(OMP_NUM_THREADS="1")


def saved(folder: Path, name: str = "llama") -> str:
    path = folder / name
    base_model(name).save_pretrained(path)
    return str(path)


def texts(folder: Path, target: str, lengths=LENGTHS, vocabulary: int = VOCABULARY, **settings) -> list[Sample]:
    """Write a folder as `python -m eagle.data` does, of random ids."""
    generator, counts, samples = np.random.default_rng(0), Counts(), []
    for length in lengths:
        samples.append(
            Sample(generator.integers(3, vocabulary, length, dtype=np.int32), generator.random(length) > 0.5)
        )
        counts.add(samples[-1])
    settings = {"target": target, "template": None, "vocabulary": vocabulary, "max_length": None, **settings}
    folder.mkdir(parents=True)
    if samples:
        write_shard(folder, 0, samples, settings=settings, counts=counts)
    write_summary(folder, settings, counts, int(bool(samples)))
    return samples


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A tiny target, texts for it, and their features from one process."""
    folder = tmp_path_factory.mktemp("made")
    texts(folder / "data", saved(folder))
    assert main(folder, "whole") == 0
    return folder


def arguments(folder: Path, out: str, *options: str) -> list[str]:
    return ["--outdir", str(folder / out), "--data", str(folder / "data"), *SMALL, *options]


def main(folder: Path, out: str, *options: str) -> int:
    return allocation.main(arguments(folder, out, *options))


def refused(capsys, folder: Path, out: str, *options: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(folder, out, *options)
    words = stopped.value.code if isinstance(stopped.value.code, str) else capsys.readouterr().err
    assert words.startswith("python -m eagle.ge_data.allocation: ")
    assert not list((folder / out).glob("*.tmp"))
    return words


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}


# --- what they are


@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3_text", "phi3", "gpt_neox", "qwen3_moe"])
@torch.no_grad()
def test_features_are_what_an_uncached_forward_says_of_each_sample_alone(tmp_path, name):
    wanted = texts(tmp_path / "data", saved(tmp_path, name))
    assert main(tmp_path, "out", "--dtype", "float32", "--tap-layers", "1", "3", "6") == 0
    features, base = load_features(tmp_path / "out"), base_model(name)
    embeddings = features.target_embeddings()
    assert len(features) == len(features.texts) == len(wanted) and features.lengths_N.tolist() == list(LENGTHS)
    assert features.summary["shards"] > 1 and max(LENGTHS) > LONGROPE_SWITCH > min(LENGTHS)
    for found, text, sample in zip(features, features.texts, wanted, strict=True):
        for read in (found, text):
            assert np.array_equal(read.ids, sample.ids) and np.array_equal(read.mask, sample.mask)
            assert read.ids.dtype == np.int32 and read.mask.dtype == bool
        ids = torch.from_numpy(sample.ids).long()[None]
        alone = base(input_ids=ids, output_hidden_states=True, use_cache=False)
        taps = torch.cat([alone.hidden_states[tap][0] for tap in (1, 3, 6)], -1)
        torch.testing.assert_close(found.features_TF, taps, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.hidden_TD, alone.hidden_states[-1][0], rtol=1e-4, atol=1e-5)
        logits = transformed(
            nn.functional.linear(found.hidden_TD, embeddings.output_VD, embeddings.bias_V), embeddings.transform
        )
        torch.testing.assert_close(logits, alone.logits[0], rtol=1e-3, atol=1e-4)
        embedded = base.get_input_embeddings()(ids)[0]
        assert torch.equal(nn.functional.embedding(ids[0], embeddings.embeddings_VD), embedded)


@torch.no_grad()
def test_the_highest_logits_stand_for_hidden_states_and_output_matrix(made):
    for kind, width in (("eagle3", 96), ("eagle", 32)):
        assert main(made, f"top_{kind}", "--top-logits", "5", "--kind", kind, "--dtype", "float32") == 0
        features = load_features(made / f"top_{kind}")
        assert features.target_embeddings().output_VD is None
        for sample in features:
            logits = base_model("llama")(input_ids=torch.from_numpy(sample.ids).long()[None], use_cache=False).logits[0]
            values, ids = logits.topk(5)
            assert sample.top_ids_TK.dtype == torch.int32 and torch.equal(sample.top_ids_TK.long(), ids)
            torch.testing.assert_close(sample.top_logits_TK, values, rtol=1e-3, atol=1e-4)
            assert sample.hidden_TD is None and sample.features_TF.shape == (len(sample), width)


@torch.no_grad()
def test_features_of_eagle_1_are_the_last_hidden_states_in_half_the_bytes(made):
    assert main(made, "eagle", "--kind", "eagle") == 0
    for sample in load_features(made / "eagle")[3:5]:
        output = base_model("llama").model(torch.from_numpy(sample.ids).long()[None], use_cache=False)
        torch.testing.assert_close(sample.features_TF, output.last_hidden_state[0].bfloat16(), rtol=1e-2, atol=1e-2)
        assert sample.hidden_TD is None and sample.top_ids_TK is None


def test_the_summary_says_what_training_needs_instead_of_a_target(made):
    summary, base = load_features(made / "whole").summary, base_model("gemma2").config
    assert (summary["kind"], summary["taps"], summary["dtype"], summary["top_k"]) == (
        "eagle3",
        [2, 3, 4],
        "bfloat16",
        None,
    )
    assert (summary["samples"], summary["tokens"], summary["vocabulary"]) == (len(LENGTHS), sum(LENGTHS), VOCABULARY)
    assert "data.max_length" in summary and not {"data.first", "data.reasons"} & summary.keys()
    config = AutoConfig.for_model(**summary["config"])
    assert (config.hidden_size, config.vocab_size, config.num_hidden_layers) == (32, VOCABULARY, 7)
    assert planned(made / "x", made / "data", target=saved(made, "gemma2")).facts["transform"] == {
        "logit_scale": None,
        "logits_scaling": None,
        "final_logit_softcapping": base.final_logit_softcapping,
    }


def test_batches_are_made_of_features_without_reading_any(made):
    features = load_features(made / "whole")
    whole, alone = Packed(features, 2, 64), Packed(features.texts, 2, 64)
    for step in range(3):
        assert torch.equal(whole.at(step).ids_BS, alone.at(step).ids_BS)
    assert Bucketed(features.texts, 3).at(0).ids_BS.shape[0] == 3
    assert set(vars(features.texts[0])) == {"ids", "mask"}


def test_shards_are_ranges_of_samples_by_length_alone():
    lengths = np.array([3, 4, 9, 1, 1, 1, 2])
    assert ranges(lengths, 7) == [range(0, 2), range(2, 3), range(3, 7)]
    assert ranges(np.array([5, 4, 3, 5, 2]), 7) == [range(0, 1), range(1, 3), range(3, 5)]
    assert batches(lengths, 2, None) == [[2, 1], [0, 6], [3, 4], [5]]
    assert batches(lengths, 2, 3) == [[2], [1], [0, 6], [3, 4], [5]]


# --- the same files, whoever makes them


def test_two_processes_and_two_machines_make_the_files_of_one(made, capsys):
    assert main(made, "two", "--processes", "2") == 0
    assert contents(made / "two") == contents(made / "whole")
    assert main(made, "parts", "--shards-of", "1/2") == 0
    shards = load_features(made / "whole").files
    assert f"parts: {shards // 2} of {shards} shards; other parts are still to come" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match=r"holds no features\.json: make it, or finish it"):
        load_features(made / "parts")
    assert main(made, "parts", "--shards-of", "0/2") == 0
    assert contents(made / "parts") == contents(made / "whole")


HALF_WRITTEN = """
import os, signal, sys
from pathlib import Path
from eagle.data import tensor_files
from eagle.ge_data import allocation
written, save = [], tensor_files._save

def save_some_and_a_half(tensors, path, metadata):
    if len(written) == int(sys.argv[1]):
        Path(path).write_bytes(b"half a shard")
        os.kill(os.getpid(), signal.SIGKILL)
    written.append(path)
    save(tensors, path, metadata)

tensor_files._save = save_some_and_a_half
allocation.main(sys.argv[2:])
"""


def test_runs_killed_at_any_moment_go_on_to_the_same_files_and_redo_none(made):
    command = [sys.executable, "-c", HALF_WRITTEN, "2", *arguments(made, "killed")]
    assert subprocess.run(command, env=ENVIRONMENT, capture_output=True).returncode == -signal.SIGKILL
    folder = made / "killed"
    assert len(list(folder.glob("*.tmp"))) == 1
    before = times(folder)
    assert sorted(before) == ["shard_00000.safetensors", "target_embeddings.safetensors"]
    command = [sys.executable, "-m", "eagle.ge_data.allocation", *arguments(made, "killed", "--processes", "2")]
    running = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    wanted = random.choice([2, 3, 4])
    while running.poll() is None and len(times(folder)) < wanted:
        time.sleep(0.001)
    running.kill()
    running.wait()
    time.sleep(1)  # its processes end with it
    between = times(folder)
    assert before.items() <= between.items()
    assert main(made, "killed") == 0
    assert between.items() <= times(folder).items()
    assert contents(folder) == contents(made / "whole")
    again = times(folder)
    assert main(made, "killed") == 0 and times(folder) == again


def test_features_of_texts_that_became_longer_or_shorter_are_kept_as_far_as_they_go(made, tmp_path):
    for lengths in (LENGTHS[:-2], (*LENGTHS, 14, 22, 9), LENGTHS[:8], LENGTHS[:9], LENGTHS[:7], LENGTHS):
        shutil.rmtree(tmp_path / "data", ignore_errors=True)
        texts(tmp_path / "data", str(made / "llama"), lengths)
        before = times(tmp_path / "out")
        assert main(tmp_path, "out") == main(tmp_path, f"at once {lengths}") == 0
        assert contents(tmp_path / "out") == contents(tmp_path / f"at once {lengths}")
        kept = len(before.items() & times(tmp_path / "out").items())
        assert kept >= min(len(before), len(times(tmp_path / "out"))) - 2 + (not before) * 2
    moved = (tmp_path / "data").rename(tmp_path / "moved")
    before = times(tmp_path / "out")
    assert allocation.main(["--outdir", str(tmp_path / "out"), "--data", str(moved), *SMALL]) == 0
    assert times(tmp_path / "out") == before


@pytest.mark.parametrize("processes", ["1", "2"])
def test_ctrl_c_is_one_line_and_the_same_command_goes_on(made, processes):
    command = [sys.executable, "-m", "eagle.ge_data.allocation"]
    command += arguments(made, f"stopped {processes}", "--processes", processes)
    running = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while running.poll() is None and not times(made / f"stopped {processes}"):
        time.sleep(0.01)
    os.killpg(running.pid, signal.SIGINT)  # as a terminal does: to all processes
    errors = running.communicate(timeout=30)[1]
    assert running.returncode == 130 and "Traceback" not in errors
    assert " shards are saved in " in errors.replace("\r", "\n").splitlines()[-1]
    assert main(made, f"stopped {processes}") == 0
    assert contents(made / f"stopped {processes}") == contents(made / "whole")


def test_a_lost_shard_is_named_and_made_anew_alone(made):
    shutil.copytree(made / "whole", made / "lost")
    (made / "lost" / "shard_00001.safetensors").unlink()
    before = times(made / "lost")
    with pytest.raises(FileNotFoundError, match=r"has lost shard_00001\.safetensors"):
        load_features(made / "lost")
    assert main(made, "lost") == 0
    assert before.items() <= times(made / "lost").items() and contents(made / "lost") == contents(made / "whole")


def test_an_error_in_a_process_stops_all_with_its_words(made, capsys):
    shutil.copytree(made / "llama", made / "broken")
    (made / "broken" / "model.safetensors").unlink()
    words = refused(capsys, made, "none", "--processes", "2", "--basepath", str(made / "broken"))
    assert "no file named" in words and "\n" not in words
    assert multiprocessing.active_children() == []


def test_an_interrupted_run_says_so_and_leaves_whole_files(made, monkeypatch, capsys):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(allocation, "write_shard", interrupted)
    monkeypatch.setattr("signal.signal", lambda *arguments: None)
    assert main(made, "interrupted") == 130
    command = shlex.join(["python", "-m", "eagle.ge_data.allocation", *arguments(made, "interrupted")])
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"interrupted: 0 shards are saved in {made}/interrupted; to go on: {command}"
    )
    assert [path.name for path in (made / "interrupted").iterdir()] == ["target_embeddings.safetensors"]


# --- disks


Usage = namedtuple("Usage", "total used free")


def test_a_disk_that_is_too_small_is_refused_before_work_starts(made, monkeypatch, capsys, caplog):
    plan = planned(made / "big", made / "data", batch=3, shard_mb=0.02)
    needed = plan.size(range(len(plan.shards)), True)
    real = sum(path.stat().st_size for path in (made / "whole").glob("*.safetensors"))
    assert real <= needed <= real + 8192 * (len(plan.shards) + 1)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: Usage(0, 0, needed - 1))
    words = refused(capsys, made, "big")
    assert f"big needs {disk.readable(needed)}, {disk.readable(needed - 1)} are free: choose another disk" in words
    assert not (made / "big").exists()
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: Usage(0, 0, needed))
    with caplog.at_level("INFO"):
        assert main(made, "big") == 0
    assert "are free" in caplog.text
    # What is there already needs no room.
    (made / "big" / "shard_00001.safetensors").unlink()
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: Usage(0, 0, plan.size([1], False)))
    assert main(made, "big") == 0 and contents(made / "big") == contents(made / "whole")


@pytest.mark.parametrize("options", [(), ("--top-logits", "5")])
def test_the_bytes_of_every_file_are_known_before_it_is_written(made, options):
    assert main(made, f"sized {len(options)}", *options) == 0
    plan = planned(made / f"sized {len(options)}", made / "data", batch=3, shard_mb=0.02, top_k=5 if options else None)
    header = plan.size([], True) - plan.embedding_bytes
    assert header > len(plan.about)
    for shard in range(len(plan.shards)):
        numbers = sum(part.nbytes for part in load_file(plan.path(shard)).values())
        assert plan.size([shard], False) == numbers + header
    # Whether the output matrix has a bias only its weights say.
    embeddings = sum(part.nbytes for part in load_file(plan.embeddings).values())
    assert embeddings <= plan.embedding_bytes <= embeddings + 4 * VOCABULARY


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting needs root")
def test_a_disk_that_fills_up_midway_leaves_whole_files_and_says_so(made, monkeypatch, capsys):
    small = made / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48k", "tmpfs", str(small)], capture_output=True).returncode:
        pytest.skip("mounting is not possible here")
    try:
        monkeypatch.setattr(disk, "check_room", lambda folder, needed: None)
        monkeypatch.setattr(allocation, "check_room", lambda folder, needed: None)
        words = refused(capsys, made, "small/out")
        assert "could not be written" in words and "No space left on device" in words
        before = times(small / "out")
        assert 1 < len(before) < load_features(made / "whole").files
        whole = contents(made / "whole")
        assert all(whole[name] == found for name, found in contents(small / "out").items())
        assert subprocess.run(["mount", "-o", "remount,size=1m", str(small)]).returncode == 0
        assert main(made, "small/out") == 0
        assert before.items() <= times(small / "out").items() and contents(small / "out") == whole
    finally:
        subprocess.run(["umount", str(small)])


LIMITED = """
import resource, sys
from eagle.ge_data import allocation
resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000))
allocation.main(sys.argv[1:])
"""


def test_a_file_that_cannot_be_written_whole_is_not_there(made):
    command = [sys.executable, "-c", LIMITED, *arguments(made, "limited")]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 1 and "could not be written" in done.stderr.splitlines()[-1]
    assert list((made / "limited").iterdir()) == []


def test_a_write_that_fails_leaves_nothing_and_names_the_file(tmp_path, monkeypatch):
    def half(tensors, path, metadata):
        path.write_bytes(b"half")
        raise SafetensorError("I/O error: Disk quota exceeded")

    monkeypatch.setattr("eagle.data.tensor_files._save", half)
    with pytest.raises(OSError, match=r"x\.safetensors could not be written, .* are free \(I/O error: Disk quota"):
        disk.write(tmp_path / "x.safetensors", {"ids": torch.zeros(1)}, {})
    assert list(tmp_path.iterdir()) == []


# --- refusals


def test_what_is_missing_or_does_not_fit_is_named(made, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        allocation.main(["--outdir", str(tmp_path)])
    assert "--data missing" in str(stopped.value) and "python -m eagle.data chats.jsonl" in str(stopped.value)
    assert "the target nowhere/at/all cannot be read" in refused(capsys, made, "none", "--basepath", "nowhere/at/all")
    assert "tap_layers=[2, 9, 11] do not name" in refused(capsys, made, "none", "--tap-layers", "2", "9", "11")
    assert "are EAGLE-3's" in refused(capsys, made, "none", "--kind", "eagle", "--tap-layers", "1", "2", "3")
    assert "--top-logits 90 must be between 1 and the target's 89" in refused(
        capsys, made, "none", "--top-logits", "90"
    )
    assert "--bs 0 must be at least 1" in refused(capsys, made, "none", "--bs", "0")
    assert "--processes 0 must be" in refused(capsys, made, "none", "--processes", "0")
    assert "spreads one target" in refused(capsys, made, "none", "--processes", "2", "--device-map", "auto")
    for part in ("2/2", "a/b", "1"):
        with pytest.raises(SystemExit):
            main(made, "none", "--shards-of", part)
        assert "must be I/N" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("lengths", "vocabulary", "words"),
    [
        ((), VOCABULARY, "holds no samples"),
        ((5,), VOCABULARY + 1, "90 tokens, and the target knows 89"),
        (
            (5, 257),
            VOCABULARY,
            "sample 1 has 257 tokens, the target has 256 positions: prepare the data with --max-length",
        ),
    ],
)
def test_texts_that_do_not_fit_the_target_are_refused(made, tmp_path, capsys, lengths, vocabulary, words):
    texts(tmp_path / "data", str(made / "llama"), lengths, vocabulary)
    assert words in refused(capsys, tmp_path, "out")


def test_a_folder_made_otherwise_is_refused_by_what_differs(made, tmp_path, capsys):
    assert "whole was made with dtype='bfloat16', now 'float16': choose" in refused(
        capsys, made, "whole", "--dtype", "float16"
    )
    assert "bs=3, now 4" in refused(capsys, made, "whole", "--bs", "4")
    whole, exact = (planned(made / "x", made / "data", shard_mb=size) for size in (1, 1.0))
    assert whole.about == exact.about
    assert "shard_mb=0.02, now 0.01" in refused(capsys, made, "whole", "--shard-mb", "0.01")
    texts(tmp_path / "data", str(made / "llama"), (*LENGTHS[:4], 30, *LENGTHS[5:]), max_length=99)
    shutil.copytree(made / "whole", tmp_path / "out")
    (tmp_path / "out" / "features.json").unlink()
    assert re.search(
        r"was made of other texts: shard_0000\d.safetensors has another one as sample 4\.",
        refused(capsys, tmp_path, "out"),
    )
    assert "holds no features: choose another folder" in refused(capsys, tmp_path, "data")
    with pytest.raises(ValueError, match="of texts in 89 tokens, more than 88"):
        load_features(made / "whole", vocabulary=88)
    summary = json.loads((made / "whole" / "features.json").read_text())
    (tmp_path / "out" / "features.json").write_text(json.dumps({**summary, "format": 99}))
    with pytest.raises(ValueError, match="has format 99, this version reads 1"):
        load_features(tmp_path / "out")


@pytest.mark.parametrize(
    ("left", "option"),
    [
        ("target_embeddings", ("--dtype", "float16")),
        ("shard_00002", ("--shard-mb", "1")),
        ("shard_00000", ("--bs", "4")),
    ],
)
def test_one_file_that_is_left_of_other_settings_is_refused(made, capsys, left, option):
    (made / f"left {left}").mkdir()
    shutil.copy(made / "whole" / f"{left}.safetensors", made / f"left {left}")
    assert "was made with" in refused(capsys, made, f"left {left}", *option)


def test_numbers_that_a_dtype_cannot_hold_are_refused(made, tmp_path, capsys):
    base = base_model("llama")
    embeddings = base.get_input_embeddings().weight
    before = embeddings.detach().clone()
    try:
        embeddings.data[7] *= 1e7
        base.save_pretrained(tmp_path / "loud")
    finally:
        embeddings.data.copy_(before)
    texts(tmp_path / "data", str(tmp_path / "loud"), (40, 40))
    assert "is no finite number in float16: use --dtype bfloat16" in refused(
        capsys, tmp_path, "out", "--dtype", "float16"
    )
    assert not (tmp_path / "out" / "features.json").exists()


def test_an_output_matrix_that_cannot_be_read_is_refused_in_words():
    target = TargetModel(base_model("llama"))
    matrix = target.model.get_output_embeddings()
    assert torch.equal(output(target)["output"], matrix.weight)

    class Quantised(nn.Linear):
        def forward(self, x):
            return super().forward(x) * 2

    try:
        for other, what in (
            (Quantised(32, VOCABULARY), "Quantised"),
            (nn.Linear(32, VOCABULARY, device="meta"), "offloaded"),
        ):
            target.model.set_output_embeddings(other)
            with pytest.raises(ValueError, match=rf"output matrix cannot be read \({what}\): .*--top-logits"):
                output(target)
    finally:
        target.model.set_output_embeddings(matrix)


def test_help_needs_neither_weights_nor_extras(capsys):
    with pytest.raises(SystemExit) as stopped:
        allocation.main(["--help"])
    assert stopped.value.code == 0 and "--top-logits K" in capsys.readouterr().out
