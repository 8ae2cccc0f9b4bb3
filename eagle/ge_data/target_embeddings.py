"""The target's embeddings and output matrix, read from its modules and written beside its features.

Shapes: V rows of the embeddings, D hidden width.
"""

import torch

from eagle.ge_data.disk import write
from eagle.ge_data.plan import Plan
from eagle.model.support.output_transform import output_matrix
from eagle.model.target import TargetModel

CHUNK = 4096  # tokens embedded at once


def write_target_embeddings(plan: Plan, target: TargetModel) -> None:
    """Write the target's embeddings; the output matrix where no logits are stored.

    Raises:
        ValueError: the output matrix cannot be read.
        OSError: the disk is full.
    """
    tensors = {"embeddings": embeddings(target)}
    if plan.top_k is None:
        tensors |= output(target)
    write(plan.embeddings, tensors, {"settings": plan.settings})


@torch.no_grad()
def embeddings(target: TargetModel) -> torch.Tensor:
    """Return the embeddings [V, D] of all tokens; what the module makes of them, as some scale their rows."""
    ids_V = torch.arange(target.known_tokens, device=target.device)
    return torch.cat([target.embed(part).cpu() for part in ids_V.split(CHUNK)])


@torch.no_grad()
def output(target: TargetModel) -> dict[str, torch.Tensor]:
    """Return the output matrix [V, D] and, where there is one, its bias [V].

    Raises:
        ValueError: the module is no matrix whose numbers lie in memory as they are multiplied.
    """
    weight = output_matrix(target.model)
    module = target.model.get_output_embeddings()
    if weight is None:
        what = "offloaded" if getattr(getattr(module, "weight", None), "is_meta", False) else type(module).__name__
        raise ValueError(
            f"the target's output matrix cannot be read ({what}): load it unquantised and whole, or store what it says "
            "with --top-logits"
        )
    found = {"output": weight.cpu().contiguous().clone()}
    return found if module.bias is None else found | {"bias": module.bias.detach().cpu().clone()}
