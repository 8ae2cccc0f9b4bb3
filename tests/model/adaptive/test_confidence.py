"""Trees that a judge ends while they grow are the oracle's of the size they reached, and they are as large as pays."""

import random

import numpy as np
import pytest
import torch
from architectures import prompts
from drafted import assert_same_tree, drafted, oracle_for
from oracle import oracle_dynamic
from pairs import ea_model
from references import generate_ids, uncached_features
from scripted import is_tree

from eagle.model.adaptive import adaptation
from eagle.model.adaptive.calibration import MOST, Calibration
from eagle.model.adaptive.chooser import FIRST_PROBE
from eagle.model.adaptive.confidence_chooser import CALM, ConfidenceChooser, ConfidenceMemory
from eagle.model.adaptive.costs import Costs
from eagle.model.call.prepare import prepare
from eagle.model.configs import TreeConfig
from eagle.model.decoding import Generation, decode
from eagle.model.step import StepOutcome
from eagle.model.tree import from_parents
from eagle.model.verify import HostAcceptance

LIMIT = TreeConfig(total_token=24, depth=4, top_k=4)
# A second for a root, a tenth of one for every further node, for the first level and for every further one.
PRICED = Costs((64,), (1, 24), ((1.0, 3.3),), (1, 4), ((0.1, 0.1),), ((0.1, 0.1),))
NEW = 40


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def chooser(costs=PRICED, memory=None, limit=LIMIT):
    return ConfidenceChooser(limit, costs, memory or ConfidenceMemory())


class Whimsical(ConfidenceChooser):
    """Ends trees at any level and size, the root alone among them."""

    def __init__(self, *args):
        super().__init__(*args)
        self._dice, self.levels = random.Random(3), 0

    def _tree(self):
        self.levels = 0
        return super()._tree()

    def goes_on(self, scores_BK):
        further = self._dice.random() < 0.7
        self.levels += further
        return further

    def drafted(self, scores_BM):
        return self._dice.choice([0, 1, 2, 5, 9, scores_BM.shape[1]])


def running(model, ids, mask, kind=ConfidenceChooser, **arguments):
    arguments = {"input_ids": ids, "attention_mask": mask, "max_new_tokens": NEW, "do_sample": False, **arguments}
    request = prepare(model.base_model, model.target, arguments, lambda: model.tokenizer)
    chooses = kind(model.ea_layer.tree, PRICED, ConfidenceMemory())
    return Generation(model.target, model.ea_layer, request, model._taps, chooser=chooses)


@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("sampled", [False, True])
def test_trees_that_are_ended_anywhere_equal_the_oracle_s_and_ids_generate_s(tmp_path, kind, batch, sampled):
    model = ea_model(tmp_path, "llama", kind, total_token=24, depth=4, top_k=4)
    ids, mask = prompts(model.base_model, batch)
    sampling = {"do_sample": True, "top_k": 0} if sampled else {}
    generation, sizes, before = running(model, ids, mask, Whimsical, **sampling), set(), [[] for _ in ids]
    generation.chooser._promise = lambda rate: None
    torch.manual_seed(3)
    for step in decode(generation):
        if step.tree is not None and step.tree.size > 1 and max(map(len, before)) < NEW - LIMIT.levels:
            for index, row in enumerate(step.tree_rows):
                if step.finished[row] is not None and not step.tokens[row]:
                    continue
                known = torch.cat([ids[row, int((mask[row] == 0).sum()) :], torch.tensor(before[row])])
                features = uncached_features(model.base_model, known[:-1], model._taps).float()
                shape = {"total_token": step.tree.size, "depth": generation.chooser.levels, "top_k": LIMIT.top_k}
                assert is_tree(step.tree, index)
                want = oracle_dynamic(oracle_for(model), known.tolist(), features, **shape)
                assert_same_tree(drafted(step.tree, index), want)
            sizes.add((step.tree.size, generation.chooser.levels))
        before = [old + new for old, new in zip(before, step.tokens, strict=True)]
    assert len(sizes) > 4
    want = generate_ids(model.base_model, ids, mask, NEW, 3 if sampled else None, **({"top_k": 0} if sampled else {}))
    assert torch.equal(generation.rows.ids(), want)


