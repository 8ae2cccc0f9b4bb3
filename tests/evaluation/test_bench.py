"""The harness: every method at every setting, times that add up, ratios and ids that can be wrong, early refusals."""

import gc
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from places import ROOT
from synthetic_pairs import synthetic_pair, synthetic_prompt
from tape import TapeBackend
from transformers import GenerationConfig

from eagle import cli
from eagle.evaluation import bench, curves, model_meter
from eagle.evaluation import measure as measuring
from eagle.evaluation.measure import Round, Row, emitted, measure
from eagle.evaluation.methods import Method, methods
from eagle.evaluation.model_meter import ModelMeter, PeakMemory
from eagle.evaluation.pairs import load_models, opened
from eagle.evaluation.plots import check_plotting
from eagle.evaluation.prompts import batched, of_length, random_prompts
from eagle.evaluation.report import parts_of, split_table, table
from eagle.model import draft_vocabulary
from eagle.model.graphs.pool import GraphPool
from eagle.model.stats import STAGES

NEW = 12
FAST = ["--max-new-token", str(NEW), "--rounds", "2", "--num-prompts", "2"]


@pytest.fixture(scope="module")
def pair():
    """Base and models of a tiny synthetic EAGLE-1/2 pair, on the CPU, where prompts of tests are."""
    with opened(bench.COMMAND.arguments(["--synthetic", "tiny", "--device", "cpu"])) as made:
        return made.base, load_models(made, [6], 2, 2)


def prompts(count=2, batch=1):
    return batched(random_prompts(count, 9, 256), batch)


def test_a_synthetic_pair_has_the_token_map_it_is_asked_for(monkeypatch):
    monkeypatch.setattr(draft_vocabulary, "_level_seconds", lambda *args: [1.0, 0.1])
    for options, size in (([], 256), (["--draft-vocabulary", "50"], 50)):
        for switch in ([], ["--no-token-map"]):
            with opened(bench.COMMAND.arguments(["--synthetic", "tiny", *options, *switch])) as made:
                models = load_models(made, [6], 2, 2)
            assert {model.ea_layer.head.draft_size for model in models.values()} == {256 if switch else size}


