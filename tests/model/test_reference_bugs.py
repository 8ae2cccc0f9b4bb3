"""Each bug of the reference implementation that users hit, by name, and what happens here instead."""

from pathlib import PurePosixPath

import pytest
import torch
from architectures import SMALL, VOCABULARY, base_model, prompts
from pairs import ea_model, random_head
from references import generate_ids
from safetensors.torch import load_file, save_file
from scripted import ScriptedDrafter
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    LogitsProcessor,
    PreTrainedTokenizerFast,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteria,
)

from eagle import EaModel
from eagle.model.dialects.checkpoint import save_head


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE over lower-case words with as many tokens as the tiny bases."""
    words = ["the quick brown fox jumps over lazy dogs " * 3, "and then they all went home to sleep well " * 3]
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<|eot_id|>"]
    raw.train_from_iterator(
        words, trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory):
    """A base with its tokenizer and a head of either kind, as folders."""
    folder = tmp_path_factory.mktemp("pair")
    base = base_model("llama")
    base.save_pretrained(folder / "base")
    tokenizer().save_pretrained(folder / "base")
    for kind in ("eagle", "eagle3"):
        save_head(random_head(base, kind), folder / kind)
    return folder


def load(folder, kind="eagle3", **options):
    options = {"total_token": 10, "depth": 3, "top_k": 3, **options}
    return EaModel.from_pretrained(base_model_path=folder / "base", ea_model_path=folder / kind, **options)


def scripted(model, answers, prompt):
    model.ea_layer = ScriptedDrafter(answers, VOCABULARY, prompt)
    return model


def test_no_token_after_eos_and_never_more_than_asked(tmp_path):
    base = base_model("qwen3")
    ids, mask = prompts(base, 1)
    answers = generate_ids(base, ids, mask, 30)
    for new in range(1, 12):
        out = scripted(ea_model(tmp_path, "qwen3"), answers, ids.shape[1]).eagenerate(ids, max_new_tokens=new)
        assert torch.equal(out, answers[:, : ids.shape[1] + new])


@pytest.mark.parametrize("max_length", [10, 14, 33])
def test_all_of_max_length_is_usable_and_the_next_call_may_be_longer(tmp_path, max_length):
    base = base_model("qwen3")
    ids, mask = prompts(base, 1)
    model = ea_model(tmp_path, "qwen3", total_token=30, depth=5, top_k=5)
    for length in (max_length, max_length + 40):
        want = generate_ids(base, ids, mask, length - ids.shape[1])
        assert torch.equal(model.eagenerate(ids, max_new_tokens=500, max_length=length), want)


def test_a_prompt_that_fills_max_length_is_a_value_error(tmp_path):
    with pytest.raises(ValueError, match=r"9 tokens, max_length=9 leaves no room: raise max_length"):
        ea_model(tmp_path).eagenerate(prompts(base_model("llama"), 1)[0], max_length=9)


def test_every_eos_id_of_a_list_ends_a_row(tmp_path):
    base = base_model("llama")
    ids, mask = prompts(base, 1)
    free = generate_ids(base, ids, mask, 30)[0, ids.shape[1] :].tolist()
    before = base.generation_config.eos_token_id
    for index in (3, 7):
        base.generation_config.eos_token_id = [88, free[index]]
        try:
            out = ea_model(tmp_path).eagenerate(ids, max_new_tokens=30)
            assert out[0, ids.shape[1] :].tolist() == free[: free.index(free[index]) + 1]
        finally:
            base.generation_config.eos_token_id = before


def test_stop_strings_end_a_row_token_by_token(on_disk):
    model = load(on_disk)
    ids, mask = prompts(model.base_model, 1)
    text = model.tokenizer.decode(generate_ids(model.base_model, ids, mask, 30)[0, ids.shape[1] + 3 :])
    stop = text[4:7]
    want = model.base_model.generate(
        ids,
        attention_mask=mask,
        tokenizer=model.tokenizer,
        generation_config=GenerationConfig(max_new_tokens=30, stop_strings=[stop], eos_token_id=2, pad_token_id=0),
    )
    assert ids.shape[1] < want.shape[1] < ids.shape[1] + 30
    assert torch.equal(model.eagenerate(ids, max_new_tokens=30, stop_strings=[stop]), want)


class StopAt(StoppingCriteria):
    def __init__(self, length):
        self.length, self.seen = length, []

    def __call__(self, input_ids, scores, **kwargs):
        self.seen.append(input_ids.shape[1])
        return torch.tensor([input_ids.shape[1] >= self.length])


def test_criteria_see_every_token_once_and_in_order(tmp_path):
    base = base_model("qwen3")
    ids, mask = prompts(base, 1)
    answers = generate_ids(base, ids, mask, 30)
    stop = StopAt(20)
    model = scripted(ea_model(tmp_path, "qwen3"), answers, ids.shape[1])
    out = model.eagenerate(ids, max_new_tokens=30, stopping_criteria=[stop])
    assert torch.equal(out, answers[:, :20])
    assert stop.seen == list(range(ids.shape[1] + 1, 21))


def test_a_batch_with_left_padding_works(tmp_path):
    base = base_model("llama")
    ids, mask = prompts(base, 3)
    out = ea_model(tmp_path).eagenerate(ids, max_new_tokens=30, attention_mask=mask)
    assert torch.equal(out, generate_ids(base, ids, mask, 30))


def test_the_same_seed_gives_the_ids_of_generate(tmp_path):
    base = base_model("llama")
    ids, mask = prompts(base, 1)
    model = ea_model(tmp_path)
    torch.manual_seed(17)
    out = model.eagenerate(ids, temperature=0.9, max_new_tokens=30)
    assert torch.equal(out, generate_ids(base, ids, mask, 30, 17, temperature=0.9))


def test_top_k_comes_before_top_p_and_both_are_computed_in_fp32(tmp_path):
    seen = []

    class Spy(LogitsProcessor):
        def __call__(self, input_ids, scores):
            seen.append(scores.dtype)
            return scores

    base = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SMALL), dtype=torch.bfloat16).eval()
    model = ea_model(tmp_path, base)
    model.eagenerate([[5, 6, 7]], temperature=1.0, max_new_tokens=5, logits_processor=[Spy()])
    assert set(seen) == {torch.float32}
    base, model = base_model("llama"), ea_model(tmp_path)
    ids, mask = prompts(base, 1)
    want = generate_ids(base, ids, mask, 30, 5, temperature=1.0, top_k=4, top_p=0.6)
    torch.manual_seed(5)
    assert torch.equal(model.eagenerate(ids, temperature=1.0, top_k=4, top_p=0.6, max_new_tokens=30), want)


def test_a_float_top_k_is_accepted(tmp_path):
    ids, mask = prompts(base_model("llama"), 1)
    model = ea_model(tmp_path)
    want = generate_ids(base_model("llama"), ids, mask, 20, 5, temperature=1.0, top_k=4)
    torch.manual_seed(5)
    assert torch.equal(model.eagenerate(ids, temperature=1.0, top_k=4.0, max_new_tokens=20), want)


class OncePerToken(LogitsProcessor):
    """Stateful: forbids what it has seen, and notes every prefix it is shown."""

    def __init__(self):
        self.prefixes = []

    def __call__(self, input_ids, scores):
        self.prefixes.append(input_ids[0].tolist())
        scores[:, len(self.prefixes) % VOCABULARY] = -float("inf")
        return scores


@pytest.mark.parametrize("seed", [None, 4])
def test_any_logits_processor_sees_the_prefixes_generate_shows_it(tmp_path, seed):
    base = base_model("llama")
    ids, _ = prompts(base, 1)
    theirs, ours = OncePerToken(), OncePerToken()
    torch.manual_seed(4)
    want = base.generate(
        ids,
        logits_processor=[RepetitionPenaltyLogitsProcessor(1.3), theirs],
        generation_config=GenerationConfig(
            max_new_tokens=30, do_sample=seed is not None, top_k=0, eos_token_id=2, pad_token_id=0
        ),
    )
    model = scripted(ea_model(tmp_path), want, ids.shape[1])
    torch.manual_seed(4)
    out = model.eagenerate(
        ids,
        temperature=0.0 if seed is None else 1.0,
        max_new_tokens=30,
        logits_processor=[RepetitionPenaltyLogitsProcessor(1.3), ours],
    )
    assert torch.equal(out, want) and ours.prefixes == theirs.prefixes
    assert model.stats.acceptance_length > 1.5


@pytest.mark.parametrize("stop", range(11, 17))
def test_no_processor_runs_after_the_last_token_of_an_accepted_path(tmp_path, stop):
    base = base_model("qwen3")
    ids, _ = prompts(base, 1)
    config = GenerationConfig(max_new_tokens=30, eos_token_id=None, pad_token_id=0)
    free = base.generate(ids, logits_processor=[OncePerToken()], generation_config=config)
    theirs, ours = OncePerToken(), OncePerToken()
    want = base.generate(ids, logits_processor=[theirs], stopping_criteria=[StopAt(stop)], generation_config=config)
    model = scripted(ea_model(tmp_path, "qwen3"), free, ids.shape[1])  # its answers go on behind the end
    out = model.eagenerate(ids, max_new_tokens=30, logits_processor=[ours], stopping_criteria=[StopAt(stop)])
    assert torch.equal(out, want) and ours.prefixes == theirs.prefixes


@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
def test_the_kind_of_head_is_read_from_the_checkpoint(on_disk, kind):
    assert load(on_disk, kind).use_eagle3 == (kind == "eagle3")


def test_misnamed_head_weights_are_an_error(on_disk, tmp_path):
    state = load_file(on_disk / "eagle" / "model.safetensors")
    state["layers.0.mlp.up.weight"] = state.pop("layers.0.mlp.up_proj.weight")
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((on_disk / "eagle" / "config.json").read_text())
    with pytest.raises(ValueError, match=r"does not fit .*unexpected .*mlp\.up\.weight"):
        EaModel.from_pretrained(base_model_path=on_disk / "base", ea_model_path=tmp_path)


def test_a_single_file_target_loads(on_disk):
    assert not (on_disk / "base" / "model.safetensors.index.json").exists()
    assert load(on_disk).eagenerate([[5, 6, 7]], max_new_tokens=3).shape == (1, 6)


@pytest.mark.parametrize("name", ["qwen2", "mixtral"])
def test_qwen2_and_mixtral_take_eagle3_heads(tmp_path, name):
    base = base_model(name)
    ids, mask = prompts(base, 1)
    out = ea_model(tmp_path, name, "eagle3").eagenerate(ids, max_new_tokens=15)
    assert torch.equal(out, generate_ids(base, ids, mask, 15))


def test_a_head_with_llama3_rope_and_explicit_head_dim_loads(tmp_path):
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    base = base_model("llama")
    model = ea_model(tmp_path, "llama", "eagle3", head_fields={"head_dim": 16, "rope_parameters": rope})
    assert model.ea_layer.head.rotary_emb.rope_type == "llama3"
    ids, mask = prompts(base, 1)
    assert torch.equal(model.eagenerate(ids, max_new_tokens=15), generate_ids(base, ids, mask, 15))


def test_a_shallow_target_is_refused_in_words_or_told_its_taps(tmp_path):
    config = AutoConfig.for_model("llama", **{**SMALL, "num_hidden_layers": 4})
    base = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(ValueError, match=r"4 layers; the default .* needs at least 7"):
        ea_model(tmp_path, base, "eagle3")
    model = ea_model(tmp_path, base, "eagle3", head_fields={"tap_layers": [0, 1, 3]})
    ids, mask = prompts(base, 1)
    assert torch.equal(model.eagenerate(ids, max_new_tokens=15), generate_ids(base, ids, mask, 15))


@pytest.mark.parametrize("name", ["granite", "stablelm", "starcoder2", "cohere2"])
def test_an_architecture_nobody_listed_runs_unmodified(tmp_path, name):
    config = AutoConfig.for_model(name, **SMALL)
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(config).eval()
    ids, mask = prompts(base, 3)
    want = generate_ids(base, ids, mask, 25)
    model = scripted(ea_model(tmp_path, base, "eagle"), want, ids.shape[1])
    assert torch.equal(model.eagenerate(ids, max_new_tokens=25, attention_mask=mask), want)
    assert model.stats.acceptance_length >= 1.5


def test_an_architecture_whose_tree_is_wrong_is_refused_with_the_numbers(tmp_path, monkeypatch):
    base = AutoModelForCausalLM.from_config(AutoConfig.for_model("granite", **SMALL)).eval()
    ea_model(tmp_path, base, "eagle")
    # The model loses the tree mask on its way to attention: every node sees its siblings.
    forward = base.model.forward
    monkeypatch.setattr(
        base.model, "forward", lambda *args, **kwargs: forward(*args, **{**kwargs, "attention_mask": None})
    )
    with pytest.raises(NotImplementedError, match=r"differ from single forwards by [\d.]+ where rounding explains"):
        ea_model(tmp_path, base, "eagle")


def test_the_tree_mask_does_not_stay_on_the_base_model(tmp_path):
    base = base_model("llama")
    ids, mask = prompts(base, 1)
    before = base(ids).logits
    model = ea_model(tmp_path)
    stream = model.ea_generate(ids, max_new_tokens=20)
    for _ in range(3):
        next(stream)
        assert torch.equal(base(ids).logits, before)
    assert torch.equal(list(stream)[-1], generate_ids(base, ids, mask, 20))


def test_every_layer_s_cache_has_its_own_buffers(tmp_path):
    model = ea_model(tmp_path)
    cache = model.target.new_cache(1, 32, [0])
    model.target.prefill_logits(prompts(model.base_model, 1)[0], None, cache)
    places = [buffer.data_ptr() for layer in cache.layers for buffer in (layer.keys, layer.values)]
    assert len(set(places)) == len(places) == 2 * len(model.target.layers)


def test_the_tokenizer_is_a_fast_one_and_loads_on_first_use(on_disk):
    model = load(on_disk)
    assert model._tokenizer is None
    assert model.get_tokenizer().is_fast and model.tokenizer is model.get_tokenizer()


def test_is_llama3_also_stops_at_eot(on_disk):
    model = load(on_disk)
    ids, mask = prompts(model.base_model, 1)
    free = generate_ids(model.base_model, ids, mask, 30)[0, ids.shape[1] :].tolist()
    model.tokenizer.convert_tokens_to_ids = lambda token: {"<|eot_id|>": free[5]}[token]
    out = model.eagenerate(ids, max_new_tokens=30, is_llama3=True)
    assert out[0, ids.shape[1] :].tolist() == free[: free.index(free[5]) + 1]


def test_the_reference_s_attributes_are_there(on_disk):
    model = load(on_disk, total_token=9, depth=2, top_k=4, threshold=0.5)
    layer = model.ea_layer
    assert (layer.total_tokens, layer.depth, layer.top_k, layer.threshold) == (8, 2, 4, 0.5)
    layer.total_tokens, layer.depth, layer.top_k, layer.threshold = 11, 3, 5, 1.0
    assert layer.tree.total_token == 12 and layer.tree.nodes == 12
    assert model.hidden_size == 32 and model.vocab_size == VOCABULARY and model.config is model.base_model.config
    assert model.eval() is model


def test_log_returns_counts_of_tokens_and_steps(tmp_path):
    base = base_model("llama")
    ids, mask = prompts(base, 1)
    want = generate_ids(base, ids, mask, 20)
    out, new, index = scripted(ea_model(tmp_path), want, ids.shape[1]).eagenerate(ids, max_new_tokens=20, log=True)
    assert torch.equal(out, want) and new == want.shape[1] - ids.shape[1]
    plain, plain_new, plain_index = ea_model(tmp_path).naivegenerate(ids, max_new_tokens=20, log=True)
    assert torch.equal(plain, want) and plain_new == new and plain_index == new - 1 > index


def test_total_token_minus_one_measures_and_chooses(tmp_path):
    model = ea_model(tmp_path, "llama", "eagle", total_token=-1, depth=5, top_k=8)
    assert 2 <= model.ea_layer.tree.total_token <= 60
    ids, mask = prompts(base_model("llama"), 1)
    assert torch.equal(model.eagenerate(ids, max_new_tokens=15), generate_ids(base_model("llama"), ids, mask, 15))


def test_a_head_from_a_bin_file_loads_without_executing_anything(on_disk, tmp_path):
    torch.save(load_file(on_disk / "eagle" / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text((on_disk / "eagle" / "config.json").read_text())
    model = EaModel.from_pretrained(base_model_path=on_disk / "base", ea_model_path=tmp_path)
    assert model.eagenerate([[5, 6, 7]], max_new_tokens=3).shape == (1, 6)
    torch.save({"layers.0.self_attn.q_proj.weight": PurePosixPath("x")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(Exception, match=r"it could run code"):
        EaModel.from_pretrained(base_model_path=on_disk / "base", ea_model_path=tmp_path)
