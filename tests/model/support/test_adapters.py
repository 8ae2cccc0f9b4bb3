"""PEFT: adapters that are weights are part of the target; those that live in the wrapper are refused in words."""

import copy

import peft
import pytest
import torch
from architectures import VOCABULARY, base_model, prompts
from packaging.version import Version
from pairs import ea_model, random_head
from peft import (
    AdaptionPromptConfig,
    IA3Config,
    LoraConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    XLoraConfig,
    get_peft_model,
    inject_adapter_in_model,
)
from references import generate_ids, uncached_features
from scripted import ScriptedDrafter
from transformers.integrations.peft import MIN_PEFT_VERSION

from eagle.model.target import TargetModel

NEW = 25
SAMPLING = {"temperature": 0.8, "top_k": 20, "top_p": 0.9}
TASK = {"task_type": "CAUSAL_LM"}
ATTENTION = ["q_proj", "v_proj"]

LAYERED = {
    "lora": lambda: LoraConfig(r=4, target_modules=ATTENTION, **TASK),
    "lora without a task": lambda: LoraConfig(r=4, target_modules=ATTENTION),
    "dora": lambda: LoraConfig(r=4, target_modules=ATTENTION, use_dora=True, **TASK),
    "lora on embeddings and output": lambda: LoraConfig(r=4, target_modules=["embed_tokens", "lm_head"], **TASK),
    "lora with saved modules": lambda: LoraConfig(
        r=4, target_modules="all-linear", modules_to_save=["lm_head", "embed_tokens"], **TASK
    ),
    "lora with trained tokens": lambda: LoraConfig(
        r=4, target_modules=ATTENTION, trainable_token_indices=[3, 4], **TASK
    ),
    "ia3": lambda: IA3Config(target_modules=["k_proj", "v_proj"], feedforward_modules=[], **TASK),
    "llama-adapter": lambda: AdaptionPromptConfig(adapter_len=3, adapter_layers=3, **TASK),
}


def adapted(config, seed=0, name="llama"):
    """Return a base wrapped by an adapter whose weights are random, not the no-op they begin as."""
    model = get_peft_model(copy.deepcopy(base_model(name)), config)
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter.data, 0.3, 0.3)
    return model.eval()


def check_ids_equal_generate(tmp_path, wrapped, kind, drafter, sampled, batch=3):
    ids, mask = prompts(wrapped, batch)
    seed, extras = (3, SAMPLING) if sampled else (None, {})
    expected = generate_ids(wrapped, ids, mask, NEW, seed, **extras)
    model = ea_model(tmp_path, wrapped, kind)
    if drafter == "scripted":
        model.ea_layer = ScriptedDrafter(expected, VOCABULARY, ids.shape[1])
    torch.manual_seed(3)
    assert torch.equal(model.eagenerate(ids, max_new_tokens=NEW, attention_mask=mask, **extras), expected)
    if drafter == "scripted":
        assert model.stats.acceptance_length >= 2 and model.ea_layer.noncontiguous > 0
    return expected


@pytest.mark.parametrize("adapter", LAYERED)
@pytest.mark.parametrize(("kind", "drafter", "sampled"), [("eagle", "scripted", True), ("eagle3", "random", False)])
def test_ids_equal_those_of_the_wrapper(tmp_path, adapter, kind, drafter, sampled):
    wrapped = adapted(LAYERED[adapter]())
    got = check_ids_equal_generate(tmp_path, wrapped, kind, drafter, sampled)
    base = base_model("llama")
    ids, mask = prompts(base, 3)
    plain = generate_ids(base, ids, mask, NEW, 3 if sampled else None, **(SAMPLING if sampled else {}))
    assert not torch.equal(got, plain)  # the adapter did something


@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
def test_the_head_is_untouched_and_reads_the_adapted_model_s_features(tmp_path, kind):
    wrapped = adapted(LAYERED["lora"]())
    model = ea_model(tmp_path, wrapped, kind)
    fresh = random_head(base_model("llama"), kind).state_dict()
    loaded = model.ea_layer.head.state_dict()
    assert all(torch.equal(loaded[name], fresh[name]) for name in fresh if name in loaded) and set(fresh) <= set(loaded)
    ids, mask = prompts(wrapped, 1)
    answer = generate_ids(wrapped, ids, mask, NEW)
    model.ea_layer = ScriptedDrafter(answer, VOCABULARY, ids.shape[1])
    model.eagenerate(ids, max_new_tokens=NEW)
    seen = torch.stack(model.ea_layer.states[0].features[0])
    wanted = uncached_features(wrapped, answer[0], model._taps)[: len(seen)]
    torch.testing.assert_close(seen[: len(wanted)], wanted, rtol=1e-3, atol=1e-3)


