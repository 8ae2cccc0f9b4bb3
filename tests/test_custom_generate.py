"""`base.generate(custom_generate=FOLDER)`: the folder that is made for the Hub decodes as `generate` does."""

import copy
import gc
import pickle
import re
import shutil
import subprocess
import sys
import weakref

import pytest
import torch
from places import PAIR, ROOT, environment
from streams import Log, tokenizer
from transformers import AutoModelForCausalLM, dynamic_module_utils

pytestmark = pytest.mark.contract
FOLDER = ROOT / "examples" / "custom_generate"
HEADS = [str(PAIR / "eagle3_head"), str(PAIR / "eagle_head")]
TREE = {"total_token": 12, "depth": 4, "tree_top_k": 4}
TEXTS = ["def read_lines(path):\n    ", "import os\n", "class Reader:\n    def __init__(self"]


@pytest.fixture(autouse=True)
def code_is_copied_into_the_test_s_own_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))


@pytest.fixture(scope="module")
def loaded():
    return load()


@pytest.fixture
def base(loaded):
    yield loaded
    vars(loaded).pop("_eagle_heads", None)


def load():
    return AutoModelForCausalLM.from_pretrained(PAIR / "target", dtype=torch.float32)


def prompt(*texts):
    encoded = tokenizer()(list(texts or TEXTS[:1]), return_tensors="pt", padding=True, padding_side="left")
    return {"input_ids": encoded.input_ids, "attention_mask": encoded.attention_mask}


def drafted(base, head=HEADS[0], **arguments):
    ours = {"custom_generate": str(FOLDER), "trust_remote_code": True, "ea_model_path": head}
    return base.generate(**ours, **TREE, **arguments)


CALLS = {
    "greedy": {"do_sample": False},
    "sampled": {"do_sample": True, "temperature": 0.8, "top_k": 20, "top_p": 0.9},
    "stop": {"do_sample": False, "stop_strings": ["lines of"], "tokenizer": "own"},
    "processors": {"repetition_penalty": 1.2, "no_repeat_ngram_size": 4},
    "rows": {"do_sample": True, "num_return_sequences": 2},
}


@pytest.mark.parametrize("texts", [TEXTS[:1], TEXTS], ids=["one", "batch"])
@pytest.mark.parametrize("call", CALLS)
def test_ids_are_those_of_generate(base, call, texts):
    given = {**prompt(*texts), "max_new_tokens": 24, **CALLS[call]}
    if "tokenizer" in given:
        given["tokenizer"] = tokenizer()
    torch.manual_seed(3)
    want = base.generate(**given)
    torch.manual_seed(3)
    assert torch.equal(drafted(base, **given), want)
    (model,) = base._eagle_heads.values()
    assert model.stats.acceptance_length > 1.2


def test_a_positional_prompt_and_a_generation_config_are_taken(base):
    config = copy.deepcopy(base.generation_config)
    config.max_new_tokens, config.do_sample = 20, False
    ids = prompt()["input_ids"]
    want = base.generate(ids, config)
    ours = {"custom_generate": str(FOLDER), "trust_remote_code": True, "ea_model_path": HEADS[0]}
    assert torch.equal(base.generate(ids, config, **ours), want)


def test_a_streamer_is_handed_every_token_and_a_dictionary_its_scores(base):
    given = {**prompt(), "max_new_tokens": 20, "do_sample": False}
    wanted, got = Log(), Log()
    given |= {"return_dict_in_generate": True, "output_scores": True}
    want = base.generate(**given, streamer=wanted)
    have = drafted(base, **given, streamer=got)
    assert got.given == wanted.given and got.ended
    assert torch.equal(have.sequences, want.sequences)
    torch.testing.assert_close(torch.stack(have.scores), torch.stack(want.scores), rtol=1e-4, atol=1e-4)


def test_two_heads_on_one_model_are_loaded_once_each(base):
    given = {**prompt(), "max_new_tokens": 20, "do_sample": False}
    want = base.generate(**given)
    assert all(torch.equal(drafted(base, head, **given), want) for head in HEADS * 2)
    kept = list(base._eagle_heads.values())
    assert [model.use_eagle3 for model in kept] == [True, False]
    assert all(torch.equal(drafted(base, head, **given), want) for head in HEADS)
    assert list(base._eagle_heads.values()) == kept


def test_a_model_keeps_its_four_latest_heads(base):
    for depth in (1, 2, 3, 4, 5):
        given = {"custom_generate": str(FOLDER), "trust_remote_code": True, "ea_model_path": HEADS[0], "depth": depth}
        base.generate(**prompt(), max_new_tokens=2, **given)
    assert [model.ea_layer.tree.depth for model in base._eagle_heads.values()] == [2, 3, 4, 5]


def test_the_model_stays_as_it_was_but_for_what_remembers_its_heads(base):
    def state():
        hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in base.modules())
        names = sorted(set(vars(base)) - {"_eagle_heads"})
        return hooks, names, str(base.config), str(base.generation_config), list(base.state_dict()), base.training

    before = state()
    drafted(base, **prompt(), max_new_tokens=8)
    assert state() == before
    for other in (copy.deepcopy(base), pickle.loads(pickle.dumps(base))):
        assert vars(other)["_eagle_heads"] == {}
        drafted(other, **prompt(), max_new_tokens=4)
        assert next(iter(other._eagle_heads.values())).base_model is other


def test_a_shallow_copy_gets_heads_of_its_own(base):
    drafted(base, **prompt(), max_new_tokens=4)
    other = copy.copy(base)
    drafted(other, **prompt(), max_new_tokens=4)
    assert next(iter(other._eagle_heads.values())).base_model is other


def test_a_model_and_its_heads_go_together():
    base = load()
    drafted(base, **prompt(), max_new_tokens=4)
    model, head = weakref.ref(base), weakref.ref(next(iter(base._eagle_heads.values())))
    del base
    gc.collect()
    assert model() is None and head() is None


def test_a_model_whose_own_repository_holds_the_folder_decodes_by_its_own_generate(tmp_path, base):
    repository = shutil.copytree(PAIR / "target", tmp_path / "model")
    shutil.copytree(FOLDER / "custom_generate", repository / "custom_generate")
    model = AutoModelForCausalLM.from_pretrained(repository, dtype=torch.float32, trust_remote_code=True)
    given = {"attention_mask": prompt()["attention_mask"], "max_new_tokens": 20, "do_sample": False}
    ids = prompt()["input_ids"]
    assert torch.equal(model.generate(ids, ea_model_path=HEADS[0], **given), base.generate(ids, **given))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "ea_model_path must name a draft head"),
        ({"ea_model_path": HEADS[0], "total_token": 0}, "total_token=0"),
        ({"ea_model_path": HEADS[0], "nodes": 5}, "nodes"),
        ({"ea_model_path": HEADS[0], "num_beams": 2}, "beam"),
    ],
)
def test_what_is_missing_or_wrong_is_said(base, arguments, words):
    ours = {"custom_generate": str(FOLDER), "trust_remote_code": True}
    with pytest.raises((ValueError, NotImplementedError), match=words):
        base.generate(**prompt(), max_new_tokens=4, **ours, **arguments)


def test_the_card_s_snippet_runs_as_written():
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert "\n- custom_generate\n" in card.split("---")[1]
    (snippet,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", snippet], capture_output=True, text=True, cwd=ROOT, env=environment(HF_HUB_OFFLINE="1")
    )
    assert done.returncode == 0 and "def read_lines(path):" in done.stdout, done.stderr
