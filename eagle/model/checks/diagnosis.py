"""The report of `EaModel.self_check` and `eagle doctor`: every contract asked of one model, with numbers.

Loading asks too, where the tests do not vouch for a model: the whole of it with a transformers newer than theirs, trees
and caches alone for an architecture they do not run.

Shapes: S prompt tokens, N tree nodes, T tokens, F feature width.
"""

import logging
import time
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, TemperatureLogitsWarper, TopKLogitsWarper

from eagle.model.call.prepare import prepare
from eagle.model.call.reference import without_defaults
from eagle.model.checks.self_check import (
    FAULTS,
    LEVELS,
    PARENTS,
    SLACK,
    TESTED,
    Difference,
    Probe,
    least_rounding,
    self_check,
)
from eagle.model.configs import EConfig, tapped_layers
from eagle.model.support.properties import LayerMask, layer_masks
from eagle.model.support.releases import is_untested_release, release_in_words, remedy
from eagle.model.target import Taps, TargetModel

logger = logging.getLogger(__name__)

PROMPT = 24
LONGEST = 1024  # prompts grow to reach behind a window up to this size
NEW = 12


@dataclass(frozen=True)
class Check:
    """One question asked of a model: its name, whether the answer is right, and the numbers or the reason."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Report:
    """All checks of one model.

    Attributes:
        model: class of the base model.
        checks: in the order they ran; after a refusal nothing else runs.
        seconds: wall time of all of them.
        dtype: what the model computes in.
    """

    model: str
    checks: tuple[Check, ...]
    seconds: float
    dtype: str = ""

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    def __str__(self) -> str:
        """Return one line per check and one with the verdict."""
        lines = [f"{'pass' if check.passed else 'FAIL'}  {check.name}: {check.detail}" for check in self.checks]
        loaded = not any(check.name == "loading" for check in self.checks)
        exactly = "exactly" if self.dtype in ("", "float32", "float64") else f"exactly but for {self.dtype} rounding"
        passed = f"trees are verified {exactly}"
        verdict = passed if self.passed else f"not {'supported as it is' if loaded else 'loaded'}"
        return "\n".join([*lines, f"{self.model}: {verdict} ({self.seconds:.1f} s)"])


def checked_target(model: Any) -> TargetModel:
    """Return a model as a target, checked where the tests do not vouch for it; where they do, that costs nothing.

    Raises:
        NotImplementedError: it cannot be verified exactly; the message names what differs, with numbers.
    """
    if not is_untested_release():
        target = TargetModel(model)
        if target.config.model_type not in TESTED:
            self_check(target)
        return target
    release = release_in_words()
    try:
        target = TargetModel(model)
    except NotImplementedError:
        raise
    except FAULTS as problem:
        name = type(model).__name__
        raise NotImplementedError(f"{release}, and {name} is not understood there ({problem}): {remedy()}") from problem
    report = diagnose(target.model)
    if not report.passed:
        first, *others = [check for check in report.checks if not check.passed]
        more = f"; also {', '.join(check.name for check in others)}" if others else ""
        faults = f"{first.name}: {first.detail}{more}"
        raise NotImplementedError(f"{release}, and {report.model} fails the self-check there ({faults}): {remedy()}")
    logger.warning("%s; the self-check of %s passed in %.1f s", release, report.model, report.seconds)
    return target


@torch.no_grad()
def diagnose(model: Any, taps: Taps = None) -> Report:
    """Run every check on a loaded base model; it is left as it was.

    Args:
        model: a causal LM.
        taps: features to look at; None looks at those of both kinds of head that the model is deep enough for.
    """
    started = time.perf_counter()
    checks: list[Check] = []
    was_training = model.training
    model.eval()
    try:
        checks.extend(_checks(model, taps))
    except NotImplementedError as refusal:
        checks.append(Check("properties", False, str(refusal)))
    finally:
        model.train(was_training)
    dtype = str(model.dtype).removeprefix("torch.")
    return Report(type(model).__name__, tuple(checks), time.perf_counter() - started, dtype)


def _checks(model: Any, taps: Taps) -> list[Check]:
    target = TargetModel(model)
    checks: list[Check] = []
    try:
        probe = Probe(target, _prompt(target))
        checks.append(Check("properties", True, f"{len(target.layers)} layers, {_windows(target, probe.prompt)}"))
        ahead = probe.lookahead()
        checks.append(Check("causal", ahead.is_rounding, f"later tokens change logits by {ahead}"))
        padded, committed = probe.committed_rows()
        answers = {
            "own cache": probe.own_cache(),
            "tree": probe.single_tree(),
            "padded rows": padded,
            "commit": committed,
        }
        for name, answer in answers.items():
            reason = None if answer.is_rounding else probe.why()
            checks.append(Check(name, answer.is_rounding, reason or f"logits differ by {answer}"))
        checks.append(_features(probe, taps))
        checks.append(_preparation(probe))
        checks.append(_ids(probe))
    except FAULTS as problem:
        last = checks[-1].name if checks else "start"
        checks.append(Check("forward", False, f"after {last!r}: {type(problem).__name__}: {problem}"))
    return checks


def _prompt(target: TargetModel) -> int:
    """Return a prompt length behind the smallest window, within the positions and before a rotary switch."""
    masks = layer_masks(target.config)
    sizes = [mask.size for mask in ([masks] if isinstance(masks, LayerMask) else masks.values()) if mask.size]
    wanted = max(PROMPT, min(sizes, default=0) + 8)
    wanted = wanted if wanted <= LONGEST else PROMPT
    ends = [target.last_position, target.rope_switch.position if target.rope_switch is not None else None]
    room = min((end for end in ends if end is not None), default=wanted + NEW + 2 * LEVELS)
    return max(LEVELS, min(wanted, room - NEW - 2 * LEVELS))


def _windows(target: TargetModel, prompt: int) -> str:
    masks = layer_masks(target.config)
    kinds = {"every layer": masks} if isinstance(masks, LayerMask) else masks
    told = [
        f"{kind} {mask.size}{'' if prompt > mask.size else ' (longer than the check)'}"
        for kind, mask in kinds.items()
        if mask.size is not None
    ]
    return f"windows: {', '.join(told) or 'none'}; {prompt} prompt tokens"


def _features(probe: Probe, taps: Taps) -> Check:
    """Compare the features of a tree with those of an uncached forward."""
    target = probe.target
    wanted: list[Taps] = [taps] if taps is not None else ["last"]
    if taps is None and len(target.layers) >= 7:
        wanted.append(tapped_layers(EConfig(), len(target.layers)))
    details, passed = [], True
    for each in wanted:
        found = _feature_difference(probe, each)
        passed &= found.is_rounding
        name = "last" if each == "last" else f"inputs of layers {list(each or ())}"
        details.append(f"{name} differ by {found}")
    return Check("features", passed, "; ".join(details))


def _feature_difference(probe: Probe, taps: Taps) -> Difference:
    target, prompt = probe.target, probe.prompt
    tokens_1N = probe.ids_T[None, prompt : prompt + len(PARENTS)]
    cache = target.new_cache(1, prompt + len(PARENTS), [0])
    for _ in target.prefill(probe.ids_T[None, :prompt], None, cache, taps):
        pass
    tree = probe.tree(tokens_1N)
    features_NF = target.verify(tree, cache, taps).features_BNF
    assert features_NF is not None
    node = tree.size - 1
    path_T = torch.cat([probe.ids_T[:prompt], tokens_1N[0, tree.mask_BNN[0, node]]])
    seen: list[torch.Tensor] = []
    for rows in (1, 2):
        with target.tapped(taps) as caught:
            target.model(input_ids=path_T.repeat(rows, 1), use_cache=False)
        seen.append(target.joined(caught, taps)[0, -1].float())
    # Features are not normalised: their rounding is their own, and largest where theirs are.
    noise = max(float((seen[0] - seen[1]).abs().max()), 4 * least_rounding(seen[0], target.model.dtype))
    return Difference(float((features_NF[0, node].float() - seen[0]).abs().max()), SLACK * noise)


def _preparation(probe: Probe) -> Check:
    """Ask `generate` to prepare a call with an end and two warpers, and compare what comes back with what was asked."""
    target, ids_1S = probe.target, probe.ids_T[None, : probe.prompt]
    end = (int(ids_1S[0, -1]) + 1) % target.vocabulary
    config = GenerationConfig(
        do_sample=True, temperature=0.7, top_k=5, max_new_tokens=NEW, eos_token_id=end, pad_token_id=end
    )
    arguments = {"input_ids": ids_1S, "attention_mask": torch.ones_like(ids_1S), "generation_config": config}

    def no_tokenizer() -> Any:
        raise RuntimeError("the call has no stop strings")

    request = prepare(without_defaults(target.model), target, arguments, no_tokenizer)
    kinds = {type(processor) for processor in request.sampler.processors}
    answers = {
        "ids": torch.equal(request.ids_RS, ids_1S),
        "limit": request.limit == probe.prompt + NEW,
        "end": request.eos == {end},
        "processors": {TemperatureLogitsWarper, TopKLogitsWarper} <= kinds,
        "sampling": request.sampler.noise is not None,
        "criteria": not request.criteria,
    }
    wrong = [name for name, is_right in answers.items() if not is_right]
    return Check("preparation", not wrong, f"generate prepares {'other ' + ', '.join(wrong) if wrong else 'a call'}")


def _ids(probe: Probe) -> Check:
    """Compare a greedy run through trees that hold the answer among wrong branches with `generate`."""
    target, prompt = probe.target, probe.prompt
    ids_1S = probe.ids_T[None, :prompt]
    config = GenerationConfig(do_sample=False, max_new_tokens=NEW, pad_token_id=0)
    mask_1S = torch.ones_like(ids_1S)
    base = without_defaults(target.model)  # its own penalties would change what is greedy
    wanted = base.generate(ids_1S, attention_mask=mask_1S, generation_config=config)[0, prompt:].tolist()
    cache = target.new_cache(1, prompt + NEW + LEVELS + len(PARENTS), [0])
    logits_V = target.prefill_logits(ids_1S, None, cache)[0]
    picked, seen, steps = [int(logits_V.argmax())], [logits_V], 0
    while len(picked) < len(wanted) and picked == wanted[: len(picked)]:
        first, second = [*wanted[len(picked) :], 0, 0][:2]
        # Node 1 is wrong, so the right path is 0, 2, 4.
        tokens = [picked[-1], (first + 1) % target.vocabulary, first, first, second]
        logits_NV = target.verify(probe.tree(torch.tensor([tokens], device=target.device)), cache, None).logits_BNV[0]
        path = [0, 2, 4] if int(logits_NV[0].argmax()) == first else [0]
        if len(path) == LEVELS and int(logits_NV[2].argmax()) != second:
            path.pop()
        picked += [int(logits_NV[node].argmax()) for node in path]
        seen += [logits_NV[node] for node in path]
        cache.commit(torch.tensor([[0, 2, 4]], device=target.device), [len(path)], in_place=False)
        steps += 1
    wrong = next((t for t, (mine, theirs) in enumerate(zip(picked, wanted, strict=False)) if mine != theirs), None)
    if wrong is None:
        return Check("ids", True, f"{len(wanted)} of {len(wanted)} equal to generate's, in {steps} trees")
    logits_V = seen[wrong].float()
    gap = float(logits_V.max() - logits_V[wanted[wrong]])
    allowed = 2 * probe.difference(logits_V, logits_V).allowed
    is_tie = target.model.dtype != torch.float32 and gap <= allowed
    told = f"new token {wrong} differs from generate's; the two tokens' logits differ by {gap:.3g}"
    return Check("ids", is_tie, told + (f", rounding explains {allowed:.3g}" if is_tie else ""))
