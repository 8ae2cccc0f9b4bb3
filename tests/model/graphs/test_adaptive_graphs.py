"""`total_token=-1` with graphs: steps of up to four trees in turn on one buffers give ids and trees as without."""

import logging
from itertools import product

import pytest
import torch
from architectures import prompts
from drafted import assert_same_tree, drafted
from pairs import ea_model
from references import ends_at, generate_ids
from synthetic_pairs import DEPTH, synthetic_pair, synthetic_prompt
from tape import HOST_READS, TapeBackend

from eagle.model.adaptive import adaptation, profile
from eagle.model.adaptive.adaptation import Adaptation
from eagle.model.adaptive.costs import Costs
from eagle.model.adaptive.prepared import gain, prepared
from eagle.model.adaptive.shape_chooser import ShapeChooser, ShapeMemory
from eagle.model.adaptive.trees import Shapes, all_trees
from eagle.model.call.prepare import prepare
from eagle.model.configs import TreeConfig
from eagle.model.decoding import Generation, decode
from eagle.model.draft_state import RING, Observed
from eagle.model.graphs.device_step import DeviceStep, room
from eagle.model.graphs.pool import GraphPool
from eagle.model.graphs.replay import replays
from eagle.model.graphs.static_cache import StaticKVCache
from eagle.model.graphs.static_draft_state import StaticDraftState
from eagle.model.tree import Candidates

LIMIT = TreeConfig(total_token=14, depth=DEPTH, top_k=4)
SMALL, MIDDLE = TreeConfig(total_token=3, depth=0, top_k=2), TreeConfig(total_token=8, depth=2, top_k=3)
TREES = [SMALL, MIDDLE, LIMIT]
TURNS = [LIMIT, None, SMALL, MIDDLE, None, None, None, SMALL, LIMIT, None, MIDDLE]
FREE = Costs((64,), (1, 2), ((1.0, 1.0),), (1,), ((0.0,),), ((0.0,),))
PRICED = Costs((64,), (1, 60), ((1.0, 1.5),), (1, 10), ((0.1, 0.1),), ((0.05, 0.05),))
SAMPLING = {"temperature": 0.8, "top_k": 20, "top_p": 0.9}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


class InTurn(ShapeChooser):
    """Takes prepared trees in a given order, over and over."""

    def __init__(self, turns):
        super().__init__(Shapes(LIMIT, TREES), FREE, ShapeMemory())
        self.turns, self.asked, self.timed, self.learnt = turns, [], [], []

    def next(self, context):
        self.asked.append(self.turns[len(self.asked) % len(self.turns)])
        return self.asked[-1]

    def learn(self, outcome, places, seconds):
        if outcome.is_typical:
            self.timed.append(outcome.shape)
        if places and outcome.shape is not None:
            tokens = [outcome.tokens[place] for place in places]
            self.learnt.append((outcome.shape, outcome.candidates, tokens, places))


def pair(folder, kind="eagle3", noise=0.05):
    return synthetic_pair(folder, kind, noise, total_token=LIMIT.total_token, top_k=LIMIT.top_k)


def in_turn(model, ids, turns, graphs, new, mask=None, **arguments) -> Generation:
    arguments = {"input_ids": ids, "attention_mask": mask, "max_new_tokens": new, "do_sample": False, **arguments}
    request = prepare(model.base_model, model.target, arguments, lambda: model.tokenizer)
    replay = replays(graphs, model.target, model.ea_layer, request)
    return Generation(model.target, model.ea_layer, request, model._taps, chooser=InTurn(turns), replays=replay)


def both_ways(model, ids, turns, new, bucket=128, mask=None, **arguments):
    """Run the same trees in the same order without graphs and with them; compare every full tree."""
    backend, runs = TapeBackend(), []
    for graphs in (None, GraphPool(backend, bucket)):
        torch.manual_seed(3)
        running = in_turn(model, ids, turns, graphs, new, mask, **arguments)
        runs.append((list(decode(running)), running))
    (exact, run), (replayed, other) = runs
    assert run.replays is None and other.replays is not None
    assert run.rows.new == other.rows.new
    assert run.chooser.asked == other.chooser.asked
    compared = 0
    for a, b in zip(exact[1:-2], replayed[1:-2], strict=True):
        assert a.tree.size == b.tree.size
        for row in (row for row in a.tree_rows if a.tokens[row]):
            places = a.tree_rows.index(row), b.tree_rows.index(row)
            assert_same_tree(drafted(b.tree, places[1]), drafted(a.tree, places[0])) if a.tree.size > 1 else None
            compared += a.tree.size > 1
    return other, backend, compared


