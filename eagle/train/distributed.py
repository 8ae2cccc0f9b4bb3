"""Processes, devices and precision: accelerate, and FSDP and DeepSpeed through it."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DeepSpeedPlugin, DistributedType, FullyShardedDataParallelPlugin, InitProcessGroupKwargs
from transformers.integrations import unset_hf_deepspeed_config

from eagle.train.settings import Settings


def accelerator(settings: Settings) -> Accelerator:
    """Return accelerate's view of what launched us.

    Raises:
        FileNotFoundError: the file for DeepSpeed does not exist.
        ImportError: DeepSpeed or a tracker is not installed.
        ValueError: DeepSpeed is told something else than we are, or what the run asks for cannot be done here.
    """
    on_cpu = not torch.accelerator.is_available()
    _check_precision(settings, on_cpu)
    plugin, fsdp = None, _fsdp(settings)
    if settings.deepspeed_config is None and os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true":
        raise ValueError("launched under DeepSpeed without --deepspeed_config: name its file, e.g. ds_config.json")
    if settings.deepspeed_config is not None:
        plugin = DeepSpeedPlugin(hf_ds_config=deepspeed_settings(settings))
    if on_cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or DeepSpeed warns that it found nothing else
    # Named the backend, accelerate takes DeepSpeed's processes on CPUs as they are.
    gloo = [InitProcessGroupKwargs(backend="gloo")] if on_cpu and plugin is not None else []
    made = Accelerator(
        cpu=on_cpu and plugin is None,
        kwargs_handlers=gloo,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        mixed_precision=settings.mixed_precision,
        log_with=settings.report_to or None,
        project_dir=settings.cpdir,
        deepspeed_plugin=plugin,
        fsdp_plugin=fsdp,
    )
    if on_cpu and fsdp is not None and made.num_processes > 1:
        _shard_on_cpus(made, fsdp)
    if missing := set(settings.report_to) - {"all", *map(str, made.log_with)}:
        raise ImportError(f"report_to: {', '.join(sorted(missing))} is not installed")
    # Under ZeRO-3 transformers would load the frozen target in parts, which only an engine of DeepSpeed's gathers.
    unset_hf_deepspeed_config()
    return made


def _check_precision(settings: Settings, on_cpu: bool) -> None:
    if (settings.mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION")) != "fp16":
        return
    if on_cpu:
        raise ValueError("mixed_precision='fp16' needs an accelerator: use bf16 or no")
    if settings.optimizer == "muon":
        raise ValueError(
            "optimizer='muon' is two optimisers, which one scaler of fp16 does not serve: use bf16 or adamw"
        )


def _fsdp(settings: Settings) -> FullyShardedDataParallelPlugin | None:
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() != "true":
        return None
    if settings.optimizer != "adamw":
        raise ValueError(f"optimizer={settings.optimizer!r} cannot be sharded by FSDP: use adamw")
    plugin = FullyShardedDataParallelPlugin()
    if plugin.fsdp_version != 2:
        raise ValueError("this is FSDP's first version: choose the second, --fsdp_version 2 of accelerate launch")
    return plugin


def _shard_on_cpus(made: Accelerator, plugin: FullyShardedDataParallelPlugin) -> None:
    # torch shards on CPUs as well; accelerate asks for an accelerator where it chooses, and nowhere after.
    if made.mixed_precision != "no":
        plugin.set_mixed_precision(made.mixed_precision)
    made.state.fsdp_plugin = plugin
    made.state.distributed_type = PartialState().distributed_type = DistributedType.FSDP


def shards_weights(accelerator: Accelerator) -> bool:
    """Tell whether weights lie in parts on several processes: FSDP, or DeepSpeed's ZeRO-3."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return bool(accelerator.state.deepspeed_plugin.zero_stage == 3)
    return bool(accelerator.distributed_type == DistributedType.FSDP)


def deepspeed_settings(settings: Settings) -> dict[str, Any]:
    """Return the contents of DeepSpeed's file with what is "auto" or missing filled in from ours."""
    path = Path(str(settings.deepspeed_config))
    if not path.is_file():
        raise FileNotFoundError(f"deepspeed_config {path} does not exist")
    if settings.optimizer != "adamw":
        raise ValueError(f"optimizer={settings.optimizer!r} cannot be sharded by DeepSpeed: use adamw")
    chosen = json.loads(path.read_text(encoding="utf-8"))
    ours = {
        "train_micro_batch_size_per_gpu": settings.bs,
        "gradient_accumulation_steps": settings.gradient_accumulation_steps,
        "gradient_clipping": settings.max_grad_norm,
    }
    for name, value in ours.items():
        if chosen.setdefault(name, "auto") == "auto":
            chosen[name] = value
        elif chosen[name] != value:
            raise ValueError(f"{path} has {name}={chosen[name]}, the run {value}: let it be 'auto'")
    for name in ("optimizer", "scheduler"):
        if name in chosen:
            raise ValueError(f"{path} has an {name} of its own, and so have we: leave it out")
    # Or ZeRO-3 would not give the whole head to be saved.
    chosen.setdefault("zero_optimization", {}).setdefault("stage3_gather_16bit_weights_on_model_save", True)
    return chosen
