"""`total_token=-1`: trees by expected tokens per second change no id; every tree equals the oracle's of its shape."""

import json
import logging
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from architectures import base_model, prompts
from drafted import assert_same_tree, drafted, generation, oracle_for
from oracle import oracle_dynamic
from pairs import ea_model
from references import generate_ids, uncached_features
from rotary import SWITCH, rotary_model
from scripted import answering, is_tree
from synthetic_pairs import synthetic_pair, synthetic_prompt
from transformers.utils import logging as logging_of

from eagle.model.adaptive import adaptation, cost_file, profile
from eagle.model.adaptive.confidence_chooser import ConfidenceMemory
from eagle.model.adaptive.costs import Costs
from eagle.model.adaptive.shape_chooser import ShapeChooser, ShapeMemory
from eagle.model.adaptive.trees import POOL, Found, Shapes, best_candidates
from eagle.model.call.prepare import prepare
from eagle.model.configs import TreeConfig, tree_config
from eagle.model.decoding import Generation, decode
from eagle.model.draft_state import RING, Observed, merged
from eagle.model.step import StepOutcome
from eagle.model.support import measurements
from eagle.model.tree import Candidates, from_parents
from eagle.model.verify import HostAcceptance

LIMIT = TreeConfig(total_token=24, depth=4, top_k=4)
FREE = Costs((64,), (1, 2), ((1.0, 1.0),), (1,), ((0.0,),), ((0.0,),))  # a tree costs what its root does
NEW = 40


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


class Restless(ShapeChooser):
    """Goes through all shapes in turn, and now and then decodes plainly."""

    turn = 0

    def next(self, context):
        Restless.turn += 1
        return None if self.turn % 5 == 0 else self.shapes.trees[37 * self.turn % len(self.shapes.trees)]


def chooser(kind=ShapeChooser, cost=FREE, limit=LIMIT):
    return kind(Shapes(limit), cost, ShapeMemory())


def running(model, ids, mask, kind=Restless, **arguments):
    arguments = {"input_ids": ids, "attention_mask": mask, "max_new_tokens": NEW, "do_sample": False, **arguments}
    request = prepare(model.base_model, model.target, arguments, lambda: model.tokenizer)
    return Generation(model.target, model.ea_layer, request, model._taps, chooser=chooser(kind))


@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("sampled", [False, True])
def test_trees_of_changing_shape_equal_the_oracle_s_and_ids_generate_s(tmp_path, kind, batch, sampled):
    model = ea_model(tmp_path, "llama", kind, total_token=24, depth=4, top_k=4)
    ids, mask = prompts(model.base_model, batch)
    sampling = {"do_sample": True, "top_k": 0} if sampled else {}
    generation, compared, before = running(model, ids, mask, **sampling), 0, [[] for _ in ids]
    torch.manual_seed(3)
    for step in decode(generation):
        if step.tree is not None and step.tree.size > 1 and max(map(len, before)) < NEW - LIMIT.levels:
            shape = generation.stream.draft_state.tree
            for index, row in enumerate(step.tree_rows):
                known = torch.cat([ids[row, int((mask[row] == 0).sum()) :], torch.tensor(before[row])])
                features = uncached_features(model.base_model, known[:-1], model._taps).float()
                sizes = {"total_token": shape.nodes, "depth": shape.depth, "top_k": shape.top_k}
                assert is_tree(step.tree, index)
                want = oracle_dynamic(oracle_for(model), known.tolist(), features, **sizes)
                assert_same_tree(drafted(step.tree, index), want)
                compared += 1
        before = [list(new) for new in generation.rows.new]
        if any(reason is not None for reason in generation.rows.finished):
            break
    for _ in decode_rest(generation):
        pass
    assert compared >= 8
    want = generate_ids(model.base_model, ids, mask, NEW, seed=3 if sampled else None)
    got = generation.rows.ids()
    assert torch.equal(got, want[:, : got.shape[1]]) and got.shape == want.shape


def decode_rest(generation):
    while not generation.is_done:
        with torch.no_grad():
            yield generation.step()


