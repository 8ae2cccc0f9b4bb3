"""The scripts in examples/ run as they are, and say what `generate` says."""

import importlib.util
import json
import re

import pytest
import torch
from places import PAIR, ROOT
from streams import tokenizer
from transformers import AutoModelForCausalLM

from eagle import EaModel

EXAMPLES = ROOT / "examples"
NAMES = ("batch", "streaming", "quantised", "multi_gpu", "structured_output", "export_to_vllm")
PROMPT = "def read_lines(path):\n    "


def script(name):
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def base():
    return AutoModelForCausalLM.from_pretrained(PAIR / "target", dtype=torch.float32)


@pytest.fixture
def shared(base, monkeypatch):
    """Let scripts load the pair once, in fp32, where ids are exact; small fixed trees need no measurements."""

    def load(*paths, base_model_path=None, ea_model_path=None, total_token=12, **options):
        head = ea_model_path or paths[2]
        assert (base_model_path or paths[1]) == str(PAIR / "target")
        return EaModel.attach(base, head, total_token=12 if total_token == -1 else total_token)

    monkeypatch.setattr(EaModel, "from_pretrained", load)


def continued(base, text, **keywords):
    ids = tokenizer()(text, return_tensors="pt").input_ids
    out = base.generate(ids, attention_mask=torch.ones_like(ids), **keywords)
    return tokenizer().decode(out[0, ids.shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize("name", NAMES)
def test_a_script_is_short_and_says_how_it_is_run(name, capsys):
    lines = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8").splitlines()
    assert len(lines) < 60 and any(f"python examples/{name}.py" in line for line in lines[:6])
    with pytest.raises(SystemExit) as left:
        script(name).main(["--help"])
    assert left.value.code == 0 and "--ea-model-path" in capsys.readouterr().out


def test_answers_of_a_batch_are_those_of_each_prompt_alone_in_the_file_s_order(shared, base, tmp_path, capsys):
    out = tmp_path / "deep" / "answers.jsonl"
    arguments = ["--num-prompts", "4", "--batch-size", "3", "--max-new-tokens", "16", "--out", str(out)]
    assert script("batch").main(arguments) == 0
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    prompts = [json.loads(line)["text"] for line in (PAIR / "prompts.jsonl").open(encoding="utf-8")][:4]
    assert [row["text"] for row in rows] == prompts
    assert [row["answer"] for row in rows] == [continued(base, text, max_new_tokens=16) for text in prompts]
    assert "4 of 4" in capsys.readouterr().out


def test_a_streamed_answer_is_whole_and_one_that_is_closed_runs_no_further(shared, base, capsys):
    assert script("streaming").main(["--max-new-tokens", "32"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(PROMPT + continued(base, PROMPT, max_new_tokens=32) + "\n\n32 tokens in ")
    (stopped,) = re.findall(r"stopped by hand after (\d+) tokens", printed)
    assert 1 < int(stopped) < 30


@pytest.mark.parametrize(
    ("scheme", "library"),
    [("torchao-int8", "torchao"), pytest.param("bnb-nf4", "bitsandbytes", marks=pytest.mark.nightly)],
)
def test_a_quantised_base_is_smaller_and_says_what_it_says_alone(scheme, library, capsys):
    pytest.importorskip(library)
    assert script("quantised").main(["--scheme", scheme]) == 0
    printed = capsys.readouterr().out
    small, large = map(float, re.findall(r"([\d.]+) MB", printed))
    assert small < 0.5 * large and (scheme != "torchao-int8" or "ids equal: yes" in printed)
    assert float(re.findall(r"τ = ([\d.]+)", printed)[0]) > 2


def test_without_gpus_everything_is_said_to_be_on_the_cpu(on_cpu, monkeypatch, shared, base, capsys):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert script("multi_gpu").main(["--max-new-tokens", "16"]) == 0
    printed = capsys.readouterr().out
    assert "no GPU is used" in printed and "{'cpu': 14}" in printed and "the head is on cpu" in printed
    assert PROMPT + continued(base, PROMPT, max_new_tokens=16) in printed
    with pytest.raises(SystemExit):
        script("multi_gpu").main(["--gpus", "2"])
    assert "--gpus=2: this machine has 0" in capsys.readouterr().err


def test_a_structured_answer_has_the_form_and_is_the_one_that_the_page_shows(shared, capsys):
    assert script("structured_output").main([]) == 0
    printed = capsys.readouterr().out
    answer = json.loads(printed.splitlines()[0])
    assert isinstance(answer["name"], str) and isinstance(answer["lines"], int)
    assert f"```text\n{printed}```" in (ROOT / "docs" / "examples.md").read_text(encoding="utf-8")


def test_a_form_holds_for_every_row_of_a_sampled_batch(base):
    model = EaModel.attach(base, PAIR / "eagle3_head", total_token=12)
    ids = tokenizer()([PROMPT] * 3, return_tensors="pt").input_ids
    form = script("structured_output").Pattern("[a-c]{2,9}x", tokenizer(), base.config.vocab_size, ids.shape[1])
    given = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 16, "do_sample": True, "top_k": 0}
    given["logits_processor"] = [form]
    torch.manual_seed(2)
    want = base.generate(ids, **given)
    torch.manual_seed(2)
    assert torch.equal(model.generate(ids, **given), want)
    texts = tokenizer().batch_decode(want[:, ids.shape[1] :], skip_special_tokens=True)
    assert all(re.fullmatch("[a-c]{2,9}x", text) for text in texts) and len(set(texts)) > 1


def test_an_exported_head_is_what_vllm_reads_and_comes_with_its_command(shared, tmp_path, capsys):
    out = tmp_path / "head"
    assert script("export_to_vllm").main(["--out", str(out), "--num-speculative-tokens", "4"]) == 0
    assert "speculators_model_type" in json.loads((out / "config.json").read_text())
    printed = capsys.readouterr().out
    (settings,) = re.findall(r"--speculative-config '(.*)'", printed)
    assert json.loads(settings) == {"method": "eagle3", "model": str(out), "num_speculative_tokens": 4}


def test_the_page_on_examples_names_every_one_and_links_to_what_is_there():
    page = (ROOT / "docs" / "examples.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page)
    assert all((ROOT / "docs" / link).exists() for link in links), links
    linked = {(ROOT / "docs" / link).resolve() for link in links}
    assert linked >= {*EXAMPLES.glob("*.py"), *EXAMPLES.glob("notebooks/*.ipynb"), EXAMPLES / "custom_generate"}
