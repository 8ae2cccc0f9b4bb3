"""Training: one head for training and decoding, runs that resume exactly and do not depend on how they are divided."""

import copy
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from architectures import VOCABULARY, base_model
from pairs import random_head
from places import PAIR
from refusals import assert_refused_in_words
from safetensors.torch import load_file
from teaching import (
    data_folder,
    loss_of,
    losses_of,
    random_texts,
    recipe_for,
    school,
    texts,
    train_batch_of,
    weights_of,
)

from eagle import EaModel
from eagle.ge_data import allocation
from eagle.model.configs import TreeConfig
from eagle.model.dialects.checkpoint import read_config, save_head
from eagle.model.drafter import Drafter
from eagle.model.target import TargetModel
from eagle.train import loop
from eagle.train.configure import as_published, head_config
from eagle.train.draft_vocabulary import frequent_tokens
from eagle.train.heads import new_head
from eagle.train.losses import smooth_l1, token_loss
from eagle.train.main import main
from eagle.train.recipe import EAGLE, EAGLE3, Objective, objective_of
from eagle.train.run import run_of
from eagle.train.settings import Settings
from eagle.train.training_time_test import training_time_test
from eagle.traineagle3.main import main as by_the_reference

SMALL = {
    "head_dtype": "float32",
    "bs": 4,
    "max_steps": 8,
    "lr": 0.01,
    "warmup_steps": 2,
    "save_every": 3,
    "log_every": 1,
    "ttt_length": 3,
}


def settings(folder: Path, **changes: object) -> Settings:
    return Settings(**{**SMALL, **school(folder), **changes})


def again(first: Settings, name: str, **changes: object) -> Settings:
    """The same run in another folder."""
    return replace(first, cpdir=str(Path(first.cpdir).parent / name), **changes)


def assert_same_head(left: str, right: str) -> None:
    left_weights, right_weights = weights_of(left), weights_of(right)
    assert left_weights.keys() == right_weights.keys()
    assert all(torch.equal(weight, right_weights[name]) for name, weight in left_weights.items())