@pytest.mark.parametrize("name", ["llama", "gemma2", "qwen3_moe", "gpt2"])
@pytest.mark.parametrize("batch", [1, 3])
def test_accepted_tokens_survive_every_change_of_shape(name, batch, tmp_path):
    model = ea_model(tmp_path, name, total_token=-1, depth=3, top_k=3)
    ids, mask = prompts(model.base_model, batch)
    for seed in (None, 5):
        torch.manual_seed(5)
        sampling = {} if seed is None else {"do_sample": True, "top_k": 0}
        got = model.generate(ids, attention_mask=mask, max_new_tokens=30, **{"do_sample": False, **sampling})
        assert torch.equal(got, generate_ids(model.base_model, ids, mask, 30, seed=seed))


@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
def test_a_perfect_head_grows_deep_trees_and_a_useless_one_none(tmp_path, kind, monkeypatch):
    cost = Costs((64,), (1, 60), ((1.0, 1.5),), (1, 10), ((0.1, 0.1),), ((0.05, 0.05),))
    monkeypatch.setattr(adaptation, "costs_of", lambda *_: cost)
    lengths = {}
    for noise in (0.0, 30.0):
        model = synthetic_pair(tmp_path / str(noise), kind, noise, total_token=-1, top_k=4)
        ids = synthetic_prompt()
        for _ in range(2):
            out = model.eagenerate(ids, max_new_tokens=200)
        assert torch.equal(out, generate_ids(model.base_model, ids, torch.ones_like(ids), 200))
        lengths[noise] = model.stats
    assert lengths[0.0].acceptance_length > 5
    # The second generation begins where the first has ended: plainly, but for a look and its probes.
    assert 0 < lengths[30.0].drafted < 400 and lengths[30.0].steps > 190
    assert sum(lengths[30.0].accepted_per_step) < 10


def test_plain_steps_keep_their_features_for_the_head(tmp_path):
    """After many plain steps the next tree is what it would have been without them."""
    model = ea_model(tmp_path, "llama", "eagle3", total_token=10, depth=3, top_k=3)
    ids, _ = prompts(model.base_model, 1)

    class Sleeper(ShapeChooser):
        turn = 0

        def next(self, context):
            self.turn += 1
            return model.ea_layer.tree if self.turn in (1, 31) else None

    request = prepare(
        model.base_model, model.target, {"input_ids": ids, "max_new_tokens": 60, "do_sample": False}, None
    )
    sleeping = Generation(
        model.target, model.ea_layer, request, model._taps, chooser=chooser(Sleeper, limit=model.ea_layer.tree)
    )
    steps = decode(sleeping)
    for _ in range(31):
        next(steps)
    assert len(sleeping.stream.draft_state.pending) == 29 + 1
    known = torch.cat([ids[0], torch.tensor(sleeping.rows.new[0])])
    late = next(steps).tree
    fresh = decode(generation(model, known[None, :-1]))
    next(fresh)
    assert_same_tree(drafted(late, 0), drafted(next(fresh).tree, 0))


def test_the_ring_never_holds_more_than_its_size(tmp_path):
    model = ea_model(tmp_path, base_model("llama"), total_token=10)
    state = model.ea_layer.start(1, 400, [0])
    width = 3 * model.hidden_size
    for _ in range(2 * RING):
        if state.cache.lengths[0] + sum(len(s.tokens_BA[0]) for s in state.pending) >= 390:
            break
        model.ea_layer.observe(state, torch.randn(1, 1, width), torch.tensor([[5]]), [1])
        assert sum(seen.tokens_BA.shape[1] for seen in state.pending) <= RING
    assert state.cache.lengths[0] >= RING


def test_merged_observations_put_every_row_s_real_entries_first():
    first = Observed(torch.tensor([[[1.0], [9.0]], [[2.0], [3.0]]]), torch.tensor([[1, 9], [2, 3]]), [1, 2])
    second = Observed(torch.tensor([[[4.0]], [[9.0]]]), torch.tensor([[4], [9]]), [1, 0])
    both = merged([first, second])
    assert both.counts == [2, 2]
    assert both.tokens_BA[:, :2].tolist() == [[1, 4], [2, 3]]
    assert both.features_BAF[:, :2, 0].tolist() == [[1, 4], [2, 3]]


