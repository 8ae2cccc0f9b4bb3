"""Settings of a training run, from flags, a YAML file, or both: flags win."""

import math
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from os import PathLike
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from transformers import HfArgumentParser

from eagle.model.configs import EAGLE3_FLAGS
from eagle.model.kinds import are_whole, is_whole, number, shown, switch, whole

# These may change between the parts of a run that was interrupted: they do not change what it computes.
FREE = (
    "cpdir",
    "save_every",
    "eval_every",
    "keep_checkpoints",
    "log_every",
    "report_to",
    "config",
    "export",
    "head_dtype",
    "gradient_checkpointing",
    "target_device_map",
    "local_rank",
    "deepspeed",
    "trust_remote_code",
)
LENGTH = ("epochs", "max_steps")  # a run may be made longer or shorter
MEASURED = ("eval_prompts", "eval_tokens", "eval_total_token")  # the best head is measured again where they change
# What is behind them is compared, not where it is or how it is called.
PLACES = ("tmpdir", "base_model_path", "testpath", "configpath", "ea_model_path", "deepspeed_config", "dtype")
EAGLE3 = ("draft_vocab_size", "tap_layers", *EAGLE3_FLAGS)  # the head itself says them when a run goes on
BATCH = ("bs", "gradient_accumulation_steps")