@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("sampled", [False, True])
def test_trees_that_take_turns_on_one_arena_are_those_of_the_exact_view(tmp_path, kind, batch, sampled):
    model, ids = pair(tmp_path, kind), synthetic_prompt(batch)
    mask, settings = torch.ones_like(ids), {"do_sample": True, **SAMPLING} if sampled else {}
    running, backend, compared = both_ways(model, ids, TURNS, 80, **settings)
    assert compared > 10 and max(running.stats.accepted_per_step) >= 3
    assert backend.captures == 4 and backend.replays >= running.stats.steps > 25
    want = generate_ids(model.base_model, ids, mask, 80, *((3,) if sampled else ()), **(SAMPLING if sampled else {}))
    assert torch.equal(running.rows.ids(), want)


@pytest.mark.parametrize(("name", "batch"), [("llama", 3), ("gemma2", 1), ("gpt_oss", 3), ("gpt2", 1)])
def test_trees_that_take_turns_give_the_ids_of_generate_on_other_models(tmp_path, name, batch):
    model = ea_model(tmp_path, name, total_token=LIMIT.total_token, depth=DEPTH, top_k=LIMIT.top_k)
    backend, (ids, mask) = TapeBackend(), prompts(model.base_model, batch)
    with ends_at(model.base_model, None):
        running = in_turn(model, ids, TURNS, GraphPool(backend, 96), 24, mask, do_sample=True, **SAMPLING)
        torch.manual_seed(3)
        list(decode(running))
        assert torch.equal(running.rows.ids(), generate_ids(model.base_model, ids, mask, 24, 3, **SAMPLING))
    assert backend.captures == 4 and backend.replays >= running.stats.steps


@pytest.mark.parametrize(
    ("kind", "batch", "plain"), [("eagle", 1, 40), ("eagle", 3, RING + 40), ("eagle3", 1, RING + 40)]
)
def test_features_of_plain_steps_wait_for_the_next_draft(tmp_path, kind, batch, plain):
    """However many, and whatever rows had accepted before: the next trees are what they are without graphs."""
    model, ids = pair(tmp_path, kind), synthetic_prompt(batch)
    turns = [LIMIT] * 2 + [None] * plain + [LIMIT, SMALL, None, MIDDLE]
    running, backend, compared = both_ways(model, ids, turns, plain + 44, bucket=64)
    assert compared >= 5 * batch and running.stats.acceptance_length > 1
    assert backend.captures <= 4 * 4


def test_a_row_far_ahead_has_its_slots_left_alone_while_another_catches_up(tmp_path):
    """What waits is read in pieces that every row has slots for; each row's entries are those it had alone."""
    model = pair(tmp_path)
    drafter, features = model.ea_layer, torch.randn(2, RING, 3 * model.hidden_size)
    tokens, counts, ahead = torch.randint(1, 100, (2, RING)), [1, 130], [150, 10]
    bucket = 151 + room(drafter)
    assert bucket < ahead[0] + max(counts)
    cache = StaticKVCache(drafter.head.layers_count, 2, bucket, None, torch.device("cpu"))
    state = StaticDraftState(LIMIT, cache, LIMIT.levels, torch.zeros_like(features))
    before = torch.randn(2, 150, 3 * model.hidden_size), torch.randint(1, 100, (2, 150))
    first = drafter.start(2, 400, [0, 0])
    for entries, numbers in ((before, ahead), ((features[:, :1], tokens[:, :1]), [1, 1])):
        drafter.observe(first, *entries, numbers)
    drafter.catch_up(first)
    state.load(first)
    state.counts_B.zero_()
    state.observe(features, tokens, torch.tensor(counts))
    state._counts = list(counts)
    state.make_ready(drafter, drafts=True)
    assert state.counts == state.counts_B.tolist() == [1, 1]
    roots = torch.tensor([5, 6])
    got = drafter.draft(state, roots)
    assert state.cache.lengths_B.tolist() == [151, 140]
    for row in range(2):
        alone = drafter.start(1, 400, [0])
        alone.pending = [
            Observed(e[0][row : row + 1], e[1][row : row + 1], [n])
            for e, n in ((before, ahead[row]), ((features, tokens), counts[row]))
        ]
        want = drafter.draft(alone, roots[row : row + 1])
        assert_same_tree(drafted(got, row), drafted(want, 0))


