"""The doctor finds what a head was trained with, on the shipped pair; and its chains are the drafter's own."""

import json

import pytest
import torch
from architectures import base_model
from pairs import ea_model
from places import PAIR

from eagle import cli
from eagle.model import ea_model as ea_models
from eagle.model.checks.chains import chains_of, draftable
from eagle.model.checks.openings import read_openings, sample_texts
from eagle.model.ea_model import EaModel
from eagle.model.target_features import read_features

LAYERS = [2, 7, 11]


@pytest.fixture(scope="module")
def shipped() -> EaModel:
    paths = {"base_model_path": str(PAIR / "target"), "ea_model_path": str(PAIR / "eagle3_head")}
    return EaModel.from_pretrained(**paths, dtype=torch.float32)


@pytest.fixture(autouse=True)
def texts_once(request, monkeypatch):
    """Let the shipped target write its sample texts once for all tests."""
    if "shipped" in request.fixturenames:
        model = request.getfixturevalue("shipped")
        if not hasattr(model, "sample_texts"):
            model.sample_texts = sample_texts(model.target, None, lambda: model.tokenizer)
        monkeypatch.setattr(ea_models, "sample_texts", lambda *_: model.sample_texts)


def loaded(shipped: EaModel, **options) -> EaModel:
    return EaModel(None, shipped.base_model, str(PAIR / "target"), str(PAIR / "eagle3_head"), **options)


def test_a_head_that_is_loaded_as_it_was_trained_passes(shipped):
    report = shipped.head_check()
    assert report.passed and not report.remedy, str(report)
    assert "EAGLE-3 in the dialect of SafeAILab" in report.checks[0].detail
    first = report.trials[0]
    assert first.taps == tuple(LAYERS) and first.per_depth[0] > 0.7
    assert list(first.per_depth) == sorted(first.per_depth, reverse=True)
    assert first.mean == pytest.approx(sum(first.per_depth))


@pytest.mark.parametrize("step", [1, -1])
def test_layers_off_by_one_are_found_with_the_command_that_loads_it_right(shipped, step):
    report = loaded(shipped, capture_layers=[layer + step for layer in LAYERS]).head_check()
    assert not report.passed
    assert "--capture-layers 2 7 11" in report.remedy and "capture_layers=[2, 7, 11]" in report.remedy
    assert "--set" not in report.remedy


def test_a_wrong_norm_flag_is_found_with_the_command_that_writes_it_right(shipped):
    model = loaded(shipped)
    model.ea_layer.head.config.norm_output = True
    report = model.head_check()
    assert not report.passed and "--set norm_output=false" in report.remedy
    assert "capture_layers" not in report.remedy and "--capture-layers" not in report.remedy


def test_a_wrong_rotary_base_is_found(shipped):
    model = loaded(shipped)
    head = model.ea_layer.head
    head.config.rope_parameters = {**head.config.rope_parameters, "rope_theta": 30.0}
    head.rotary_emb = type(head.rotary_emb)(head.config)
    assert "--set rope_theta=10000" in model.head_check().remedy


def test_chains_are_right_where_a_real_draft_is_right(shipped):
    ids_1S = torch.tensor([shipped.tokenizer("def read_lines(path):\n    ").input_ids])
    text_1S = shipped.naivegenerate(ids_1S, max_new_tokens=40)
    model = loaded(shipped, total_token=5, depth=3, top_k=1)
    features = read_features(model.target, text_1S, model._taps).features_BSF
    wanted = torch.zeros(text_1S.shape[1], len(draftable(model.ea_layer.head)))
    accepted = chains_of(model.ea_layer, features, text_1S, wanted, 4).accepted_N.tolist()
    model.eagenerate(ids_1S, max_new_tokens=40)
    place, expected = ids_1S.shape[1], model.stats.accepted_per_step
    seen = []
    while place - 1 < len(accepted) and len(seen) < len(expected):
        seen.append(accepted[place - 1])  # of the entry whose token is the root
        place += accepted[place - 1] + 1
    assert len(seen) > 5 and seen == expected[: len(seen)]


def test_windows_narrow_chains_as_they_narrow_drafts(tmp_path):
    fields = {"windows": [3], "draft_vocab_size": None}
    model = ea_model(tmp_path, base_model("llama"), "eagle3", head_fields=fields, total_token=5, depth=3, top_k=1)
    text_1S = (torch.arange(16)[None] * 7 + 3) % 89
    features = read_features(model.target, text_1S, model._taps).features_BSF
    state = model.ea_layer.start(1, 40, [0])
    model.ea_layer.observe(state, features[:, :9], text_1S[:, 1:10], [9])
    tree = model.ea_layer.draft(state, text_1S[:, 9])
    drafted_1S = torch.cat([text_1S[:, :10], tree.tokens_BN[:, 1:]], 1)  # its own drafts as the text
    long_1S = torch.cat([drafted_1S, drafted_1S[:, -1:]], 1)
    longer = torch.cat([features[:, :9], torch.zeros(1, long_1S.shape[1] - 9, features.shape[-1])], 1)
    wanted = torch.zeros(long_1S.shape[1], 89)
    assert chains_of(model.ea_layer, longer, long_1S, wanted, 4).accepted_N[8] == 4


def test_a_head_without_a_tokenizer_beside_its_base_is_tried_on_arbitrary_tokens(tmp_path):
    report = ea_model(tmp_path, base_model("llama"), "eagle").head_check()
    assert len(report.trials) == 1 and report.passed
    assert "reads the last hidden state" in report.checks[0].detail


def test_openings_are_lines(tmp_path):
    (tmp_path / "prompts").write_text("one\n\ntwo\n")
    assert read_openings(str(tmp_path / "prompts")) == ["one", "two"]
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(ValueError, match="holds no prompt"):
        read_openings(str(tmp_path / "empty"))


def test_the_command_line_reports_base_and_head(capsys, tmp_path):
    (tmp_path / "prompts").write_text("def main(args):\nimport os\n")
    asked = ["doctor", "--base", str(PAIR / "target"), "--head", str(PAIR / "eagle3_head"), "--dtype", "float32"]
    code = cli.main([*asked, "--capture-layers", "0", "5", "9", "--prompts", str(tmp_path / "prompts"), "--json"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert code == 1 and not found["passed"] and all(check["passed"] for check in found["checks"])
    assert not found["head"]["passed"] and "eagle convert" in found["head"]["remedy"]