def hooks(*modules):
    tables = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_always_called")
    return sum(len(getattr(part, name)) for module in modules for part in module.modules() for name in tables)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A whole run of the command, two batch sizes and two prompt lengths: its folder and its document."""
    folder = tmp_path_factory.mktemp("bench")
    settings = ["--batch-sizes", "1", "2", "--prompt-lengths", "8", "24", "--total-token", "4", "-1", "--split"]
    outputs = ["--json", str(folder / "b.json"), "--plots", str(folder / "plots")]
    assert bench.main(["--synthetic", "tiny", *FAST, *settings, *outputs]) == 0
    return folder, json.loads((folder / "b.json").read_text())


def test_every_method_is_measured_at_every_batch_size_and_prompt_length(measured):
    _, document = measured
    batch_1 = ["generate", "plain decoding", "prompt lookup", "EAGLE-1", "EAGLE-2 [4]", "EAGLE-2 [auto]"]
    batch_2 = [name for name in batch_1 if name != "prompt lookup"]  # it runs one row at a time
    wanted = [(n, 1, length) for length in (8, 24) for n in batch_1]
    wanted += [(n, 2, length) for length in (8, 24) for n in batch_2]
    assert [(r["name"], r["batch_size"], r["prompt_length"]) for r in document["results"]] == wanted
    for row in document["results"]:
        assert row["ids_equal"] and row["tokens"] == 2 * NEW and row["speedup"] > 0
        assert len(row["seconds"]) == 2 and 0 < row["outside_share"] < 1
        assert row["peak_bytes"] > 1e7 and row["steps"] > 0
    by_name = {row["name"]: row for row in document["results"][:6]}
    assert by_name["generate"]["steps"] == by_name["plain decoding"]["steps"] == 2 * (NEW - 1)
    assert by_name["generate"]["acceptance_length"] is None
    assert by_name["EAGLE-2 [4]"]["acceptance_length"] > 2
    assert document["settings"]["synthetic"] == "tiny" and document["provenance"]["torch"] == torch.__version__


def test_the_parts_of_a_step_add_up_to_it(measured):
    for row in measured[1]["results"]:
        if row["name"] in ("generate", "prompt lookup"):
            # What a forward gave is seen of both, and how long one took of neither; generate is not watched at all.
            assert row["step_ms"] == {} and (row["prefill_ms"] is None) == (row["name"] == "generate")
            continue
        assert set(row["step_ms"]) == {*STAGES, "host"} and min(row["step_ms"].values()) >= 0
        middle = sorted(row["rounds"], key=lambda one: one["total"])[0]
        assert sum(row["step_ms"].values()) * row["steps"] == pytest.approx(1000 * middle["decode"])
        assert 0 < middle["prefill"] + middle["decode"] <= middle["total"]


def test_pictures_are_drawn_of_what_was_varied(measured):
    from matplotlib.image import imread

    folder, _ = measured
    names = sorted(path.name for path in (folder / "plots").iterdir())
    assert names == ["speedup_over_batch.png", "speedup_over_prompt.png", "split.png"]
    for name in names:
        height, width, _ = imread(folder / "plots" / name).shape
        assert 300 < height < 2500 and 400 < width < 2500
        assert imread(folder / "plots" / name).std() > 0.02  # something is drawn


class Elsewhere:
    """A model on another device, which says where it was given ids and mask."""

    device = torch.device("meta")
    generation_config = GenerationConfig(eos_token_id=1)

    def generate(self, ids, attention_mask, **_):
        return ids.device, attention_mask.device


def test_prompts_go_to_where_the_model_is(pair):
    (generate,) = methods(Elsewhere(), pair[1], chosen=["generate"])[:1]
    assert generate.run(prompts()[0], NEW) == (Elsewhere.device, Elsewhere.device)


def test_a_method_that_returns_other_ids_is_found_out(pair):
    base, models = pair
    honest = methods(base, models)

    def lie(prompt, new):
        out = honest[-1].run(prompt, new)
        out[-1, -1] = 1 + out[-1, -1] % 200
        return out

    rows = measure([*honest, replace(honest[-1], name="liar", run=lie)], prompts(), NEW, 1)
    assert [row.ids_equal for row in rows] == [True] * len(honest) + [False]
    assert table(rows).splitlines()[-1].startswith("liar") and table(rows).endswith("no")


class Clock:
    """Time that passes only where a test says so."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


def slow(name, seconds, log=None, clock=None):
    """A method that takes its time by a clock; `seconds` are those of the warm-up and of every round."""
    clock = clock or Clock()
    times = iter(seconds)

    def run(prompt, new):
        if log is not None:
            log.append((name, int(prompt.ids_BS[0, 1])))
        clock.now += next(times)
        return torch.cat([prompt.ids_BS, prompt.ids_BS[:, :1].repeat(1, new)], 1)

    return Method(name, run, lambda prompt, new, told: run(prompt, new), lambda: None)


