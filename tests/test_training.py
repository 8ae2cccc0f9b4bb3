"""The beginnings of training: one head for training and decoding, losses as defined, runs that resume exactly."""

from itertools import chain

import pytest
import torch
from architectures import base_model
from pairs import random_head

from eagle.model.configs import TreeConfig
from eagle.model.drafter import Drafter
from eagle.model.target import TargetModel
from eagle.train.features import lesson
from eagle.train.loop import Schedule, train, windows
from eagle.train.losses import drafted_targets, eagle3_loss, eagle_loss
from eagle.train.main import main
from eagle.train.recipe import eagle3_recipe, eagle_recipe, frequent_tokens, new_head
from eagle.train.unroll import unroll

TAPS = {"eagle": "last", "eagle3": (2, 3, 4)}


@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
@torch.no_grad()
def test_an_unrolled_step_equals_what_decoding_computes_on_the_same_history(kind):
    base = base_model("llama")
    target, head = TargetModel(base), random_head(base, kind)
    ids = torch.randint(3, 80, (1, 13), generator=torch.Generator().manual_seed(0))
    taught = lesson(target, ids, TAPS[kind])
    hidden = head.fuse(taught.features_BSF)
    trained = [out for out, _ in unroll(head, target.embed(taught.tokens_BS), hidden, steps=4)]
    drafter = Drafter(head, TreeConfig(), target.embed, target.output_logits)
    for root in (3, 8):  # the entry of the root; drafted nodes follow the true tokens
        state = drafter.start(1, 20, [0])
        drafter.observe(state, taught.features_BSF[:, : root + 1], taught.tokens_BS[:, : root + 1], [root + 1])
        out = drafter._feed(state)[:, None]
        torch.testing.assert_close(out[0, 0], trained[0][0, root], rtol=1e-4, atol=1e-5)
        for depth in range(1, 4):
            state.cache.offset = depth - 1
            token = taught.tokens_BS[:, root + depth : root + depth + 1]
            out = drafter._step(state.cache, out, token, torch.full((1, 1), root + depth), None)
            torch.testing.assert_close(out[0, 0], trained[depth][0, root + depth], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_an_entry_counts_where_the_target_s_own_choice_can_be_drafted_whatever_ties_with_it(dtype):
    logits_BSV = torch.tensor([[[0.1, 0.7, 0.2], [0.3, 0.3, 0.1], [0.3, 0.1, 0.3]]], dtype=dtype)
    wanted_BSW, reachable_BS = drafted_targets(logits_BSV, torch.tensor([1, 2]))
    assert reachable_BS.tolist() == [[True, False, False]]
    assert wanted_BSW.dtype == torch.float32 and wanted_BSW.sum(-1).allclose(torch.ones(1, 3))


def test_eagle3_loss_counts_only_positions_whose_best_token_can_be_drafted():
    generator = torch.Generator().manual_seed(0)
    logits, target = torch.randn(2, 5, 4, generator=generator), torch.randn(2, 5, 9, generator=generator)
    drafted = torch.tensor([1, 4, 5, 8])
    keep = torch.tensor([[True] * 5, [False, True, True, True, True]])
    total, count = 0.0, 0
    for b in range(2):
        for s in range(5):
            if keep[b, s] and int(target[b, s].argmax()) in drafted.tolist():
                wanted = target[b, s, drafted].double().softmax(0)
                total -= float((wanted * logits[b, s].double().log_softmax(0)).sum())
                count += 1
    assert 0 < count < 9
    wanted, reachable = drafted_targets(target, drafted)
    assert float(eagle3_loss(logits, wanted, keep & reachable)) == pytest.approx(total / count, rel=1e-5)


def test_eagle_loss_is_smooth_l1_on_features_and_a_tenth_of_the_cross_entropy():
    generator = torch.Generator().manual_seed(0)
    hidden, feature = (3 * torch.randn(1, 4, 6, generator=generator) for _ in range(2))
    logits, target = (torch.randn(1, 4, 9, generator=generator) for _ in range(2))
    keep = torch.tensor([[False, True, True, True]])
    total = 0.0
    for s in range(1, 4):
        gaps = (hidden[0, s] - feature[0, s]).abs()
        total += sum(float(g * g / 2 if g < 1 else g - 0.5) for g in gaps) / 6
        total -= 0.1 * float((target[0, s].softmax(0) * logits[0, s].log_softmax(0)).sum())
    assert float(eagle_loss(hidden, feature, logits, target, keep)) == pytest.approx(total / 3, rel=1e-5)


def test_a_loss_without_any_counted_position_is_zero():
    assert float(eagle3_loss(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3), torch.zeros(1, 2).bool())) == 0


