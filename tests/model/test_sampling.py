"""Noise that belongs to the position, and the distribution it gives."""

import itertools
import math

import pytest
import torch
from architectures import base_model
from pairs import ea_model
from transformers import GenerationConfig, LogitsProcessorList

from eagle.model.call.reference import Call
from eagle.model.sampling import Noise, Sampler


def test_argmax_of_p_over_noise_is_multinomial():
    for seed in range(150):
        probabilities = torch.rand(3, 50, generator=torch.Generator().manual_seed(seed)).softmax(-1)
        torch.manual_seed(seed)
        want = torch.multinomial(probabilities, 1)[:, 0]
        torch.manual_seed(seed)
        sampler = Sampler(LogitsProcessorList(), Noise(3, torch.device("cpu")))
        got = sampler.choose(probabilities.log(), [0, 0, 0], [0, 1, 2])
        assert torch.equal(got, want)


@pytest.mark.parametrize("scores", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("default", [torch.float32, torch.float64, torch.bfloat16])
def test_noise_is_of_the_scores_dtype_whatever_torch_s_default_is(default, scores):
    """As `multinomial`'s is; in another dtype two of a thousand picks differ."""
    before, sampled = torch.get_default_dtype(), []
    torch.set_default_dtype(default)
    try:
        for seed in range(40):
            generator = torch.Generator().manual_seed(seed)
            scores_BV = torch.randn(64, 300, generator=generator, dtype=torch.float32).to(scores)
            torch.manual_seed(seed)
            want = torch.multinomial(scores_BV.softmax(-1), 1)[:, 0]
            torch.manual_seed(seed)
            sampler = Sampler(LogitsProcessorList(), Noise(64, torch.device("cpu")))
            sampled.append(torch.equal(sampler.choose(scores_BV, [0] * 64, range(64)), want))
    finally:
        torch.set_default_dtype(before)
    assert all(sampled)


def test_noise_is_drawn_in_order_of_position_whoever_asks_first():
    def draw(order):
        noise = Noise(2, torch.device("cpu"), torch.Generator().manual_seed(1))
        return {t: noise.at([t, t], [0, 1], 7).clone() for t in order}

    first, second = draw([0, 1, 2, 3]), draw([3, 1, 0, 2])
    assert all(torch.equal(first[t], second[t]) for t in range(4))


def test_rows_that_left_do_not_shift_the_others_noise():
    noise = Noise(3, torch.device("cpu"), torch.Generator().manual_seed(1))
    full = noise.at([4, 4, 4], [0, 1, 2], 7).clone()
    assert torch.equal(noise.at([4], [2], 7), full[2:])


def test_rewind_leaves_the_generator_where_it_was_after_the_used_tokens():
    generator = torch.Generator().manual_seed(1)
    noise = Noise(1, torch.device("cpu"), generator)
    noise.at([2], [0], 7)
    after_three = generator.get_state()
    noise.at([8], [0], 7)
    noise.rewind(3)
    assert torch.equal(generator.get_state(), after_three)


def test_rewind_never_takes_back_what_somebody_else_drew():
    generator = torch.Generator().manual_seed(1)
    noise = Noise(1, torch.device("cpu"), generator)
    noise.at([8], [0], 7)
    torch.rand(1, generator=generator)
    state = generator.get_state()
    noise.rewind(3)
    assert torch.equal(generator.get_state(), state)


@pytest.mark.parametrize(
    ("given", "sampling"),
    [
        ((0.7, 0.9, 5), {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 5}),
        ((1.0, 0.0, 0), {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0}),
        ((1e-5, 0.9, 5), {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}),
    ],
)
def test_zero_switches_a_filter_off_and_a_tiny_temperature_is_greedy(given, sampling):
    temperature, top_p, top_k = given
    limits = {"max_new_tokens": 5, "max_length": 99, "is_llama3": False, "extras": {}}
    call = Call(temperature=temperature, top_p=top_p, top_k=top_k, **limits)
    config = call.config(GenerationConfig(eos_token_id=2), 9, tokenizer=None)
    assert {name: getattr(config, name) for name in sampling} == sampling
    assert config.max_length == 14 and config.eos_token_id == [2]


def chi_square_p(statistic: float, freedom: int) -> float:
    """Return the upper tail by Wilson and Hilferty's normal approximation."""
    z = ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))
    return 0.5 * math.erfc(z / math.sqrt(2))


@torch.no_grad()
def enumerated(base, ids: torch.Tensor, temperature: float) -> dict[tuple[int, ...], float]:
    """Return the probability of every continuation of two tokens."""
    after_one = (base(ids).logits[0, -1].float() / temperature).softmax(-1)
    vocabulary = len(after_one)
    longer = torch.cat([ids.expand(vocabulary, -1), torch.arange(vocabulary)[:, None]], 1)
    after_two = (base(longer).logits[:, -1].float() / temperature).softmax(-1)
    return {
        (a, b): float(after_one[a] * after_two[a, b])
        for a, b in itertools.product(range(vocabulary), range(vocabulary))
    }


def test_samples_follow_the_enumerated_distribution(tmp_path):
    """20 seeds fixed beforehand, each a batch of 60 rows whose three tokens are sampled through drafted trees."""
    base = base_model("llama")
    eos = base.generation_config.eos_token_id
    base.generation_config.eos_token_id = None
    try:
        model = ea_model(tmp_path, "llama", "eagle", total_token=8, depth=1, top_k=4)
        prompt = torch.tensor([[5, 17, 33]])
        temperature = 0.5
        counts: dict[tuple[int, ...], int] = {}
        for seed in range(20):
            torch.manual_seed(seed)
            ids = model.eagenerate(prompt.repeat(60, 1), temperature=temperature, max_new_tokens=3)
            for pair in ids[:, 3:5].tolist():
                counts[tuple(pair)] = counts.get(tuple(pair), 0) + 1
        assert sum(model.stats.accepted_per_step) > 0
    finally:
        base.generation_config.eos_token_id = eos
    probabilities, total = enumerated(base, prompt, temperature), sum(counts.values())
    assert total == 1200
    # Cells with an expectation below 5 are pooled.
    common = {pair for pair, p in probabilities.items() if p * total >= 5}
    rest = 1 - sum(probabilities[pair] for pair in common)
    cells = [(counts.get(pair, 0), probabilities[pair] * total) for pair in common]
    cells.append((sum(n for pair, n in counts.items() if pair not in common), rest * total))
    statistic = sum((seen - wanted) ** 2 / wanted for seen, wanted in cells)
    assert len(cells) > 5
    assert chi_square_p(statistic, len(cells) - 1) > 1e-4


@pytest.mark.parametrize("seed", range(3))
def test_a_generator_of_the_caller_s_is_used_and_the_global_one_left_alone(tmp_path, seed):
    model = ea_model(tmp_path)
    ids = torch.tensor([[5, 17, 33]])
    state = torch.get_rng_state()
    draws = [
        model.eagenerate(ids, temperature=1.0, max_new_tokens=20, generator=torch.Generator().manual_seed(seed))
        for _ in range(2)
    ]
    assert torch.equal(*draws) and torch.equal(state, torch.get_rng_state())
    torch.manual_seed(seed)
    assert torch.equal(model.eagenerate(ids, temperature=1.0, max_new_tokens=20), draws[0])
