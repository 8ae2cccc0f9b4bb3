"""Figures by hand: speeds, both τ, acceptance by depth, what is compared with what, intervals that cover."""

import numpy as np
import pytest

from eagle.evaluation.eval_report import compared, verdict
from eagle.evaluation.intervals import estimate, mean, ratio_of_means, ratio_of_sums
from eagle.evaluation.question_runs import MethodRun, QuestionRecord
from eagle.evaluation.scores import acceptance_by_depth, claims, mean_score, score_all, score_set


def run(tokens, seconds, accepted=None):
    return MethodRun(list(range(tokens)), [seconds], accepted)


def record(number, **runs):
    names = {"generate": "generate", "plain": "plain decoding", "one": "EAGLE-1", "two": "EAGLE-2"}
    turns = [{names[name]: found[turn] for name, found in runs.items()} for turn in range(len(runs["generate"]))]
    return QuestionRecord("set", 0.0, number, "", str(number), [9] * len(turns), turns)


RECORDS = [
    record(  # two turns: 20 tokens; 10, 5, 4 tokens a second
        1,
        generate=[run(10, 2.0), run(10, 3.0)],
        plain=[run(10, 2.5, [0] * 9), run(10, 2.5, [0] * 9)],
        two=[run(10, 1.0, [3, 2, 1]), run(10, 1.0, [4, 4])],
    ),
    record(2, generate=[run(6, 1.0)], plain=[run(6, 3.0, [0] * 5)], two=[run(6, 0.5, [0, 3])]),
]


def test_figures_of_two_questions_are_those_worked_out_by_hand():
    score = score_set(RECORDS, ["generate", "plain decoding", "EAGLE-2"])
    generate, plain, eagle = score.methods
    # 20 tokens in 5 s and 6 in 1 s; 20 in 5 s and 6 in 3 s; 20 in 2 s and 6 in 0.5 s.
    assert generate.tokens_per_second.value == (4 + 6) / 2 and plain.tokens_per_second.value == (4 + 2) / 2
    assert score.baseline == "generate" and eagle.speedup.value == pytest.approx(((10 + 12) / 2) / 5)
    # 17 tokens accepted of 7 drafts; 26 new tokens.
    assert eagle.acceptance_length.value == pytest.approx(1 + 17 / 7)
    assert eagle.tokens_per_forward.value == pytest.approx(26 / 7)
    assert eagle.accepted_lengths == (1, 1, 1, 2, 2)
    assert eagle.acceptance_by_depth == ()  # seven drafts are too few to say
    by_depth = acceptance_by_depth([[3, 2, 1, 4, 4], [0, 3]], few=1)
    assert [one.value for one in by_depth] == pytest.approx([6 / 7, 5 / 6, 4 / 5, 2 / 4, 0.0])
    assert generate.acceptance_length is None and plain.acceptance_length.value == 1
    assert plain.acceptance_by_depth == () and (score.asked, eagle.answers, eagle.equal) == (2, 3, 3)


def test_depth_that_few_drafts_reach_ends_the_list():
    def shares(questions, few):
        return [one.value for one in acceptance_by_depth(questions, few)]

    assert shares([[]], 1) == shares([[0, 0], [0]], 1) == []
    assert shares([[1, 0]], 1) == [0.5, 0.0]
    assert shares([[9]], 1) == [1.0] * 7
    assert shares([[2, 1], [2, 0]], 3) == [0.75, 2 / 3]
    interval = acceptance_by_depth([[1] * 9, [0] * 9], 1)[0]
    assert (interval.low, interval.value, interval.high) == (0, 0.5, 1)


def test_answers_that_end_at_the_limit_are_counted():
    assert [one.cut for one in score_set(RECORDS, [], limit=10).methods] == [2, 2, 2]


def test_a_mean_counts_every_set_alike():
    other = [QuestionRecord(**{**vars(one), "questions": "other"}) for one in RECORDS[1:]]
    first, second, both = score_all([*RECORDS, *other], [])
    assert both.is_mean and not first.is_mean and both.asked == 3
    for place in range(3):
        parts = [one.methods[place].speedup.value for one in (first, second)]
        assert both.methods[place].speedup.value == pytest.approx(sum(parts) / 2)
    assert mean_score([first, second]).methods[2].tokens == 32


def test_questions_that_are_all_too_long_have_no_figures():
    assert score_set([QuestionRecord("set", 0.0, 1, "", "1", [9999], [])], []) is None


