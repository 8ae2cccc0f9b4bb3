"""On a CUDA device, as it is and in graphs: the ids of `generate` on that device, in fp32."""

import copy

import pytest
import torch
from architectures import ARCHITECTURES, base_model, prompts
from pairs import ea_model
from places import PAIR
from references import ends_at, generate_ids

from eagle.model.ea_model import EaModel
from eagle.model.support.loading import load_base, load_tokenizer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

SAMPLING = {"temperature": 0.8, "top_k": 20, "top_p": 0.9}
NEW = 40


@pytest.mark.parametrize("graphs", [False, True], ids=["as_it_is", "graphs"])
@pytest.mark.parametrize(("mode", "batch"), [("greedy", 3), ("sampled", 1)])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_random_models_give_generate_s_ids(tmp_path, name, mode, batch, graphs):
    base = copy.deepcopy(base_model(name)).cuda()
    ids, mask = (tensor.cuda() for tensor in prompts(base, batch))
    seed = () if mode == "greedy" else (3,)
    expected = generate_ids(base, ids, mask, NEW, *seed, **SAMPLING)
    model = ea_model(tmp_path, base, "eagle3" if batch == 1 else "eagle", cuda_graphs=graphs)
    for _ in range(2):  # the second call finds the graphs of the first
        torch.manual_seed(3)
        out = model.eagenerate(ids, attention_mask=mask, max_new_tokens=NEW, **(SAMPLING if seed else {}))
        assert torch.equal(out, expected)


@pytest.fixture(scope="module")
def tiny():
    base = load_base(str(PAIR / "target"), {"dtype": torch.float32}).cuda()
    tokenizer = load_tokenizer(str(PAIR / "target"))
    texts = (PAIR / "prompts.py").read_text().split("\n\n")[2:6]
    tokenizer.padding_side = "left"
    batch = tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length=60).to("cuda")
    return base, batch.input_ids, batch.attention_mask


@pytest.mark.parametrize("graphs", [False, True], ids=["as_it_is", "graphs"])
@pytest.mark.parametrize("total_token", [26, -1])
@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("head", ["eagle_head", "eagle3_head"])
def test_the_tiny_pair_gives_generate_s_ids(tiny, head, rows, total_token, graphs):
    base, ids, mask = tiny
    ids, mask = ids[-rows:], mask[-rows:]
    model = EaModel(None, base, str(PAIR / "target"), str(PAIR / head), total_token=total_token, cuda_graphs=graphs)
    with ends_at(base, [0, 199]):
        for seed, sampling in (((), {}), ((3,), {"temperature": 1.0})):
            expected = generate_ids(base, ids, mask, 96, *seed, **sampling)
            torch.manual_seed(3)
            out = model.eagenerate(ids, attention_mask=mask, max_new_tokens=96, **sampling)
            assert torch.equal(out, expected)
    assert total_token == -1 or model.stats.acceptance_length > 1.5
