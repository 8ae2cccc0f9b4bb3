"""The `eagle` command: whether a base and a head are what they should be (`doctor`), how fast they are (`bench`), ….

All but `doctor` have command lines of their own, which load torch: they are imported when they are called.
"""

import argparse
import dataclasses
import json
import logging
import sys
from collections.abc import Sequence
from importlib import import_module

from eagle import interrupts

ELSEWHERE = {
    "convert": ("eagle.convert", "write a head of any trainer as this package, vLLM or SGLang reads it"),
    "eval": ("eagle.evaluation.evaluate", "evaluate a pair on sets of questions: speed-ups, acceptance, equal ids"),
    "bench": ("eagle.evaluation.bench", "measure a pair against generate and plain decoding"),
    "curves": ("eagle.evaluation.curves", "time a step over tree size, depth, batch size and context length"),
    "processor": ("eagle.evaluation.processor", "time linear products on this CPU: what compile=True and bf16 bring"),
}


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(prog="eagle", description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    doctor = commands.add_parser("doctor", help="check in seconds whether a base model, and a head, are supported")
    doctor.add_argument("--base-model-path", "--base", required=True, help="folder or Hub id of the base model")
    doctor.add_argument("--ea-model-path", "--head", help="folder or Hub id of its draft head, of any trainer")
    doctor.add_argument("--capture-layers", type=int, nargs="+", help="layers whose inputs the head reads, to try")
    doctor.add_argument(
        "--prompts", help="file with one beginning of a text per line, of the kind the head was made for"
    )
    doctor.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    doctor.add_argument("--device-map", help="auto, cpu, cuda, …")
    doctor.add_argument("--attn-implementation", choices=("sdpa", "eager"))
    doctor.add_argument("--trust-remote-code", action="store_true")
    doctor.add_argument("--json", action="store_true", help="print one JSON document")
    for name, (_, words) in ELSEWHERE.items():
        commands.add_parser(name, help=words, add_help=False)
    return parser


def doctor(args: argparse.Namespace) -> int:
    """Load the model, run every check, print the report; return 0 where all passed."""
    # Imported here: --help must not wait for torch.
    from safetensors import SafetensorError

    from eagle.model.checks.diagnosis import Check, Report, diagnose
    from eagle.model.checks.openings import read_openings
    from eagle.model.ea_model import EaModel
    from eagle.model.support.loading import load_base

    wanted = {"device_map": args.device_map, "attn_implementation": args.attn_implementation}
    options = {"dtype": args.dtype, **{name: value for name, value in wanted.items() if value is not None}}
    if args.trust_remote_code:
        options["trust_remote_code"] = True
    about_head = None
    try:
        openings = read_openings(args.prompts) if args.prompts is not None else None
        if args.ea_model_path is None:
            report = diagnose(load_base(args.base_model_path, options))
        else:
            paths = {"base_model_path": args.base_model_path, "ea_model_path": args.ea_model_path}
            model = EaModel.from_pretrained(**paths, capture_layers=args.capture_layers, **options)
            report = model.self_check()
            about_head = model.head_check(openings)
    except (ImportError, ValueError, OSError, RuntimeError, AssertionError, SafetensorError) as refusal:
        words = str(refusal).partition("\n")[0]  # transformers goes on with a list of all it knows
        report = Report(args.base_model_path, (Check("loading", False, words),), 0.0)
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
    """Run one command and return its exit code."""
    if argv is None:
        interrupts.expect()
        return interrupts.run(lambda: _run(sys.argv[1:]))
    return _run(argv)


def _run(argv: Sequence[str]) -> int:
    if argv and argv[0] in ELSEWHERE:
        return int(import_module(ELSEWHERE[argv[0]][0]).main(argv[1:]))
    args = parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    return doctor(args)


if __name__ == "__main__":
    raise SystemExit(main())