def gained_by_hand(candidates, shape, emitted):
    """Walk the emitted tokens through the nodes that a smaller tree would hold, one candidate after another."""
    scores, parents, tokens = (
        a[0].tolist() for a in (candidates.scores_BM, candidates.parents_BM, candidates.tokens_BM)
    )
    width, depth, rank = candidates.width, {}, {}
    for number, parent in enumerate(parents):
        own = number if number < width else (number - width) % width
        depth[number] = 1 if parent < 0 else depth[parent] + 1
        rank[number] = own if parent < 0 else max(own, rank[parent])
    order = sorted(range(len(scores)), key=lambda number: (-scores[number], number))
    kept = [n for n in order if depth[n] <= shape.depth + 1 and rank[n] < shape.top_k][: shape.total_token - 1]
    node, gained = -1, 0
    for token in emitted:
        node = next((n for n in kept if parents[n] == node and tokens[n] == token), None)
        if node is None:
            break
        gained += 1
    return gained


def real_candidates(tmp_path):
    model = ea_model(tmp_path, "llama", "eagle3", total_token=24, depth=4, top_k=4)
    ids, mask = prompts(model.base_model, 1)
    run = generation(model, ids, mask)
    steps = decode(run)
    next(steps), next(steps)
    return run.stream.draft_state.candidates


def path_to(candidates, node):
    tokens, parents = candidates.tokens_BM[0].tolist(), candidates.parents_BM[0].tolist()
    path = []
    while node >= 0:
        path.insert(0, tokens[node])
        node = parents[node]
    return path


def test_the_gain_of_every_shape_is_what_its_nodes_would_have_had_accepted(tmp_path):
    candidates, shapes = real_candidates(tmp_path), Shapes(LIMIT)
    wanted = set()
    for node in candidates.scores_BM[0].argsort(descending=True)[:POOL:5].tolist():
        emitted = [*path_to(candidates, node), -1]
        gains = shapes.gains(best_candidates(candidates, 0, emitted), LIMIT, 0.5)
        for number, shape in enumerate(shapes.trees):
            own = gains[number, shapes.all_widths.searchsorted(shape.top_k)]
            assert own == gained_by_hand(candidates, shape, emitted)
            wanted.add(own)
    assert wanted >= {0, 1, 2, 3}


def flat(promised, width=2, levels=5):
    """Candidates of which every level holds one node of this conditional probability, the others next to nothing.

    That node's token is 1, the others' is 0.
    """
    scores, parents, tokens = [], [], []
    for depth in range(levels):
        size = width if depth == 0 else width**2
        best = np.log(promised) * (depth + 1)
        start = 0 if depth == 0 else width + (depth - 1) * width**2
        before = 0 if depth == 1 else start - width**2
        scores += [best] + [-30.0] * (size - 1)
        tokens += [1] + [0] * (size - 1)
        parents += [-1] * size if depth == 0 else [before] * size
    return Candidates(torch.tensor([tokens]), torch.tensor([parents]), torch.tensor([scores]), width)


def emitted(accepted):
    return [1] * accepted + [2]


def learn(subject, steps, promised, accepts):
    for _ in range(steps):
        tree = subject.next(100)
        if tree is not None:
            levels = tree.depth + 1
            subject.observe(tree, flat(promised, tree.top_k, levels), [emitted(min(accepts, levels))], [0])
    return subject


def outcome(nodes, shape):
    tokens_BN = torch.zeros(1, nodes, dtype=torch.int64)
    return StepOutcome(
        from_parents(tokens_BN, tokens_BN - 1, tokens_BN.float(), 2), HostAcceptance([], [], []), [], shape
    )


PRICED = Costs((64,), (1, 2, 24), ((1.0, 1.1, 1.6),), (1, 4), ((0.1, 0.12),), ((0.1, 0.12),))