def test_switching_and_disabling_adapters_counts_at_once(tmp_path):
    wrapped = adapted(LAYERED["lora"]())
    wrapped.add_adapter("second", LAYERED["lora"]())
    torch.manual_seed(9)
    for name, parameter in wrapped.named_parameters():
        if "second" in name:
            torch.nn.init.normal_(parameter.data, 0.3, 0.3)
    model, (ids, mask) = ea_model(tmp_path, wrapped), prompts(wrapped, 1)
    seen = []
    for adapter in ("default", "second"):
        wrapped.set_adapter(adapter)
        seen.append(model.eagenerate(ids, max_new_tokens=NEW))
        assert torch.equal(seen[-1], generate_ids(wrapped, ids, mask, NEW))
    with wrapped.disable_adapter():
        seen.append(model.eagenerate(ids, max_new_tokens=NEW))
    assert torch.equal(seen[-1], generate_ids(base_model("llama"), ids, mask, NEW))
    assert not any(torch.equal(seen[i], seen[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


def test_a_merged_adapter_needs_no_unwrapping(tmp_path):
    merged = adapted(LAYERED["lora"]()).merge_and_unload()
    check_ids_equal_generate(tmp_path, merged, "eagle3", "scripted", False)


@pytest.mark.parametrize("package", ["transformers", "peft"])
def test_an_adapter_added_to_the_model_itself_needs_no_unwrapping(tmp_path, package):
    own = copy.deepcopy(base_model("qwen3"))
    config = LoraConfig(r=4, target_modules=ATTENTION, init_lora_weights=False)
    if package == "peft":
        inject_adapter_in_model(config, own)
    elif Version(peft.__version__) < Version(MIN_PEFT_VERSION):
        pytest.skip(f"this transformers adds adapters with peft {MIN_PEFT_VERSION} or newer")
    else:
        own.add_adapter(config)
    assert any("lora" in name for name, _ in own.named_parameters())
    check_ids_equal_generate(tmp_path, own.eval(), "eagle", "scripted", False)


def test_the_wrapper_carries_nothing_of_ours(tmp_path):
    wrapped = adapted(LAYERED["lora"]()).train()
    before = sorted(vars(wrapped)), str(wrapped.peft_config), sum(len(m._forward_hooks) for m in wrapped.modules())
    model = ea_model(tmp_path, wrapped)
    model.eagenerate([[5, 6, 7]], max_new_tokens=3)
    after = sorted(vars(wrapped)), str(wrapped.peft_config), sum(len(m._forward_hooks) for m in wrapped.modules())
    assert before == after and wrapped.training


VIRTUAL = {
    "prompt tuning": lambda: PromptTuningConfig(num_virtual_tokens=4, **TASK),
    "prefix tuning": lambda: PrefixTuningConfig(num_virtual_tokens=4, **TASK),
    "p-tuning": lambda: PromptEncoderConfig(num_virtual_tokens=4, **TASK),
}


@pytest.mark.parametrize("adapter", VIRTUAL)
def test_virtual_tokens_are_refused(adapter):
    with pytest.raises(NotImplementedError, match="Config puts virtual tokens before the prompt"):
        TargetModel(adapted(VIRTUAL[adapter]()))


def test_an_activated_lora_is_refused():
    config = LoraConfig(r=4, target_modules=ATTENTION, alora_invocation_tokens=[5, 6], **TASK)
    with pytest.raises(NotImplementedError, match="begins inside the prompt"):
        TargetModel(adapted(config))


def test_weights_chosen_from_the_prompt_are_refused_with_the_difference(tmp_path):
    for expert in ("0", "1"):
        adapted(LAYERED["lora"](), int(expert)).save_pretrained(tmp_path / expert)
    base = copy.deepcopy(base_model("llama"))
    base.config.use_cache = False  # peft asks for it
    experts = {expert: str(tmp_path / expert) for expert in ("0", "1")}
    wrapped = get_peft_model(base, XLoraConfig(hidden_size=32, adapters=experts, **TASK))
    with pytest.raises(NotImplementedError, match=r"XLoraConfig: the wrapper's logits differ .* by \d"):
        TargetModel(wrapped)


def test_mixed_kinds_of_adapters_are_refused():
    wrapped = get_peft_model(copy.deepcopy(base_model("llama")), LAYERED["lora"](), mixed=True)
    with pytest.raises(NotImplementedError, match="PeftMixedModel mixes kinds of adapters"):
        TargetModel(wrapped)