def test_methods_are_held_to_those_that_the_papers_set_them_beside():
    names = ["generate", "plain decoding", "prompt lookup", "EAGLE-1"]
    names += [f"EAGLE-{kind} [{size}]" for kind in (2, 3) for size in ("26", "auto")]
    assert claims(names) == [
        ("prompt lookup", "EAGLE-1"),
        ("EAGLE-1", "EAGLE-2 [26]"),
        ("EAGLE-2 [26]", "EAGLE-2 [auto]"),
        ("EAGLE-2 [26]", "EAGLE-3 [26]"),
        ("EAGLE-2 [auto]", "EAGLE-3 [auto]"),
        ("EAGLE-3 [26]", "EAGLE-3 [auto]"),
    ]
    assert claims(["generate", "EAGLE-2", "EAGLE-3"]) == [("EAGLE-2", "EAGLE-3")]
    assert claims(["generate", "plain decoding", "prompt lookup"]) == []


def questions(ratios):
    """Records in which EAGLE-2 is so many times as fast as EAGLE-1, which is as fast as generate."""
    return [
        record(n, generate=[run(8, 1.0)], one=[run(8, 1.0, [1, 1])], two=[run(8, 1 / ratio, [1, 1])])
        for n, ratio in enumerate(ratios)
    ]


@pytest.mark.parametrize(
    ("ratios", "words", "pays"),
    [
        ([1.5, 1.6, 1.7] * 4, "faster", "drafting pays here"),
        ([0.5, 0.6, 0.7] * 4, "slower", "drafting neither pays nor costs"),  # EAGLE-1 is best then
        (
            [0.5, 1.9, 0.9, 0.6, 1.4] * 2,
            "no faster and no slower beyond the interval",
            "drafting neither pays nor costs",
        ),
    ],
)
def test_what_is_said_of_a_comparison_is_what_its_interval_allows(ratios, words, pays):
    score = score_set(questions(ratios), [])
    (comparison,) = score.comparisons
    said = compared(comparison, score.asked)
    assert f"the speed, {words}" in said and "τ differs by +0.00 [+0.00, +0.00]" in said
    assert pays in verdict(score)
    few = score_set(questions(ratios[:3]), [])
    assert "too few questions (3) to say" in compared(few.comparisons[0], few.asked)
    assert "too few questions (3) to say whether drafting pays" in verdict(few)


def test_drafting_that_is_slower_everywhere_does_not_pay():
    slow = [record(n, generate=[run(8, 1.0)], two=[run(8, s, [0])]) for n, s in enumerate([1.5, 1.6] * 5)]
    assert "drafting does not pay here" in verdict(score_set(slow, []))


def test_paired_columns_that_are_the_same_have_no_interval():
    column = np.random.default_rng(0).random(30)
    found = estimate(ratio_of_means, column, column)
    assert found.value == found.low == found.high == 1


def test_intervals_are_as_wide_as_the_normal_ones_of_a_mean():
    column = np.random.default_rng(1).normal(5, 2, 400)
    found = estimate(lambda x: x.mean(-1), column)
    wanted = 1.96 * column.std() / 20
    assert found.value == pytest.approx(column.mean()) and found.low < found.value < found.high
    assert (found.high - found.low) / 2 == pytest.approx(wanted, rel=0.1)


def test_pairing_narrows_the_interval_of_a_ratio():
    generator = np.random.default_rng(2)
    slow = generator.lognormal(0, 1, 100)
    fast = 1.5 * slow * generator.normal(1, 0.01, 100)
    paired, unpaired = estimate(ratio_of_means, fast, slow), estimate(ratio_of_means, fast, generator.permutation(slow))
    assert paired.high - paired.low < 0.1 * (unpaired.high - unpaired.low)


def test_the_mean_of_sets_is_surer_than_each():
    columns = [np.random.default_rng(seed).normal(1, 1, 50) for seed in range(4)]
    parts = [estimate(lambda x: x.mean(-1), column) for column in columns]
    both = mean(parts)
    assert both.value == pytest.approx(np.mean([one.value for one in parts]))
    assert both.high - both.low == pytest.approx(np.mean([one.high - one.low for one in parts]) / 2, rel=0.15)


def test_a_set_with_a_question_that_took_no_draft_still_has_a_figure():
    found = estimate(ratio_of_sums, [0.0, 3.0], [0.0, 2.0])
    assert found.value == 1.5 and found.figures() == {"value": 1.5, "low": 1.5, "high": 1.5}
