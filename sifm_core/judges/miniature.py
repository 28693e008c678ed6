"""The miniature's judges: two small networks of different architecture, and the renderer's ground truth.

They know the miniature's pictures and instructions and nothing else. On a machine without a key or a large model they
let the whole chain run; they are no evidence about how people see photographs.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, JudgeError, unknown
from ..images import resize
from ..types import Case, Judge, OnStep, State, Step, Verdict
from .cases import case_problem
from .miniature_networks import NETWORKS, SIZE, ConvJudge, PatchJudge

WEIGHTS = Path(__file__).parents[1] / "miniature" / "weights"
TOKENIZER = WEIGHTS / "miniature-ip2p" / "tokenizer"
BATCH = 32


def save_network(
    network: ConvJudge | PatchJudge,
    name: str,
    *,
    thresholds: tuple[float, float] = (0.5, 0.5),
    words: Sequence[str],
    folder: Path = WEIGHTS / "judges",
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Write ``name``.safetensors and ``name``.json, what :func:`load` reads.

    ``thresholds``: the probabilities from which on (mismatch, degradation) are said; ``words``: every word the training
    instructions use, lower case; ``notes``: anything to keep beside them, such as measured accuracies.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, folder / f"{name}.safetensors")
    config = {
        "network": network.config,
        "thresholds": list(thresholds),
        "words": sorted(set(words)),
        "notes": dict(notes or {}),
    }
    (folder / f"{name}.json").write_text(json.dumps(config, indent=1) + "\n")


def absent(folder: Path = WEIGHTS / "judges") -> str:
    """What is missing of the networks' weights, with its cure, or ""."""
    missing = [name for name in NETWORKS if not (folder / f"{name}.safetensors").is_file()]
    return f"no weights of {', '.join(missing)} in {folder}: python -m sifm_core.miniature.train judges" * bool(missing)


def words_of(prompt: str) -> list[str]:
    """The lower-case words of an instruction, without punctuation."""
    return re.findall(r"\w+", prompt.lower())


def tokenize(tokenizer: Any, prompts: Sequence[str], length: int) -> Tensor:
    """Instructions as (B, length) int64, padded; a longer one raises :class:`InputError` rather than being cut."""
    ids = tokenizer(list(prompts), padding="max_length", max_length=length, truncation=False)["input_ids"]
    for prompt, row in zip(prompts, ids, strict=True):
        if len(row) > length:
            raise InputError(f"the instruction has {len(row)} tokens, the judge reads {length}: shorten {prompt!r}")
    return torch.tensor(ids, dtype=torch.int64)


def foreign(case: Case) -> str:
    """Why the miniature's networks say nothing about pictures of this size, or ""."""
    height, width = case.source.shape[-2:]
    if max(height, width) <= SIZE:
        return ""
    return (
        f"this judge knows only the miniature's drawings of up to {SIZE}x{SIZE} pixels, and nothing of pictures of "
        f"{width}x{height}: use a judge that sees photographs, see `sifm judges`"
    )


