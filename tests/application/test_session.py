"""A session says what `generate` says, and shows of every step what was drafted and accepted."""

import math
from itertools import pairwise

import pytest
import torch

from eagle import EaModel
from eagle.application import session as session_module
from eagle.application.session import Session, SessionSettings, TokenText

PAIR = "examples/tiny_pair"
TEXT = "def read_lines(path):\n    "


@pytest.fixture(scope="module")
def model():
    paths = {"base_model_path": f"{PAIR}/target", "ea_model_path": f"{PAIR}/eagle3_head"}
    return EaModel.from_pretrained(**paths, total_token=12, depth=4, top_k=4, dtype="float32").eval()


def expected(model, text, **keywords):
    ids = torch.tensor([model.tokenizer(text)["input_ids"]])
    out = model.base_model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, **keywords)
    return out[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("drafts", [True, False])
def test_an_answer_has_the_ids_and_the_text_of_generate(model, drafts):
    answer = Session(model).complete(TEXT, SessionSettings(max_new_tokens=40, drafts=drafts))
    steps = list(answer)
    assert answer.ids == expected(model, TEXT, do_sample=False)
    text = "".join(piece.text for step in steps for piece in step.pieces)
    assert text == model.tokenizer.decode(answer.ids, skip_special_tokens=True)
    assert [step.finished for step in steps] == [None] * (len(steps) - 1) + ["length"]
    assert (len(steps) < 30) == drafts


def test_a_seed_gives_the_ids_that_generate_samples(model):
    settings = SessionSettings(temperature=0.8, top_p=0.9, top_k=20, max_new_tokens=40, seed=5)
    answer = Session(model).complete(TEXT, settings)
    list(answer)
    torch.manual_seed(5)
    assert answer.ids == expected(model, TEXT, do_sample=True, temperature=0.8, top_p=0.9, top_k=20)


def test_pieces_are_marked_as_drafted_exactly_where_the_tree_s_path_says_them(model):
    for step in Session(model).complete(TEXT, SessionSettings(max_new_tokens=40)):
        path = [node.token for node in step.nodes if node.is_accepted][1:]
        drafted = [piece.is_drafted for piece in step.pieces]
        assert drafted == [True] * len(path) + [False] * (len(drafted) - len(path))


def test_the_tree_of_a_step_is_the_verified_one_with_parents_first(model):
    shown = list(Session(model).complete(TEXT, SessionSettings(max_new_tokens=24)))
    ids = torch.tensor([model.tokenizer(TEXT)["input_ids"]])
    steps = list(model.generate_steps(ids, max_new_tokens=24, do_sample=False))
    compared = 0
    for seen, step in zip(shown, steps, strict=True):
        if step.tree is None or step.tree.size == 1:
            assert seen.nodes == ()
            continue
        tree = step.tree
        tokens, parents, wanted = (row_N[0].tolist() for row_N in (tree.tokens_BN, tree.parents_BN, tree.scores_BN))
        kept = [0]  # near its end the limit cuts nodes off
        for number in range(1, step.tree.size):
            kept += [number] if parents[number] in kept else []
        assert [node.token for node in seen.nodes] == [tokens[number] for number in kept]
        assert [node.parent for node in seen.nodes[1:]] == [kept.index(parents[number]) for number in kept[1:]]
        scores = [0.0] * len(seen.nodes)
        for number, node in enumerate(seen.nodes[1:], start=1):
            scores[number] = scores[node.parent] + math.log(node.probability)
        assert scores == pytest.approx([wanted[number] for number in kept], abs=1e-3)
        compared += len(kept) == step.tree.size
    assert compared > 3


def test_the_path_of_a_step_goes_on_from_the_last_token_before_it(model):
    answer, last = Session(model).complete(TEXT, SessionSettings(max_new_tokens=40)), None
    for step in answer:
        if step.nodes:
            assert step.nodes[0].token == last
            chain = [number for number, node in enumerate(step.nodes) if node.is_accepted]
            assert all(step.nodes[child].parent == parent for parent, child in pairwise(chain))
        last = answer.ids[-1]


def test_a_tree_is_made_when_somebody_looks_at_it_and_once(model, monkeypatch):
    made, make = [], session_module._nodes
    monkeypatch.setattr(session_module, "_nodes", lambda *what: made.append(what) or make(*what))
    steps = list(Session(model).complete(TEXT, SessionSettings(max_new_tokens=24)))
    assert len(steps) > 3 and not made and steps[2].drafted > 0 == steps[0].drafted
    assert steps[2].nodes is steps[2].nodes and len(made) == 1


def test_text_that_ends_inside_a_character_waits_for_the_rest(model):
    ids = model.tokenizer("é日本🎉x")["input_ids"]
    text = TokenText(model.tokenizer)
    pieces = [text.add(token) for token in ids]
    assert "".join(pieces).endswith("é日本🎉x") and not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


def test_a_character_that_a_limit_cuts_in_two_is_said_as_the_tokenizer_has_it(model):
    ids = model.tokenizer("é漢")["input_ids"]
    text = TokenText(model.tokenizer)
    said = "".join(text.add(token) for token in ids[:-1])
    assert said + text.rest() == model.tokenizer.decode(ids[:-1], skip_special_tokens=True) and text.rest()
    text.add(ids[-1])
    assert text.rest() == ""


def test_stop_strings_end_an_answer(model):
    answer = Session(model).complete(TEXT, SessionSettings(max_new_tokens=40, stop=("lines of",)))
    steps = list(answer)
    assert steps[-1].finished == "criteria"
    assert answer.ids == expected(model, TEXT, do_sample=False, stop_strings=["lines of"], tokenizer=model.tokenizer)


def test_an_answer_that_is_closed_runs_no_further_and_the_next_one_reuses_its_work(model):
    session = Session(model)
    answer = session.complete(TEXT, SessionSettings(max_new_tokens=200))
    for _ in range(3):
        next(answer)
    answer.close()
    steps = answer.stats.steps
    with pytest.raises(StopIteration):
        next(answer)
    again = session.complete(TEXT, SessionSettings(max_new_tokens=40))
    assert list(again) and again.ids == expected(model, TEXT, do_sample=False)
    assert answer.stats.steps == steps and again.stats.prefilled_tokens < again.stats.prompt_tokens


def test_sessions_on_one_model_do_not_disturb_each_other(model):
    settings = SessionSettings(max_new_tokens=40)
    first, second = Session(model).complete(TEXT, settings), Session(model).complete("import os\n", settings)
    for _ in zip(first, second, strict=False):
        pass
    list(first), list(second)
    assert first.ids == expected(model, TEXT, do_sample=False)
    assert second.ids == expected(model, "import os\n", do_sample=False)
    assert first.stats.new_tokens == len(first.ids)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"temperature": -1.0}, "temperature=-1"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_p": 0.0}, "top_p=0"),
        ({"top_k": -1}, "top_k=-1"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"stop": ("",)}, "stop"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(bad, words):
    with pytest.raises(ValueError, match=words):
        SessionSettings(**bad)


def test_a_model_without_a_chat_template_and_an_empty_text_are_refused_in_words(model):
    session = Session(model)
    with pytest.raises(ValueError, match="no chat template"):
        session.chat([{"role": "user", "content": "hi"}], SessionSettings())
    if session.model.tokenizer("")["input_ids"] == []:
        with pytest.raises(ValueError, match="no text"):
            session.complete("", SessionSettings())


def test_a_head_is_attached_to_a_base_in_hand_which_stays_as_it_is(model):
    base = model.base_model
    attached = EaModel.attach(base, f"{PAIR}/eagle_head", total_token=12, depth=4, top_k=4)
    assert attached.base_model is base and attached.tokenizer.vocab_size == model.tokenizer.vocab_size
    ids = torch.tensor([attached.tokenizer(TEXT)["input_ids"]])
    assert attached.eagenerate(ids, max_new_tokens=40)[0, ids.shape[1] :].tolist() == expected(
        model, TEXT, do_sample=False
    )