def test_frequent_tokens_are_ascending_and_ties_keep_the_lower_id():
    ids = torch.tensor([4, 4, 4, 2, 2, 7, 1, 0]).numpy()
    assert frequent_tokens(ids, 10, 4).tolist() == [0, 1, 2, 4]
    assert frequent_tokens(ids, 10, 7).tolist() == [0, 1, 2, 3, 4, 5, 7]


def test_every_epoch_reads_all_windows_in_another_order():
    ids, schedule = torch.arange(1001), Schedule(tokens=2000, batch=5, length=20)
    batches = [batch[:, 0].tolist() for batch in windows(ids, schedule, 0)]
    first, second = (list(chain.from_iterable(part)) for part in (batches[:10], batches[10:]))
    assert sorted(first) == list(range(0, 1000, 20)) and first != sorted(first)
    assert second != first and batches[7:] == [b[:, 0].tolist() for b in windows(ids, schedule, 7)]


@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
def test_a_run_that_was_killed_resumes_to_the_same_weights(tmp_path, kind):
    base = base_model("llama")
    target = TargetModel(base)
    ids = torch.randint(3, 80, (2000,), generator=torch.Generator().manual_seed(0))
    schedule = Schedule(tokens=10 * 64, batch=4, length=16, save_every=4, warmup=2)

    def run(checkpoint, stop_after=None):
        torch.manual_seed(1)
        head = new_head(kind, target)
        recipe = eagle_recipe(head, target) if kind == "eagle" else eagle3_recipe(head, target, 3)
        losses = []

        def step(batch):
            if len(losses) == stop_after:
                raise KeyboardInterrupt
            outcome = recipe(lesson(target, batch, TAPS[kind]))
            losses.append(float(outcome.loss))
            return outcome

        train(head, ids, schedule, step, checkpoint)
        return head.state_dict(), losses

    whole, losses = run(tmp_path / "whole.pt")
    assert losses[-1] < losses[0]
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed.pt", stop_after=6)
    resumed, rest = run(tmp_path / "killed.pt")
    assert rest == losses[4:]
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    target = TargetModel(base_model("llama"))
    ids = torch.randint(3, 80, (600,))
    for tokens, refused in ((128, False), (256, True)):
        head = new_head("eagle", target)
        recipe = eagle_recipe(head, target)
        arguments = (head, ids, Schedule(tokens=tokens, batch=4, length=16))
        call = lambda: train(*arguments, lambda b: recipe(lesson(target, b, "last")), tmp_path / "run.pt")  # noqa: B023, E731
        if refused:
            with pytest.raises(ValueError, match="delete it to start anew"):
                call()
        else:
            call()


@pytest.mark.parametrize("name", ["qwen2", "gpt_neox", "mixtral"])
def test_a_head_is_shaped_after_any_target(name):
    target = TargetModel(base_model(name))
    assert new_head("eagle3", target).config.head_dim == 8


def test_a_missing_data_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.npy"):
        main(["--basepath", "x", "--trainpath", str(tmp_path / "nothing.npy"), "--cpdir", str(tmp_path)])
