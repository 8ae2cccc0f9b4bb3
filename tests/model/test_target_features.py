"""What the target says about texts does not depend on how they are laid into rows."""

import pytest
import torch
from architectures import base_model

from eagle.data.batches import gathered
from eagle.data.samples import Sample
from eagle.model.target import TargetModel
from eagle.model.target_features import check_output, read_features

NAMES = ["llama", "gemma3_text", "gemma2", "mistral", "gpt_neox", "qwen3_moe", "gpt_oss"]


def samples(*lengths: int) -> list[Sample]:
    ids = [torch.randint(3, 80, (n,), generator=torch.Generator().manual_seed(n)).numpy() for n in lengths]
    return [Sample(row.astype("int32"), row > 0) for row in ids]


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_packed_and_padded_texts_are_observed_as_each_alone(name):
    target, texts = TargetModel(base_model(name)), samples(23, 9, 40, 3)
    taps = (1, 2, 3)
    for rows in ([texts[:2], texts[2:]], [[text] for text in texts]):
        batch = gathered(rows)
        seen = read_features(target, batch.ids_BS, taps, batch.positions_BS, batch.segments_BS)
        for row, members in enumerate(rows):
            for segment, text in enumerate(members, start=1):
                alone = target.model(
                    input_ids=torch.from_numpy(text.ids).long()[None], output_hidden_states=True, use_cache=False
                )
                own = batch.segments_BS[row] == segment
                wanted = torch.cat([alone.hidden_states[tap][0] for tap in taps], -1)
                torch.testing.assert_close(seen.features_BSF[row, own], wanted, rtol=1e-3, atol=1e-3)
                logits = target.output_logits(seen.hidden_BSD[row, own])
                torch.testing.assert_close(logits, alone.logits[0], rtol=1e-3, atol=1e-3)


def test_features_of_eagle_1_are_the_last_hidden_states():
    target = TargetModel(base_model("llama"))
    seen = read_features(target, torch.tensor([[3, 4, 5]]), "last")
    assert seen.features_BSF is seen.hidden_BSD


def test_a_model_whose_logits_are_more_than_a_matrix_is_refused():
    target = TargetModel(base_model("llama"))
    check_output(target)
    target.logit_transform["logit_scale"] = 2.0
    with pytest.raises(NotImplementedError, match="its output matrix"):
        check_output(target)
