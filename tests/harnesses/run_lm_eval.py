"""Run lm-eval's own loop by its environment's python, on a base model and with a head: TARGET HEAD TASKS OUT.

TASKS is a folder of task files. OUT gets, for each of the two and each batch size, the harness's samples, the ids of
every `generate`, and of a head's what it counted.
"""

import json
import sys
from pathlib import Path

import torch
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM

from eagle import EaModel

target, head, tasks, out = sys.argv[1:]
manager = TaskManager(include_path=tasks, include_defaults=False)
names = sorted(path.stem for path in Path(tasks).glob("*.yaml"))
models = {
    "base": AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32),
    "eagle": EaModel.from_pretrained(base_model_path=target, ea_model_path=head, torch_dtype=torch.float32),
}


def evaluated(model: torch.nn.Module, batch_size: int) -> dict:
    """Return what the harness found, and what it asked the model for."""
    calls, generate = [], model.generate

    def recorded(*args, **kwargs):
        ids = generate(*args, **kwargs)
        stats = getattr(model, "stats", None)
        counts = None if stats is None else [stats.steps, stats.new_tokens, sum(stats.accepted_per_step)]
        calls.append({"prompt": kwargs["input_ids"].shape[1], "ids": ids.tolist(), "counts": counts})
        return ids

    model.generate = recorded
    lm = HFLM(pretrained=model, batch_size=batch_size)
    results = simple_evaluate(
        lm, tasks=names, task_manager=manager, apply_chat_template=True, bootstrap_iters=0, random_seed=0
    )
    del model.generate
    samples = {
        name: [{key: sample[key] for key in ("doc_id", "resps", "filtered_resps")} for sample in found]
        for name, found in results["samples"].items()
    }
    return {"samples": samples, "results": results["results"], "calls": calls}


found = {f"{name} {size}": evaluated(model, size) for name, model in models.items() for size in (1, 2)}
Path(out).write_text(json.dumps(found, default=str))