def test_the_ratio_is_to_the_faster_baseline_of_the_same_round(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(measuring, "time", clock)
    chosen = [
        slow("generate", [0, 20, 80, 80], clock=clock),
        slow("plain decoding", [0, 80, 40, 80], clock=clock),
        slow("EAGLE-2", [0, 20, 20, 20], clock=clock),
    ]
    rows = measure(chosen, prompts(1), 4, 3)
    # Against the rounds' faster baselines, 20, 40 and 80, not against one baseline's median.
    assert rows[2].speedup == 2.0
    assert rows[0].speedup == 1.0


def test_rounds_alternate_between_methods_after_a_warm_up_of_each():
    log = []
    chosen = [slow("generate", [0] * 5, log), slow("other", [0] * 5, log)]
    both = prompts(2)
    a, b = (int(prompt.ids_BS[0, 1]) for prompt in both)
    measure(chosen, both, 4, 2)
    once = [("generate", a), ("generate", b), ("other", a), ("other", b)]
    assert log == [("generate", a), ("other", a), *once, *once]


def test_hooks_stand_only_while_a_meter_is_attached(pair):
    base, models = pair
    heads = [model.ea_layer.head for model in models.values()]
    before = hooks(base, *heads)
    meter = ModelMeter(base, models.values())
    with pytest.raises(RuntimeError, match="halfway"), meter.attached():
        assert hooks(base, *heads) > before
        raise RuntimeError("halfway")
    measure(methods(base, models), prompts(), NEW, 1, meter=meter)
    assert hooks(base, *heads) == before


def test_replayed_steps_have_their_stages_in_the_table(tmp_path):
    model = synthetic_pair(tmp_path, "eagle3", total_token=14, top_k=4)
    model.graphs = GraphPool(TapeBackend(), 128)
    rows = measure(methods(model.base_model, {"EAGLE-2": model}), batched([synthetic_prompt()]), NEW, 1)
    stages = {row.name: {name for name, ms in row.step_ms.items() if ms > 0} for row in rows}
    assert stages["EAGLE-2"] >= {"replay", "read"}
    assert {"replay", "read"} <= set(split_table(rows).splitlines()[0].split())
    assert parts_of(rows[:1]) == [*STAGES, "host"]


def test_a_meter_counts_outermost_calls_once(pair):
    base, models = pair
    meter, ids = ModelMeter(base, models.values()), torch.ones(1, 4, dtype=torch.int64)
    with meter.attached(), torch.no_grad():
        started = time.perf_counter()
        base(ids)
        base.get_output_embeddings()(base.get_input_embeddings()(ids))
        wall = time.perf_counter() - started
    assert meter.forwards == 1 and 0.5 * wall < meter.inside_seconds <= wall


def test_work_between_the_models_is_seen_as_outside(pair):
    base, models = pair
    plain = methods(base, models)[1]
    shares, meter = [], ModelMeter(base, models.values())
    for pause in (0.0, 0.05):

        def generate(prompt, new, told, pause=pause):
            out = plain.watch(prompt, new, told)
            time.sleep(pause)
            return out

        idle = Method("generate", plain.run, generate, lambda: None)
        (row,) = measure([idle], prompts(1), NEW, 1, meter=meter)
        shares.append(row.outside_share)
    assert shares[1] > shares[0] + 0.2


@pytest.mark.parametrize("is_kept", [True, False], ids=["kept by Linux", "looked at"])
def test_peak_memory_sees_what_was_held_for_a_moment(is_kept, monkeypatch):
    if not is_kept:
        monkeypatch.setattr(model_meter, "FORGET", Path("/nowhere/at/all"))
    elif not model_meter.FORGET.exists():
        pytest.skip("this system does not keep it")
    gc.collect()  # what other tests have left would be given back while this one looks
    with PeakMemory(torch.device("cpu")) as before:
        time.sleep(0.02)
    with PeakMemory(torch.device("cpu")) as after:
        held = torch.ones(50_000_000)  # 200 MB
        # Whoever looks every few milliseconds may have to wait for his turn on a busy machine.
        time.sleep(0.0 if is_kept else 0.5)
        del held
    assert after.bytes - before.bytes > 150e6


def test_sampled_ids_equal_generate_s_under_one_seed(pair):
    base, models = pair
    rows = measure(methods(base, models, temperature=1.0), prompts(2, batch=2), NEW, 2, seed=7)
    assert all(row.ids_equal for row in rows)


def test_a_row_s_tokens_are_counted_up_to_its_end():
    assert [emitted(row, frozenset({7, 8})) for row in ([1, 2, 3], [1, 7, 7], [8, 0, 0])] == [3, 2, 1]


def test_prompts_are_cut_or_continued_to_a_length_and_padded_on_the_left():
    rows = [torch.tensor([[0, 5, 6, 7]]), torch.tensor([[0, 8]])]
    assert [row.tolist() for row in of_length(rows, 3, bos=0)] == [[[0, 5, 6]], [[0, 8, 5]]]
    assert of_length(rows, 7, bos=0)[1].tolist() == [[0, 8, 5, 6, 7, 8, 5]]
    (prompt,) = batched(rows, 2, pad=9)
    assert prompt.ids_BS.tolist() == [[0, 5, 6, 7], [9, 9, 0, 8]]
    assert prompt.mask_BS.tolist() == [[1, 1, 1, 1], [0, 0, 1, 1]]
    assert [len(one.ids_BS) for one in batched(rows * 2, 3)] == [3, 3]


def test_padded_batches_give_generate_s_ids(pair):
    base, models = pair
    rows = [*random_prompts(1, 5, 256, 1), *random_prompts(1, 11, 256, 2)]
    measured = measure(methods(base, models), batched(rows, 2), NEW, 1)
    assert all(row.ids_equal and row.tokens == 2 * NEW for row in measured)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--rounds", "0"], "--rounds=0 must be at least 1"),
        (["--batch-sizes", "1", "0"], "--batch-sizes=0 must be at least 1"),
        (["--batch-sizes", "2", "2"], "--batch-sizes names something twice"),
        (["--total-token", "1"], "total_token=1 must be at least 2"),
        (["--temperature", "-0.5"], "--temperature=-0.5 must be at least 0"),
        (["--methods", "plain", "eagle2"], "--methods must hold generate"),
        (["--methods", "beams"], "'beams' is not one of 'generate'"),
        (["--methods", "generate", "eagle3", "--synthetic", "tiny"], "eagle3 does not go with --kind eagle"),
        (["--synthetic", "5b"], "'5b' is not one of 'tiny'"),
        (["--noise", "0.1"], "--noise shapes a synthetic pair: add --synthetic"),
        (["--synthetic", "tiny", "--noise", "-1"], "--noise=-1.0 must be at least 0"),
        (["--draft-vocabulary", "9"], "--draft-vocabulary shapes a synthetic pair: add --synthetic"),
        (["--synthetic", "tiny", "--draft-vocabulary", "256"], "must be at most 255"),
        (["--synthetic", "tiny", "--kind", "eagle3", "--draft-vocabulary", "256"], "must be at most 255"),
        (["--synthetic", "tiny", "--base-model-path", "here"], "--synthetic makes both models"),
        (["--ea-model-path", "here"], "--ea-model-path needs its base: add --base-model-path"),
        (["--base-model-path", "here", "--compile"], "speed up a pair: add --ea-model-path"),
        (["--prompts", "nowhere.jsonl"], "--prompts=nowhere.jsonl is not a file"),
    ],
)
def test_bad_options_are_refused_before_anything_is_loaded(options, words, monkeypatch, capsys):
    monkeypatch.setattr(bench, "opened", lambda *args: pytest.fail("loading began"))
    monkeypatch.chdir(ROOT)
    assert bench.main(options) == 2
    assert words in " ".join(capsys.readouterr().err.split())


