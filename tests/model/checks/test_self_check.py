"""The check of a user's own model passes where trees are exact and fails where any part of the contract is broken."""

import json
import subprocess
import sys

import pytest
import torch
from architectures import base_model
from census import tiny_model
from pairs import ea_model, random_head
from same_call import small_base
from transformers import AutoConfig, AutoModelForCausalLM

from eagle.cli import main
from eagle.model import target
from eagle.model.checks.diagnosis import diagnose
from eagle.model.checks.self_check import Probe, self_check
from eagle.model.dialects.checkpoint import save_head
from eagle.model.kv_cache import KVCache
from eagle.model.support.properties import LayerMask
from eagle.model.target import TargetModel

NAMES = ["properties", "causal", "own cache", "tree", "padded rows", "commit", "features", "preparation", "ids"]


def failed(report):
    return {check.name for check in report.checks if not check.passed}


def test_a_model_reports_on_itself_and_stays_as_it_was(tmp_path):
    model = ea_model(tmp_path, "gemma3_text")
    hooks = sum(len(module._forward_hooks) for module in model.base_model.modules())
    model.base_model.train()
    report = model.self_check()
    assert report.passed and [check.name for check in report.checks] == NAMES
    assert "sliding_attention 7" in report.checks[0].detail and "12 of 12" in report.checks[-1].detail
    assert model.base_model.training
    assert sum(len(module._forward_hooks) for module in model.base_model.modules()) == hooks
    model.base_model.eval()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "gemma3_text", "qwen3_moe"])
def test_half_precision_passes_and_still_sees_a_broken_tree(name, dtype, monkeypatch):
    base = tiny_model(name).to(dtype)
    report = diagnose(base)
    assert report.passed, str(report)
    monkeypatch.setattr(TargetModel, "_tree_masks", without_tree)
    assert "tree" in failed(diagnose(base))


def without_tree(self, tree, cache, positions):
    mask = torch.ones(tree.tokens_BN.shape[0], 1, tree.size, cache.visible(tree.size), dtype=torch.bool).tril(
        cache.visible(tree.size) - tree.size
    )
    masks = self._masks
    return self._for_kernel(mask) if isinstance(masks, LayerMask) else dict.fromkeys(masks, self._for_kernel(mask))


def without_windows(patch):
    patch.setattr(target, "layer_masks", lambda config: dict.fromkeys(config.layer_types, LayerMask()))


def windows_in_slots(patch):
    patch.setattr(KVCache, "positions", lambda self, own: torch.arange(self.visible(own.shape[1])).expand(len(own), -1))


def without_commit(patch):
    patch.setattr(KVCache, "commit", lambda self, path, counts, in_place: self.advance(counts))


def pads_with_positions(patch):
    patch.setattr(KVCache, "pads", property(lambda self: [0] * len(self.lengths), lambda self, pads: None), False)


def late_taps(patch):
    tapped = TargetModel.joined
    patch.setattr(TargetModel, "joined", lambda self, caught, taps: tapped(self, caught, taps).roll(1, 1))


BROKEN = {
    "without a tree": ("llama", lambda patch: patch.setattr(TargetModel, "_tree_masks", without_tree), "tree"),
    "without windows": ("gemma3_text", without_windows, "tree"),
    "windows in slots": ("gemma3_text", windows_in_slots, "padded rows"),
    "chunks as windows": ("llama4_text", windows_in_slots, "tree"),
    "commit leaves all in place": ("llama", without_commit, "commit"),
    "pads take positions": ("llama", pads_with_positions, "padded rows"),
    "features of the token before": ("llama", late_taps, "features"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_part_fails_its_check(case, monkeypatch):
    name, break_it, check = BROKEN[case]
    base = tiny_model(name)
    assert diagnose(base).passed
    break_it(monkeypatch)
    assert check in failed(diagnose(base))


def test_a_wrong_model_is_refused_at_load_with_numbers(monkeypatch):
    base = tiny_model("llama")
    self_check(TargetModel(base))
    monkeypatch.setattr(TargetModel, "_tree_masks", without_tree)
    with pytest.raises(NotImplementedError, match=r"tree's logits differ .* by \d.* where rounding explains \d"):
        self_check(TargetModel(base))


@torch.no_grad()
def test_not_a_number_is_no_rounding():
    probe = Probe(TargetModel(tiny_model("llama")))
    assert not probe.difference(torch.tensor([float("nan")]), torch.ones(1)).is_rounding


@pytest.fixture
def folders(tmp_path):
    """A base model and its head on disk."""
    base = base_model("llama")
    base.save_pretrained(tmp_path / "base")
    save_head(random_head(base, "eagle3"), tmp_path / "head")
    return tmp_path


def test_the_doctor_passes_a_pair(folders, capsys):
    arguments = ["doctor", "--base", str(folders / "base"), "--ea-model-path", str(folders / "head")]
    assert main(arguments) == 0
    assert "trees are verified exactly" in capsys.readouterr().out
    assert main([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["passed"] and [check["name"] for check in report["checks"]] == NAMES


def test_the_doctor_says_why_not(folders, capsys):
    config = AutoConfig.for_model("bloom", hidden_size=32, n_layer=2, n_head=4, vocab_size=89)
    AutoModelForCausalLM.from_config(config).save_pretrained(folders / "bloom")
    assert main(["doctor", "--base", str(folders / "bloom")]) == 1
    assert "FAIL  properties: BloomForCausalLM.forward takes no position_ids" in capsys.readouterr().out
    (folders / "head" / "model.safetensors").unlink()
    assert main(["doctor", "--base", str(folders / "base"), "--ea-model-path", str(folders / "head")]) == 1
    assert "model.safetensors" in capsys.readouterr().out


def test_help_waits_for_nothing():
    code = "import sys; from eagle.cli import main\ntry: main(['--help'])\nfinally: assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "doctor" in done.stdout, done.stderr


def test_a_base_with_penalties_of_its_own_passes():
    assert small_base().generation_config.repetition_penalty == 1.1
    report = diagnose(small_base())
    assert report.passed, str(report)


@pytest.mark.parametrize("fault", ["no folder", "corrupt weights", "encoder-decoder"])
def test_the_doctor_says_in_one_line_what_could_not_be_loaded(tmp_path, capsys, fault):
    base_model("llama").save_pretrained(tmp_path)
    if fault == "corrupt weights":
        (tmp_path / "model.safetensors").write_text("garbage")
    if fault == "encoder-decoder":
        AutoConfig.for_model("t5").save_pretrained(tmp_path)
    path = tmp_path / "nothing" / "here" if fault == "no folder" else tmp_path
    capsys.readouterr()  # saving imports DeepSpeed, where it is installed, and that prints
    assert main(["doctor", "--base", str(path), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    (check,) = report["checks"]
    assert check["name"] == "loading" and not report["passed"] and "\n" not in check["detail"]
