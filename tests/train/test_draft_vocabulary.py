"""The draft vocabulary: which tokens, what they cover of texts that did not choose them, what is proposed."""

import re

import pytest
import torch
from teaching import texts

from eagle.data.samples import counted_tokens
from eagle.train.draft_vocabulary import DraftVocabulary


class Listed(list):
    """Samples in memory, as a prepared folder gives them."""


def rows(*ids: list[int], answers: int = 0) -> Listed:
    """Texts of these ids, answers from the place `answers` on."""
    return Listed(texts([torch.tensor(row) for row in ids], [torch.arange(len(row)) >= answers for row in ids]).samples)


def share(report: str, size: str) -> float:
    found = re.search(rf"[ ]{size}: ([\d.]+) %", report)
    assert found, report
    return float(found[1])


def test_tokens_of_answers_come_first_then_those_of_prompts_then_the_lowest_ids(caplog):
    vocabulary = DraftVocabulary(rows(*[[50, 51, 51, 9, 8, 8]] * 3, answers=3), 60)
    assert vocabulary.tokens(1).tolist() == [8] and vocabulary.tokens(2).tolist() == [8, 9]
    assert "only" not in caplog.text
    with caplog.at_level("INFO"):
        assert vocabulary.tokens(3).tolist() == [8, 9, 51]
        assert (
            "only 2 different tokens are in the answers, 3 are asked for: the rest are 1 of the prompts" in caplog.text
        )
        assert vocabulary.tokens(7).tolist() == [0, 1, 2, 8, 9, 50, 51]
    assert "2 of the prompts and the 3 lowest other ids; more texts, or --draft-vocab-size 2" in caplog.text


def test_coverage_is_of_texts_that_are_held_out():
    learnt, held_out = rows([1, 1, 1, 2, 2, 3]), rows([3, 3, 3, 9])
    report = DraftVocabulary(learnt, 20, held_out, "TEXTS").report(2)
    assert "share of the answers of TEXTS" in report
    assert share(report, "2") == 0 and share(report, "all 20") == 100
    assert share(DraftVocabulary(learnt, 20, held_out, "x").report(3), "3") == 75


def test_without_held_out_texts_every_tenth_is_measured_by_the_other_nine():
    every = [[1, 1]] * 9 + [[2, 2]] + [[1, 1]] * 9 + [[1, 3]]
    vocabulary = DraftVocabulary(rows(*every), 20)
    # Ids 2 and 3 are in held-out texts alone: 1 is chosen by the others, then the lowest ids.
    assert share(vocabulary.report(1), "1") == 25
    assert vocabulary.tokens(2).tolist() == [1, 2]  # but all texts choose the run's own tokens
    assert "too few texts" in DraftVocabulary(rows(*every[:9]), 20).report(5)


def test_the_least_size_that_covers_enough_is_proposed():
    many = Listed(rows(*[list(range(1500))] * 10))
    report = DraftVocabulary(many, 5000).report(1024)
    assert "this run drafts 1,024; to cover 99 %: --draft-vocab-size 2048" in report
    assert share(report, "1,024") == pytest.approx(100 * 1024 / 1500, abs=0.01) and share(report, "2,048") == 100
    assert "8,192" not in report, "larger than the target's vocabulary"
    assert "to cover 99 %: all tokens" in DraftVocabulary(Listed(rows(*[list(range(900))] * 10)), 1000).report(30)


def test_counts_are_the_same_in_pieces_of_any_size(monkeypatch):
    samples = rows([3, 4, 4], [5, 4, 3, 3], [7, 7], answers=1)
    whole = [counts.tolist() for counts in counted_tokens(samples, 9)]
    assert whole == [[0, 0, 0, 2, 3, 0, 0, 1, 0], [0, 0, 0, 3, 3, 1, 0, 2, 0]]
    for piece in (1, 4):
        monkeypatch.setattr("eagle.data.samples.PIECE", piece)
        assert [counts.tolist() for counts in counted_tokens(samples, 9)] == whole
    with pytest.raises(ValueError, match="token id 7 is outside a vocabulary of 7"):
        counted_tokens(samples, 7)
