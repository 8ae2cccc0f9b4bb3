"""`eagle doctor`: a base model, and a head, loaded and asked everything that decoding relies on."""

import dataclasses
import json
import sys
from types import SimpleNamespace
from typing import Any

from eagle.commands.doctor import COMMAND
from eagle.commands.running import is_expected, line_of, run, trace
from eagle.model.checks.diagnosis import Check, Report, diagnose
from eagle.model.checks.head_diagnosis import HeadReport
from eagle.model.checks.openings import read_openings
from eagle.model.ea_model import EaModel
from eagle.model.support.loading import load_base


def check(args: SimpleNamespace) -> None:
    """Check the options before anything is loaded.

    Raises:
        ValueError: what only a head can be asked, without one.
    """
    for name in ("capture_layers", "prompts"):
        if getattr(args, name) is not None and args.ea_model_path is None:
            raise ValueError(f"--{name.replace('_', '-')} is about a head: add --ea-model-path")


def diagnosis(args: SimpleNamespace) -> tuple[Report, HeadReport | None]:
    """Load what is named and ask it everything; what cannot be loaded is a check that failed."""
    wanted = {"device_map": args.device_map, "attn_implementation": args.attn_implementation}
    options: dict[str, Any] = {"dtype": args.dtype}
    options |= {name: value for name, value in wanted.items() if value is not None}
    if args.trust_remote_code:
        options["trust_remote_code"] = True
    try:
        openings = read_openings(str(args.prompts)) if args.prompts is not None else None
        if args.ea_model_path is None:
            return diagnose(load_base(args.base_model_path, options)), None
        paths = {"base_model_path": args.base_model_path, "ea_model_path": args.ea_model_path}
        model = EaModel.from_pretrained(**paths, capture_layers=args.capture_layers, **options)
        return model.self_check(), model.head_check(openings)
    except Exception as refusal:
        if not is_expected(refusal):
            raise
        trace(args.command_line)
        return Report(args.base_model_path, (Check("loading", False, line_of(refusal)),), 0.0), None


def work(args: SimpleNamespace) -> int:
    """Print the report; return 0 where all passed."""
    report, about_head = diagnosis(args)
    passed = report.passed and (about_head is None or about_head.passed)
    if args.json:
        found = {**dataclasses.asdict(report), "passed": passed}
        if about_head is not None:
            found["head"] = {**dataclasses.asdict(about_head), "passed": about_head.passed}
        sys.stdout.write(json.dumps(found) + "\n")
    else:
        sys.stdout.write(f"{report}\n" + (f"{about_head}\n" if about_head is not None else ""))
    return 0 if passed else 1


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    return run(COMMAND, argv)