class MiniatureJudge:
    """Answers with a trained network; refuses pictures larger than the miniature draws, of which it knows nothing."""

    def __init__(self, name: str, *, folder: Path = WEIGHTS / "judges", tokenizer: Path = TOKENIZER) -> None:
        if name not in NETWORKS:
            raise unknown("miniature judge", name, [*NETWORKS, "renderer"])
        weights, config = folder / f"{name}.safetensors", folder / f"{name}.json"
        for path in (weights, config, tokenizer):
            if not path.exists():
                raise JudgeError(
                    f"miniature:{name} needs {path}, which does not exist: "
                    "train it with `python -m sifm_core.miniature.train judges`"
                )
        from safetensors.torch import load_file
        from transformers import CLIPTokenizer

        self.name = f"miniature:{name}"
        self.config = json.loads(config.read_text())
        self.network = NETWORKS[name](**self.config["network"])
        self.network.load_state_dict(load_file(weights))
        self.network.eval().requires_grad_(False)
        self.tokenizer = CLIPTokenizer.from_pretrained(tokenizer)
        self.words = frozenset(self.config["words"])
        self.served = f"{name}@{hashlib.sha256(weights.read_bytes() + config.read_bytes()).hexdigest()[:12]}"

    def judge(self, cases: Sequence[Case], *, on_step: OnStep | None = None) -> list[Verdict]:
        verdicts: list[Verdict] = []
        for start in range(0, len(cases), BATCH):
            verdicts += self._judge_batch(cases[start : start + BATCH])
            if on_step:
                on_step(Step("judge", len(verdicts), len(cases)))
        return verdicts

    def _judge_batch(self, cases: Sequence[Case]) -> list[Verdict]:
        started = time.perf_counter()
        problems = [self._problem(case) or foreign(case) for case in cases]
        able = [case for case, problem in zip(cases, problems, strict=True) if not problem]
        answers: list[list[float]] = []
        if able:
            ids = tokenize(self.tokenizer, [case.prompt for case in able], self.network.config["length"])
            source = torch.cat([resize(case.source[None], (SIZE, SIZE)) for case in able])
            edited = torch.cat([resize(case.edited[None], (SIZE, SIZE)) for case in able])
            with torch.inference_mode():
                answers = self.network(source, edited, ids).sigmoid().tolist()
        shares, latency = iter(answers), (time.perf_counter() - started) / len(cases)
        return [
            self._verdict("refused" if problem == foreign(case) else "error", reasons=problem)
            if problem
            else self._answer(next(shares), latency)
            for case, problem in zip(cases, problems, strict=True)
        ]

    def _problem(self, case: Case) -> str:
        """Why this case cannot be judged, or ""."""
        if not words_of(case.prompt):
            return "the instruction is empty"
        if strange := sorted(set(words_of(case.prompt)) - self.words):
            names = ", ".join(map(repr, strange))
            return f"this judge knows only the miniature's words, and not {names}: use a judge that reads free text"
        try:
            tokenize(self.tokenizer, [case.prompt], self.network.config["length"])
        except InputError as error:
            return str(error)
        return case_problem(case)

    def _answer(self, shares: Sequence[float], latency: float) -> Verdict:
        thresholds = self.config["thresholds"]
        mismatch, degraded = (share >= threshold for share, threshold in zip(shares, thresholds, strict=True))
        sure = min(share if said else 1 - share for share, said in zip(shares, (mismatch, degraded), strict=True))
        return self._verdict(
            "ok",
            semantic_mismatch=mismatch,
            perceptual_degradation=degraded,
            confidence=sure,
            reasons=f"probability of mismatch {shares[0]:.2f} (threshold {thresholds[0]:.2f}), "
            f"of degradation {shares[1]:.2f} (threshold {thresholds[1]:.2f})",
            latency=latency,
        )

    def _verdict(self, state: State, **fields: Any) -> Verdict:
        return Verdict(self.name, state, model_requested=self.name, model_served=self.served, cost=0.0, **fields)


class RendererJudge:
    """Ground truth: asks ``Case.truth.check(edited)``, which knows the scene.

    ``check`` gets (3, H, W) and returns (mismatch, degradation or None where it cannot tell, a note).
    """

    name = "miniature:renderer"

    def judge(self, cases: Sequence[Case], *, on_step: OnStep | None = None) -> list[Verdict]:
        verdicts = []
        for case in cases:
            verdicts.append(self._judge_one(case))
            if on_step:
                on_step(Step("judge", len(verdicts), len(cases)))
        return verdicts

    def _judge_one(self, case: Case) -> Verdict:
        if case.truth is None:
            why = "the renderer knows only the miniature's own scenes, and this case has no truth"
            return self._verdict("refused", reasons=why)
        if problem := case_problem(case):
            return self._verdict("error", reasons=problem)
        try:
            mismatch, degraded, note = case.truth.check(case.edited)
        except Exception as error:  # a judge never raises for a single case
            return self._verdict("error", reasons=f"the scene's check failed: {type(error).__name__}: {error}")
        degraded = None if degraded is None else bool(degraded)
        return self._verdict("ok", semantic_mismatch=bool(mismatch), perceptual_degradation=degraded, reasons=note)

    def _verdict(self, state: State, **fields: Any) -> Verdict:
        return Verdict(self.name, state, model_requested=self.name, model_served=self.name, cost=0.0, **fields)


def load(model: str, *, base_url: str | None = None, **options: Any) -> Judge:
    """The trained judge "conv" or "patch" (options: ``folder``, ``tokenizer``), or the "renderer"."""
    if base_url:
        raise InputError(f"miniature judges run here and take no base_url, but got {base_url!r}")
    return RendererJudge(**options) if model == "renderer" else MiniatureJudge(model, **options)
