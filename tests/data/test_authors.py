"""Authors of answers: every answer is what `generate` says to its prompt alone, in whatever company it is written."""

from collections.abc import Callable, Iterator

import pytest
import torch
from places import PAIR
from transformers import GenerationConfig

from eagle.data.answer_rules import PERIOD, REPEATED, AnswerRules, loops
from eagle.data.answers import Answer, Question
from eagle.data.batched import BatchAuthor
from eagle.data.continuous import ContinuousAuthor
from eagle.model.ea_model import EaModel
from eagle.model.support.loading import load_base, load_tokenizer
from eagle.model.target import TargetModel

ENDS = [0, 199]  # the pair hardly ever ends a text: here a line break does as well
TEXT = (PAIR / "prompts.py").read_text()


@pytest.fixture(scope="module")
def base():
    return load_base(str(PAIR / "target"), {"dtype": torch.float32})


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(str(PAIR / "target"))


@pytest.fixture(scope="module")
def questions(tokenizer) -> list[Question]:
    ids = tokenizer(TEXT)["input_ids"]
    return [Question(i, 0, f"row {i}", f"question {i}", [], ids[31 * i : 31 * i + 5 + 7 * (i % 4)]) for i in range(10)]


def rules(tokenizer, **changes) -> AnswerRules:
    how = {"ends": ENDS, "temperatures": (0.0, 1.0, 0.7), "max_new_tokens": 14, "most": 36, "seed": 3}
    return AnswerRules(tokenizer=tokenizer, **{**how, **changes})


def asking(questions: list[Question]) -> Callable[[], Question | None]:
    rest = iter(questions)
    return lambda: next(rest, None)


def answers(author, questions: list[Question]) -> dict[int, Answer]:
    found = list(author.write(asking(questions)))
    assert len(found) == len(questions)
    return {answer.question.place: answer for answer in found}


def alone(base, how: AnswerRules, question: Question) -> list[int]:
    """What `generate` says to a prompt alone."""
    temperature = how.temperature(question)
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    config = GenerationConfig(
        max_new_tokens=how.room(question), eos_token_id=list(how.ends), pad_token_id=0, **sampling
    )
    base.generation_config = GenerationConfig()
    torch.manual_seed(how.noise_seed(question))
    ids_1S = torch.tensor([question.prompt])
    return base.generate(ids_1S, attention_mask=torch.ones_like(ids_1S), generation_config=config)[
        0, ids_1S.shape[1] :
    ].tolist()


@pytest.mark.contract
@pytest.mark.parametrize("rows", [3, 32])
def test_an_answer_is_generate_s_to_its_prompt_alone(base, tokenizer, questions, rows):
    how = rules(tokenizer)
    found = answers(ContinuousAuthor(TargetModel(base), how, rows), questions)
    assert {how.temperature(question) for question in questions} == {0.0, 1.0, 0.7}
    assert {answer.ended for answer in found.values()} == {True, False}
    for question in questions:
        answer = found[question.place]
        assert answer.ids == alone(base, how, question)
        assert answer.ended == (answer.ids[-1] in ENDS)
        said = answer.ids[:-1] if answer.ended else answer.ids
        assert answer.text == tokenizer.decode(said, skip_special_tokens=True).strip()


def test_a_head_changes_no_answer(base, tokenizer, questions):
    how = rules(tokenizer)
    model = EaModel(None, base, str(PAIR / "target"), str(PAIR / "eagle3_head"), total_token=8, depth=3)
    with_head = answers(BatchAuthor(model, how, 4), questions)
    without = answers(ContinuousAuthor(TargetModel(base), how, 4), questions)
    assert {place: answer.ids for place, answer in with_head.items()} == {p: a.ids for p, a in without.items()}


def test_nothing_is_written_beyond_the_longest_sample(base, tokenizer, questions):
    how = rules(tokenizer, max_new_tokens=30, most=28, ends=[0])
    for answer in answers(ContinuousAuthor(TargetModel(base), how, 3), questions).values():
        asked = len(answer.question.prompt)
        assert len(answer.ids) <= how.room(answer.question) == min(30, 28 - asked)