def test_more_tokens_than_the_target_has_positions_are_refused_before_measuring(monkeypatch, capsys):
    monkeypatch.setattr(bench, "measure", lambda *_, **__: pytest.fail("measuring began"))
    assert bench.main(["--synthetic", "tiny", "--prompt-lengths", "4093", "--max-new-token", "12"]) == 1
    assert "4105 tokens, the base model has 4096 positions" in capsys.readouterr().err


def test_pictures_without_matplotlib_name_the_extra(monkeypatch, capsys):
    monkeypatch.setattr("eagle.evaluation.plots.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'eagle-decoding\[plots\]'"):
        check_plotting()
    assert bench.main(["--synthetic", "tiny", "--plots", "anywhere"]) == 2
    assert "eagle-decoding[plots]" in capsys.readouterr().err


def test_tables_are_aligned_and_show_dashes_for_what_nobody_measured():
    timed = Row("EAGLE-2 [auto]", batches=1, tokens=20, steps=5, row_steps=5, accepted=10, speedup=1.5)
    timed.rounds = [Round(0.5, 0.1, 0.4, dict.fromkeys(STAGES, 0.09))]
    rows = [Row("generate", 8, 512, batches=1, tokens=20, speedup=1.0, rounds=[Round(1.0)]), timed]
    lines = table(rows).splitlines()
    assert " ".join(lines[0].split()) == "method batch prompt tokens steps τ tokens/s speed-up ids equal"
    assert [line.index("x") for line in lines[1:]] == [lines[0].index("speed-up") + len("speed-up") - 1] * 2
    assert lines[1].split() == ["generate", "8", "512", "20", "–", "–", "20.0", "1.00x", "yes"]
    assert lines[2].split() == ["EAGLE-2", "[auto]", "1", "as", "is", "20", "5", "3.00", "40.0", "1.50x", "yes"]
    figures = split_table(rows).splitlines()[2].split()
    assert figures[5:] == ["100.0", "18.00", "18.00", "18.00", "18.00", "8.00", "80.00", "–"]


