"""Run Spec-Bench's own scripts by its environment's python, on a CPU too: CHECKOUT HEAD NEW TARGETS….

For every target `answers/NAME` in the checkout gets what is answered by the base model (`base.jsonl`), with a head
(`head.jsonl`), and with this library's forward function (`forward.jsonl`); `calls.json` there has the ids of every call
of each, and of a head's what it counted.
"""

import json
import os
import runpy
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, BatchEncoding, LlamaForCausalLM

checkout, head, new, *targets = sys.argv[1:]
os.chdir(checkout)
sys.path.insert(0, checkout)

if not torch.cuda.is_available():
    move = BatchEncoding.to
    BatchEncoding.to = lambda self, device, **more: move(self, "cpu" if device == "cuda" else device, **more)
    torch.Tensor.cuda = lambda self, *args, **kwargs: self
    torch.cuda.synchronize = lambda device=None: None

from evaluation.eval import run_eval  # noqa: E402

from eagle.evaluation import spec_bench  # noqa: E402

calls: list[dict] = []
eagenerate, generate = spec_bench.EaModel.eagenerate, LlamaForCausalLM.generate


def of_head(self, input_ids, **kwargs):
    returned = eagenerate(self, input_ids, **kwargs)
    stats = self.stats
    counts = [stats.steps, stats.new_tokens, sum(stats.accepted_per_step)]
    calls.append({"prompt": input_ids.shape[1], "ids": returned[0][0].tolist(), "counts": counts})
    return returned


def of_base(self, input_ids=None, **kwargs):
    returned = generate(self, input_ids, **kwargs)
    if isinstance(returned, torch.Tensor):  # a head's calls are prepared by it, and return something else
        calls.append({"prompt": input_ids.shape[1], "ids": returned[0].tolist()})
    return returned


spec_bench.EaModel.eagenerate, LlamaForCausalLM.generate = of_head, of_base


def taken() -> list[dict]:
    """Return the calls since the last time."""
    found = calls.copy()
    calls.clear()
    return found


def script(name: str, answers: Path, **options: str) -> list[dict]:
    """Run one of its scripts as the command line does; return the calls that it made."""
    options |= {"answer-file": str(answers), "max-new-tokens": new, "dtype": "float32"}
    sys.argv = [f"{name}.py", *(part for option, value in options.items() for part in (f"--{option}", value))]
    runpy.run_module(f"evaluation.{name}", run_name="__main__", alter_sys=True)
    return taken()


def forward(target: str, answers: Path) -> list[dict]:
    """Run its loop over this library's forward function; return the calls that it made."""
    base = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
    model = spec_bench.EaModel(None, base, target, head, total_token=24)
    run_eval(
        model=model,
        tokenizer=model.get_tokenizer(),
        forward_func=spec_bench.ea_forward,
        model_id="forward",
        question_file="data/mt_bench/question.jsonl",
        question_begin=None,
        question_end=None,
        answer_file=str(answers),
        max_new_tokens=int(new),
        num_choices=1,
        num_gpus_per_model=1,
        num_gpus_total=1,
        temperature=0.0,
    )
    return taken()


for target in targets:
    folder = Path("answers") / Path(target).name
    called = {
        "base": script("inference_baseline", folder / "base.jsonl", **{"model-path": target, "model-id": "base"}),
        "head": script(
            "inference_eagle3",
            folder / "head.jsonl",
            **{"base-model-path": target, "ea-model-path": head, "total-token": "24"},
        ),
        "forward": forward(target, folder / "forward.jsonl"),
    }
    (folder / "calls.json").write_text(json.dumps(called))
