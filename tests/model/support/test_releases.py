"""Releases of transformers: either name of the cache, no warning that a user sees, newer ones checked at load."""

import copy
import inspect
import subprocess
import sys

import pytest
import torch
import transformers
from accelerate import cpu_offload
from architectures import ARCHITECTURES, LONGROPE_SWITCH, base_model, prompts
from contract import contract
from pairs import ea_model
from places import PAIR, environment
from references import generate_ids
from transformers import Cache, GenerationMixin, LlamaForCausalLM, Phi3ForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast

import eagle
from eagle.model.checks.diagnosis import checked_target
from eagle.model.support import releases
from eagle.model.support.properties import CACHE_NAMES, cache_keyword, cache_of, generate_forgets, rope_switch
from eagle.model.target import TargetModel

NEW = 12
OWN_NAME = next(name for name in CACHE_NAMES if name in inspect.signature(LlamaForCausalLM.forward).parameters)
pytestmark = pytest.mark.contract


class OldCode(LlamaForCausalLM):
    """A model whose code came with it and was written before the cache was renamed."""

    def forward(self, input_ids, attention_mask=None, position_ids=None, past_key_values=None, use_cache=None, **more):
        own = {OWN_NAME: past_key_values}
        return super().forward(input_ids, attention_mask, position_ids, use_cache=use_cache, **own, **more)


class NewCode(LlamaForCausalLM):
    """The same, written after."""

    def forward(self, input_ids, attention_mask=None, position_ids=None, cache=None, use_cache=None, **more):
        return super().forward(
            input_ids, attention_mask, position_ids, use_cache=use_cache, **{OWN_NAME: cache}, **more
        )


def of_class(kind: type) -> LlamaForCausalLM:
    base = copy.deepcopy(base_model("llama"))
    base.__class__ = kind
    return base


@pytest.mark.parametrize("name", [pytest.param(name, marks=contract(name)) for name in ARCHITECTURES])
def test_the_keyword_is_one_that_the_forward_takes(name):
    base = base_model(name)
    assert cache_keyword(base) in inspect.signature(type(base).forward).parameters


@pytest.mark.parametrize("kind", [OldCode, NewCode])
@pytest.mark.parametrize("batch", [1, 3])
def test_code_that_comes_with_a_model_may_have_either_name(tmp_path, kind, batch):
    model = ea_model(tmp_path, of_class(kind))
    assert model.target.cache_keyword == ("past_key_values" if kind is OldCode else "cache")
    ids, mask = prompts(model.base_model, batch)
    got = model.eagenerate(ids, attention_mask=mask, max_new_tokens=NEW)
    assert torch.equal(got, generate_ids(base_model("llama"), ids, mask, NEW))
    assert model.self_check().checks[2].passed


@pytest.mark.parametrize("kind", [OldCode, NewCode])
def test_accelerate_s_hooks_let_the_cache_through_under_either_name(tmp_path, kind):
    base = of_class(kind)
    cpu_offload(base, execution_device=torch.device("cpu"))
    model = ea_model(tmp_path, base)
    ids, mask = prompts(base_model("llama"), 3)
    got = model.eagenerate(ids, attention_mask=mask, max_new_tokens=NEW)
    assert torch.equal(got, generate_ids(base_model("llama"), ids, mask, NEW))


def test_a_dictionary_is_no_cache():
    class Dictionary(LlamaForCausalLM):
        def forward(self, input_ids, position_ids=None, cache: dict[str, torch.Tensor] | None = None):
            return super().forward(input_ids, position_ids=position_ids)

    with pytest.raises(NotImplementedError, match="takes no cache or past_key_values"):
        TargetModel(of_class(Dictionary))


@torch.no_grad()
def test_the_output_s_cache_is_found_whatever_its_name_and_without_a_warning(caplog):
    output = base_model("llama")(torch.tensor([[5, 6, 7]]), use_cache=True)
    assert isinstance(cache_of(output), Cache) and cache_of(output).get_seq_length() == 3
    assert cache_of(CausalLMOutputWithPast(logits=output.logits)) is None
    assert cache_of({"past_key_values": 1}) == 1 and cache_of({"cache": 2}) == 2
    assert not caplog.records


def test_forward_takes_the_cache_under_both_names_and_hands_out_the_base_s_own(tmp_path):
    model = ea_model(tmp_path)
    ids = torch.tensor([[5, 6, 7, 8]])
    whole, _, _ = model(ids, output_orig=True)
    for name in CACHE_NAMES:
        outputs, _ = model(ids[:, :2])
        with torch.no_grad():
            outputs, hidden = model(ids[:, 2:], **{name: cache_of(outputs)})
        assert torch.allclose(outputs.logits, whole.logits[:, 2:], atol=1e-5) and hidden.shape[1] == 2
        assert cache_of(outputs).get_seq_length() == 4
    with pytest.raises(ValueError, match="name the same thing"):
        model(ids, cache=cache_of(outputs), past_key_values=cache_of(outputs))


