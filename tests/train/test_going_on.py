"""Going on: after an interruption or a kill at any moment, with another length, with inputs that lie elsewhere."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from teaching import data_folder, losses_of, random_texts, school, weights_of

from eagle import EaModel
from eagle.data.folder import Counts, read_summary, write_shard, write_summary
from eagle.ge_data import allocation
from eagle.train import loop
from eagle.train.interruption import Interruption
from eagle.train.main import main
from eagle.train.run import run_of
from eagle.train.settings import Settings
from eagle.train.sources import fingerprint, holds

SMALL = {"head_dtype": "float32", "bs": 4, "lr": 0.01, "ttt_length": 2, "log_every": 1, "kind": "eagle3"}
TEST = {"eval_prompts": 2, "eval_tokens": 6, "eval_total_token": 8}
FLAGS = [f"--{name}={value}" for name, value in (SMALL | TEST).items()]


def settings(folder: Path, **changes: object) -> Settings:
    return Settings(**{**SMALL, **TEST, **school(folder), **changes})


def assert_same_head(left: str | Path, right: str | Path) -> None:
    wanted, found = weights_of(left), weights_of(right)
    assert wanted.keys() == found.keys() and all(torch.equal(wanted[name], found[name]) for name in wanted)


def steps_of(folder: str | Path) -> list[str]:
    return sorted(path.name for path in (Path(folder) / "checkpoints").iterdir())


def interrupted_before(monkeypatch, number: int, count: int = 1, kind: int = signal.SIGINT) -> None:
    """Send signals before a step, as a terminal does."""
    one_step = loop.one_step

    def watched(run, step, rate):
        if step == number:
            for _ in range(count):
                signal.raise_signal(kind)
        return one_step(run, step, rate)

    monkeypatch.setattr(loop, "one_step", watched)


def command(run: Settings, *more: str) -> list[str]:
    return [*FLAGS, f"--tmpdir={run.tmpdir}", f"--cpdir={run.cpdir}", *more]


@pytest.mark.parametrize(("kind", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_ends_with_a_checkpoint_and_says_how_to_go_on(tmp_path, monkeypatch, capfd, kind, code):
    run, former = settings(tmp_path, max_steps=6, save_every=50), signal.getsignal(kind)
    with monkeypatch.context() as once:
        interrupted_before(once, 3, kind=kind)
        assert main(command(run, "--max-steps=6", "--save-every=50")) == code
    said = capfd.readouterr().err
    assert "stopping after this step, with a checkpoint; once more stops at once" in said and "Traceback" not in said
    last = Path(str(run.cpdir)) / "checkpoints" / "step_00000004"
    assert f"step 4 is saved; to go on: python -m eagle.train.main {' '.join(FLAGS[:2])}" in said
    assert f"a head of it: python -m eagle.train.main --export {last} --cpdir {run.cpdir}-step-4" in said
    assert steps_of(run.cpdir) == ["step_00000004"] and not (last.parent.parent / "model.safetensors").exists()
    assert signal.getsignal(kind) is former
    assert main(command(run, "--max-steps=6", "--save-every=50")) == 0
    run_of(whole := replace(run, cpdir=str(tmp_path / "whole")))
    assert_same_head(whole.cpdir, run.cpdir)
    assert losses_of(run.cpdir) == losses_of(whole.cpdir)


def test_a_second_interruption_stops_at_once_and_keeps_what_was_saved(tmp_path, monkeypatch, capfd):
    run, codes = settings(tmp_path), []

    def left(code):
        codes.append(code)
        raise KeyboardInterrupt

    monkeypatch.setattr("eagle.train.interruption.os._exit", left)
    interrupted_before(monkeypatch, 3, count=2)
    assert main(command(run, "--max-steps=6", "--save-every=2")) == 130
    assert codes == [130] and steps_of(run.cpdir) == ["step_00000002"]
    assert "interrupted: step 2 is saved" in capfd.readouterr().err


def test_where_there_is_no_checkpoint_an_interruption_says_so(tmp_path, monkeypatch, capfd):
    run = settings(tmp_path)

    def loading(*_):
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("eagle.train.sources.load_base", loading)
    assert main(command(run)) == 130
    said = capfd.readouterr().err
    assert "interrupted before the first checkpoint: nothing is kept; to begin anew: python -m eagle.train.main" in said
    assert "--export" not in said


def test_a_checkpoint_of_another_run_is_never_said_to_be_this_one_s(tmp_path, monkeypatch, capfd):
    run = settings(tmp_path, max_steps=2)
    assert main(command(run, "--max-steps=2")) == 0 and steps_of(run.cpdir)
    capfd.readouterr()
    monkeypatch.setattr("eagle.train.sources.load_base", lambda *_: signal.raise_signal(signal.SIGINT))
    other = [flag.replace("--kind=eagle3", "--kind=eagle") for flag in command(run) if "ttt" not in flag]
    assert main(other) == 130
    said = capfd.readouterr().err
    assert "interrupted before anything was done; to go on: python -m eagle.train.main" in said
    assert "is saved" not in said and "--export" not in said


def test_what_a_library_makes_of_an_interruption_is_no_error_of_its_own(tmp_path, monkeypatch, capfd):
    def loading(*_):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError("numpy is broken") from None

    monkeypatch.setattr("eagle.train.sources.load_base", loading)
    assert main(command(settings(tmp_path))) == 130
    assert "numpy" not in capfd.readouterr().err


def test_an_interruption_hides_no_error_that_came_after_it(tmp_path, monkeypatch, capfd):
    run = settings(tmp_path)

    def full(self, folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Accelerator, "save_state", full)
    interrupted_before(monkeypatch, 1)
    with pytest.raises(SystemExit, match=r"no checkpoint could be written .*No space left.*there is none yet"):
        main(command(run, "--max-steps=6", "--save-every=50"))


def test_a_measurement_that_was_interrupted_is_made_when_the_run_goes_on(tmp_path, monkeypatch):
    run = settings(tmp_path, max_steps=4, eval_every=2, save_every=3)
    run = replace(run, testpath=run.tmpdir)
    generate = EaModel.eagenerate

    def interrupting(self, *args, **kwargs):
        signal.raise_signal(signal.SIGINT)
        return generate(self, *args, **kwargs)

    with monkeypatch.context() as once, Interruption() as interruption:
        once.setattr(EaModel, "eagenerate", interrupting)
        with pytest.raises(KeyboardInterrupt):
            run_of(run, interruption)
    assert steps_of(run.cpdir) == ["step_00000002"] and losses_of(run.cpdir, "tau") == []
    run_of(run)
    run_of(whole := replace(run, cpdir=str(tmp_path / "whole")))
    assert losses_of(run.cpdir, "tau") == losses_of(whole.cpdir, "tau")
    assert_same_head(whole.cpdir, run.cpdir)


@pytest.mark.parametrize("module", ["eagle.train.main", "eagle.traineagle3.main"])
def test_an_interruption_while_modules_are_imported_is_answered_in_words(tmp_path, module):
    (tmp_path / "torch.py").write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nraise ImportError('half')\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", ""), str(Path(loop.__file__).parents[2])])
    flags = ["--tmpdir", "x", "--cpdir", "y"] if module == "eagle.train.main" else ["--savedir", str(tmp_path)]
    flags += [] if module == "eagle.train.main" else ["--trainpath", "x", "--basepath", "z"]
    done = subprocess.run(
        [sys.executable, "-m", module, *flags], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 130 and "Traceback" not in done.stderr + done.stdout, done.stderr
    assert "interrupted" in done.stderr and f"-m {module} {' '.join(flags)}" in done.stderr


WRITES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree")


def killed_at(write: int, run: Settings) -> bool:
    """Run in a child that is killed at one of its writes; return whether it was."""
    child = os.fork()
    if child == 0:
        left = [write]

        def watch(event, arguments):
            writes = event in WRITES or (event == "open" and arguments[1] not in (None, "r", "rb"))
            if writes and str(arguments[0]).startswith(str(run.cpdir)):
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
        try:
            run_of(run)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.mark.skipif(torch.accelerator.is_available(), reason="a forked child cannot use its parent's accelerator")
def test_a_run_killed_at_any_of_its_writes_ends_as_if_it_had_not_been(tmp_path):
    small = {"eval_prompts": 1, "eval_tokens": 3}
    run = settings(tmp_path, max_steps=4, eval_every=2, save_every=1, keep_checkpoints=1, **small)
    run_of(whole := replace(run, testpath=run.tmpdir, cpdir=str(tmp_path / "whole")))
    write, killed = 3, 0
    while killed < 40:
        broken = replace(whole, cpdir=str(tmp_path / f"killed {write}"))
        if not killed_at(write, broken):
            break
        killed += 1
        run_of(broken)
        assert_same_head(whole.cpdir, broken.cpdir)
        assert losses_of(broken.cpdir) == losses_of(whole.cpdir)
        assert losses_of(broken.cpdir, "tau") == losses_of(whole.cpdir, "tau")
        left = sorted(path.name for path in Path(str(broken.cpdir)).rglob("*") if ".tmp" in path.name)
        assert not left, left
        write += 23
    assert killed >= 5


def test_a_run_is_made_longer(tmp_path):
    run = settings(tmp_path, max_steps=4)
    run_of(run)
    first = weights_of(run.cpdir)
    taken, one_step = [], loop.one_step
    longer = replace(run, max_steps=None, epochs=1.5)  # 24 texts by 4: 9 steps
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "one_step", lambda run, step, rate: taken.append((step, rate)) or one_step(run, step, rate))
        run_of(longer)
    assert [step for step, _ in taken] == [4, 5, 6, 7, 8]
    assert taken[0][1] == loop.Schedule(longer, 9).rate(4)
    assert len(losses_of(run.cpdir)) == 9 and not torch.equal(first["fc.weight"], weights_of(run.cpdir)["fc.weight"])
    assert "9 steps" in (Path(str(run.cpdir)) / "README.md").read_text()


def test_a_run_is_made_shorter_and_never_undone(tmp_path, caplog):
    run = settings(tmp_path, max_steps=9, save_every=3)
    with pytest.MonkeyPatch.context() as patch, Interruption() as interruption:
        interrupted_before(patch, 4)
        with pytest.raises(KeyboardInterrupt):
            run_of(run, interruption)
    run_of(replace(run, max_steps=7))
    assert len(losses_of(run.cpdir)) == 7
    last = weights_of(run.cpdir)
    with caplog.at_level("INFO"):
        run_of(replace(run, max_steps=2))
    assert "it stands at step 7, beyond the 2 that are asked for: it ends there" in caplog.text
    assert all(torch.equal(weight, last[name]) for name, weight in weights_of(run.cpdir).items())


def test_inputs_are_what_is_in_them_wherever_they_lie(tmp_path):
    school(tmp_path)
    head = settings(tmp_path / "first", max_steps=2)
    run_of(head)
    run = replace(head, cpdir=str(tmp_path / "run"), ea_model_path=head.cpdir, testpath=head.tmpdir, max_steps=2)
    run_of(run)
    moved = tmp_path / "moved"
    shutil.move(tmp_path / "first", moved)
    for path in moved.rglob("*"):
        os.utime(path, (1, 1))
    there = {"tmpdir": "data", "testpath": "data", "base_model_path": "base", "ea_model_path": "head"}
    run = replace(run, max_steps=3, **{name: str(moved / place) for name, place in there.items()})
    run_of(run)
    assert len(losses_of(run.cpdir)) == 3


def test_a_run_goes_on_with_the_texts_it_began_with_where_their_folder_has_grown(tmp_path):
    run = settings(tmp_path, max_steps=2)
    run_of(run)
    folder, more = Path(str(run.tmpdir)), random_texts(*([40] * 9), seed=5).samples
    summary = read_summary(folder)
    made = {name: summary[name] for name in ("target", "template", "vocabulary", "vocabulary_hash")}
    counts = Counts(**{name: summary[name] for name in Counts.__dataclass_fields__})
    for sample in more:
        counts.add(sample)
    write_shard(folder, 1, more, settings=made, counts=counts)
    write_summary(folder, made, counts, 2)
    run_of(replace(run, max_steps=8))
    run_of(fresh := replace(run, max_steps=8, cpdir=str(tmp_path / "fresh")))
    assert len(losses_of(run.cpdir)) == 8 and losses_of(run.cpdir) != losses_of(fresh.cpdir)
    assert "8 steps, 768 tokens" in (Path(str(run.cpdir)) / "README.md").read_text()  # 24 each: none of the longer ones


def test_another_target_or_another_head_to_begin_with_is_refused(tmp_path):
    run = settings(tmp_path, max_steps=1)
    run_of(run)
    further = replace(run, cpdir=str(tmp_path / "further"), ea_model_path=run.cpdir)
    run_of(further)
    shutil.copytree(tmp_path / "base", tmp_path / "other")
    for place, flag in ((tmp_path / "other", "base_model_path"), (Path(str(run.cpdir)), None)):
        weights = load_file(place / "model.safetensors")
        weights = {name: w * 2 if w.is_floating_point() else w for name, w in weights.items()}
        save_file(weights, place / "model.safetensors", {"format": "pt"})
        named = {"base_model_path": str(place)} if flag else {}
        words = "target='" if flag else "begun_with_head='"
        with pytest.raises(ValueError, match=f"belongs to a run with .*{words}"):
            run_of(replace(further, **named))


def test_a_fingerprint_tells_names_shapes_types_and_values():
    weights = {"a": torch.arange(100.0), "b": torch.zeros(3, 4)}
    same = fingerprint({"b": torch.zeros(3, 4), "a": torch.arange(100.0)})
    assert fingerprint(weights) == same
    for other in (
        {"b": torch.zeros(4, 3)},
        {"b": torch.zeros(3, 4).half()},
        {"a": torch.arange(100.0) + 1},
        {"c": torch.zeros(1)},
    ):
        assert fingerprint(weights | other) != same


def test_the_best_head_is_measured_again_where_it_is_measured_otherwise(tmp_path):
    run = settings(tmp_path, max_steps=2, eval_every=1)
    run = replace(run, testpath=run.tmpdir)
    run_of(run)
    data = data_folder(tmp_path / "held out", random_texts(*([30] * 4), seed=9), str(tmp_path / "base"))
    other = replace(run, testpath=str(data), max_steps=3)
    run_of(other)
    points = [json.loads(path.read_text())["point"] for path in Path(str(run.cpdir)).glob("checkpoints/*/run.json")]
    assert len({point["measured_by"] for point in points if point["step"] >= 2}) == 2
    assert len(losses_of(run.cpdir, "tau")) == 3


def test_without_held_out_texts_the_last_head_is_the_run_s_and_the_best_one_stays(tmp_path, monkeypatch):
    taus = [3, 1, 2]
    monkeypatch.setattr("eagle.train.acceptance.decode", lambda *_: [taus.pop(0) - 1] * 10)
    run = settings(tmp_path, max_steps=2, eval_every=1)
    run_of(replace(run, testpath=run.tmpdir))
    best = Path(str(run.cpdir)) / "best"
    assert [path.name for path in best.iterdir()] == ["step_00000001"]
    assert_same_head(run.cpdir, best / "step_00000001")
    run_of(run)
    assert [path.name for path in best.iterdir()] == ["step_00000001"]
    assert not torch.equal(weights_of(run.cpdir)["fc.weight"], weights_of(best / "step_00000001")["fc.weight"])
    assert "tokens per forward on" not in (Path(str(run.cpdir)) / "README.md").read_text()


@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
def test_any_checkpoint_gives_a_head_without_training(tmp_path, monkeypatch, kind):
    sizes = {"draft_vocab_size": 30} if kind == "eagle3" else {}
    run = settings(tmp_path, kind=kind, max_steps=4, save_every=2, keep_checkpoints=9, **sizes)
    run_of(run)
    run_of(short := replace(run, max_steps=2, lr_scheduler="cosine", cpdir=str(tmp_path / "short")))
    monkeypatch.setattr("eagle.train.run.run_of", None)
    checkpoints = Path(str(run.cpdir)) / "checkpoints"
    for place, step in (
        (checkpoints / "step_00000004", 4),
        (Path(str(run.cpdir)), 4),
        (checkpoints / "step_00000002", 2),
    ):
        assert main(["--export", str(place), "--cpdir", str(tmp_path / "out")]) == 0
        assert f"| training | {step} steps" in (tmp_path / "out" / "README.md").read_text()
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
            "README.md",
            "config.json",
            "model.safetensors",
        ]
        if step == 4:
            assert_same_head(run.cpdir, tmp_path / "out")
            assert (tmp_path / "out" / "config.json").read_text() == (Path(str(run.cpdir)) / "config.json").read_text()
        else:
            assert not torch.equal(weights_of(short.cpdir)["fc.weight"], weights_of(run.cpdir)["fc.weight"])
    shutil.rmtree(tmp_path / "data")
    shutil.rmtree(tmp_path / "base")
    assert main(["--export", str(run.cpdir), "--cpdir", str(tmp_path / "half"), "--head-dtype", "float16"]) == 0
    assert weights_of(tmp_path / "half")["fc.weight"].dtype == torch.float16


@pytest.mark.parametrize("features", [False, True])
def test_a_folder_is_known_by_its_shards_before_it_is_finished(tmp_path, features):
    run = settings(tmp_path)
    folder, named = Path(str(run.tmpdir)), "data.json"
    if features:
        folder, named = tmp_path / "features", "features.json"
        allocation.main(["--outdir", str(folder), "--data", str(run.tmpdir)])
    assert holds(folder) == named
    (folder / named).unlink()
    assert holds(folder) == named and holds(tmp_path) is None


def test_what_is_no_checkpoint_gives_no_head(tmp_path):
    run = settings(tmp_path, max_steps=1)
    run_of(run)
    weights = Path(str(run.cpdir)) / "checkpoints" / "step_00000001" / "model.safetensors"
    for arguments, words in (
        (["--export", str(tmp_path), "--cpdir", "x"], "holds no checkpoint"),
        (["--export", str(run.cpdir)], "missing: --cpdir"),
        (["--export", str(weights.parent), "--cpdir", str(tmp_path / "out")], r"step_00000001 is damaged \(model"),
    ):
        if "damaged" in words:
            weights.write_bytes(weights.read_bytes()[:-7])
        with pytest.raises(SystemExit, match=words):
            main(arguments)
    assert not (tmp_path / "out").exists()
