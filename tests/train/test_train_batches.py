"""What a run is taught and begins with: rows and their noise, the target's word, new heads, metrics."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from architectures import base_model
from pairs import random_head
from teaching import data_folder, losses_of, random_texts, recipe_for, school, texts, train_batch_of, weights_of
from torch import nn

from eagle.ge_data import allocation
from eagle.model.target import TargetModel
from eagle.train import loop
from eagle.train.checkpoints import Checkpoints, RunPoint
from eagle.train.configure import head_config
from eagle.train.draft_vocabulary import DraftVocabulary
from eagle.train.heads import config_of, first_head, new_head
from eagle.train.loop import shares
from eagle.train.progress import Progress
from eagle.train.recipe import Objective
from eagle.train.run import run_of
from eagle.train.settings import Settings
from eagle.train.sources import batched, source

CPU = torch.device("cpu")
SMALL = {"head_dtype": "float32", "bs": 4, "lr": 0.01, "warmup_steps": 2, "ttt_length": 3, "log_every": 1}


def test_every_row_has_noise_of_its_own_in_every_step_and_with_every_seed():
    seeds = [
        seed
        for run in (0, 1)
        for step in range(5)
        for process in (0, 1)
        for _, own in shares([[0]] * 12, step, Settings(bs=3, gradient_accumulation_steps=2, seed=run), process, 2)
        for seed in own
    ]
    assert len(set(seeds)) == len(seeds) == 2 * 5 * 12


@pytest.mark.parametrize(("bs", "parts", "processes"), [(12, 1, 1), (6, 2, 1), (4, 1, 3), (2, 3, 2)])
def test_rows_and_their_noise_are_the_same_however_a_step_is_divided(bs, parts, processes):
    chosen = Settings(bs=bs, gradient_accumulation_steps=parts)
    rows = [[place, 100 + place] for place in range(10)]  # the last batch of an epoch: two are missing
    found = [each for process in range(processes) for each in shares(rows, 3, chosen, process, processes)]
    assert len(found) == parts * processes and all(len(own) == len(seeds) == bs for own, seeds in found)
    pairs = {seed: row for own, seeds in found for row, seed in zip(own, seeds, strict=True)}
    assert pairs == dict(zip(range(36, 48), [*rows, [], []], strict=True))


@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
def test_the_noise_of_a_row_is_its_own_seed_s_whatever_else_is_in_its_batch(monkeypatch, kind):
    monkeypatch.setattr("eagle.train.recipe.NOISE_ENTRIES", 8)
    target = TargetModel(base_model("llama"))
    objective = Objective(noise=0.25)
    recipe = recipe_for(random_head(target.model, kind), target, random_texts(13, 20, 30), 3, objective=objective)

    def noise(rows: list[int]) -> list[torch.Tensor]:
        batch = recipe.teacher[0].train_batch([[row] for row in rows], [7 + row for row in rows])
        return [noisy - true for noisy, true in zip(recipe.features(batch), batch.features_BSF, strict=True)]

    together, drawn = noise([0, 1, 2]), torch.tensor(0.0)
    for row, (alone,) in ((row, noise([row])) for row in range(3)):
        torch.testing.assert_close(together[row][: len(alone)], alone, rtol=0, atol=1e-5)
        drawn = torch.stack([drawn, alone.abs().max()]).max()
    assert 0.24 < drawn <= 0.2501
    assert not torch.allclose(together[0], together[1], atol=0.01)


@pytest.mark.parametrize(("epochs", "steps"), [(1.0, 3), (1.5, 5), (0.01, 1)])
def test_a_run_is_as_many_steps_as_its_epochs_the_last_part_of_one_included(tmp_path, epochs, steps):
    run = Settings(**{**SMALL, "bs": 10}, **school(tmp_path), epochs=epochs)
    run_of(run)
    assert len(losses_of(run.cpdir)) == steps


def test_a_finished_run_takes_no_step_again(tmp_path, monkeypatch):
    run = Settings(**SMALL, **school(tmp_path), max_steps=2, save_every=100)
    run_of(run)
    whole = weights_of(run.cpdir)
    monkeypatch.setattr(loop, "one_step", None)
    run_of(run)
    assert all(torch.equal(weight, whole[name]) for name, weight in weights_of(run.cpdir).items())


def test_metrics_are_of_all_texts_of_a_step_however_it_is_divided(tmp_path):
    run = Settings(**{**SMALL, "bs": 8}, **school(tmp_path), kind="eagle3", max_steps=2, length=60)
    run_of(run)
    divided = replace(run, bs=2, gradient_accumulation_steps=4, cpdir=str(tmp_path / "divided"))
    run_of(divided)
    for name in ("accuracy", "conditional_acceptance"):
        wanted, found = losses_of(run.cpdir, name), losses_of(divided.cpdir, name)
        assert found == [pytest.approx(shares, abs=1e-3) for shares in wanted]


def test_a_line_of_metrics_is_of_the_steps_since_the_one_before(tmp_path, monkeypatch):
    handed, now = [], [10.0]
    accelerator = Accelerator()
    monkeypatch.setattr(accelerator, "log", lambda numbers, step: handed.append((step, numbers)))
    monkeypatch.setattr("eagle.train.progress.time.monotonic", lambda: now[0])
    (tmp_path / "metrics.jsonl").write_text("".join(f'{{"step": {step}}}\n' for step in range(1, 5)))
    progress = Progress(accelerator, tmp_path, 2, 5, 2)
    tallies_4K = torch.tensor([[8, 4], [4, 1], [8, 2], [2, 1]])
    for step in (3, 4, 5):
        now[0] += 2.0
        progress.add(step, torch.tensor(float(step)), step * tallies_4K, 10 * step, step / 8)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    shares = {"accuracy": [0.5, 0.25], "conditional_acceptance": [0.25, 0.5]}
    assert lines == [
        {"step": 1},
        {"step": 2},
        {"step": 4, "loss": 3.5, "learning_rate": 0.5, **shares, "tokens_per_second": 17.5},
        {"step": 5, "loss": 5.0, "learning_rate": 0.625, **shares, "tokens_per_second": 25.0},
    ]
    assert [step for step, _ in handed] == [4, 5]
    assert handed[0][1].items() >= {"loss": 3.5, "accuracy/1": 0.25, "conditional_acceptance/0": 0.25}.items()


def test_a_line_of_metrics_counts_the_tokens_of_every_text_of_its_rows(tmp_path, monkeypatch):
    run, counted = Settings(**SMALL, **school(tmp_path), max_steps=2, length=60), []
    add = Progress.add
    monkeypatch.setattr(Progress, "add", lambda self, *told: counted.append(told[3]) or add(self, *told))
    run_of(run)
    assert counted == [4 * 2 * 24] * 2


def test_tokens_outside_the_loss_are_not_drafted_for_being_frequent(tmp_path):
    first = school(tmp_path)
    ids = torch.tensor([[9] * 20 + [30, 31, 30, 32]] * 4)
    data = data_folder(tmp_path / "masked", texts(ids, ids >= 30), str(tmp_path / "base"))
    settings = Settings(kind="eagle3", tmpdir=str(data), cpdir=first["cpdir"])
    opened = source(settings, CPU)
    tokens = DraftVocabulary(opened.texts, opened.config.vocab_size).tokens
    head = first_head(replace(settings, draft_vocab_size=3), opened.config, tokens, opened.output_VD)
    assert head.target_ids(torch.arange(3)).tolist() == [30, 31, 32]
    assert torch.equal(head.lm_head.weight, opened.output_VD[30:33])


def test_the_target_is_the_one_that_is_named_in_the_dtype_that_is_named_and_learns_nothing(tmp_path):
    settings = Settings(**school(tmp_path))
    base_model("mistral").save_pretrained(tmp_path / "other")
    opened = source(replace(settings, base_model_path=str(tmp_path / "other"), dtype="bfloat16"), CPU)
    assert (opened.basepath, opened.config.model_type) == (str(tmp_path / "other"), "mistral")
    assert opened.target.model.dtype == torch.bfloat16
    assert not any(weight.requires_grad for weight in opened.target.model.parameters())


@pytest.mark.parametrize("length", [None, 60])
def test_the_seed_decides_the_order_of_texts_and_a_new_head_s_weights(length):
    samples, config = random_texts(*([24] * 24)), base_model("llama").config
    orders, heads = [], []
    for seed in (0, 1, 1):
        chosen = Settings(seed=seed, length=length)
        orders.append(batched(samples, 4, chosen).plan(0))
        torch.rand(3)
        heads.append(first_head(chosen, config, dict, None).fc.weight)
    assert orders[0] != orders[1] == orders[2]
    assert torch.equal(heads[1], heads[2]) and not torch.equal(heads[0], heads[1])


def test_a_new_head_is_shaped_by_every_flag(tmp_path):
    flags = {"norm_before_fc": True, "norm_before_residual": True, "norm_output": True, "tap_layers": [1, 3, 5]}
    target = base_model("llama").config
    config = config_of(Settings(kind="eagle3", draft_vocab_size=30, **flags), target)
    assert {name: getattr(config, name) for name in flags} == flags and config.draft_vocab_size == 30
    assert config_of(Settings(kind="eagle3", fc_norm=True), target).fc_norm and not config.fc_norm
    for kind, said, is_normed in (("eagle3", None, True), ("eagle3", False, False), ("eagle", None, False)):
        assert config_of(Settings(kind=kind, norm_before_residual=said), target).norm_before_residual is is_normed
    with pytest.raises(ValueError, match="draft_vocab_size=90 exceeds the target's 89 tokens"):
        config_of(Settings(kind="eagle3", draft_vocab_size=90), target)


def test_a_new_head_s_matrices_are_as_wide_as_its_configuration_says_and_fc_as_torch_makes_it():
    config = head_config("eagle", base_model("llama").config, initializer_range=0.05)
    for name, weight in new_head("eagle", config).named_parameters():
        if weight.ndim == 2:
            wanted = (3 * weight.shape[1]) ** -0.5 if name == "fc.weight" else 0.05
            assert float(weight.std()) == pytest.approx(wanted, rel=0.1), name


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_features_on_disk_make_the_logits_of_their_target(tmp_path, name):
    settings = Settings(**school(tmp_path, name))
    features = str(tmp_path / "features")
    allocation.main(["--outdir", features, "--data", str(settings.tmpdir), "--kind", "eagle", "--dtype", "float32"])
    opened = [source(replace(settings, tmpdir=folder), CPU) for folder in (settings.tmpdir, features)]
    target, stored = (each.teacher("last", 4) for each in opened)
    hidden = 10 * torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    ids = torch.arange(20)
    torch.testing.assert_close(stored.output_logits(hidden), target.output_logits(hidden))
    torch.testing.assert_close(stored.embed(ids), target.embed(ids))
    with torch.autocast("cpu", torch.bfloat16):
        assert stored.output_logits(hidden).dtype == target.output_logits(hidden).dtype == torch.float32


def test_a_bias_of_the_target_s_output_is_in_the_logits_of_its_features(tmp_path):
    settings = Settings(**school(tmp_path))
    features = str(tmp_path / "features")
    allocation.main(["--outdir", features, "--data", str(settings.tmpdir), "--kind", "eagle", "--dtype", "float32"])
    teacher = source(replace(settings, tmpdir=features), CPU).teacher("last", 4)
    plain, bias = teacher.output_logits(torch.ones(2, 32)), torch.arange(89.0)
    teacher.bias_V = bias
    torch.testing.assert_close(teacher.output_logits(torch.ones(2, 32)), plain + bias)


def test_stored_logits_are_those_of_their_own_entries_and_all_others_are_nothing(tmp_path):
    settings = Settings(**school(tmp_path), kind="eagle3")
    features = str(tmp_path / "features")
    command = ["--outdir", features, "--data", str(settings.tmpdir), "--dtype", "float32", "--top-logits", "5"]
    allocation.main(command)
    opened = [
        source(replace(settings, tmpdir=folder), CPU).teacher((2, 3, 4), 2) for folder in (settings.tmpdir, features)
    ]
    batches = [teacher.train_batch([[3], [7]], [0, 1]) for teacher in opened]
    rows = slice(5, 30)
    whole, stored = (teacher.logits(batch, rows) for teacher, batch in zip(opened, batches, strict=True))
    kept = whole >= whole.topk(5).values[:, -1:]
    torch.testing.assert_close(stored, whole.where(kept, torch.tensor(-torch.inf)), rtol=1e-3, atol=1e-4)


def test_answers_are_found_in_chunks_of_any_size(monkeypatch):
    target = TargetModel(base_model("llama"))
    recipe = recipe_for(random_head(target.model, "eagle"), target, random_texts(20, 13), 2)
    whole = train_batch_of(recipe, [[0], [1]]).target_tokens_R
    monkeypatch.setattr("eagle.train.teachers.CHUNK", 4)
    assert torch.equal(train_batch_of(recipe, [[0], [1]]).target_tokens_R, whole) and len(whole) == 18 + 11


def test_checkpoints_whose_name_is_not_final_are_not_gone_on_from(tmp_path):
    run = Settings(**SMALL, **school(tmp_path), max_steps=1)
    half = Path(run.cpdir) / "checkpoints" / "step_00000099.tmp"
    half.mkdir(parents=True)
    (half / "run.json").write_text("{")
    run_of(run)
    assert len(losses_of(run.cpdir)) == 1


def test_a_checkpoint_that_does_not_say_what_a_run_asks_for_is_refused(tmp_path):
    accelerator = Accelerator()
    Checkpoints(tmp_path, accelerator, {"rows": 4}, 2).save(RunPoint(3))
    with pytest.raises(ValueError, match="belongs to a run with processes=None, now 2: choose"):
        Checkpoints(tmp_path, accelerator, {"rows": 4, "processes": 2}, 2).resume()


def test_a_run_goes_on_from_the_last_of_its_checkpoints(tmp_path):
    accelerator = Accelerator()
    model = accelerator.prepare(nn.Linear(2, 2))
    checkpoints = Checkpoints(tmp_path, accelerator, {}, 3)
    for step in (8, 9, 10):
        nn.init.constant_(model.weight, step)
        checkpoints.save(RunPoint(step, 1.5, 8))
    nn.init.zeros_(model.weight)
    assert checkpoints.resume() == RunPoint(10, 1.5, 8) and (model.weight == 10).all()