class Forgetful(Phi3ForCausalLM):
    """A model that goes on with the newest token alone where it drops its cache, as those of older releases do."""

    def prepare_inputs_for_generation(self, input_ids, attention_mask=None, **more):
        inputs = super().prepare_inputs_for_generation(input_ids, attention_mask=attention_mask, **more)
        if cache_of(inputs) is None:
            inputs |= {name: inputs[name][:, -1:] for name in ("input_ids", "position_ids") if name in inputs}
        return inputs


class OfAnotherTime(Phi3ForCausalLM):
    """A model whose code cannot prepare a step of the installed release's `generate`."""

    def prepare_inputs_for_generation(self, input_ids, **more):
        raise AttributeError("'DynamicCache' object has no attribute 'seen_tokens'")


@pytest.mark.parametrize("kind", [Phi3ForCausalLM, Forgetful, OfAnotherTime])
def test_a_sequence_that_generate_forgets_is_run_whole_and_one_line_says_so(tmp_path, caplog, kind):
    base = copy.deepcopy(base_model("phi3"))
    base.__class__ = kind
    (ids, mask), new = prompts(base, 1, LONGROPE_SWITCH - 4), 12
    want = generate_ids(base_model("phi3"), ids, mask, new)
    forgets = False
    if kind is not OfAnotherTime:
        forgets = not torch.equal(base.generate(ids, attention_mask=mask, max_new_tokens=new, do_sample=False), want)
        assert forgets or kind is not Forgetful
    assert generate_forgets(base, rope_switch(base)) == forgets
    model = ea_model(tmp_path, base)
    assert torch.equal(model.eagenerate(ids, max_new_tokens=3), want[:, : LONGROPE_SWITCH - 1])
    said = [record.message for record in caplog.records if record.name.startswith("eagle")]
    assert not any("forgets" in line for line in said)  # nothing has crossed the switch
    for _ in range(2):
        assert torch.equal(model.eagenerate(ids, max_new_tokens=new), want)
    said = [record.message for record in caplog.records if "forgets all but the newest token" in record.message]
    assert len(said) == forgets
    assert all(f"beyond {LONGROPE_SWITCH} tokens" in line and f"of {kind.__name__};" in line for line in said)


EVERYTHING = """
import sys, warnings
from pathlib import Path
warnings.simplefilter("error", FutureWarning)
import torch
from transformers.utils import logging
logging.disable_progress_bar()
from eagle import EaModel
pair = Path(sys.argv[1])
for head in ("eagle_head", "eagle3_head"):
    model = EaModel.from_pretrained(None, str(pair / "target"), str(pair / head), total_token=12)
    ids = model.tokenizer(["def f(", "class Name(object):"], return_tensors="pt", padding=True, padding_side="left")
    model.generate(**ids, max_new_tokens=12)
    model.generate(**ids, max_new_tokens=12, do_sample=True, return_dict_in_generate=True, output_scores=True)
    model.eagenerate(ids.input_ids[1:], max_new_tokens=12)
    model.naivegenerate(ids.input_ids[1:], max_new_tokens=12)
    for _ in model.ea_generate(ids.input_ids[1:], temperature=0.7, max_new_tokens=12): pass
    model.generate(ids.input_ids[1:], max_new_tokens=12, reuse_prefix=True)
    outputs, _ = model(ids.input_ids[1:])
    model(ids.input_ids[1:], past_key_values=None)
    assert model.self_check().passed
"""