@pytest.mark.parametrize("stop", [2, 9])
def test_rows_that_end_while_others_change_trees_stay_where_they_are(tmp_path, stop):
    model, ids = pair(tmp_path, noise=0.0), synthetic_prompt(3)
    mask, model.base_model.generation_config.pad_token_id = torch.ones_like(ids), 0
    free = generate_ids(model.base_model, ids, mask, 60)
    with ends_at(model.base_model, [int(free[0, ids.shape[1] + stop])]):
        backend = TapeBackend()
        running = in_turn(model, ids, TURNS, GraphPool(backend, 128), 60, mask)
        list(decode(running))
        assert torch.equal(running.rows.ids(), generate_ids(model.base_model, ids, mask, 60))
    assert backend.replays > 0 and running.rows.finished[0] == "eos"


def test_a_step_is_read_once_whatever_its_tree(tmp_path, monkeypatch):
    """Nothing but the outcome crosses to the host between the start of a checked step and its end."""
    model, reads, kept = pair(tmp_path), [], []

    def counting(name, read):
        def call(self, *args, **kwargs):
            place = self.untyped_storage().data_ptr()
            result = read(self, *args, **kwargs)
            if name == "to" and args[:1] == ("cpu",):
                kept.append(result)
            if place not in {copy.untyped_storage().data_ptr() for copy in kept} and (
                name != "to" or args[:1] == ("cpu",)
            ):
                reads.append(name)
            return result

        return call

    running = in_turn(model, synthetic_prompt(3), TURNS, GraphPool(TapeBackend(), 256), 90)
    steps = decode(running)
    next(steps)
    for _ in range(2 * len(TURNS)):
        next(steps)  # every shape is captured and checked by now
    with monkeypatch.context() as patched:
        for name in (*HOST_READS, "to"):
            patched.setattr(torch.Tensor, name, counting(name, getattr(torch.Tensor, name)))
        sizes = set()
        for _ in range(len(TURNS)):
            reads.clear()
            sizes.add(next(steps).tree.size)
            assert reads == ["to"]
    assert sizes == {1, *(tree.nodes for tree in TREES)}
    learnt = running.chooser.learnt
    assert {tree for tree, *_ in learnt} == set(TREES)


def test_what_a_draft_looked_at_comes_back_whole(tmp_path):
    model, ids, seen = pair(tmp_path), synthetic_prompt(3), []
    for graphs in (None, GraphPool(TapeBackend(), 128)):
        running = in_turn(model, ids, TURNS, graphs, 40)
        list(decode(running))
        seen.append(running.chooser.learnt)
    for (tree, exact, accepted, rows), (other, read, same, places) in zip(*seen, strict=True):
        assert (tree, accepted, rows, exact.width) == (other, same, places, read.width)
        torch.testing.assert_close(exact.scores_BM, read.scores_BM, rtol=1e-3, atol=1e-3)
        assert exact.scores_BM.shape == exact.tokens_BM.shape == read.tokens_BM.shape == read.parents_BM.shape
        likely = exact.scores_BM[:, : exact.width].exp() > 0.01
        assert torch.equal(exact.tokens_BM[:, : exact.width][likely], read.tokens_BM[:, : exact.width][likely])


def test_candidates_survive_packing_bit_for_bit():
    scores = torch.tensor([[-0.0, -1e-38, float("-inf"), -3.25], [float("nan"), -1.0, -2.0, -3.0]])
    tokens, parents = torch.arange(8).reshape(2, 4) << 20, torch.arange(8).reshape(2, 4) - 1
    packed = Candidates(tokens, parents, scores, 2).to_tensor()
    assert packed.dtype == torch.int64 and packed.shape == (2, 12)
    got = Candidates.from_tensor(packed, 2)
    assert torch.equal(got.tokens_BM, tokens) and torch.equal(got.parents_BM, parents) and got.width == 2
    assert torch.equal(got.scores_BM.view(torch.int32), scores.view(torch.int32))


