"""What a call counted, under our names and under those of serving engines."""

import json

import pytest

from eagle.model.stats import GenerationStats


def test_both_definitions_of_acceptance_and_the_counters_of_vllm():
    stats = GenerationStats()
    stats.record_tokens(1)  # the prefill's
    for accepted in ({0: 3, 1: 0}, {0: 1}):
        stats.record_step(5, accepted, 0.5)
        stats.record_tokens(sum(accepted.values()) + len(accepted))
    found = stats.to_dict()
    assert found["acceptance_length"] == 1 + 4 / 3 and found["tokens_per_forward"] == 8 / 3
    assert (found["num_drafts"], found["num_draft_tokens"], found["num_accepted_tokens"]) == (3, 15, 4)
    assert found["num_accepted_tokens_per_pos"] == [2, 1, 1] == found["accepted_per_depth"]
    assert json.loads(json.dumps(found, allow_nan=False)) is not None


@pytest.mark.parametrize("name", ["acceptance_length", "tokens_per_forward"])
def test_before_the_first_step_nothing_is_known(name):
    assert getattr(GenerationStats(), name) != getattr(GenerationStats(), name)
    assert GenerationStats().to_dict()[name] is None