def test_promises_kept_lead_to_deep_trees_and_promises_broken_to_plain_decoding():
    trusted = learn(chooser(cost=PRICED), 30, 0.9, 9)
    assert not trusted.is_plain and trusted.shapes.trees[trusted._current].depth == LIMIT.depth
    broken = learn(chooser(cost=PRICED), 60, 0.9, 0)
    assert broken.is_plain


def test_plain_decoding_is_probed_ever_more_rarely_and_left_when_drafting_pays():
    subject = learn(chooser(cost=PRICED), 60, 0.05, 0)
    assert subject.is_plain
    gaps, last = [], 0
    for number in range(1200):
        tree = subject.next(100)
        if tree is not None:
            gaps.append(number - last)
            last = number
            subject.observe(tree, flat(0.05, tree.top_k, tree.depth + 1), [emitted(0)], [0])
    assert min(gaps[1:]) >= 64 and max(gaps) == 256 and gaps[1:] == sorted(gaps[1:])
    assert learn(subject, 600, 0.95, 9).is_plain is False


def test_a_slower_machine_gets_smaller_trees():
    low = Costs((64,), (1, 2, 24), ((1.0, 1.0, 1.1),), (1, 4), ((0.01, 0.01),), ((0.01, 0.01),))
    cheap = learn(chooser(cost=low), 40, 0.7, 2)
    dear = Costs((64,), (1, 2, 24), ((1.0, 1.1, 4.0),), (1, 4), ((0.3, 0.4),), ((0.3, 0.4),))
    slow = learn(chooser(cost=dear), 40, 0.7, 2)
    sizes = [s.shapes.trees[s._current].total_token * (not s.is_plain) for s in (slow, cheap)]
    assert sizes[0] < sizes[1]


def test_steps_that_take_longer_than_their_parts_count_with_what_they_took():
    subject = learn(chooser(cost=PRICED), 20, 0.5, 1)
    assert not subject.is_plain
    for _ in range(20):
        subject.took(9.0, outcome(2, subject.shapes.trees[0]))
        subject.took(1.0, outcome(1, None))
    assert learn(subject, 20, 0.5, 1).is_plain


def test_costs_are_measured_once_and_kept_on_disk(tmp_path, monkeypatch):
    first = ea_model(tmp_path / "a", total_token=-1)
    monkeypatch.setattr(cost_file, "measure", lambda *_: pytest.fail("measured again"))
    second = ea_model(tmp_path / "b", total_token=-1)
    assert first._adaptation._costs[1] == second._adaptation._costs[1]
    files = list((tmp_path / "cache" / "eagle" / "costs").iterdir())
    assert len(files) == 1 and set(json.loads(files[0].read_text())) == set(Costs.__dataclass_fields__)


def spoilt(**fields):
    good = {"contexts": [64], "nodes": [1], "verify": [[0.1]], "widths": [1], "first": [[0.1]], "level": [[0.1]]}
    return json.dumps({**good, **fields})


SPOILT = [
    spoilt(contexts=[]),
    spoilt(nodes=["1"]),
    spoilt(nodes=[2, 1], verify=[[0.1, 0.1]]),
    spoilt(verify=[[float("nan")]]),
    spoilt(verify=[[0.0]]),
    spoilt(verify=[["fast"]]),
    spoilt(first=[[-1.0]]),
    spoilt(level=[[0.1], [0.1]]),
    spoilt(level=[None]),
]


# What no JSON of ours holds, in place of any of its parts.
POISON = {
    "Infinity": float("inf"),
    "NaN": float("nan"),
    "negative": -1,
    "true": True,
    "half": 1.5,
    "null": None,
    "text": "1",
    "wide": [[1], [1, 2]],
    "huge": 10**400,
    "far": 1e300,
}
POISON = {
    f"{field} {name}": spoilt(**{field: [value] if field in ("contexts", "nodes", "widths") else [[value]]})
    for name, value in POISON.items()
    for field in ("contexts", "nodes", "widths", "verify", "first", "level")
    if not (name == "half" and field in ("verify", "first", "level"))
}
POISON["1e400"] = spoilt().replace("0.1", "1e400")
POISON["sizes of 1e400"] = spoilt().replace("64", "1e400")
POISON["deep"] = "[" * 100_000 + "]" * 100_000
POISON["deep inside"] = spoilt().replace("0.1", "[" * 100_000 + "]" * 100_000)


