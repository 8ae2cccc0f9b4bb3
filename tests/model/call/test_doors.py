"""What harnesses and scripts of others ask of a model is there and means what it means for the base model."""

import importlib
import json
import re

import pytest
import torch
from architectures import base_model, prompts
from pairs import ea_model, random_head
from places import PAIR
from references import ends_at, generate_ids
from transformers import AutoTokenizer, DynamicCache

from eagle.evaluation import bench, spec_bench
from eagle.evaluation.prompts import read_prompts
from eagle.model import kv_cache, utils
from eagle.model.call.output import CACHE_NAME
from eagle.model.dialects.checkpoint import save_head
from eagle.model.sampling import Sampler


def test_a_forward_is_the_reference_s_tuple_and_has_the_base_model_s_attributes(tmp_path):
    model = ea_model(tmp_path)
    ids, _ = prompts(model.base_model, 1)
    outputs, hidden = model(ids)
    again = model(ids)
    assert torch.equal(again.logits, outputs.logits) and again[0].keys() == outputs.keys()
    assert hidden.shape == (*ids.shape, 3 * model.hidden_size)
    _, logits, _ = model(ids, output_orig=True)
    assert torch.equal(logits, model.base_model(ids).logits)
    with pytest.raises(AttributeError, match="wibble"):
        again.wibble  # noqa: B018


def test_what_a_transformers_model_answers_is_answered_by_the_base_model(tmp_path):
    model = ea_model(tmp_path)
    base = model.base_model
    assert model.name_or_path == model.base_model_name_or_path and model.main_input_name == base.main_input_name
    assert model.get_input_embeddings() is base.get_input_embeddings()
    assert model.get_output_embeddings() is base.get_output_embeddings()
    assert model.num_parameters() == base.num_parameters()
    assert model.get_memory_footprint() == base.get_memory_footprint()
    model.tie_weights()
    with pytest.raises(AttributeError, match="wibble"):
        model.wibble  # noqa: B018


def test_transition_scores_are_those_of_generate(tmp_path):
    model = ea_model(tmp_path)
    ids, mask = prompts(model.base_model, 1)
    asked = {"attention_mask": mask, "max_new_tokens": 9, "do_sample": False, "output_scores": True}
    asked |= {"return_dict_in_generate": True}
    scores = []
    for one in (model, model.base_model):
        output = one.generate(ids, **asked)
        scores.append(one.compute_transition_scores(output.sequences, output.scores, normalize_logits=True))
    torch.testing.assert_close(*scores)


@pytest.mark.parametrize("name", ["llama", "gemma2", "mistral", "gpt2"])
@pytest.mark.parametrize("batch", [1, 3])
def test_the_returned_cache_goes_on_where_generate_s_does(tmp_path, name, batch):
    model = ea_model(tmp_path, name)
    base = model.base_model
    ids, mask = prompts(base, batch)
    with ends_at(base, None):
        want = generate_ids(base, ids, mask, 24)
        asked = {"attention_mask": mask, "do_sample": False, "return_dict_in_generate": True}
        output = model.generate(ids, max_new_tokens=12, **asked)
        cache = output.get(CACHE_NAME)
        if batch > 1:
            assert cache is None or cache.get_seq_length() == output.sequences.shape[1] - 1
        if cache is not None:
            assert isinstance(cache, DynamicCache)
            model.generate(ids.flip(1), max_new_tokens=12, **asked)  # which may use the last call's buffers again
            longer = torch.nn.functional.pad(mask, (0, 12), value=1)
            more = base.generate(
                output.sequences, attention_mask=longer, max_new_tokens=12, do_sample=False, **{CACHE_NAME: cache}
            )
            assert torch.equal(more, want)
        assert cache is not None or batch > 1
        assert torch.equal(model.generate(ids, max_new_tokens=24, **asked).sequences, want)


def test_the_last_number_of_naivegenerate_is_that_of_its_last_token(tmp_path):
    model = ea_model(tmp_path)
    ids, _ = prompts(model.base_model, 1)
    for new in (1, 7):
        assert model.naivegenerate(ids, max_new_tokens=new, log=True)[1:] == (new, new - 1)


def test_is_llama3_without_its_token_stops_at_what_there_is(tmp_path):
    model = ea_model(tmp_path)
    model._tokenizer = AutoTokenizer.from_pretrained(PAIR / "target")
    ids, mask = prompts(model.base_model, 1)
    want = generate_ids(model.base_model, ids, mask, 9)
    assert torch.equal(model.eagenerate(ids, max_new_tokens=9, is_llama3=True), want)


# --- names of the reference


def test_names_that_scripts_import_are_there():
    assert utils.torch is torch
    assert kv_cache.initialize_past_key_values(object()) == (None, None, None)
    utils.reset_tree_mode(object())
    refused = [name for name in utils.__all__ if name not in ("torch", "prepare_logits_processor", "reset_tree_mode")]
    assert len(refused) == 5
    for name in refused:
        with pytest.raises(NotImplementedError, match=f"{name} has no counterpart .*: use "):
            getattr(utils, name)(1, two=3)