def test_a_free_place_is_taken_by_the_next_question_at_once(base, tokenizer, questions, monkeypatch):
    target, forwards = TargetModel(base), []
    verify = target.verify
    monkeypatch.setattr(target, "verify", lambda *a: (forwards.append(a[0].tokens_BN.shape[0]), verify(*a))[1])
    found = answers(ContinuousAuthor(target, rules(tokenizer, temperatures=(1.0,)), 2), questions)
    # The first token comes with the prompt; each step writes one for either row, until only one answer is left.
    written = sum(len(answer.ids) - 1 for answer in found.values())
    assert sum(forwards) == pytest.approx(written, abs=2)
    assert written / 2 <= len(forwards) <= written / 2 + 20


def test_a_question_that_comes_with_an_answer_is_asked(base, tokenizer, questions):
    waiting, seen = [questions[0]], []
    for answer in ContinuousAuthor(TargetModel(base), rules(tokenizer), 4).write(
        lambda: waiting.pop() if waiting else None
    ):
        seen.append(answer.question.place)
        if len(seen) < 4:
            waiting.append(questions[len(seen)])
    assert seen == [0, 1, 2, 3]


def test_the_seed_and_the_content_decide_not_the_place(tokenizer, questions):
    how, first = rules(tokenizer), questions[0]
    moved = Question(99, 0, first.conversation, first.key, [], first.prompt)
    assert (how.temperature(moved), how.noise_seed(moved)) == (how.temperature(first), how.noise_seed(first))
    assert rules(tokenizer, seed=4).noise_seed(first) != how.noise_seed(first)


def repeated(part: list[int], tokens: int) -> Iterator[int]:
    return (part[place % len(part)] for place in range(tokens))


@pytest.mark.parametrize("period", [1, 2, 7, PERIOD])
def test_a_loop_is_a_part_that_repeats_to_the_end(period):
    part, before = list(range(100, 100 + period)), list(range(50))
    enough = max(REPEATED, 6 * period)
    looping = [*before, *repeated(part, enough)]
    assert loops(looping)
    assert not loops([*before, 7, *repeated(part, enough - 1)])
    assert not loops([*looping, 7])


def test_a_list_is_no_loop():
    assert not loops([token for number in range(60) for token in (10, 11, 1000 + number, 12)])


def test_an_answer_stops_where_it_is_found_to_repeat_itself(base, tokenizer, questions):
    how = rules(tokenizer, temperatures=(0.0,), max_new_tokens=240, most=None, ends=[0])
    found = answers(ContinuousAuthor(TargetModel(base), how, 8), questions[:6])
    looped = [answer for answer in found.values() if answer.looped]
    assert looped  # under greedy decoding a small model does so soon
    for answer in looped:
        assert loops(answer.ids) and not answer.ended and len(answer.ids) < 240
    for answer in looped[:1]:
        assert answer.ids == alone(base, how, answer.question)[: len(answer.ids)]


@pytest.mark.contract
def test_a_row_takes_in_what_another_cache_holds_without_its_pads(base):
    target = TargetModel(base)
    prompts = [[5, 6, 7], [8, 9, 10, 11, 12, 13]]
    ids_RS = torch.tensor([[0, 0, 0, *prompts[0]], prompts[1]])
    padded = target.new_cache(2, 6, [3, 0])
    target.prefill_logits(ids_RS, (ids_RS > 0).long(), padded)
    cache = target.new_cache(4, 16, [0] * 4)
    cache.take_in([3, 1], padded)
    assert cache.lengths == [0, 6, 0, 3]
    for row, prompt in ((3, prompts[0]), (1, prompts[1])):
        own = target.new_cache(1, 6, [0])
        target.prefill_logits(torch.tensor([prompt]), None, own)
        for mine, theirs in zip(cache.layers, own.layers, strict=True):
            for part in ("keys", "values"):
                kept, made = (getattr(layer, part) for layer in (mine, theirs))
                torch.testing.assert_close(kept[row, :, : len(prompt)], made[0, :, : len(prompt)])
