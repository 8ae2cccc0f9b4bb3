"""What becomes of each model type: exact, refused with the property, or not built here. Writes docs/architectures.md.

`python tests/support/verdicts.py --write` (or `make docs`) runs them all and writes the page; else it prints it.
"""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import argparse
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from architectures import prompts
from census import NAMES, VOCABULARY, tiny_model
from huggingface_hub.errors import StrictDataclassError
from pairs import ea_model
from references import ends_at, generate_ids
from scripted import ScriptedDrafter
from tqdm import tqdm

from eagle.model.checks.diagnosis import diagnose
from eagle.model.checks.self_check import self_check
from eagle.model.ea_model import EaModel
from eagle.model.target import TargetModel

PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"
NEW = 24
SAMPLING = {"temperature": 0.8, "top_k": 20, "top_p": 0.9}
SECTIONS = {
    "exact": (
        "Exact",
        "Greedy and seeded sampled ids equal `generate`'s in fp32, one row and left-padded batches alike, while a\n"
        "scripted drafter has several tokens per forward accepted; windows are shorter than the sequences.",
    ),
    "refused": (
        "Refused",
        "`EaModel.from_pretrained` and `eagle doctor` raise `NotImplementedError` with the property. Properties are\n"
        "tested on the model, never read from a list of names.",
    ),
    "not built": ("Not built", "The tests could not make a tiny model of these, so nothing is known about them."),
}


@dataclass(frozen=True)
class Verdict:
    """What a model type is ("exact", "refused", "not built") and why."""

    kind: str
    reason: str = ""


def build(name: str) -> Any:
    """Return a model type's tiny model, or the verdict that it cannot be built."""
    try:
        return tiny_model(name)
    except ImportError:
        return Verdict("not built", "needs packages that are not installed")
    except (ValueError, TypeError, AttributeError, KeyError, StrictDataclassError) as problem:
        words = str(problem).strip().splitlines()[-1].strip()[:110]
        return Verdict("not built", f"{type(problem).__name__}: {words}")


def refusal(base: Any) -> Verdict | None:
    """Return why the model is refused at load, without its class name and without numbers; None if it is not."""
    try:
        self_check(TargetModel(base))
    except NotImplementedError as refused:
        words = str(refused).replace(type(base).__name__, "…")
        return Verdict("refused", re.sub(r" by [^\s;]+ where rounding explains [^\s;]+", "", words))
    return None


def assert_exact(
    base: Any,
    folder: Path,
    mode: str,
    batch: int,
    *,
    prompt: int = 9,
    new: int = NEW,
    least: float = 2.0,
    fresh: Any = None,
) -> EaModel:
    """Assert that ids under the scripted drafter equal `generate`'s while at least `least` tokens come per forward.

    Unless less is asked for, drafts must also have been accepted out of the order they were written in. `fresh` is
    the model that `generate` runs on, where a run leaves traces.
    """
    reference = base if fresh is None else fresh
    ids, mask = prompts(base, batch, prompt)
    sampled = mode == "sampled"
    with ends_at(base, None), ends_at(reference, None):
        expected = generate_ids(reference, ids, mask, new, *((3,) if sampled else ()), **SAMPLING)
        model = ea_model(folder, base, "eagle")
        model.ea_layer = ScriptedDrafter(expected, VOCABULARY, ids.shape[1], ())
        torch.manual_seed(3)
        got = model.eagenerate(ids, max_new_tokens=new, attention_mask=mask, **(SAMPLING if sampled else {}))
    assert torch.equal(got, expected)
    assert model.stats.acceptance_length >= least
    assert least < 2 or model.ea_layer.noncontiguous > 0
    return model


def verdict(name: str) -> Verdict:
    """Return what becomes of a model type; a type that is silently wrong raises AssertionError."""
    base = build(name)
    if isinstance(base, Verdict):
        return base
    refused = refusal(base)
    if refused is not None:
        return refused
    report = diagnose(base)
    assert report.passed, f"{name}\n{report}"
    with tempfile.TemporaryDirectory() as folder:
        for index, mode in enumerate(("greedy", "sampled")):
            assert_exact(base, Path(folder), mode, 1 + 2 * index)
    return Verdict("exact")


def render(verdicts: dict[str, Verdict], version: str = transformers.__version__) -> str:
    """Return the page."""
    counts = {kind: sum(v.kind == kind for v in verdicts.values()) for kind in SECTIONS}
    lines = [
        "# Architectures",
        "",
        f"Every causal LM of transformers {version} ({len(verdicts)} model types), tiny and with random weights:",
        ", ".join(f"{count} {kind}" for kind, count in counts.items()) + ".",
        "Written by `make docs`; `make test` holds each line to what it finds. Your own model, with its own weights:",
        "`eagle doctor --base PATH`.",
    ]
    for kind, (title, words) in SECTIONS.items():
        lines += ["", f"## {title} ({counts[kind]})", "", words, ""]
        groups: dict[str, list[str]] = {}
        for name in sorted(verdicts):
            if verdicts[name].kind == kind:
                groups.setdefault(verdicts[name].reason, []).append(f"`{name}`")
        if kind == "exact":
            lines += [", ".join(names) for names in groups.values()]
            continue
        lines += ["| why | model types |", "|---|---|"]
        lines += [f"| {reason.replace('|', '/')} | {', '.join(names)} |" for reason, names in sorted(groups.items())]
    return "\n".join(lines) + "\n"


def parse(page: str) -> tuple[str, dict[str, Verdict]]:
    """Return the transformers version and the verdicts of a rendered page."""
    version = re.search(r"transformers (\S+) \(", page)
    assert version is not None
    found: dict[str, Verdict] = {}
    for kind, (title, words) in SECTIONS.items():
        section = page.split(f"\n## {title} ")[1].split("\n## ")[0].split(words)[1]
        for line in section.splitlines():
            reason, _, names = line.strip("| ").rpartition(" | ")
            found |= dict.fromkeys(re.findall(r"`([^`]+)`", names), Verdict(kind, reason))
    return version[1], found


def main(argv: list[str] | None = None) -> int:
    """Write or print the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"write {PAGE}")
    torch.set_num_threads(1)
    write = parser.parse_args(argv).write
    page = render({name: verdict(name) for name in tqdm(NAMES)})
    if write:
        PAGE.write_text(page, encoding="utf-8")
    else:
        print(page)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
