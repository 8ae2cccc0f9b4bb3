"""A long prompt is read in chunks: nothing grows with its square or with the vocabulary, and nothing changes."""

import pytest
import torch
from architectures import SMALL, base_model, prompts
from pairs import ea_model
from references import generate_ids
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM

LONG, VOCABULARY = 8192, 509


class Shapes(TorchDispatchMode):
    """Records the size of every tensor made."""

    def __init__(self):
        super().__init__()
        self.seen: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.seen.add(tuple(tensor.shape))
        return result


@pytest.fixture(scope="module")
def long_base():
    config = AutoConfig.for_model(
        "llama", **{**SMALL, "num_hidden_layers": 2, "vocab_size": VOCABULARY, "max_position_embeddings": LONG + 64}
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def count(shape: tuple[int, ...], size: int) -> int:
    return sum(dimension >= size for dimension in shape)


@pytest.mark.parametrize("chunk", [1024, 300])
def test_eight_thousand_tokens_make_no_square_and_no_logits_of_all(tmp_path, long_base, chunk):
    model = ea_model(tmp_path, long_base, "eagle")
    ids = torch.randint(3, VOCABULARY, (1, LONG), generator=torch.Generator().manual_seed(1))
    with Shapes() as shapes:
        got = model.generate(ids, max_new_tokens=12, do_sample=False, prefill_chunk=chunk)
    for shape in shapes.seen:
        assert count(shape, LONG) <= 1, shape
        if VOCABULARY in shape:
            # Weights [V, D], and logits of a tree or of the last position.
            assert shape[0] == VOCABULARY or shape == (32, VOCABULARY) or shape[-2] <= 32, shape
        # Features and hidden states are those of a chunk; ids, keys and values have all S.
        if len(shape) == 3 and shape[-1] >= 32 and shape[-1] < LONG:
            assert shape[1] <= chunk, shape
    assert torch.equal(got, generate_ids(long_base, ids, torch.ones_like(ids), 12))


def test_the_watch_on_shapes_sees_what_it_should(long_base):
    with Shapes() as shapes, torch.no_grad():
        long_base(input_ids=torch.ones(1, 64, dtype=torch.int64))
    assert (1, 64, VOCABULARY) in shapes.seen


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3_text"])
@pytest.mark.parametrize("chunk", [1, 4, 7])
def test_chunks_of_any_size_give_generate_s_ids(tmp_path, name, chunk):
    base = base_model(name)
    ids, mask = prompts(base, 3, 17)
    model = ea_model(tmp_path, name)
    got = model.eagenerate(ids, max_new_tokens=10, attention_mask=mask, prefill_chunk=chunk)
    assert torch.equal(got, generate_ids(base, ids, mask, 10))


@pytest.mark.parametrize("chunk", [0, -3, 2.5, "8"])
def test_an_impossible_chunk_is_refused(tmp_path, chunk):
    model = ea_model(tmp_path)
    with pytest.raises(ValueError, match=r"prefill_chunk=.* must be a whole number, 1 or more"):
        model.generate(torch.tensor([[5, 6]]), prefill_chunk=chunk)