@pytest.mark.parametrize(
    "content", ["", "{}", '{"nodes": 1}', "[1, 2", *SPOILT, *POISON.values()], ids=lambda text: text[:40]
)
def test_an_unreadable_file_is_measured_anew(tmp_path, content):
    ea_model(tmp_path / "a", total_token=-1)
    (path,) = (tmp_path / "cache" / "eagle" / "costs").iterdir()
    good = path.read_text()
    path.write_text(content)
    ea_model(tmp_path / "b", total_token=-1)
    assert path.read_text() != content and set(json.loads(path.read_text())) == set(json.loads(good))


def test_nothing_is_measured_where_a_dynamic_embedding_allows_no_tree(tmp_path):
    model = ea_model(tmp_path, rotary_model("dynamic"), "eagle", total_token=-1, depth=7, top_k=10)
    assert max(model._adaptation._costs[1].contexts) < SWITCH
    ids = torch.arange(3, 3 + SWITCH + 9)[None]
    want = generate_ids(rotary_model("dynamic"), ids, torch.ones_like(ids), 20)
    assert torch.equal(model.eagenerate(ids, max_new_tokens=20), want)


@pytest.mark.parametrize(
    ("batch", "contexts"), [(1, (64, 1024)), (8, (64, 1024)), (16, (64, 512)), (64, (64,)), (4096, (64,))]
)
def test_large_batches_are_measured_in_little_memory(tmp_path, monkeypatch, batch, contexts):
    model, seen = ea_model(tmp_path), []
    monkeypatch.setattr(profile, "_plain_seconds", lambda *_: 0.001)
    monkeypatch.setattr(model.target, "last_position", None)
    monkeypatch.setattr(profile, "_verify_seconds", lambda *args: seen.append(args[3]) or (1.0,) * len(args[4]))
    monkeypatch.setattr(profile, "_draft_seconds", lambda *args: {(w, d): 1.0 for w in args[5] for d in (0, 2)})
    assert profile.measure(model.target, model.ea_layer, model._taps, batch).contexts == contexts == tuple(seen)


def test_a_static_tree_set_later_is_used_as_it_is(tmp_path):
    model = ea_model(tmp_path, total_token=-1)
    model.ea_layer.tree = tree_config(60, 7, 10, 1.0, "static")
    ids, mask = prompts(model.base_model, 1)
    assert torch.equal(model.eagenerate(ids, max_new_tokens=20), generate_ids(model.base_model, ids, mask, 20))
    assert model.stats.drafted % 25 == 0 < model.stats.drafted


def test_a_draft_of_nan_is_not_remembered():
    subject = learn(chooser(cost=PRICED), 5, 0.9, 2)
    tree = subject.next(100)
    broken = flat(0.5, tree.top_k, tree.depth + 1)
    broken.scores_BM[0, 0::3] = float("nan")
    below = (broken.parents_BM[0] % 3 == 0) & (broken.parents_BM[0] >= 0)
    broken.scores_BM[0, below] = float("nan")
    subject.observe(tree, broken, [emitted(0)], [0])
    assert np.isfinite(subject.memory.gains).all()


def test_threads_that_change_the_limits_choose_within_their_own(tmp_path, monkeypatch):
    model = ea_model(tmp_path, total_token=-1)
    monkeypatch.setattr(adaptation, "costs_of", lambda *_: PRICED)
    monkeypatch.setattr(adaptation, "ConfidenceMemory", lambda: time.sleep(0.001) or ConfidenceMemory())

    def work(_):
        for batch in range(1, 60):
            model.ea_layer.depth = 1 + batch // 4 % 3
            made = model._adaptation.chooser(batch)
            assert vars(made.memory).setdefault("limit", made.limit) == made.limit

    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(work, range(3))) == [None] * 3