@pytest.mark.parametrize("sampled", [False, True])
def test_ids_are_generate_s_where_the_choice_is_the_machine_s(tmp_path, sampled):
    model = ea_model(tmp_path, total_token=-1)
    ids, mask = prompts(model.base_model, 3)
    sampling = {"do_sample": True, "temperature": 0.8, "top_k": 0} if sampled else {"do_sample": False}
    torch.manual_seed(3)
    got = model.generate(ids, attention_mask=mask, max_new_tokens=NEW, **sampling)
    settings = {"temperature": 0.8} if sampled else {}
    assert torch.equal(got, generate_ids(model.base_model, ids, mask, NEW, 3 if sampled else None, **settings))
    assert isinstance(model._adaptation.chooser(3), ConfidenceChooser)


def scores(*probabilities):
    return torch.tensor([probabilities]).log()


def test_as_many_nodes_are_verified_as_promise_most_beyond_the_rate():
    numbers = random.Random(1)
    for _ in range(50):
        subject, probabilities = chooser(), sorted((numbers.random() for _ in range(20)), reverse=True)
        subject.memory.tokens, subject.memory.seconds = numbers.uniform(0.5, 3), 1.0
        subject.next(10)
        rate = max(subject.memory.tokens, 1.0)
        surplus = [1 + sum(probabilities[:n]) - rate * (1.1 + 0.1 * n) for n in range(21)]
        got = subject.drafted(scores(*random.Random(2).sample(probabilities, 20)))
        # Between the calibration's points the head's word is taken as it is.
        assert surplus[got] == pytest.approx(max(surplus), abs=0.02)


def test_a_level_is_drafted_where_its_children_promise_more_than_they_take():
    subject = chooser()
    subject.next(10)
    # At one token a second a child costs a tenth of a token, and so does its level.
    assert subject.goes_on(scores(0.3, 0.01)) and subject.goes_on(scores(0.15, 0.15))
    assert not subject.goes_on(scores(0.1, 0.01)) and not subject.goes_on(scores(0.06, 0.06, 0.06, 0.06))
    dear = chooser(Costs((64,), (1, 24), ((1.0, 3.3),), (1, 4), ((0.1, 0.1),), ((1.5, 1.5),)))
    dear.next(10)
    assert not dear.goes_on(scores(0.9, 0.1))


def test_dear_nodes_are_few_and_cheap_ones_many():
    cheap = Costs((64,), (1, 24), ((1.0, 1.1),), (1, 4), ((0.01, 0.01),), ((0.01, 0.01),))
    sure = scores(*(0.8**n for n in range(1, 21)))
    sizes = []
    for costs in (PRICED, cheap):
        subject = chooser(costs)
        subject.next(10)
        sizes.append(subject.drafted(sure))
    assert 0 < sizes[0] < sizes[1] == 20


def outcome(parents, accepted, emitted=None, probability=0.5, shape=LIMIT):
    """A step of one row whose nodes have these parents and of which the first child was accepted so often."""
    parents_BN = torch.tensor([parents])
    path, tree = [0], from_parents(torch.zeros_like(parents_BN), parents_BN, torch.zeros(parents_BN.shape), 6)
    while len(path) <= accepted:
        path.append(parents.index(path[-1]))
    tree.scores_BN.copy_(tree.depths_BN * np.log(probability))
    walked = HostAcceptance([path], [[1] * len(path)], [accepted])
    return StepOutcome(tree, walked, [[1] * (accepted + 1 if emitted is None else emitted)], shape)


def learn(subject, steps, made, scores_BM):
    for _ in range(steps):
        if subject.next(10) is not None:
            subject.drafted(scores_BM)
            subject.learn(made, [0], 1.0)
    return subject


def test_a_head_that_is_too_sure_is_found_out_and_drafting_stops():
    subject = learn(chooser(), 40, outcome([-1, 0, 1], 0, probability=0.85), scores(0.85, 0.72))
    assert subject.is_plain and subject.memory.calibration(np.log(0.85)) < 0.5


def test_a_head_that_is_too_modest_is_found_out_and_drafting_goes_on():
    subject = learn(chooser(), 40, outcome([-1, 0, 1], 2, probability=0.35), scores(0.35, 0.12))
    assert not subject.is_plain and subject.memory.calibration(np.log(0.35)) > 0.8
    subject.next(10)
    assert subject.drafted(scores(0.35, 0.12)) == 2