@pytest.mark.parametrize(
    "settings",
    [{"temperature": 0.7}, {"temperature": 1.0, "top_p": 0.8}, {"temperature": 0.5, "top_k": 7, "top_p": 0.9}],
)
def test_prepared_processors_are_those_of_the_same_settings(tmp_path, settings):
    model = ea_model(tmp_path)
    ids, _ = prompts(model.base_model, 1)
    processors = utils.prepare_logits_processor(**settings)
    assert Sampler(processors, None).is_stateless
    torch.manual_seed(3)
    want = model.eagenerate(ids, max_new_tokens=12, **settings)
    torch.manual_seed(3)
    asked = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "logits_processor": processors}
    assert torch.equal(model.generate(ids, max_new_tokens=12, **asked), want)


# --- Spec-Bench


def test_spec_bench_gets_four_values_that_add_up_at_the_end_of_sequence_too(tmp_path):
    base = base_model("llama")
    ids, mask = prompts(base, 1)
    free = generate_ids(base, ids, mask, 30)[0, ids.shape[1] :].tolist()
    save_head(random_head(base, "eagle3"), tmp_path)
    model = spec_bench.EaModel(None, base, "none", str(tmp_path))

    class Inputs:
        input_ids = ids

    for end in (None, free[9]):
        with ends_at(base, end):
            output, new, step, lengths = spec_bench.ea_forward(Inputs, model, None, 20)
            assert torch.equal(output, generate_ids(base, ids, mask, 20))
            assert sum(lengths) == new == output.shape[1] - ids.shape[1] and len(lengths) == step
            assert len(model.naivegenerate(ids, max_new_tokens=5)) == 1


# --- prompts


def test_a_prompt_set_of_turns_is_asked_with_the_template_and_one_bos(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(PAIR / "target")
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}<a>"
    path, bos = tmp_path / "question.jsonl", tokenizer.bos_token_id
    asked = [{"role": "user", "content": "one"}]
    lines = [{"turns": ["one", "two"]}, {"messages": asked}, {"question": "one", "answer": "1"}, {"prompt": asked}]
    lines += [{"conversations": [{"from": "human", "value": "one"}, {"from": "gpt", "value": "1"}]}, {"text": "one"}]
    path.write_text("\n".join(map(json.dumps, lines)))
    turns, messages, *others, text = read_prompts(path, tokenizer, 9)
    assert (
        all(torch.equal(turns, other) for other in (messages, *others))
        and tokenizer.decode(turns[0, 1:]) == "<user>one<a>"
    )
    assert all((row == bos).sum() == 1 and int(row[0, 0]) == bos for row in (turns, messages, text))


@pytest.mark.parametrize(
    "line",
    ["{", "[]", "{}", '{"turns": []}', '{"turns": [1]}', '{"messages": "a"}', '{"messages": [3]}', '"a"', "[" * 9999],
)
def test_a_line_that_is_no_prompt_is_named(tmp_path, line):
    tokenizer = AutoTokenizer.from_pretrained(PAIR / "target")
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    path = tmp_path / "question.jsonl"
    path.write_text('{"text": "a"}\n' + line)
    if line == '{"messages": [3]}':
        tokenizer.chat_template = "{{ messages[0] + 'a' }}"
    with pytest.raises(ValueError, match=r"question\.jsonl line 2: "):
        read_prompts(path, tokenizer, 9)


@pytest.mark.parametrize("content", [b"", b"\n", '{"text": "caf\xe9"}'.encode("latin-1")])
def test_a_file_without_a_prompt_is_refused_by_name(tmp_path, content):
    tokenizer = AutoTokenizer.from_pretrained(PAIR / "target")
    (tmp_path / "q.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=r"q\.jsonl"):
        read_prompts(tmp_path / "q.jsonl", tokenizer, 9)


@pytest.mark.parametrize(
    ("options", "words", "code"),
    [
        (["--temperature", "nan"], "--temperature=nan must be at least 0", 2),
        (["--json", "/nowhere/at/all.json"], "there is no such folder", 2),
        (
            ["--base-model-path", str(PAIR / "eagle3_head"), "--ea-model-path", str(PAIR / "target")],
            "exchanged|no draft",
            1,
        ),
        (["--prompts", str(PAIR / "eagle.yaml")], "line 1", 1),
    ],
)
def test_bench_says_what_is_wrong_in_one_line(capsys, options, words, code):
    assert bench.main(options) == code
    assert re.search(words, capsys.readouterr().err.splitlines()[-1])


def test_a_question_without_a_chat_template_says_so(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(PAIR / "target")
    tokenizer.chat_template = None
    (tmp_path / "q.jsonl").write_text('{"turns": ["a"]}')
    with pytest.raises(ValueError, match="need a tokenizer with a chat template"):
        read_prompts(tmp_path / "q.jsonl", tokenizer, 9)


def test_flags_that_scripts_of_others_give_are_taken(tmp_path, capsys):
    main = importlib.import_module("eagle.train.main")
    with pytest.raises(SystemExit) as stopped:
        main.main(["--deepspeed", "--trust-remote-code", "--tmpdir", str(tmp_path), "--cpdir", str(tmp_path / "h")])
    assert "holds neither data.json nor features.json" in capsys.readouterr().err + str(stopped.value)