def test_a_user_sees_no_warning_of_transformers(tmp_path):
    variables = environment()
    variables.pop("TRANSFORMERS_VERBOSITY", None)
    # A pad token, which the shipped tokenizer has not, would be the test's own affair.
    script = EVERYTHING.replace("    ids = model", "    model.tokenizer.pad_token_id = 0\n    ids = model", 1)
    done = subprocess.run(
        [sys.executable, "-c", script, PAIR],
        capture_output=True,
        text=True,
        env=variables,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    # torchao, where it is installed, is read by transformers and tells what it cannot load.
    foreign = ("torchao", "torch/utils/_pytree")
    told = [line for line in done.stderr.splitlines() if not any(word in line for word in foreign)]
    assert told == [] and done.stdout == ""


@pytest.fixture
def newer_release(monkeypatch):
    """Make the installed transformers newer than what was tested."""
    monkeypatch.setattr(releases, "NEWEST_TESTED", "4.99.0")


def test_a_release_that_was_tested_costs_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(releases, "NEWEST_TESTED", transformers.__version__)
    base = base_model("llama")
    for name in ("self_check", "diagnose"):
        monkeypatch.setattr(f"eagle.model.checks.diagnosis.{name}", lambda *_: pytest.fail("a check ran"))
    assert checked_target(base).model is base


@pytest.mark.parametrize("name", [pytest.param(name, marks=contract(name)) for name in ("llama", "gemma2", "phi3")])
def test_with_a_newer_release_every_model_is_checked_and_one_line_says_so(tmp_path, newer_release, caplog, name):
    model = ea_model(tmp_path, name)
    (record,) = [record for record in caplog.records if record.name.startswith("eagle")]
    assert f"transformers {transformers.__version__} is newer than" in record.message
    assert f"the self-check of {type(model.base_model).__name__} passed in" in record.message


class RenamedAgain(LlamaForCausalLM):
    def forward(self, input_ids, attention_mask=None, position_ids=None, kv_cache=None, use_cache=None, **more):
        return super().forward(input_ids, attention_mask, position_ids, use_cache=use_cache, **more)


class IgnoresTheCache(LlamaForCausalLM):
    def forward(self, input_ids, attention_mask=None, position_ids=None, cache=None, use_cache=None, **more):
        return super().forward(input_ids, position_ids=position_ids, use_cache=use_cache, **more)


class IgnoresTheMask(LlamaForCausalLM):
    def forward(self, input_ids, attention_mask=None, position_ids=None, cache=None, use_cache=None, **more):
        padding = attention_mask if attention_mask is None or attention_mask.ndim == 2 else None
        return super().forward(input_ids, padding, position_ids, use_cache=use_cache, **{OWN_NAME: cache}, **more)


class WantsMore(LlamaForCausalLM):
    def forward(self, input_ids, plan, attention_mask=None, position_ids=None, cache=None, use_cache=None, **more):
        return super().forward(
            input_ids, attention_mask, position_ids, use_cache=use_cache, **{OWN_NAME: cache}, **more
        )


class KeepsItsDecoder(LlamaForCausalLM):
    def get_decoder(self):
        raise AttributeError("get_decoder is gone")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (RenamedAgain, "takes no cache or past_key_values"),
        (IgnoresTheCache, "own cache: .* differ from no cache by .*; also tree, padded rows, commit"),
        (IgnoresTheMask, "tree: logits differ by"),
        (WantsMore, "missing 1 required positional argument: 'plan'"),
        (KeepsItsDecoder, "get_decoder is gone"),
    ],
)
def test_a_model_that_changed_is_refused_in_words(tmp_path, newer_release, kind, words):
    with pytest.raises(NotImplementedError, match=words) as refusal:
        ea_model(tmp_path, of_class(kind))
    assert kind is RenamedAgain or "pip install 'transformers<=4.99.0'" in str(refusal.value)


def loses_the_past(update):
    def changed(self, keys, values, *args, **kwargs):
        return tuple(whole[:, :, -keys.shape[2] :] for whole in update(self, keys, values, *args, **kwargs))

    return changed


def swaps_the_heads(update):
    def changed(self, keys, values, *args, **kwargs):
        return tuple(whole.flip(1) for whole in update(self, keys, values, *args, **kwargs))

    return changed


def hands_over_more(update):
    def changed(self, keys, values, layer, *args, **kwargs):
        return self.layers[layer].store(keys, values)

    return changed


@pytest.mark.parametrize(
    ("misbehave", "words"),
    [(loses_the_past, "must match the size"), (swaps_the_heads, "own cache: "), (hands_over_more, "'store'")],
)
def test_a_cache_that_misbehaves_is_refused_in_words(tmp_path, newer_release, monkeypatch, misbehave, words):
    monkeypatch.setattr(Cache, "update", misbehave(Cache.update))
    with pytest.raises(NotImplementedError, match="fails the self-check there") as refusal:
        ea_model(tmp_path)
    assert words in str(refusal.value)


def test_a_generate_that_prepares_otherwise_is_refused_in_words(tmp_path, newer_release, monkeypatch):
    own = GenerationMixin.generate

    def ignores_custom(self, *args, custom_generate=None, **kwargs):
        return own(self, *args, **kwargs)

    monkeypatch.setattr(GenerationMixin, "generate", ignores_custom)
    with pytest.raises(NotImplementedError, match="after 'features': AttributeError"):
        ea_model(tmp_path)


def test_a_name_that_moved_is_explained_at_import(newer_release, monkeypatch):
    monkeypatch.setitem(eagle._HOMES, "EaModel", "eagle.model.moved_away")
    with pytest.raises(ImportError, match=r"moved_away.*is newer than 4.99.0.*pip install 'transformers<="):
        eagle.EaModel  # noqa: B018
