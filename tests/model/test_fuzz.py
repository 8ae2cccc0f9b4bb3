"""Random calls: whatever is asked of it, `EaModel.generate` says what `base.generate` says."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch
from architectures import VOCABULARY
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from pairs import ea_model
from same_call import small_base
from scripted import ScriptedDrafter
from watchers import Counting, SumCriterion, Together

from eagle.model.choices import mc_sim_7b_63
from eagle.model.configs import tree_config

CASES, PARTS = 500, 2
NIGHTLY_CASES, NIGHTLY_PARTS = 20_000, 8

# Settings that change what is picked, each with the values it may take.
WARPERS = {
    "temperature": st.sampled_from([0.3, 0.9, 1.7]),
    "top_k": st.sampled_from([0, 1, 3, 40]),
    "top_p": st.sampled_from([0.2, 0.8, 1.0]),
    "min_p": st.sampled_from([0.02, 0.3]),
    "typical_p": st.sampled_from([0.3, 0.9]),
    "epsilon_cutoff": st.sampled_from([1e-3, 2e-2]),
    "eta_cutoff": st.sampled_from([1e-3, 2e-2]),
}
PROCESSORS = {
    "repetition_penalty": st.sampled_from([0.8, 1.0, 1.4]),
    "no_repeat_ngram_size": st.integers(1, 3),
    "encoder_no_repeat_ngram_size": st.integers(1, 2),
    "encoder_repetition_penalty": st.just(1.3),
    "bad_words_ids": st.just([[5], [41, 50]]),
    "suppress_tokens": st.lists(st.integers(8, VOCABULARY - 1), min_size=1, max_size=30),
    "min_new_tokens": st.integers(1, 8),
    "forced_eos_token_id": st.just(7),
    "guidance_scale": st.sampled_from([0.7, 1.5]),
    "exponential_decay_length_penalty": st.just((2, 1.3)),
    "sequence_bias": st.just([[[50], -3.0], [[41, 50], 5.0]]),
    "renormalize_logits": st.just(True),
    "num_return_sequences": st.integers(1, 2),
    "output_scores": st.just(True),
    "output_logits": st.just(True),
    "logits_processor": st.lists(st.sampled_from([Counting, Together]), min_size=1, max_size=2),
    "stopping_criteria": st.just([SumCriterion]),
}
FRESH = ("logits_processor", "stopping_criteria")  # classes, made anew for every call


@st.composite
def some(draw, options, most):
    names = draw(st.lists(st.sampled_from(sorted(options)), max_size=most, unique=True))
    return {name: draw(options[name]) for name in names}


@st.composite
def calls(draw):
    batch, prompt = draw(st.integers(1, 4)), draw(st.integers(1, 12))
    do_sample = draw(st.booleans())
    arguments = {**draw(some(PROCESSORS, 3)), **(draw(some(WARPERS, 3)) if do_sample else {})}
    if not do_sample:
        arguments.pop("num_return_sequences", None)
    ends = draw(st.none() | st.lists(st.sampled_from([12, 27, 41, 50, 65, 75]), max_size=3))
    if ends is None:
        arguments.pop("exponential_decay_length_penalty", None)  # transformers itself fails there
    return {
        "ids": draw(
            st.lists(
                st.lists(st.integers(3, VOCABULARY - 1), min_size=prompt, max_size=prompt),
                min_size=batch,
                max_size=batch,
            )
        ),
        "pads": draw(st.lists(st.integers(0, prompt - 1), min_size=batch, max_size=batch)),
        "seed": draw(st.integers(0, 9999)),
        "tree": draw(st.tuples(st.integers(2, 24), st.integers(0, 5), st.integers(1, 6))),
        "static": draw(st.booleans()) and draw(st.booleans()),
        "scripted": draw(st.booleans()),
        "prefill_chunk": draw(st.integers(1, 13)),
        "arguments": {
            "do_sample": do_sample,
            "max_new_tokens": draw(st.integers(1, 18)),
            "eos_token_id": ends,
            "pad_token_id": 0,
            **arguments,
        },
    }


@cache
def model():
    return ea_model(Path(mkdtemp()), small_base(), "eagle")


DRAFTER = cache(lambda: model().ea_layer)


def fresh(arguments):
    return {k: [kind() for kind in v] if k in FRESH else v for k, v in arguments.items()}


def check(call) -> None:
    drafter, eagle = DRAFTER(), model()
    ids = torch.tensor(call["ids"])
    mask = (torch.arange(ids.shape[1]) >= torch.tensor(call["pads"])[:, None]).long()
    arguments = {**call["arguments"], "attention_mask": mask, "return_dict_in_generate": True}
    torch.manual_seed(call["seed"])
    want = small_base().generate(ids, **fresh(arguments))
    after = torch.get_rng_state()
    total, depth, top_k = call["tree"]
    drafter.tree = tree_config(total, depth, top_k, 1.0, mc_sim_7b_63 if call["static"] else "dynamic")
    eagle.ea_layer = drafter
    if call["scripted"]:
        nodes = max(2, min(total, 12))
        ends = call["arguments"]["eos_token_id"] or ()
        eagle.ea_layer = ScriptedDrafter(want.sequences, VOCABULARY, ids.shape[1], ends, nodes, call["seed"])
    torch.manual_seed(call["seed"])
    got = eagle.generate(ids, prefill_chunk=call["prefill_chunk"], **fresh(arguments))
    assert torch.equal(got.sequences, want.sequences)
    assert torch.equal(torch.get_rng_state(), after)
    # A processor that works in place also changes what `generate` returns as raw logits; here they stay raw.
    in_place = Counting in call["arguments"].get("logits_processor", ())
    for name in ("scores",) if in_place else ("scores", "logits"):
        ours, theirs = getattr(got, name), getattr(want, name)
        assert (ours is None) == (theirs is None)
        for a, b in zip(ours or (), theirs or (), strict=True):
            # A value at the very edge of a cut may fall on either side of it.
            both = a.isfinite() & b.isfinite()
            assert int((a.isfinite() != b.isfinite()).sum()) <= 1
            torch.testing.assert_close(a[both], b[both], atol=1e-3, rtol=1e-3)


def run(cases: int) -> Callable[[], None]:
    quiet = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    how = settings(max_examples=cases, deadline=None, database=None, suppress_health_check=quiet)
    return how(given(calls())(check))


@pytest.mark.parametrize("part", range(PARTS))
def test_random_calls(part):
    seed(part)(run(CASES // PARTS))()


@pytest.mark.nightly
@pytest.mark.parametrize("part", range(NIGHTLY_PARTS))
def test_many_random_calls(part):
    run(NIGHTLY_CASES // NIGHTLY_PARTS)()