def test_steps_that_were_captured_or_checked_are_not_timed(tmp_path):
    model = pair(tmp_path)
    running = in_turn(model, synthetic_prompt(), TURNS, GraphPool(TapeBackend(), 256), 150)
    list(decode(running))
    chooser = running.chooser
    for tree in (None, *TREES):
        asked = chooser.asked.count(tree)
        assert asked > 4 and asked - 2 - 1 <= chooser.timed.count(tree) - (tree is None) * 1 <= asked - 2 + 1


def adaptive_on_tape(model, bucket=128) -> TapeBackend:
    """Let a model loaded with total_token=-1 go on as one loaded with graphs too."""
    backend = TapeBackend()
    model.graphs = GraphPool(backend, bucket)
    model._adaptation = Adaptation(model.target, model.ea_layer, model._taps, model.graphs)
    return backend


@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
def test_a_perfect_head_gets_deep_trees_and_a_useless_one_none(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(adaptation, "costs_of", lambda *_: PRICED)
    stats = {}
    useless = 30.0 if kind == "eagle3" else 3.0
    for noise in (0.0, useless):
        model = synthetic_pair(tmp_path / str(noise), kind, noise, total_token=-1, top_k=4)
        backend, ids = adaptive_on_tape(model, 512), synthetic_prompt()
        for _ in range(2):
            out = model.eagenerate(ids, max_new_tokens=200)
        assert torch.equal(out, generate_ids(model.base_model, ids, torch.ones_like(ids), 200))
        assert backend.captures <= 4 and backend.replays >= model.stats.steps
        stats[noise] = model.stats
    assert stats[0.0].acceptance_length > 5
    assert stats[useless].drafted > 0 and stats[useless].steps > 120 > 2 * stats[0.0].steps


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
def test_adaptive_generations_with_graphs_give_the_ids_of_generate(tmp_path, sampled, batch, monkeypatch):
    monkeypatch.setattr(adaptation, "costs_of", lambda *_: PRICED)
    model = synthetic_pair(tmp_path, "eagle3", 0.05, total_token=-1, top_k=4)
    backend, ids = adaptive_on_tape(model, 64), synthetic_prompt(batch)
    for _ in range(2):  # the second call finds graphs and what the first has learnt
        want = generate_ids(model.base_model, ids, torch.ones_like(ids), 100, *((3,) if sampled else ()))
        torch.manual_seed(3)
        got = model.generate(ids, max_new_tokens=100, do_sample=sampled, top_k=0 if sampled else None)
        assert torch.equal(got, want)
    assert 2 <= backend.captures <= 4 * 2 and backend.replays >= model.stats.steps  # in buckets of 128 and 256 slots


def test_two_streams_in_turn_and_one_with_a_prefix(tmp_path):
    model = synthetic_pair(tmp_path, "eagle3", 0.05, total_token=-1, top_k=4)
    adaptive_on_tape(model)
    inputs = [synthetic_prompt(), synthetic_prompt()[:, :8]]
    want = [generate_ids(model.base_model, ids, torch.ones_like(ids), 40) for ids in inputs]
    streams, last = [model.ea_generate(ids, max_new_tokens=40) for ids in inputs], [None, None]
    for number in (0, 1) * 40:
        last[number] = next(streams[number], last[number])
    assert all(map(torch.equal, last, want))


@pytest.mark.parametrize("turns", [[None], [LIMIT, None, None, None]])
def test_a_prefix_holds_what_still_waits(tmp_path, turns, monkeypatch):
    """A call that ends in plain steps leaves their features too: the next one's trees lack nothing."""
    model, ids = pair(tmp_path, noise=0.0), synthetic_prompt()
    model.graphs = GraphPool(TapeBackend(), 128)
    for turn in range(3):
        chooser = InTurn(turns if turn < 2 else [LIMIT])
        model._adaptation = type("Fixed", (), {"chooser": lambda self, batch, chooser=chooser: chooser})()
        want = generate_ids(model.base_model, ids, torch.ones_like(ids), 24)
        assert torch.equal(model.generate(ids, max_new_tokens=24, do_sample=False, reuse_prefix=True), want)
        if turn:
            assert model.stats.prefilled_tokens <= 4
        ids = torch.cat([want, ids[:, 3:5]], 1)
    assert model.stats.acceptance_length > DEPTH - 1


@pytest.mark.refusal
@pytest.mark.parametrize("refused", [None, SMALL, LIMIT], ids=["plain", "small", "limit"])
def test_when_one_tree_is_refused_all_run_as_they_are(tmp_path, caplog, monkeypatch, refused):
    model, ids, backend = pair(tmp_path), synthetic_prompt(3), TapeBackend()
    call = DeviceStep.__call__

    def reading(self, *stage):
        call(self, *stage)
        if self.shape == refused:
            self.buffers.roots_B.nonzero()

    monkeypatch.setattr(DeviceStep, "__call__", reading)
    graphs = GraphPool(backend, 128)
    for number in range(2):
        running = in_turn(model, ids, TURNS, graphs, 60)
        list(decode(running))
        assert torch.equal(running.rows.ids(), generate_ids(model.base_model, ids, torch.ones_like(ids), 60))
        assert (running.replays is None) is (number == 1)
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert record.getMessage().startswith("decoding without CUDA graphs: ")
    before = TURNS.index(refused)
    assert backend.captures == len(set(TURNS[:before])) and backend.replays <= 2 * before


SIZES = list(product((2, 5, 24, 60), (0, 3, 7), (1, 4, 10)))


@pytest.mark.parametrize(("nodes", "depth", "width"), SIZES)
def test_at_most_three_trees_are_prepared_the_limit_last(nodes, depth, width):
    limit = TreeConfig(total_token=nodes, depth=depth, top_k=width)
    chosen = prepared(limit, PRICED)
    assert 1 <= len(chosen) <= 3 and chosen[-1].nodes == limit.nodes == chosen[-1].total_token
    assert all(t.depth <= depth and t.top_k <= width and t.nodes <= limit.nodes for t in chosen)
    subject = ShapeChooser(Shapes(limit, chosen), PRICED, ShapeMemory())
    assert {subject.next(64) for _ in range(100)} <= set(chosen)


def test_prepared_trees_follow_what_steps_cost():
    limit = TreeConfig()
    dear = Costs((64,), (1, 60), ((1.0, 20.0),), (1, 10), ((0.1, 0.1),), ((0.5, 0.5),))
    small, middle, last = prepared(limit, PRICED)
    assert small.depth < middle.depth <= last.depth and last == limit
    assert prepared(limit, dear)[0].nodes < small.nodes and prepared(limit, dear)[0].depth < small.depth


@pytest.mark.parametrize("right", [0.3, 0.9])
def test_the_gain_of_a_tree_is_that_of_its_likeliest_nodes(right):
    for tree in (tree for tree in all_trees(TreeConfig(total_token=10, depth=2, top_k=3))):
        paths = [p for n in range(1, tree.depth + 2) for p in product(range(tree.top_k), repeat=n)]
        values = sorted((right ** len(p) * (1 - right) ** sum(p) for p in paths), reverse=True)
        assert gain(tree, right) == pytest.approx(sum(values[: tree.nodes - 1]))


def test_costs_of_graphs_are_those_of_replays_and_kept_apart(tmp_path, monkeypatch):
    model = ea_model(tmp_path, total_token=-1, depth=1)
    backend, files = adaptive_on_tape(model), tmp_path / "cache" / "eagle" / "costs"
    eager, ran = set(files.iterdir()), []
    monkeypatch.setattr(model.target, "verify", counted(model.target.verify, ran))
    model._adaptation.chooser(1)
    assert len(set(files.iterdir()) - eager) == 1
    assert backend.captures == 7 + 4 and backend.replays > 4 * backend.captures
    assert len(ran) < backend.replays / 2  # forwards only to capture them
    replays = backend.replays
    assert adaptive_on_tape(model).replays == 0 and model._adaptation.chooser(1) and backend.replays == replays


def counted(function, calls):
    def call(*args):
        calls.append(args)
        return function(*args)

    return call


def test_work_that_cannot_be_captured_is_measured_as_it_runs(tmp_path, monkeypatch):
    model = ea_model(tmp_path)
    backend, verify = adaptive_on_tape(model), model.target.verify

    def reading(*args):
        output = verify(*args)
        output.logits_BNV.nonzero()
        return output

    monkeypatch.setattr(model.target, "verify", reading)
    measured = profile.measure(model.target, model.ea_layer, model._taps, 1, model.graphs)
    assert min(map(min, measured.verify)) > 0
    assert backend.captures == 4  # of drafts alone