def _about(help: str, default: Any = None, also: Sequence[str] = ()) -> Any:
    return field(default=default, metadata={"help": help, "aliases": [f"--{name}" for name in also]})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All that makes a run; every field is a flag of the same name, with dashes if you like."""

    tmpdir: str | None = _about("folder of python -m eagle.data (the target runs in the loop) or of eagle.ge_data")
    cpdir: str | None = _about("where the head goes, and its checkpoints")
    base_model_path: str | None = _about("target; default: the one that the data was made for", also=["basepath"])
    testpath: str | None = _about("folder of python -m eagle.data with held-out texts, for acceptance lengths")
    config: str | None = _about("YAML file of these settings; flags win over it")
    export: str | None = _about("no training: the head of this checkpoint, or of this run's last, goes to cpdir")

    kind: Literal["eagle", "eagle3"] = _about("what is trained: EAGLE-1/2 or EAGLE-3", "eagle")
    configpath: str | None = _about("config.json of the head; default: derived from the target")
    ea_model_path: str | None = _about(
        "head to go on from: folder or Hub id; its draft vocabulary is kept", also=["init_from", "init-from"]
    )
    draft_vocab_size: int | None = _about("tokens an EAGLE-3 head drafts, the most frequent ones; default: all")
    tap_layers: list[int] | None = field(
        default=None,
        metadata={"help": "layers an EAGLE-3 head reads the inputs of, n: the last one's output; 2, n//2, n-3"},
    )
    norm_before_fc: bool = _about("EAGLE-3.1: one norm over the three features", False)
    fc_norm: bool = _about("EAGLE-3.1: a norm per feature", False)
    norm_before_residual: bool | None = _about(
        "the residual is taken after the norm; default: yes for a new EAGLE-3 head, no with configpath"
    )
    norm_output: bool = _about("EAGLE-3.1: the state after the last norm goes to the next step", False)
    ttt_length: int | None = _about("unrolled steps of the training-time test; default: 7 for eagle3, 1 for eagle")
    ttt_decay: float = _about("what an unrolled step weighs, of the one before", 0.8)
    feature_weight: float | None = _about(
        "of the smooth L1 distance to the target's next last hidden state; default: 1 for eagle, 0 for eagle3"
    )
    feature_noise: float | None = _about(
        "features are read with uniform noise up to this; default: 0.1 for eagle, 0 for eagle3"
    )
    tv_weight: float = _about(
        "share of total variation (rejections of a drawn token) in the token loss, the rest is cross-entropy", 0.0
    )

    epochs: float = _about("times all texts are read; may change from one part of a run to the next", 1.0)
    max_steps: int | None = _about("optimiser steps, instead of epochs; may change, too")
    bs: int = _about("rows per process and micro-batch", 4)
    gradient_accumulation_steps: int = _about("micro-batches per optimiser step", 1)
    length: int | None = _about("texts are packed into rows of so many tokens; default: one text per row")
    optimizer: Literal["adamw", "muon"] = _about("muon: matrices by Muon, the rest by AdamW", "adamw")
    lr: float | None = _about("peak learning rate; default: 1e-4 for adamw; 5e-3 for muon")
    lm_head_lr: float | None = _about("peak learning rate of an EAGLE-3 head's output matrix; default: lr")
    warmup_steps: int | None = _about("steps until the peak; default: 4 %% of all, at most 500")
    lr_scheduler: Literal["cosine", "linear", "constant"] = _about("what follows the peak", "cosine")
    weight_decay: float = _about("of the matrices", 0.0)
    max_grad_norm: float = _about("gradients are clipped to this norm", 0.5)
    seed: int = _about("of weights, order and noise", 0)

    mixed_precision: Literal["no", "bf16", "fp16"] | None = _about(
        "default: what accelerate launch says, or bf16 where this device is faster with it"
    )
    gradient_checkpointing: bool = _about("compute activations again instead of keeping them", False)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = _about("of the target: auto as it was saved", "auto")
    head_dtype: Literal["bfloat16", "float16", "float32"] | None = _about(
        "of the saved head, which is trained in float32; default: bfloat16"
    )
    load_in_4bit: bool = _about("quantise the target", False)
    load_in_8bit: bool = _about("quantise the target", False)
    target_device_map: str | None = _about("where the target is, if not beside the head: auto, cuda:1, cpu")
    deepspeed_config: str | None = _about("JSON file for DeepSpeed")
    deepspeed: bool = _about("taken for scripts that give it; --deepspeed_config decides", False)
    local_rank: int = _about("set by launchers", -1)
    trust_remote_code: bool = _about("run code that comes with the target", False)

    save_every: int | None = _about("steps between checkpoints; default: a tenth of all, at most 500")
    keep_checkpoints: int = _about("how many of the last ones stay", 2)
    eval_every: int | None = _about(
        "steps between measurements of the acceptance length; default: a fifth of all, at most 500"
    )
    eval_prompts: int = _about("held-out prompts of each", 32)
    eval_tokens: int = _about("new tokens of each", 64)
    eval_total_token: int = _about("nodes of the tree that is measured with", 60)
    log_every: int = _about("steps between lines of metrics.jsonl", 10)
    report_to: list[str] = field(
        default_factory=list, metadata={"help": "trackers of accelerate: tensorboard, wandb, mlflow"}
    )

    def __post_init__(self) -> None:
        # HfArgumentParser writes types of its own into the fields.
        for name, kind in get_type_hints(Settings).items():
            _check_kind(name, getattr(self, name), kind)
        positive = ("bs", "gradient_accumulation_steps", "keep_checkpoints")
        for name in (*positive, "eval_prompts", "eval_tokens", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        bounds = {"length": 4, "draft_vocab_size": 2, "warmup_steps": 0, "seed": 0}
        for name, least in {
            **bounds,
            **dict.fromkeys(("ttt_length", "max_steps", "save_every", "eval_every"), 1),
        }.items():
            if (value := getattr(self, name)) is not None and value < least:
                raise ValueError(f"{name}={value} must be at least {least}")
        if self.eval_total_token != -1 and self.eval_total_token < 2:
            raise ValueError(f"eval_total_token={self.eval_total_token} must be at least 2, or -1")
        for name in ("epochs", "peak_rate", "max_grad_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name.replace('peak_rate', 'lr')}={getattr(self, name)} must be above 0 and finite")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay={self.weight_decay} must be 0 or more, and finite")
        self._check_objective()
        if others := [name for name in EAGLE3 if getattr(self, name) and self.kind == "eagle"]:
            raise ValueError(f"{', '.join(others)}: EAGLE-3's alone, the run's kind is 'eagle'")
        shape = [name for name in ("configpath", *EAGLE3[1:]) if getattr(self, name)]
        if self.ea_model_path is not None and shape:
            raise ValueError(
                f"{', '.join(shape)}: the head of ea_model_path={self.ea_model_path!r} has its shape already"
            )
        if self.load_in_4bit and self.load_in_8bit:
            raise ValueError("load_in_4bit and load_in_8bit exclude each other")

    def _check_objective(self) -> None:
        for name in ("feature_weight", "feature_noise"):
            if (value := getattr(self, name)) is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name}={value} must be 0 or more, and finite")
        if not 0 <= self.tv_weight <= 1:
            raise ValueError(f"tv_weight={self.tv_weight} must be from 0 to 1")
        if not 0 < self.ttt_decay <= 1:
            raise ValueError(f"ttt_decay={self.ttt_decay} must be above 0 and at most 1")
        if self.lm_head_lr is not None and not 0 < self.lm_head_lr < math.inf:
            raise ValueError(f"lm_head_lr={self.lm_head_lr} must be above 0 and finite")
        if self.lm_head_lr is not None and self.kind == "eagle":
            raise ValueError(f"lm_head_lr={self.lm_head_lr}: an EAGLE-1/2 head has no output matrix of its own")
        one_step = self.ttt_length == 1 or (self.ttt_length is None and self.kind == "eagle")
        if one_step and self.ttt_decay != Settings.ttt_decay:
            raise ValueError(f"ttt_decay={self.ttt_decay}: there is one step, give a ttt_length of 2 or more")

    @property
    def peak_rate(self) -> float:
        """The highest learning rate."""
        if self.lr is not None:
            return self.lr
        return 1e-4 if self.optimizer == "adamw" else 5e-3

    def identity(self, processes: int) -> dict[str, Any]:
        """Return the settings that a run must have in common with what it continues; inputs come on top of them."""
        rows = self.bs * self.gradient_accumulation_steps * processes
        others = (*FREE, *BATCH, *LENGTH, *MEASURED, *PLACES, *EAGLE3)
        shared = {name: value for name, value in asdict(self).items() if name not in others}
        # DeepSpeed's checkpoints are those of its processes.
        return shared | {"rows": rows} | ({"processes": processes} if self.deepspeed_config is not None else {})


def _check_kind(name: str, value: Any, kind: Any) -> None:
    """Refuse a value of another kind than the field's: text for a number, a number for a switch."""
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    if value is None and NoneType in kinds:
        return
    named = [choice for each in kinds if get_origin(each) is Literal for choice in get_args(each)]
    if float in kinds and value == value:  # NaN is out of every range
        number(name, value)
    elif int in kinds:
        whole(name, value)
    elif bool in kinds:
        switch(name, value)
    elif str in kinds and not isinstance(value, str | PathLike):
        raise ValueError(f"{name}={shown(value)} must be a text")
    elif named and value not in named:
        raise ValueError(f"{name}={shown(value)} must be one of {', '.join(named)}")
    elif list[int] in kinds and not are_whole(value):
        raise ValueError(f"{name}={shown(value)} must be a list of whole numbers")


