"""First differences: where they are, decided by the numbers that decided the token, measured against rounding."""

import copy

import pytest
import torch
from architectures import base_model, prompts
from noise_floors import noise_floor, one_by_one
from references import ends_at

from eagle.evaluation.near_ties import IdDifference, first_difference, stepwise_logits


@pytest.fixture(scope="module", params=["llama", "mistral", "gpt2"])
def base(request):
    return base_model(request.param)


def said(base, new, temperature=0.0, seed=3):
    ids, mask = prompts(base, 1)
    torch.manual_seed(seed)
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    with ends_at(base, None):
        out = base.generate(ids, attention_mask=mask, max_new_tokens=new, **sampling)
    return ids, out[0, ids.shape[1] :].tolist()


def test_equal_continuations_have_no_difference(base):
    ids, new = said(base, 6)
    assert first_difference(base, ids, new, new) is None


def test_logits_are_those_of_token_by_token_decoding(base):
    ids, new = said(base, 6)
    logits, floor = stepwise_logits(base, ids, new)
    whole = torch.cat([ids, torch.tensor([new])], 1)
    torch.testing.assert_close(logits, one_by_one(base, whole)[-1], rtol=1e-4, atol=1e-4)
    assert 0 <= floor < 1e-3 and floor <= noise_floor(base, whole) + 1e-4


@pytest.mark.parametrize("temperature", [0.0, 1.0, 0.7])
def test_what_decides_is_on_the_side_of_what_generate_said(base, temperature):
    """The gap is that of the scores that `generate` compared, noise of its seed included: never negative."""
    ids, new = said(base, 8, temperature)
    gaps = []
    for place in range(len(new)):
        for other in {1, 7, 20} - {new[place]}:
            got = [*new[:place], other, *new[place + 1 :]]
            found = first_difference(base, ids, new, got, temperature=temperature, seed=3)
            assert (found.position, found.wanted, found.got) == (place, new[place], other)
            gaps.append(found.gap)
    assert min(gaps) > 0
    if temperature:  # with another seed's noise other tokens would have been picked
        wrong = [
            first_difference(base, ids, new, [*new[:p], 1, *new[p + 1 :]], temperature=temperature, seed=4)
            for p in range(len(new))
            if new[p] != 1
        ]
        assert min(one.gap for one in wrong) < 0


def test_a_continuation_that_ends_early_differs_without_logits(base):
    ids, new = said(base, 6)
    found = first_difference(base, ids, new, new[:4])
    assert (found.position, found.wanted, found.got, found.is_near_tie) == (4, new[4], None, False)


def test_a_near_tie_is_within_twice_the_noise_floor():
    for gap, tie in ((0.1, True), (-0.2, True), (0.21, False)):
        assert IdDifference(0, 1, 2, 0.0, gap, gap, 0.1).is_near_tie is tie


def test_half_precision_has_a_noise_floor_that_explains_its_rounding():
    # Of a copy: rotary frequencies do not come back from bf16 as they were.
    base = copy.deepcopy(base_model("llama")).to(torch.bfloat16)
    ids, new = said(base, 24)
    _, floor = stepwise_logits(base, ids, new)
    assert 1e-4 < floor < 1
