"""Trees as they were drafted, and what the slow oracle drafts for the same ids."""

import pytest
import torch
from oracle import OracleHead, oracle_dynamic, oracle_static
from references import uncached_features
from scripted import is_tree

from eagle.model.call.prepare import prepare, reusable
from eagle.model.choices import mc_sim_7b_63
from eagle.model.decoding import Generation, decode
from eagle.model.graphs.replay import replays

NEW = 14


def oracle_for(model) -> OracleHead:
    head = model.ea_layer.head
    config = head.config.to_dict()
    state = {name: tensor.float() for name, tensor in head.state_dict().items()}
    if hasattr(head, "d2t"):
        state["d2t"] = head.d2t  # of an EAGLE-1/2 head no part of its state
    return OracleHead(state, config, model.target.embed, model.target.output_logits)


def generation(model, ids, mask=None, new=NEW, graphs=None, **arguments) -> Generation:
    arguments = {"input_ids": ids, "attention_mask": mask, "max_new_tokens": new, **arguments}
    arguments = {"do_sample": False, **arguments}
    request = prepare(model.base_model, model.target, arguments, lambda: model.tokenizer)
    prefix = reusable(arguments, request, model.prefix)
    replay = replays(graphs, model.target, model.ea_layer, request)
    return Generation(model.target, model.ea_layer, request, model._taps, prefix=prefix, replays=replay)


@torch.no_grad()
def expected_tree(model, ids: torch.Tensor) -> dict[tuple[int, ...], float]:
    """Return the oracle's nodes for one row's unpadded ids, the last being the root."""
    features = uncached_features(model.base_model, ids[:-1], model._taps).float()
    drafter = model.ea_layer
    if drafter.tree.static is not None:
        return oracle_static(oracle_for(model), ids.tolist(), features, paths=mc_sim_7b_63)
    sizes = {"total_token": drafter.tree.nodes, "depth": drafter.depth, "top_k": drafter.top_k}
    return oracle_dynamic(oracle_for(model), ids.tolist(), features, **sizes)


def drafted(tree, row: int) -> dict[tuple[int, ...], float]:
    """Return one row's nodes as {path of tokens: score}."""
    paths: list[tuple[int, ...]] = [()]
    parents, tokens = tree.parents_BN[row].tolist(), tree.tokens_BN[row].tolist()
    for node in range(1, tree.size):
        paths.append((*paths[parents[node]], tokens[node]))
    return dict(zip(paths[1:], tree.scores_BN[row, 1:].tolist(), strict=True))


def assert_same_tree(got: dict[tuple[int, ...], float], want: dict[tuple[int, ...], float]) -> None:
    assert len(got) == len(want)
    for path in set(got) & set(want):
        assert got[path] == pytest.approx(want[path], abs=1e-4)
    # Nodes may differ only where the cut falls between equal scores.
    cut = min(want.values())
    for path in set(got) ^ set(want):
        assert {**got, **want}[path] == pytest.approx(cut, abs=1e-4)


def check_every_step(model, running: Generation, ids, mask) -> int:
    """Run to the end, comparing every full tree; return how many were compared."""
    compared = 0
    rows = running.rows
    steps = decode(running)
    before, finished = [[] for _ in ids], [None for _ in ids]
    for step in steps:
        if step.tree is not None and step.tree.size > 1:
            for index, row in enumerate(step.tree_rows):
                pads = int((mask[row] == 0).sum())
                known = torch.cat([ids[row, pads:], torch.tensor(before[row])])
                clipped = running.request.limit - ids.shape[1] - len(before[row]) - 1 < step.tree.levels - 1
                if finished[row] is None and not clipped:
                    assert is_tree(step.tree, index)
                    assert_same_tree(drafted(step.tree, index), expected_tree(model, known))
                    compared += 1
        before = [list(new) for new in rows.new]
        finished = list(rows.finished)
    return compared