def test_plain_decoding_is_probed_and_left_when_drafting_pays_again():
    subject = learn(chooser(), 40, outcome([-1, 0, 1], 0, probability=0.85), scores(0.85, 0.72))
    memory = subject.memory
    asked = [subject.next(10) is not None for _ in range(3 * FIRST_PROBE)]
    assert 0 < sum(asked) <= 3
    memory.calibration = Calibration()
    memory.tokens = memory.expected = memory.seconds = 1.0
    memory.promised = memory.promised_seconds = 1e-6
    assert not learn(subject, 300, outcome([-1, 0, 1, 2], 3, probability=0.9), scores(0.9, 0.81, 0.73)).is_plain


def test_the_head_s_word_counts_until_it_is_known_better():
    subject, middle = Calibration(), np.array([0.35])
    assert subject(np.log([0.25, 0.5, 0.9])) == pytest.approx([0.25, 0.5, 0.9], abs=0.01)
    for _ in range(100):
        subject.learn(np.log(np.repeat(middle, 10)), np.arange(10) < 8)
    assert subject(np.log(middle)) == pytest.approx([0.8], abs=0.01)
    for _ in range(8 * int(MOST) // 10):
        subject.learn(np.log(np.repeat(middle, 10)), np.arange(10) < 1)
    assert subject(np.log(middle)) == pytest.approx([0.1], abs=0.05)


def test_scores_that_are_no_numbers_promise_nothing_and_are_not_drafted():
    subject = chooser()
    subject.next(10)
    broken = torch.full((1, 8), float("nan"))
    assert not subject.goes_on(broken) and subject.drafted(broken) == 0
    subject.memory.calibration.learn(broken[0].numpy(), np.zeros(8, dtype=bool))
    assert np.isfinite(subject.memory.calibration(np.log([0.1, 0.5, 0.9]))).all()


def test_nodes_that_a_limit_forbade_teach_nothing():
    subject = chooser()
    subject.next(10)
    subject.drafted(scores(0.9, 0.81))
    subject.learn(outcome([-1, 0, -1], 0, probability=0.9), [0], 1.0)
    assert subject.memory.calibration(np.log(0.9)) == pytest.approx(0.9, abs=0.01)


def test_trees_that_fill_their_width_get_more_of_it_and_give_it_back_when_it_is_not_needed():
    subject = chooser(limit=TreeConfig(total_token=60, depth=7, top_k=10))
    memory = subject.memory
    assert subject.next(10).top_k == 4
    for width in (6, 10, 10):
        subject.learn(outcome([-1] + [0] * memory.width, 0), [0], 1.0)
        assert memory.width == width and subject._tree().top_k == width
    for _ in range(CALM - 1):
        subject.learn(outcome([-1, 0, 1, 2], 0), [0], 1.0)
    assert memory.width == 10
    subject.learn(outcome([-1, 0, 1, 2], 0), [0], 1.0)
    assert memory.width == 6


def test_a_wide_level_needs_its_width_although_no_node_has_many_children():
    subject = chooser()
    subject.next(10)
    # Four nodes of one level are expanded, each with one child.
    subject.learn(outcome([-1, 0, 0, 1, 1, 2, 2, 3, 4, 5, 6], 0), [0], 1.0)
    assert subject.memory.needed == [] or max(subject.memory.needed) == 4


def test_what_a_step_took_beyond_its_parts_counts_with_the_root_alone_or_with_trees():
    subject = chooser()
    subject.next(10)
    for _ in range(20):
        subject.took(2.0, outcome([-1], 0, shape=None))
        subject.took(2.1, outcome([-1], 0))
        subject.took(7.2, outcome([-1, 0], 0))
    assert subject._late(has_tree=False) == pytest.approx(1.0)
    assert subject._late() == pytest.approx(6.0)


def test_batches_of_different_sizes_learn_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(adaptation, "costs_of", lambda *_: PRICED)
    model = ea_model(tmp_path, total_token=-1)
    one, two, three = (model._adaptation.chooser(rows).memory for rows in (1, 3, 4))
    assert one is not two and two is three and model._adaptation.chooser(1).memory is one
