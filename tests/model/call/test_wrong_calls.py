"""A wrong call gets one sentence from eagle before any work: no library's traceback, no silence, no long wait."""

import copy
import re
import time

import pytest
import torch
from architectures import base_model
from pairs import ea_model
from places import PAIR
from refusals import fault_of
from same_call import small_base
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    GenerationConfig,
    LogitsProcessor,
    T5EncoderModel,
    T5ForConditionalGeneration,
)

from eagle import EaModel
from eagle.model import ea_model as loading
from eagle.model import pair
from eagle.model.target import TargetModel

IDS = [[5, 6, 7, 8]]
NAN, INF = float("nan"), float("inf")


class Last(LogitsProcessor):
    """Changes nothing."""

    def __call__(self, input_ids, scores):
        return scores


def assert_refused(call, *names):
    fault, words = fault_of(call)
    assert fault is None, fault
    assert all(name in words for name in names), words


def named(cases):
    """Give every case a name; the same in every process, so without addresses."""
    return [
        pytest.param(name, value, id=f"{name}-{re.sub(' at 0x.*', '', repr(value))[:30]}")
        for name, values in cases.items()
        for value in values
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("wrong")


@pytest.fixture(scope="module")
def model(folder):
    return ea_model(folder, small_base(), "eagle")


@pytest.fixture
def at_rest(monkeypatch):
    """Let no work start: no weights of a head or a base are read, no forward runs."""
    for owner, name in ((TargetModel, "_forward"), (pair, "read_weights"), (loading, "load_base")):
        monkeypatch.setattr(owner, name, lambda *args, **more: pytest.fail("work has started"))


TREES = {
    "total_token": ["60", 6.5, 60.0, None, True, 0, 1, -2, NAN, [60], torch.tensor(60)],
    "depth": [2.0, "2", None, True, -1, NAN],
    "top_k": [10.0, "10", None, True, 0, (3,)],
    "threshold": ["1", None, True, 0, 2, NAN, INF, [0.5]],
    "tree": [
        None,
        5,
        "fixed",
        {},
        [0, 1],
        ["ab"],
        [[0.0]],
        [[True]],
        [None],
        [[0], [1, 1, 1]],
        [[-1]],
        [],
        {(0,)},
        b"static",
    ],
    "use_eagle3": ["yes", 1, 0],
    "compile": ["yes", 1, None],
    "cuda_graphs": ["no", 0, None],
}


@pytest.mark.parametrize(("name", "value"), named(TREES))
def test_options_are_refused_before_a_base_or_a_head_is_read(folder, at_rest, name, value):
    paths = {"base_model_path": PAIR / "target", "ea_model_path": PAIR / "eagle_head"}
    assert_refused(lambda: EaModel.from_pretrained(**paths, **{name: value}), name)
    options = {"use_eagle3": None, name: value}
    arguments = {"base_model": small_base(), "base_model_name_or_path": "none", "ea_model_path": PAIR / "eagle_head"}
    assert_refused(lambda: EaModel(**arguments, **options), name)


@pytest.mark.parametrize("name", ["base_model_path", "ea_model_path"])
@pytest.mark.parametrize("value", [None, 5, True, ["a"]])
def test_paths_are_refused_before_anything_is_read(at_rest, name, value):
    paths = {"base_model_path": PAIR / "target", "ea_model_path": PAIR / "eagle_head", name: value}
    assert_refused(lambda: EaModel.from_pretrained(**paths), name)


@pytest.mark.parametrize("name", ["total_tokens", "treshold", "tre", "topk"])
def test_a_misspelt_option_is_named(at_rest, monkeypatch, name):
    assert_refused(lambda: EaModel(None, small_base(), "none", str(PAIR / "eagle_head"), **{name: 5}), name)
    monkeypatch.undo()
    arguments = {"base_model_path": PAIR / "target", "ea_model_path": PAIR / "eagle_head", name: 5}
    assert_refused(lambda: EaModel.from_pretrained(**arguments), name)


LOADING = {
    "torch_dtype": ["floaty"],
    "attn_implementation": ["flash", 5],
    "load_in_8bit": ["x"],
    "device_map": ["moon"],
}


@pytest.mark.parametrize(("name", "value"), named(LOADING))
def test_arguments_for_the_base_are_refused_by_eagle_too(name, value):
    paths = {"base_model_path": PAIR / "target", "ea_model_path": PAIR / "eagle_head"}
    assert_refused(lambda: EaModel.from_pretrained(**paths, **{name: value}), name)


@pytest.mark.parametrize("name", ["total_tokens", "depth", "top_k", "threshold"])
@pytest.mark.parametrize("value", ["5", 2.5, None, True, -1])
def test_attributes_of_the_drafter_are_judged_like_options(model, name, value):
    drafter = copy.copy(model.ea_layer)
    assert_refused(lambda: setattr(drafter, name, value), name.removesuffix("s"))


def small(name, **fields):
    return AutoConfig.for_model(name, vocab_size=89, **fields)


def compiled(what):
    """Return a base that is compiled in one of the ways there are; nothing runs yet."""
    base = copy.deepcopy(small_base())
    if what == "model":
        return torch.compile(base, backend="eager")
    if what == "forward":
        base.forward = torch.compile(base.forward, backend="eager")
    else:
        (base if what == "in place" else base.model.layers[0]).compile(backend="eager")
    return base


WIDE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
T5 = {"d_model": 32, "d_ff": 48, "num_layers": 2, "num_heads": 4, "d_kv": 8}
BASES = {
    "text": (lambda: "meta-llama/Llama-3.1-8B", "from_pretrained"),
    "nothing": (lambda: None, "None"),
    "a class": (lambda: type(small_base()), "LlamaForCausalLM"),
    "weights": (lambda: small_base().state_dict(), "base_model"),
    "a module": (lambda: torch.nn.Linear(2, 2), "Linear"),
    "a decoder alone": (lambda: small_base().model, "LlamaModel cannot generate"),
    "an encoder": (lambda: AutoModel.from_config(small("bert", **WIDE)), "BertModel cannot generate"),
    "an encoder with a head": (lambda: AutoModelForCausalLM.from_config(small("bert", **WIDE)), "BertLMHeadModel"),
    "half an encoder-decoder": (
        lambda: T5EncoderModel(small("t5", **T5)),
        "T5EncoderModel cannot generate",
    ),
    "an encoder-decoder": (
        lambda: T5ForConditionalGeneration(small("t5", **T5)),
        "encoder-decoder",
    ),
    "a compiled one": (lambda: compiled("model"), "torch.compile (all of it)"),
    "one compiled in place": (lambda: compiled("in place"), "torch.compile (all of it)"),
    "one with a compiled forward": (lambda: compiled("forward"), "torch.compile (all of it)"),
    "one with a compiled layer": (lambda: compiled("layer"), "torch.compile (model.layers.0)"),
}


@pytest.mark.parametrize("name", BASES)
def test_a_base_that_is_no_causal_lm_is_refused_by_what_it_is(name, monkeypatch):
    monkeypatch.setattr(pair, "read_weights", lambda *args, **more: pytest.fail("work has started"))
    made, words = BASES[name]
    base = made()
    assert_refused(lambda: EaModel(None, base, "none", str(PAIR / "eagle_head")), words)


SETTINGS = {
    "max_new_tokens": ["8", True, [8], NAN, INF, 0, -1, {}],
    "max_length": ["8", True, NAN, INF],
    "min_new_tokens": ["8", True, NAN],
    "eos_token_id": ["</s>", 2.5, True, ["</s>"], [2, None], {}],
    "pad_token_id": ["<pad>", 0.5, True],
    "bos_token_id": ["<s>", True],
    "forced_eos_token_id": ["</s>", 1.5],
    "do_sample": ["yes", 2, 0.5],
    "top_k": ["5", 2.5, True, -3],
    "top_p": ["0.9", True, NAN, -0.5],
    "min_p": ["0.1", 2.0],
    "temperature": ["hot", True, -1.0, NAN, 10**400],
    "repetition_penalty": ["1.1", True, -1.0],
    "no_repeat_ngram_size": ["2", 2.5, True],
    "num_return_sequences": ["2", 1.5, True],
    "num_beams": ["4", 2.5],
    "max_time": ["1", True, NAN],
    "guidance_scale": ["2", True],
    "suppress_tokens": ["x", 1.5, [1.5], [None]],
    "bad_words_ids": ["x", [], [5], [[-1]]],
    "stop_strings": [5, [5], [None]],
    "return_dict_in_generate": ["yes", 2],
    "generation_config": [20, {}, "greedy", GenerationConfig],
    "logits_processor": [Last(), lambda ids, scores: scores, 5, "x", [5], [None], {}],
    "stopping_criteria": [lambda ids, scores: False, 5, "x", [5], {}],
    "prefix_allowed_tokens_fn": [5, [5]],
    "streamer": [5, print, "x"],
    "generator": [5, "x"],
    "reuse_prefix": ["yes", 1],
    "prefill_chunk": ["8", 0, 2.5, True],
    "attention_mask": [
        "x",
        [[1, 1]],
        [[0, 0, 0, 0]],
        [[1, 1, 1, 2]],
        [[NAN] * 4],
        [[1], [1, 1]],
        torch.ones(1, 4, 4),
        5,
    ],
    "tempersture": [0.5, None],
    "max_new_token": [5, None],
    "token_type_ids": [torch.zeros(1, 4, dtype=torch.int64)],
    "pixel_values": [torch.zeros(1, 3, 8, 8)],
}
SAMPLED = ("top_k", "top_p", "min_p", "temperature")


@pytest.mark.parametrize(("name", "value"), named(SETTINGS))
def test_generate_refuses_a_wrong_argument_by_name(model, at_rest, name, value):
    mode = {"do_sample": True} if name in SAMPLED else {}
    assert_refused(lambda: model.generate(torch.tensor(IDS), **{"max_new_tokens": 6, **mode, name: value}), name)


OF_THE_REFERENCE = ("generation_config", "do_sample", "min_p")


@pytest.mark.parametrize(
    ("name", "value"), named({name: values for name, values in SETTINGS.items() if name not in OF_THE_REFERENCE})
)
@pytest.mark.parametrize("method", ["eagenerate", "naive_generate"])
def test_the_reference_s_methods_refuse_a_wrong_argument_by_name(model, at_rest, method, name, value):
    wrong = {"max_new_tokens": 6, "temperature": 1.0, name: value}
    assert_refused(lambda: getattr(model, method)(torch.tensor(IDS), **wrong), name)


@pytest.mark.parametrize(("name", "value"), named({"is_llama3": ["yes", 1], "log": ["yes", 1], "max_length": [2.5]}))
def test_the_reference_s_own_arguments_are_judged_too(model, at_rest, name, value):
    assert_refused(lambda: model.eagenerate(torch.tensor(IDS), **{name: value}), name)


PROMPTS = [
    None,
    "text",
    5,
    [],
    [[]],
    [5, 6],
    [[5.0]],
    [["a"]],
    [[True]],
    [[1 << 70]],
    [[89]],
    [[-1]],
    torch.ones(1, 2) * 1j,
]


@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda prompt: f"{prompt!r:.30}")
@pytest.mark.parametrize("method", ["generate", "eagenerate"])
def test_a_prompt_that_is_none_is_refused(model, at_rest, method, prompt):
    if prompt is None and method == "generate":
        return  # begins with BOS, as there
    assert_refused(lambda: getattr(model, method)(prompt, max_new_tokens=6), "input_ids")