@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
@torch.no_grad()
def test_an_unrolled_step_equals_what_decoding_computes_on_the_same_history(kind):
    base = base_model("llama")
    target, head = TargetModel(base), random_head(base, kind)
    taught = train_batch_of(recipe_for(head, target, random_texts(13), 1), [[0]])
    tokens_BS = taught.entries.tokens_BS
    hidden = head.fuse(taught.features_BSF)
    trained = [out for out, _ in training_time_test(head, target.embed(tokens_BS), hidden, steps=4)]
    drafter = Drafter(head, TreeConfig(), target.embed, target.output_logits)
    for root in (3, 8):  # the entry of the root; drafted nodes follow the true tokens
        state = drafter.start(1, 20, [0])
        drafter.observe(state, taught.features_BSF[:, : root + 1], tokens_BS[:, : root + 1], [root + 1])
        out = drafter._feed(state)[:, None]
        torch.testing.assert_close(out[0, 0], trained[0][0, root], rtol=1e-4, atol=1e-5)
        for depth in range(1, 4):
            state.cache.offset = depth - 1
            token = tokens_BS[:, root + depth : root + depth + 1]
            out = drafter._step(state.cache, out, token, torch.full((1, 1), root + depth), None, None)
            torch.testing.assert_close(out[0, 0], trained[depth][0, root + depth], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sharded", [False, True])
def test_cross_entropy_is_summed_over_what_counts_in_chunks_of_any_size(monkeypatch, sharded):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 7, 5, generator=generator).requires_grad_()
    matrix = torch.randn(5, 9, generator=generator).requires_grad_()
    wanted = torch.randn(7, 9, generator=generator).softmax(-1)
    weight = torch.rand(2, 7, generator=generator) * torch.randint(2, (2, 7), generator=generator)
    answers = torch.randint(-1, 9, (7,), generator=generator)
    exact = -(weight * (wanted * (hidden @ matrix).log_softmax(-1)).sum(-1)).sum()
    gradients = torch.autograd.grad(3 * exact, [hidden, matrix])
    for chunk in (1, 3, 7, 100):
        monkeypatch.setattr("eagle.train.losses.CHUNK", chunk)
        arguments = (lambda h: h @ matrix), [matrix], (lambda rows: wanted[rows]), weight, answers, sharded
        loss, right = token_loss(hidden, *arguments)
        torch.testing.assert_close(loss, exact)
        torch.testing.assert_close(torch.autograd.grad(3 * loss, [hidden, matrix]), gradients)
        assert torch.equal(right, (hidden @ matrix).argmax(-1) == answers)


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_gradient_of_total_variation_is_that_of_autograd(monkeypatch, share, sharded):
    generator = torch.Generator().manual_seed(0)
    hidden, matrix, wanted = (
        torch.randn(size, generator=generator, dtype=torch.float64) for size in ((2, 7, 5), (5, 9), (7, 9))
    )
    hidden, matrix, wanted = hidden.requires_grad_(), matrix.requires_grad_(), wanted.softmax(-1)
    weight = torch.rand(2, 7, generator=generator, dtype=torch.float64)
    likely = (hidden @ matrix).log_softmax(-1)
    rejected = (wanted - likely.exp()).abs().sum(-1) / 2
    exact = (weight * ((share - 1) * (wanted * likely).sum(-1) + share * rejected)).sum()
    gradients = torch.autograd.grad(3 * exact, [hidden, matrix])
    for chunk in (3, 100):
        monkeypatch.setattr("eagle.train.losses.CHUNK", chunk)
        arguments = [matrix], (lambda rows: wanted[rows]), weight, torch.zeros(7, dtype=torch.int64), sharded
        loss, _ = token_loss(hidden, lambda h: h @ matrix, *arguments, tv_weight=share)
        torch.testing.assert_close(loss, exact, rtol=1e-12, atol=0)
        found = torch.autograd.grad(3 * loss, [hidden, matrix])
        torch.testing.assert_close(found, gradients, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("sharded", [False, True])
def test_without_entries_the_loss_is_zero_and_so_are_the_gradients(sharded):
    hidden, matrix = torch.zeros(2, 0, 5, requires_grad=True), torch.ones(5, 9, requires_grad=True)
    nothing = torch.zeros(2, 0), torch.zeros(0, dtype=torch.int64), sharded
    loss, right = token_loss(hidden, lambda h: h @ matrix, [matrix], lambda rows: torch.zeros(0, 9), *nothing)
    loss.backward()
    assert loss == 0 and right.shape == (2, 0) and matrix.grad is not None and not matrix.grad.any()


def test_smooth_l1_is_a_mean_over_the_width_and_a_weighted_sum_over_entries():
    generator = torch.Generator().manual_seed(0)
    hidden, feature = (3 * torch.randn(4, 6, generator=generator) for _ in range(2))
    weight = [0.5, 0.0, 2.0, 1.0]
    gaps = (hidden - feature).abs().tolist()
    exact = sum(w * sum(g * g / 2 if g < 1 else g - 0.5 for g in row) / 6 for w, row in zip(weight, gaps, strict=True))
    assert float(smooth_l1(hidden, feature, torch.tensor(weight))) == pytest.approx(exact, rel=1e-5)


def test_frequent_tokens_are_ascending_and_ties_and_unseen_tokens_keep_the_lower_id():
    counts = torch.bincount(torch.tensor([4, 4, 4, 2, 2, 7, 1, 0]), minlength=10).numpy()
    assert frequent_tokens(counts, 4).tolist() == [0, 1, 2, 4]
    assert frequent_tokens(counts, 7).tolist() == [0, 1, 2, 3, 4, 5, 7]


@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
def test_texts_packed_into_rows_teach_what_each_teaches_alone(kind):
    target, samples = TargetModel(base_model("llama")), random_texts(9, 17, 3, 12, 2, 21)
    head = random_head(target.model, kind).train()
    gradients, losses = [], []
    for length, rows in ((None, [[place] for place in range(6)]), (40, [[0, 1, 2], [3, 4, 5]])):
        recipe = recipe_for(head, target, samples, len(rows), 4, length)
        if kind == "eagle":
            recipe.features = lambda batch: batch.features_BSF  # noise is drawn by row
        loss = loss_of(recipe, train_batch_of(recipe, rows))
        losses.append(loss.detach())
        gradients.append(torch.autograd.grad(loss, list(head.parameters())))
    torch.testing.assert_close(losses[1], losses[0])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-5)


def test_conditional_acceptance_counts_chains_that_were_right_so_far():
    target, steps = TargetModel(base_model("llama")), 4
    head = random_head(target.model, "eagle3", draft_vocab_size=6)  # few tokens: some guesses are right
    recipe = recipe_for(head, target, random_texts(60, 40), 2, steps)
    batch = train_batch_of(recipe, [[0], [1]])
    places = batch.entries.rows_R.tolist()
    generator = torch.Generator().manual_seed(0)
    right_KR = torch.rand(steps, len(places), generator=generator) < 0.6
    right = [dict(zip(places, row, strict=True)) for row in right_KR.tolist()]
    width = batch.entries.tokens_BS.shape[1]
    begun, alive = [0] * steps, [0] * steps
    for row, length in ((0, 59), (1, 39)):
        for root in range(length):
            for k in range(steps):
                place = row * width + root + k
                if root + k >= width or place not in right[k]:
                    break
                begun[k] += 1
                if not right[k][place]:
                    break
                alive[k] += 1
    tallies = recipe._tallies(batch, right_KR).tolist()
    assert tallies[2:] == [begun, alive] and 0 < alive[-1] < alive[0]