def test_curves_vary_one_setting_at_a_time(tmp_path, capsys):
    from matplotlib.image import imread

    sweeps = [
        "--total-tokens",
        "1",
        "6",
        "--depths",
        "1",
        "3",
        "--batch-sizes",
        "1",
        "2",
        "--context-lengths",
        "8",
        "40",
    ]
    outputs = ["--json", str(tmp_path / "c.json"), "--plots", str(tmp_path)]
    fixed = ["--context-length", "16", "--steps", "4", "--rounds", "2"]
    assert cli.main(["curves", "--synthetic", "tiny", "--kind", "eagle3", *sweeps, *fixed, *outputs]) == 0
    points = json.loads((tmp_path / "c.json").read_text())["points"]
    assert [(p["swept"], p["value"]) for p in points] == [
        ("total_token", 1), ("total_token", 6), ("depth", 1), ("depth", 3),
        ("batch", 1), ("batch", 2), ("context", 8), ("context", 40),
    ]  # fmt: skip
    assert [p["nodes"] for p in points[:2]] == [1, 6]
    for point in points:
        assert len(point["steps"]) == 2 and point["verify_ms"] > 0
        assert point["draft_ms"] + point["verify_ms"] <= point["step_ms"] * 1.05
    by_depth = {p["value"]: p["draft_ms"] for p in points if p["swept"] == "depth"}
    assert by_depth[3] > by_depth[1] > points[0]["draft_ms"]  # more forwards of the head; plain decoding has none
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(points) + 1
    height, width, _ = imread(tmp_path / "curves.png").shape
    assert height > 600 and width > 900


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--steps", "0"], "--steps=0 must be at least 1"),
        (["--total-token", "-1"], "--total-token=-1 must be at least 2"),
        (["--depths", "-1"], "depth=-1 must be 0 or more"),
        (["--base-model-path", "a", "--ea-model-path", "b", "c"], "one head at a time"),
    ],
)
def test_curves_refuse_bad_options_before_loading(options, words, monkeypatch, capsys):
    monkeypatch.setattr(curves, "opened", lambda *args: pytest.fail("loading began"))
    monkeypatch.chdir(ROOT)
    assert curves.main(options) == 2
    assert words in capsys.readouterr().err


def test_the_command_s_help_loads_no_torch():
    code = "import sys; from eagle.cli import main\nmain(['--help'])\nassert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(word in done.stdout for word in ("doctor", "bench", "curves"))