def parse(argv: Sequence[str] | None, prog: str, about: str, **defaults: Any) -> Settings:
    """Read settings from a command line and the YAML file it may name.

    Args:
        argv: the arguments; None means the process's own.
        prog, about: for `--help`.
        defaults: of this entry point, where they differ.

    Raises:
        SystemExit: something is wrong; said on standard error.
    """
    usage = f"{prog} [settings]; {prog} --help lists them"
    parser: ArgumentParser = HfArgumentParser(Settings, usage=usage, prog=prog, description=about, allow_abbrev=False)  # type: ignore[arg-type]
    kinds = get_type_hints(Settings)
    for action in parser._actions:
        if kinds.get(action.dest) == (bool | None):
            action.nargs, action.const = "?", True  # a switch as the others are
    parser.set_defaults(**defaults)
    first = ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config")
    path = first.parse_known_args(argv)[0].config
    try:
        given = sys.argv[1:] if argv is None else list(argv)
        return Settings(**vars(parser.parse_args([*(_from_yaml(path) if path else []), *given])))
    except (ValueError, OSError) as refusal:
        parser.error(str(refusal))


def _from_yaml(path: str) -> list[str]:
    """Return the flags that a file stands for, so that one parser judges both."""
    try:
        chosen = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, RecursionError) as broken:
        raise ValueError(f"{path} is no YAML: {' '.join(str(broken).split())}") from broken
    known = {each.name: each for each in fields(Settings) if each.name != "config"}
    if not isinstance(chosen, dict):
        raise ValueError(f"{path} must hold names and values")
    chosen = {_field_of(str(name)): value for name, value in chosen.items()}
    if unknown := sorted(set(chosen) - set(known)):
        raise ValueError(f"{path} names unknown settings {unknown}")
    flags: list[str] = []
    for name, value in chosen.items():
        if name == "mixed_precision" and value is False:
            value = "no"  # which YAML reads as a boolean
        if isinstance(value, dict) or (isinstance(value, list) and "list" not in str(known[name].type)):
            raise ValueError(f"{path}: {name} is one value, not a list")
        if value is None or value == [] or (value is False and known[name].default is False):
            continue
        if value == "--":  # which some releases of argparse drop
            raise ValueError(f"{path}: {name} is '--', which is no value")
        # Joined to its name a value cannot be read as a flag of its own; a list's cannot be joined.
        if not isinstance(value, list):
            flags.append(f"--{name}" if value is True else f"--{name}={value}")
            continue
        others = [item for item in value if not is_whole(item) and not _is_plain(item)]
        if others:
            raise ValueError(f"{path}: {name} holds {shown(others[0])}, which must be a whole number or a name")
        flags += [f"--{name}", *map(str, value)]
    return flags


def _field_of(name: str) -> str:
    """Return the field that a name, or another spelling of it, means."""
    spellings = {alias: each.name for each in fields(Settings) for alias in each.metadata.get("aliases", ())}
    return spellings.get(f"--{name}", name.replace("-", "_"))


def _is_plain(item: Any) -> bool:
    return isinstance(item, str) and not item.startswith("-")