@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
def test_a_run_that_was_interrupted_ends_with_the_same_weights(tmp_path, kind, monkeypatch):
    whole = settings(tmp_path, kind=kind)
    run_of(whole)
    assert losses_of(whole.cpdir)[-1] < losses_of(whole.cpdir)[0]
    broken = again(whole, "broken")
    one_step, taken = loop.one_step, []

    def interrupted(run, step, rate):
        taken.append(step)
        if len(taken) == 5:
            raise KeyboardInterrupt
        return one_step(run, step, rate)

    monkeypatch.setattr(loop, "one_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_of(broken)
    run_of(broken)
    assert taken == [0, 1, 2, 3, 4, 3, 4, 5, 6, 7]
    assert_same_head(whole.cpdir, broken.cpdir)
    assert losses_of(whole.cpdir) == losses_of(broken.cpdir)


def test_a_run_killed_at_any_point_ends_with_the_same_weights(tmp_path):
    first = settings(tmp_path, kind="eagle3", max_steps=120, save_every=10, log_every=10)
    command = [sys.executable, "-m", "eagle.train.main", "--kind", "eagle3", "--tmpdir", str(first.tmpdir)]
    for name in ("bs", "max_steps", "lr", "warmup_steps", "save_every", "log_every", "ttt_length", "head_dtype"):
        command += [f"--{name}", str(getattr(first, name))]
    run_of(first)
    killed, one_thread = tmp_path / "killed", {**os.environ, "OMP_NUM_THREADS": "1"}
    for steps in (10, 60):
        process = subprocess.Popen([*command, "--cpdir", str(killed)], stderr=subprocess.DEVNULL, env=one_thread)
        while not (killed / "checkpoints" / f"step_{steps:08d}").exists():
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(0.002 * steps)
        process.kill()
        process.wait()
        assert not (killed / "model.safetensors").exists()
    subprocess.run([*command, "--cpdir", str(killed)], check=True, capture_output=True, env=one_thread)
    assert_same_head(first.cpdir, str(killed))
    assert losses_of(first.cpdir) == losses_of(killed)


@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
def test_micro_batches_add_up_to_one_batch(tmp_path, kind):
    whole = settings(tmp_path, kind=kind, bs=10)  # of 24 texts: an epoch's last micro-batch has none
    run_of(whole)
    divided = again(whole, "divided", bs=5, gradient_accumulation_steps=2)
    run_of(divided)
    assert losses_of(divided.cpdir) == pytest.approx(losses_of(whole.cpdir), rel=1e-4)
    for name, weight in weights_of(whole.cpdir).items():
        torch.testing.assert_close(weights_of(divided.cpdir)[name], weight, rtol=1e-3, atol=1e-4)


def test_activations_computed_again_change_no_weight(tmp_path):
    kept = settings(tmp_path, kind="eagle3")
    run_of(kept)
    run_of(again(kept, "checkpointed", gradient_checkpointing=True))
    assert_same_head(kept.cpdir, again(kept, "checkpointed").cpdir)


@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
def test_one_batch_is_learnt_by_heart_and_then_every_draft_is_accepted(tmp_path, kind):
    base = copy.deepcopy(base_model("llama"))
    with torch.no_grad():
        base.lm_head.weight.mul_(40)  # a target that is sure: the least loss of a soft target is its entropy
    base.save_pretrained(tmp_path / "base")
    prompt = torch.tensor([[5, 6, 7, 8]])
    said = base.generate(prompt, max_new_tokens=36, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert len(set(said[0].tolist())) > 8, "a repetition is easily learnt"
    data = data_folder(tmp_path / "data", texts(said), str(tmp_path / "base"))
    sizes = {"bs": 1, "max_steps": 300, "lr": 0.01, "warmup_steps": 10, "max_grad_norm": 10.0}
    sizes |= {"ttt_length": 5} if kind == "eagle3" else {}
    run_of(Settings(kind=kind, tmpdir=str(data), cpdir=str(tmp_path / "head"), save_every=1000, log_every=1, **sizes))
    losses = losses_of(tmp_path / "head")
    assert losses[-1] < (0.03 if kind == "eagle" else 0.02) * losses[0]  # EAGLE-1/2 reads noise, too
    model = EaModel(None, base, "none", str(tmp_path / "head"), total_token=16, depth=3, top_k=4)
    assert torch.equal(model.eagenerate(prompt, max_new_tokens=31), said[:, :35])
    assert model.stats.accepted_per_step == [4] * 6  # depth + 1 every time


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    first = settings(tmp_path, max_steps=3)
    run_of(first)
    with pytest.raises(ValueError, match=r"lr=0\.01, now 0\.02.*choose another folder"):
        run_of(replace(first, lr=0.02))


@pytest.mark.parametrize("off_line", [False, True])
def test_a_run_does_not_go_on_with_other_texts(tmp_path, off_line):
    first = settings(tmp_path, max_steps=3)
    folder = first.tmpdir
    if off_line:
        folder = str(tmp_path / "features")
        allocation.main(["--outdir", folder, "--data", str(first.tmpdir), "--kind", "eagle"])
    run_of(replace(first, tmpdir=folder))
    shutil.rmtree(str(first.tmpdir))
    data_folder(Path(str(first.tmpdir)), random_texts(*([24] * 24), seed=1), str(tmp_path / "base"))
    if off_line:
        shutil.rmtree(folder)
        allocation.main(["--outdir", folder, "--data", str(first.tmpdir), "--kind", "eagle"])
    with pytest.raises(ValueError, match="belongs to a run with data='"):
        run_of(replace(first, tmpdir=folder))


@pytest.mark.parametrize("how", ["cut", "flipped"])
@pytest.mark.parametrize("file", ["run.json", "model.safetensors", "optimizer.bin"])
def test_a_damaged_checkpoint_is_named_and_without_it_the_run_goes_on_from_the_whole_one(tmp_path, file, how):
    first = settings(tmp_path, save_every=2, max_steps=4)
    run_of(first)
    head, last = weights_of(first.cpdir), Path(first.cpdir) / "checkpoints" / "step_00000004"
    content = bytearray((last / file).read_bytes())
    content[len(content) // 2] ^= 1
    (last / file).write_bytes(content[:20] if how == "cut" else content)
    words = r"step_00000004 is damaged .*: delete it and run the same command again; it goes on from step_00000002"
    with pytest.raises(ValueError, match=words):
        run_of(first)
    shutil.rmtree(last)
    run_of(first)
    assert all(torch.equal(weight, head[name]) for name, weight in weights_of(first.cpdir).items())


HOLD = (
    "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); sys.stdin.read()"
)


def test_two_processes_do_not_train_into_one_folder(tmp_path):
    first = settings(tmp_path, max_steps=2)
    Path(first.cpdir).mkdir()
    command = [sys.executable, "-c", HOLD, str(Path(first.cpdir) / "run.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(ValueError, match="another process is training into"):
            run_of(first)
        other.communicate()
    run_of(first)


def test_only_the_last_checkpoints_stay_and_half_ones_are_ignored(tmp_path):
    first = settings(tmp_path, max_steps=12)
    half = Path(first.cpdir) / "checkpoints" / "step_00000099.tmp"
    half.mkdir(parents=True)
    run_of(first)
    assert sorted(path.name for path in half.parent.glob("step_*[0-9]")) == ["step_00000009", "step_00000012"]


def test_the_best_head_by_acceptance_length_is_the_one_that_is_kept(tmp_path, monkeypatch):
    taus = iter([2.0, 3.0, 1.0])
    kept = {}

    def decode(base, path, head, prompts, settings, stopped):
        tau = next(taus)
        kept[tau] = weights_of(head)
        return [int(tau) - 1] * 10

    monkeypatch.setattr("eagle.train.acceptance.decode", decode)
    first = settings(tmp_path, max_steps=9, eval_every=3)
    run_of(replace(first, testpath=first.tmpdir))
    best = weights_of(first.cpdir)
    assert all(torch.equal(best[name], weight) for name, weight in kept[3.0].items())
    assert "3.00 tokens per forward" in (Path(first.cpdir) / "README.md").read_text()


def test_the_acceptance_length_while_training_is_that_of_decoding_with_the_head(tmp_path):
    first = settings(tmp_path, kind="eagle3", max_steps=2)
    run_of(replace(first, testpath=first.tmpdir, eval_prompts=3, eval_tokens=12))
    lines = (Path(first.cpdir) / "metrics.jsonl").read_text()
    model = EaModel.from_pretrained(base_model_path=str(tmp_path / "base"), ea_model_path=first.cpdir)
    steps = accepted = 0
    for sample in random_texts(*([24] * 24)).samples[:3]:
        model.eagenerate(torch.from_numpy(sample.ids[:12]).long()[None], max_new_tokens=12)
        steps += model.stats.row_steps
        accepted += sum(model.stats.accepted_per_step)
    assert f'"tau": {1 + accepted / steps}' in lines


def test_training_goes_on_from_a_head_and_keeps_its_draft_vocabulary(tmp_path):
    first = settings(tmp_path, kind="eagle3", draft_vocab_size=20, max_steps=3, fc_norm=True)
    run_of(first)
    further = again(first, "further", ea_model_path=first.cpdir, draft_vocab_size=None, fc_norm=False, lr=1e-6)
    data = data_folder(tmp_path / "other", random_texts(*([30] * 8), seed=5), str(tmp_path / "base"))
    run_of(replace(further, tmpdir=str(data)))
    before, after = weights_of(first.cpdir), weights_of(further.cpdir)
    assert torch.equal(before["d2t"], after["d2t"]) and read_config(further.cpdir).fc_norm
    assert 0 < (before["fc.weight"] - after["fc.weight"]).abs().max() < 1e-4
    with pytest.raises(ValueError, match="drafts 20 tokens, which stay"):
        run_of(again(further, "larger", draft_vocab_size=30))
    with pytest.raises(ValueError, match="EAGLE-3 head, kind='eagle'"):
        run_of(again(further, "other kind", kind="eagle"))


def test_a_draft_vocabulary_larger_than_the_tokens_of_the_data_is_filled(tmp_path):
    first = settings(tmp_path, kind="eagle3")
    data = data_folder(tmp_path / "poor", texts(torch.full((8, 12), 9)), str(tmp_path / "base"))
    run_of(replace(first, tmpdir=str(data), draft_vocab_size=40))
    ids = torch.arange(40) + weights_of(first.cpdir)["d2t"]
    assert ids.tolist() == [*range(40)]


@pytest.mark.parametrize("name", ["qwen2", "gpt_neox", "mixtral"])
def test_a_head_is_shaped_after_any_target(name):
    target = TargetModel(base_model(name))
    assert new_head("eagle3", head_config("eagle3", target.config)).config.head_dim == 8


def test_the_command_names_what_is_missing(tmp_path, capsys):
    for arguments, words in (
        ([], "missing: --tmpdir, the folder to learn from, .*; --cpdir, the folder for the head"),
        (["--tmpdir", str(tmp_path)], "missing: --cpdir, the folder for the head"),
        (["--tmpdir", str(tmp_path / "none"), "--cpdir", "x"], "none does not exist: make it"),
        (["--tmpdir", str(tmp_path), "--cpdir", "x"], "holds neither data.json nor features.json"),
    ):
        with pytest.raises(SystemExit, match=words):
            main(arguments)


def test_flags_win_over_the_file_and_unknown_names_are_refused(tmp_path, capsys):
    from eagle.train.settings import parse

    file = tmp_path / "run.yaml"
    file.write_text("bs: 7\ngradient-accumulation-steps: 3\nkind: eagle3\n")
    chosen = parse(["--config", str(file), "--bs", "5", "--fc-norm"], "x", "y", epochs=2.0)
    assert (chosen.bs, chosen.gradient_accumulation_steps, chosen.kind) == (5, 3, "eagle3")
    assert (chosen.epochs, chosen.fc_norm) == (2.0, True)
    file.write_text("batch: 7\n")
    with pytest.raises(SystemExit):
        parse(["--config", str(file)], "x", "y")
    assert "unknown settings ['batch']" in capsys.readouterr().err
    file.write_text("optimizer: sgd\n")
    with pytest.raises(SystemExit):
        parse(["--config", str(file)], "x", "y")
    assert "invalid choice: 'sgd'" in capsys.readouterr().err
    file.write_text(
        "mixed_precision: no\nlr: 1e-3\nreport_to: [tensorboard, wandb]\ntap_layers: [1, 2, 3]\nkind: eagle3\n"
    )
    chosen = parse(["--config", str(file)], "x", "y")
    assert (chosen.mixed_precision, chosen.lr, chosen.tap_layers) == ("no", 1e-3, [1, 2, 3])
    assert chosen.report_to == ["tensorboard", "wandb"]
    file.write_text("report_to: []\nfc_norm: false\nlr: null\n")
    assert parse(["--config", str(file)], "x", "y") == Settings(config=str(file))
    for text, words in (
        ("lr: [1, 2]", "run.yaml: lr is one value, not a list"),
        ("lr: false", "invalid float value: 'False'"),
        ("lr: [1", "run.yaml is no YAML"),
        ("config: other.yaml", "unknown settings ['config']"),
    ):
        file.write_text(text)
        with pytest.raises(SystemExit):
            parse(["--config", str(file)], "x", "y")
        assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bs": 0}, "bs=0 must be at least 1"),
        ({"lr": 0.0}, "lr=0.0 must be above 0"),
        ({"epochs": -1.0}, "epochs=-1.0"),
        ({"weight_decay": float("nan")}, "weight_decay=nan must be 0 or more"),
        ({"warmup_steps": -1}, "warmup_steps=-1 must be at least 0"),
        ({"seed": -1}, "seed=-1 must be at least 0"),
        ({"eval_total_token": 0}, "eval_total_token=0 must be at least 2, or -1"),
        ({"kind": "eagle3", "draft_vocab_size": 1}, "draft_vocab_size=1 must be at least 2"),
        ({"kind": "eagle", "draft_vocab_size": 5, "fc_norm": True}, "draft_vocab_size, fc_norm: EAGLE-3's alone"),
        (
            {"kind": "eagle3", "ea_model_path": "x", "tap_layers": [1, 2, 3]},
            "tap_layers: the head of ea_model_path='x' has its",
        ),
        ({"load_in_4bit": True, "load_in_8bit": True}, "exclude each other"),
        ({"ttt_length": 0}, "ttt_length=0 must be at least 1"),
        ({"tv_weight": 1.5}, "tv_weight=1.5 must be from 0 to 1"),
        ({"feature_noise": -0.1}, "feature_noise=-0.1 must be 0 or more"),
        ({"feature_weight": -1.0}, "feature_weight=-1.0 must be 0 or more"),
        ({"kind": "eagle3", "ttt_decay": 0.0}, "ttt_decay=0.0 must be above 0 and at most 1"),
        ({"kind": "eagle", "ttt_decay": 0.9}, "ttt_decay=0.9: there is one step"),
        ({"kind": "eagle3", "ttt_length": 1, "ttt_decay": 0.9}, "ttt_decay=0.9: there is one step"),
        ({"kind": "eagle3", "lm_head_lr": 0.0}, "lm_head_lr=0.0 must be above 0"),
        ({"kind": "eagle", "lm_head_lr": 0.1}, "lm_head_lr=0.1: an EAGLE-1/2 head has no output matrix"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        Settings(**changes)


def test_without_settings_the_objectives_are_the_papers_and_each_setting_changes_its_own_part():
    assert objective_of(Settings(kind="eagle")) == EAGLE
    assert objective_of(Settings(kind="eagle3")) == EAGLE3
    chosen = {"ttt_length": 4, "ttt_decay": 1, "feature_weight": 0, "tv_weight": 0.9, "feature_noise": 0}
    parts = {"steps": 4, "decay": 1, "feature_weight": 0, "tv_weight": 0.9, "noise": 0}
    assert objective_of(Settings(kind="eagle", **chosen)) == Objective(**parts, token_weight=0.1)
    assert objective_of(Settings(kind="eagle3", **chosen)) == Objective(**parts, token_weight=1)


def test_a_head_narrower_than_its_target_has_no_features_to_compare(tmp_path):
    base = base_model("llama").config
    config = head_config("eagle3", base, hidden_size=base.hidden_size // 2)
    (tmp_path / "config.json").write_text(json.dumps(as_published("eagle3", config)))
    narrow = settings(tmp_path, kind="eagle3", configpath=str(tmp_path / "config.json"), feature_weight=1.0)
    assert_refused_in_words(lambda: run_of(narrow), "feature_weight=1.0: a head of width 16 .* width 32")


def test_stored_logits_leave_no_features_to_compare(tmp_path):
    first = settings(tmp_path, kind="eagle3", feature_weight=1.0)
    features = str(tmp_path / "features")
    allocation.main(["--outdir", features, "--data", str(first.tmpdir), "--kind", "eagle3", "--top-logits", "4"])
    run = replace(first, tmpdir=features)
    assert_refused_in_words(lambda: run_of(run), "instead of last hidden states, which feature_weight=1.0")


def test_a_head_learns_from_what_the_last_layer_puts_out_and_says_so(tmp_path):
    first = settings(tmp_path, kind="eagle3", tap_layers=[2, 7], max_steps=2)
    run_of(first)
    assert read_config(first.cpdir).tap_layers == [2, 7]
    model = EaModel(None, base_model("llama"), "none", first.cpdir, total_token=10)
    ids = torch.tensor([[5, 6, 7]])
    want = model.base_model.generate(ids, max_new_tokens=20, do_sample=False, pad_token_id=0)
    assert len(model.target.layers) == 7 and model._taps == (2, 7)
    assert torch.equal(model.eagenerate(ids, max_new_tokens=20), want)


def test_data_of_a_larger_vocabulary_than_the_target_s_is_refused(tmp_path):
    first = settings(tmp_path)
    data = data_folder(tmp_path / "large", random_texts(20), str(tmp_path / "base"), vocabulary=5000)
    with pytest.raises(ValueError, match="5000 tokens, and the target knows"):
        run_of(replace(first, tmpdir=str(data)))


def test_a_configuration_of_another_target_is_refused(tmp_path):
    first = settings(tmp_path, kind="eagle3")
    save_head(random_head(base_model("llama"), "eagle3", hidden_size=64), tmp_path / "wide")
    with pytest.raises(ValueError, match="width 64, this one has 32"):
        run_of(replace(first, configpath=str(tmp_path / "wide" / "config.json")))


@pytest.mark.parametrize("length", [None, 60])
@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
def test_features_on_disk_teach_what_the_target_in_the_loop_does(tmp_path, kind, length):
    on_line = settings(tmp_path, kind=kind, length=length, bs=5)
    run_of(on_line)
    features = str(tmp_path / "features")
    command = ["--outdir", features, "--data", str(on_line.tmpdir), "--kind", kind, "--dtype", "float32"]
    assert allocation.main([*command, "--shard-mb", "0.05"]) == 0
    off_line = again(on_line, "off line", tmpdir=features)
    run_of(off_line)
    assert losses_of(off_line.cpdir) == pytest.approx(losses_of(on_line.cpdir), rel=1e-4)
    for name, weight in weights_of(on_line.cpdir).items():
        torch.testing.assert_close(weights_of(off_line.cpdir)[name], weight, rtol=1e-3, atol=1e-4)


def test_stored_logits_teach_as_much_as_they_hold(tmp_path):
    first = settings(tmp_path, kind="eagle3", draft_vocab_size=30, max_steps=1)
    run_of(first)
    # All go on from one head: without the target's output matrix a new one begins with another.
    on_line = again(first, "on line", ea_model_path=first.cpdir, draft_vocab_size=None, max_steps=6, lr=1e-3)
    run_of(on_line)
    losses = []
    for count in (VOCABULARY, 20):
        features = str(tmp_path / f"features {count}")
        command = ["--outdir", features, "--data", str(on_line.tmpdir), "--kind", "eagle3", "--dtype", "float32"]
        allocation.main([*command, "--top-logits", str(count)])
        run_of(again(on_line, f"off line {count}", tmpdir=features))
        losses.append(losses_of(tmp_path / f"off line {count}"))
    assert losses[0] == pytest.approx(losses_of(on_line.cpdir), rel=1e-3)
    assert losses[1] != pytest.approx(losses_of(on_line.cpdir), rel=1e-3)


def test_features_that_do_not_fit_the_head_are_refused(tmp_path):
    first = settings(tmp_path, kind="eagle3")
    data = str(first.tmpdir)
    allocation.main(["--outdir", str(tmp_path / "three"), "--data", data, "--kind", "eagle3"])
    allocation.main(["--outdir", str(tmp_path / "logits"), "--data", data, "--kind", "eagle", "--top-logits", "4"])
    for changes, words in (
        ({"kind": "eagle", "tmpdir": "three"}, "features for kind='eagle3', the run's is 'eagle'"),
        ({"kind": "eagle", "tmpdir": "logits"}, "make it without --top-logits"),
        ({"tap_layers": [1, 2, 3], "tmpdir": "three"}, r"features of layers .*the head reads \(1, 2, 3\)"),
    ):
        changes["tmpdir"] = str(tmp_path / changes["tmpdir"])
        with pytest.raises(ValueError, match=words):
            run_of(replace(first, **changes))


def test_what_cannot_be_loaded_is_named(tmp_path, monkeypatch):
    first = settings(tmp_path, kind="eagle3")
    (tmp_path / "head.yaml").write_text("hidden: 3")
    for changes, words in (
        ({"configpath": str(tmp_path / "head.yaml")}, "head.yaml is no JSON"),
        ({"base_model_path": str(tmp_path / "data")}, "the target .*data cannot be loaded"),
        ({"target_device_map": "cuda:7"}, "the target .*base cannot be loaded"),
        ({"testpath": str(tmp_path / "none")}, "none holds no data.json"),
    ):
        with pytest.raises((ValueError, OSError), match=words):
            run_of(replace(first, **changes))
        assert not Path(first.cpdir).exists() or not list(Path(first.cpdir).iterdir())


def test_what_cannot_be_done_here_is_refused(tmp_path, monkeypatch):
    first = settings(tmp_path)
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", list)
    with pytest.raises(ImportError, match="report_to: wandb is not installed"):
        run_of(replace(first, report_to=["wandb"]))
    if not torch.accelerator.is_available():
        with pytest.raises(ValueError, match="'fp16' needs an accelerator"):
            run_of(replace(first, mixed_precision="fp16"))


def test_a_disk_that_is_full_is_named_and_the_last_checkpoint_stays(tmp_path, monkeypatch):
    first = settings(tmp_path, save_every=2, max_steps=4)
    save_state = Accelerator.save_state

    def full(self, folder):
        save_state(self, folder)
        if folder.endswith("00000004.tmp"):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(Accelerator, "save_state", full)
    with pytest.raises(OSError, match=r"no checkpoint could be written to .*No space left.*the last whole one stays"):
        run_of(first)
    assert [path.name for path in (Path(first.cpdir) / "checkpoints").iterdir()] == ["step_00000002"]
    monkeypatch.undo()
    run_of(first)
    whole = again(first, "whole")
    run_of(whole)
    assert_same_head(first.cpdir, whole.cpdir)


def test_a_loss_that_is_no_number_ends_the_run(tmp_path):
    first = settings(tmp_path, lr=1e30, max_grad_norm=1e30, max_steps=30)
    with pytest.raises(FloatingPointError, match=r"the loss is nan at step .*not saved"):
        run_of(first)
    for path in (Path(first.cpdir) / "checkpoints").glob("step_*"):
        weights = load_file(path / "model.safetensors")
        assert all(weight.isfinite().all() for weight in weights.values())


def test_half_a_line_of_metrics_does_not_stop_a_run_from_going_on(tmp_path):
    first = settings(tmp_path, max_steps=3)
    run_of(first)
    whole = losses_of(first.cpdir)
    with (Path(first.cpdir) / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    run_of(first)
    assert losses_of(first.cpdir) == whole


def test_a_run_goes_on_with_its_batch_divided_otherwise(tmp_path, monkeypatch):
    whole = settings(tmp_path, kind="eagle3", bs=8)
    run_of(whole)
    broken, one_step = again(whole, "broken"), loop.one_step

    def interrupted(run, step, rate):
        if step == 3:
            raise KeyboardInterrupt
        return one_step(run, step, rate)

    monkeypatch.setattr(loop, "one_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_of(broken)
    monkeypatch.undo()
    run_of(replace(broken, bs=4, gradient_accumulation_steps=2))  # after an odd number of micro-batches
    assert losses_of(broken.cpdir) == pytest.approx(losses_of(whole.cpdir), rel=1e-4)


def test_many_entries_do_not_lose_the_gradient_in_half_precision():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, 50, 8, generator=generator)
    matrix = torch.randn(8, 20, generator=generator)
    wanted, weight = torch.randn(50, 20, generator=generator).softmax(-1), torch.full((1, 50), 1e-7)
    gradients = []
    for dtype in (torch.float32, torch.float16):
        mine = hidden.detach().requires_grad_()
        project = lambda h, dtype=dtype: h.to(dtype) @ matrix.to(dtype)  # noqa: E731
        loss, _ = token_loss(mine, project, [], lambda rows: wanted[rows], weight, torch.zeros(50, dtype=torch.int64))
        (loss * 65536).backward()
        gradients.append(mine.grad)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0.05, atol=1e-4)


def test_heads_by_the_reference_s_names(tmp_path):
    """Chats are prepared with the target's tokenizer, and learnt by an EAGLE-3 head."""
    base, chats = base_model("llama"), tmp_path / "chats.jsonl"
    config = copy.deepcopy(base.config)
    config.vocab_size = 4096
    type(base)(config).save_pretrained(tmp_path / "base")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(PAIR / "target" / file, tmp_path / "base" / file)
    chat = {"conversations": [{"from": "human", "value": "def f(x):"}, {"from": "gpt", "value": "    return x + 1"}]}
    chats.write_text(f"{json.dumps(chat)}\n" * 6)
    paths = ["--basepath", str(tmp_path / "base"), "--trainpath", str(chats), "--savedir", str(tmp_path / "head")]
    sizes = ["--bs", "2", "--max_steps", "2", "--ttt-length", "2", "--draft-vocab-size", "50"]
    assert by_the_reference([*paths, "--testpath", str(chats), "--template", "vicuna_v1.1", *sizes]) == 0
    assert read_config(str(tmp_path / "head")).draft_vocab_size == 50
    assert '"tau": ' in (tmp_path / "head" / "metrics.jsonl").read_text()