@pytest.mark.parametrize("name", ["eos_token_id", "top_k", "do_sample"])
def test_a_setting_of_a_configuration_is_judged_like_one_of_the_call(tmp_path, model, name):
    config = GenerationConfig(max_new_tokens=6)
    setattr(config, name, "x")
    assert_refused(lambda: model.generate(torch.tensor(IDS), generation_config=config), name)
    own = ea_model(tmp_path, copy.deepcopy(small_base()), "eagle")
    setattr(own.generation_config, name, "x")
    assert_refused(lambda: own.generate(torch.tensor(IDS), max_new_tokens=6), name)


@pytest.mark.parametrize("name", ["logits_processor", "stopping_criteria"])
def test_a_list_of_functions_is_taken_as_in_generate(model, name):
    own = {"logits_processor": lambda ids, scores: -scores, "stopping_criteria": lambda ids, scores: ids.shape[1] > 7}
    arguments = {"max_new_tokens": 6, "do_sample": False, name: [own[name]]}
    want = model.base_model.generate(torch.tensor(IDS), **arguments)
    assert torch.equal(model.generate(torch.tensor(IDS), **arguments), want)


@pytest.mark.parametrize(
    "options", [{"top_k": 500}, {"depth": 10**4}, {"top_k": 10**4, "depth": 10**4}], ids=lambda options: f"{options}"
)
def test_a_tree_asked_far_too_large_costs_seconds(tmp_path, options):
    started = time.perf_counter()
    made = ea_model(tmp_path, base_model("llama"), "eagle", total_token=60, **options)
    assert made.eagenerate(torch.tensor(IDS), max_new_tokens=8).shape == (1, 12)
    assert time.perf_counter() - started < 10


def test_a_damaged_base_and_an_ea_model_as_base_are_refused(tmp_path, model):
    base_model("llama").save_pretrained(tmp_path / "base")
    weights = tmp_path / "base" / "model.safetensors"
    head = str(PAIR / "eagle3_head")
    assert_refused(lambda: EaModel(None, model, "none", head), "EaModel")
    assert_refused(lambda: EaModel.from_pretrained(base_model_path="", ea_model_path=head), "''")
    for content in (weights.read_bytes()[:2000], b""):
        weights.write_bytes(content)
        path = str(tmp_path / "base")
        assert_refused(lambda path=path: EaModel.from_pretrained(base_model_path=path, ea_model_path=head), path)