def test_a_cache_that_cannot_be_written_stops_nothing(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with caplog.at_level(logging.INFO, logger="eagle"):
        model = ea_model(tmp_path, total_token=-1)
    assert "costs are not kept" in caplog.text
    ids, mask = prompts(model.base_model, 1)
    assert torch.equal(model.eagenerate(ids, max_new_tokens=9), generate_ids(model.base_model, ids, mask, 9))


def test_costs_rise_with_the_tree_and_are_linear_between_what_was_measured():
    cost = Costs(
        (64, 1024), (1, 3), ((1.0, 2.0), (2.0, 4.0)), (1, 3), ((0.1, 0.2), (0.1, 0.2)), ((0.5, 0.7), (0.5, 0.7))
    )
    one = lambda *sizes: cost.steps(*[64, *(np.array([s]) for s in sizes)])[0]  # noqa: E731
    assert cost.plain(64) == 1 and cost.plain(544) == pytest.approx(1.5)
    assert one(2, 2, 2) == pytest.approx(1.5 + 0.15 + 2 * 0.6)
    assert one(5, 0, 1) == pytest.approx(3 + 0.1)


def test_a_proof_that_the_walk_s_answers_are_learnt_from(tmp_path):
    model = ea_model(tmp_path, "llama", "eagle3", total_token=-1, depth=3, top_k=3)
    ids, mask = prompts(model.base_model, 1)
    want = generate_ids(model.base_model, ids, mask, NEW)
    with answering(model.ea_layer, want[0].tolist()):
        assert torch.equal(model.eagenerate(ids, max_new_tokens=NEW), want)


def test_candidates_that_a_shape_leaves_out_count_nothing():
    found = Found(np.array([1, 1, 2, 2, 2, 2]), np.array([0, 1, 0, 1, 1, 1]), np.array([1, 4]))
    shapes = Shapes(TreeConfig(total_token=7, depth=1, top_k=2))
    gains = shapes.gains(found, shapes.limit, 0.5)
    assert {tree.total_token for tree in shapes.trees} == {2, 3, 4, 5, 6, 7}
    for number, shape in enumerate(shapes.trees):
        own = gains[number, shapes.all_widths.searchsorted(shape.top_k)]
        assert own == (shape.total_token > 2) + (shape.total_token > 5 and shape.depth == 1)


def test_a_path_that_the_depth_cut_short_goes_on_in_deeper_trees_as_often_as_paths_do():
    shapes, run = Shapes(LIMIT), TreeConfig(total_token=24, depth=1, top_k=4)
    candidates = flat(0.9, 4, 2)
    whole, ended = (shapes.gains(best_candidates(candidates, 0, emitted(count)), run, 0.5) for count in (2, 1))
    for number, shape in enumerate(shapes.trees):
        further = sum(0.5**level for level in range(1, shape.depth))
        assert whole[number, -1] == pytest.approx(min(shape.depth + 1, 2) + further)
        assert ended[number, -1] == 1


def test_trees_wider_than_the_draft_keep_the_lead_they_had():
    subject = chooser(cost=PRICED, limit=TreeConfig(total_token=24, depth=4, top_k=6))
    shapes = subject.shapes
    wide, narrow = (next(t for t in shapes.trees if t.top_k == w and t.nodes == 10 and t.depth == 4) for w in (6, 2))
    # The token that follows is the third child of the root: only the wide draft has it.
    candidates = flat(0.5, 6, 5)
    candidates.tokens_BM[0, 2] = 7
    candidates.scores_BM[0, 2] = -1.0
    subject.observe(wide, candidates, [[7, 9]], [0])
    number = shapes.trees.index(wide)
    before = subject.memory.gains[number].copy()
    assert before.tolist() == [0, 1]
    for _ in range(40):
        subject.observe(narrow, flat(0.5, 2, 5), [emitted(1)], [0])
    assert subject.memory.gains[number] == pytest.approx([1, 2], abs=1e-3)


def test_of_trees_that_pay_alike_the_widest_is_taken():
    same = Costs((64,), (1, 2, 24), ((1.0, 1.1, 1.6),), (2, 4), ((0.1, 0.101),), ((0.1, 0.101),))
    dear = Costs((64,), (1, 2, 24), ((1.0, 1.1, 1.6),), (2, 4), ((0.1, 0.2),), ((0.1, 0.2),))
    widths = [
        chosen.shapes.trees[chosen._current].top_k
        for chosen in (learn(chooser(cost=cost), 30, 0.9, 9) for cost in (same, dear))
    ]
    assert widths == [4, 2]


def test_a_batch_that_shrinks_goes_on_with_the_costs_of_the_rows_that_are_left(tmp_path, monkeypatch):
    model = ea_model(tmp_path, total_token=-1)
    for batch in (2, 8):
        assert model._adaptation.chooser(batch) is not None
    known = model._adaptation._costs
    monkeypatch.setattr(cost_file, "measure", lambda *_: pytest.fail("measured in the middle of a call"))
    subject = model._adaptation.chooser(8)
    for rows, size in ((7, 8), (4, 8), (2, 2), (1, 1)):
        subject.shrink(rows)
        assert subject.costs is known[size]


def test_rows_that_leave_tell_the_chooser_how_many_are_left(tmp_path):
    model, told = ea_model(tmp_path, "llama", total_token=24, depth=4, top_k=4), []

    class Listening(Restless):
        def shrink(self, rows):
            told.append((rows, len(run.stream.running)))

    ids, mask = prompts(model.base_model, 3)
    run = running(model, ids, mask, kind=Listening)
    steps = decode(run)
    next(steps), next(steps)
    run.rows.finished[0] = run.rows.finished[2] = "length"
    next(steps)
    assert told == [(1, 1)]


def test_a_batch_that_shrinks_is_judged_by_its_new_costs_at_once():
    subject = learn(chooser(cost=PRICED), 5, 0.9, 9)
    before = subject._rates()
    subject.known = {1: FREE}
    subject.shrink(1)
    assert (subject._rates() > before).all()


class SlowMachine:
    """A clock that only forwards move on: the target's by a second and a bit for each node, the head's by a tenth."""

    def __init__(self, monkeypatch, model, plain):
        self.now, self.forwards = 0.0, 0
        monkeypatch.setattr(profile.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(model.target, "_forward", self._timed(model.target._forward, plain))
        monkeypatch.setattr(model.ea_layer.head, "forward", self._timed(model.ea_layer.head.forward, plain / 10))

    def _timed(self, forward, seconds):
        def timed(*args, **kwargs):
            self.now += seconds * (1 + args[0].shape[1] / 60)
            self.forwards += 1
            return forward(*args, **kwargs)

        return timed


@pytest.mark.parametrize("plain", [1e-4, 0.02, 0.1, 1.0, 20.0])
def test_measuring_is_over_in_seconds_or_a_few_dozen_forwards(tmp_path, monkeypatch, plain):
    model = ea_model(tmp_path, depth=7, top_k=10, total_token=60)
    monkeypatch.setattr(model.target, "last_position", None)
    machine = SlowMachine(monkeypatch, model, plain)
    found = profile.measure(model.target, model.ea_layer, model._taps, 1)
    assert machine.now <= max(2 * profile.SECONDS, 25 * plain)
    # A slow model is measured at fewer sizes; what lies between is interpolated.
    assert len(found.nodes) == (6 if plain >= 1.0 else 9) and found.nodes[-1] == 60
    assert (len(found.contexts) == 1) == (plain >= 1.0)
    assert found.plain(64) == pytest.approx(plain * (1 + 1 / 60), rel=0.01)


def test_measuring_shows_a_bar_that_ends_and_is_hidden_with_transformers_own(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(measurements, "PATIENCE", 0.0)
    model = ea_model(tmp_path)
    for shown in (True, False):
        (logging_of.enable_progress_bar if shown else logging_of.disable_progress_bar)()
        profile.measure(model.target, model.ea_layer, model._taps, 1)
        assert ("timing draft trees, once on this machine" in capsys.readouterr().err) == shown
    logging_of.enable_progress_bar()
