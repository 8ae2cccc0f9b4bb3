"""The shipped pair: real weights, real acceptance, equal ids, and a demo that runs."""

import importlib
import json
import subprocess
import sys

import pytest
import torch
from places import PAIR, ROOT, environment

from eagle.evaluation.bench import load_pair, main, measure, methods, read_prompts
from eagle.evaluation.prompts import batched
from eagle.train.settings import parse


@pytest.fixture(scope="module")
def pair():
    return load_pair(PAIR)


def prompts_of(pair, count: int, kind: str | None = None) -> list[torch.Tensor]:
    """Return prompts [1, S] of the shipped file where the base model is."""
    base, tokenizer, _ = pair
    return [ids.to(base.device) for ids in read_prompts(PAIR / "prompts.jsonl", tokenizer, count, kind)]


def test_all_files_together_stay_under_40_megabytes():
    shipped = [path for path in PAIR.rglob("*") if path.is_file() and path.name != "training.pt"]
    assert sum(path.stat().st_size for path in shipped) < 40e6


@pytest.mark.parametrize("kind", ["held_out", "other"])
def test_drafts_are_accepted_and_ids_equal_generate(pair, kind):
    base, _, models = pair
    prompts = prompts_of(pair, 5, kind)
    rows = {row.name: row for row in measure(methods(base, models), batched(prompts), 64, 1)}
    assert all(row.ids_equal for row in rows.values())
    assert rows["plain decoding"].acceptance_length == 1.0
    for name in ("EAGLE-1", "EAGLE-2", "EAGLE-3"):
        assert rows[name].acceptance_length > 1.8


def test_seeded_samples_equal_generate(pair):
    base, _, models = pair
    (ids,) = prompts_of(pair, 1)
    torch.manual_seed(1)
    want = base.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=0.8, top_k=0, top_p=0.9, max_new_tokens=48
    )
    for model in models.values():
        torch.manual_seed(1)
        assert torch.equal(model.eagenerate(ids, temperature=0.8, top_p=0.9, max_new_tokens=48), want)


def test_a_padded_batch_equals_generate(pair):
    base, _, models = pair
    (prompt,) = batched(prompts_of(pair, 3), 3)
    ids, mask = prompt.ids_BS, prompt.mask_BS
    assert not mask.all()
    want = base.generate(ids, attention_mask=mask, max_new_tokens=48, pad_token_id=0)
    for model in models.values():
        assert torch.equal(model.eagenerate(ids, attention_mask=mask, max_new_tokens=48), want)


def test_accepted_tokens_of_a_batch_are_those_of_each_row_alone(pair):
    _, tokenizer, models = pair
    (batch,) = batched(read_prompts(PAIR / "prompts.jsonl", tokenizer, 4), 4)
    for model in models.values():
        model.eagenerate(batch.ids_BS, attention_mask=batch.mask_BS, max_new_tokens=24)
        together = model.stats
        assert sorted(together.accepted_per_row) == [0, 1, 2, 3]
        for row, accepted in together.accepted_per_row.items():
            ids = batch.ids_BS[row, batch.mask_BS[row] == 1]
            model.eagenerate(ids[None], max_new_tokens=24)
            assert model.stats.accepted_per_row == {0: accepted} == {0: model.stats.accepted_per_step}
        steps = [len(accepted) for accepted in together.accepted_per_row.values()]
        assert sum(steps) == together.row_steps and max(steps) == together.steps > min(steps)


def test_the_demo_colours_drafts_and_reports_equal_ids():
    arguments = ["--max-new-token", "24", "--num-prompts", "1", "--rounds", "1"]
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "quickstart.py", *arguments],
        capture_output=True,
        text=True,
        check=True,
        env=environment(FORCE_COLOR="1"),
    )
    assert "\033[32m" in done.stdout
    rows = [line for line in done.stdout.splitlines() if line.endswith(" yes")]
    assert [row[:16].strip() for row in rows] == ["generate", "plain decoding", "EAGLE-1", "EAGLE-2", "EAGLE-3"]


def test_bench_writes_a_document_with_its_provenance(tmp_path, capsys):
    heads = [str(PAIR / "eagle_head")]
    arguments = ["--base-model-path", str(PAIR / "target"), "--prompts", str(PAIR / "prompts.jsonl"), "--ea-model-path"]
    limits = ["--num-prompts", "1", "--max-new-token", "8", "--rounds", "2", "--json", str(tmp_path / "b.json")]
    assert main([*arguments, *heads, *limits]) == 0
    document = json.loads((tmp_path / "b.json").read_text())
    assert {row["name"] for row in document["results"]} == {
        "generate",
        "plain decoding",
        "prompt lookup",
        "EAGLE-1",
        "EAGLE-2",
    }
    assert all(len(row["seconds"]) == 2 for row in document["results"])
    assert document["provenance"]["torch"] == torch.__version__ and document["settings"]["rounds"] == 2
    assert "speed-up" in capsys.readouterr().out


@pytest.fixture
def experiments(monkeypatch):
    monkeypatch.syspath_prepend(PAIR)
    return importlib.import_module("experiments")


def test_every_variant_is_a_run_that_training_takes_and_differs_from_its_base(experiments, tmp_path):
    args = experiments.parser().parse_args(["--out", str(tmp_path)])
    chosen = experiments.variants()
    tasks = {variant.name: experiments.task_of(variant, variant.rate or 2e-3, args) for variant in chosen}
    assert len(tasks) == len(chosen)
    made = {name: parse(experiments.flags(task.settings), "x", "y") for name, task in tasks.items()}
    bases = {name: task.base for name, task in tasks.items() if task.base is not None}
    assert set(tasks) - set(bases) == {"eagle-lr-0.005"}
    for name, base in bases.items():
        assert made[name] != made[base] and made[name].bs == made[base].bs == 16
        assert name.startswith(f"{made[name].kind}-")
    assert made["eagle3-all-tokens"].draft_vocab_size is None
    assert made["eagle3-output-lr-x3"].lm_head_lr == pytest.approx(6e-3)


def test_a_head_gains_nothing_on_itself_and_what_it_gains_everywhere_is_certain(experiments):
    found = {"forwards": [10, 20, 5], "accepted": [20, 30, 0], "reached": [35, 20, 10]}
    better = found | {"accepted": [30, 50, 5]}  # one more in every forward
    row = experiments.compared("tree", {"modes": {"tree": better}}, {"modes": {"tree": found}})
    assert row["tau"] == pytest.approx(1 + 85 / 35, abs=1e-4) and row["gain"] == pytest.approx(1)
    assert row["gain_interval"] == pytest.approx([1, 1]) and row["interval"][0] < row["tau"] < row["interval"][1]
    assert row["conditional"] == pytest.approx([20 / 35, 0.5], abs=1e-4)
