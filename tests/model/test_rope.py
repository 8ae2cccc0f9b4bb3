"""Every kind of rotary embedding, before, at and behind the position where its frequencies change."""

import itertools

import pytest
import torch
from architectures import prompts
from pairs import ea_model
from references import generate_ids
from rotary import KINDS, SWITCH, rotary_model
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from verdicts import assert_exact

from eagle.model.checks.diagnosis import diagnose
from eagle.model.support.properties import rope_switch

PROMPTS = [9, SWITCH - 1, SWITCH, SWITCH + 1, SWITCH + 9]


def cases():
    """Return every kind, batch and prompt; kinds without a switch meet most prompts at night."""
    for kind, batch, prompt in itertools.product(KINDS, (1, 3), PROMPTS):
        is_daily = kind in ("dynamic", "longrope") or (batch, prompt) in ((1, 9), (3, SWITCH + 1))
        yield pytest.param(kind, batch, prompt, marks=() if is_daily else pytest.mark.nightly)


@pytest.mark.parametrize(("kind", "batch", "prompt"), cases())
def test_ids_equal_generate_across_the_switch(tmp_path, kind, batch, prompt):
    mode = "greedy" if prompt % 2 else "sampled"
    base, fresh = rotary_model(kind), rotary_model(kind)
    switch = rope_switch(base)
    # Behind a switch a batch is decoded plainly, and so is everything where each new position moves all others.
    is_drafted = switch is None or (batch == 1 and (prompt == 9 or not switch.plain_beyond))
    least = 2.0 if is_drafted and kind != "dynamic" else 1.0
    model = assert_exact(base, tmp_path, mode, batch, prompt=prompt, new=40, least=least, fresh=fresh)
    assert (model.stats.acceptance_length > 1) == is_drafted


def test_what_a_dynamic_embedding_remembers_counts_as_in_generate(tmp_path):
    """The longest sequence so far decides behind the switch, whoever ran it."""
    bases = [rotary_model("dynamic") for _ in range(3)]
    model = ea_model(tmp_path, bases[0], "eagle")
    (long, _), (short, mask) = (prompts(bases[0], 1, SWITCH + more, more) for more in (30, 4))
    theirs = [generate_ids(bases[1], ids, torch.ones_like(ids), 10) for ids in (long, short)]
    ours = [model.eagenerate(ids, max_new_tokens=10) for ids in (long, short)]
    assert all(map(torch.equal, ours, theirs))
    assert not torch.equal(theirs[1], generate_ids(bases[2], short, mask, 10))


def test_no_kind_is_left_out():
    assert set(KINDS) == {"default", *ROPE_INIT_FUNCTIONS}
    assert {kind for kind in KINDS if rope_switch(rotary_model(kind)) is not None} == {"dynamic", "longrope"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_diagnosis_stays_before_the_switch(kind):
    report = diagnose(rotary_model(kind))
    assert report.passed, str(report)
