"""Models that score edits (EditScore, EditReward) as judges: a number, and a threshold from cases with known answers.

Without a threshold the verdict is unclear and keeps the number: `sifm calibrate` finds one and says how to name the
judge with it. Nothing is fetched: weights lie in a folder, and the models' own packages run them.
"""

from __future__ import annotations

import importlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

from ..errors import InputError, JudgeError, unknown
from ..images import to_uint8
from ..types import Case, Judge, OnStep, Step, Verdict
from ..verdicts import QUESTIONS
from .cases import case_problem
from .files import files_of
from .redaction import shown
from .scores import parted, score

Scorer: TypeAlias = Callable[[Any, Any, str], Mapping[str, float]]
"""(source, edited, instruction) -> numbers by axis, higher is better; pictures are Pillow's, in RGB."""
REASONS = 4000
UNFIT = "no threshold is known for this judge's numbers: `sifm calibrate` finds one on cases whose answer is known"


@dataclass(frozen=True)
class Kind:
    """How a kind of score model is run: ``package`` to import, how to get it, and ``open(folder, device)``."""

    package: str
    install: str
    open: Callable[[Path, str], Scorer]


def _edit_score(folder: Path, device: str) -> Scorer:
    """EditScore (arXiv 2509.23909): the worse of what was asked for and what was to stay, and quality; 0 to 10."""
    kinds = {"qwen2_5_vl": "qwen25vl", "qwen3_vl": "qwen3vl"}
    backbone = kinds.get(_model_type(folder))
    if backbone is None:
        raise JudgeError(f"{folder}: expected the config.json of a merged EditScore, a {' or '.join(kinds)}")
    model = importlib.import_module("editscore").EditScore(backbone=backbone, model_name_or_path=str(folder), seed=0)

    def scored(source: Any, edited: Any, instruction: str) -> dict[str, float]:
        found = model.evaluate([source, edited], instruction)
        content = min(found["prompt_following"], found["consistency"])
        return dict(zip(QUESTIONS, (content, found["perceptual_quality"]), strict=True))

    return scored


def _edit_reward(folder: Path, device: str) -> Scorer:
    """EditReward (arXiv 2509.26346): one number for all, without bounds."""
    settings = sorted(folder.glob("*.yaml"))
    if len(settings) != 1:
        raise JudgeError(
            f"{folder}: expected the checkpoint of an EditReward with the one .yaml that it was trained by"
        )
    package = importlib.import_module("EditReward.inference_edit")
    model = package.EditRewardInferencer(config_path=str(settings[0]), checkpoint_path=str(folder), device=device)

    def scored(source: Any, edited: Any, instruction: str) -> dict[str, float]:
        return {"success": float(model.reward([instruction], [source], [edited])[0][0])}

    return scored


KINDS: dict[str, Kind] = {
    "editscore": Kind("editscore", "pip install editscore", _edit_score),
    "editreward": Kind("EditReward", "pip install git+https://github.com/TIGER-AI-Lab/EditReward", _edit_reward),
}


def absent() -> str:
    """What is missing, where no package of :data:`KINDS` is there."""
    if any(find_spec(kind.package) for kind in KINDS.values()):
        return ""
    return " or ".join(kind.install for kind in KINDS.values())


class ScoreJudge:
    """Answers by numbers: below the thresholds an edit failed."""

    def __init__(self, name: str, scorer: Scorer, thresholds: Mapping[str, float], *, model: str, served: str) -> None:
        self.name, self.served = name, f"{served} {dict(thresholds)}"
        self._scorer, self._thresholds = scorer, thresholds
        self._model, self._weights = model, served

    def judge(self, cases: Sequence[Case], *, on_step: OnStep | None = None) -> list[Verdict]:
        verdicts: list[Verdict] = []
        for case in cases:
            started = time.perf_counter()
            verdict = self._judge_one(case)
            verdicts.append(replace(verdict, latency=time.perf_counter() - started))
            if on_step:
                on_step(Step("judge", len(verdicts), len(cases)))
        return verdicts

    def _judge_one(self, case: Case) -> Verdict:
        about: dict[str, Any] = {"model_requested": self._model, "model_served": self._weights}
        if problem := case_problem(case):
            return Verdict(self.name, "error", reasons=problem, **about)
        try:
            found = {
                axis: float(value)
                for axis, value in self._scorer(_pillow(case.source), _pillow(case.edited), case.prompt).items()
            }
        except Exception as error:  # whatever a package of somebody else's raises costs one verdict
            why = f"{type(error).__name__}: {error}"
            return Verdict(self.name, "error", reasons=shown(why, REASONS), **about)
        if not all(map(math.isfinite, found.values())):
            return Verdict(self.name, "unparsable", reasons=f"the model gave {found}, which are no scores", **about)
        scores = {axis: score(value, self._thresholds.get(axis)) for axis, value in found.items()}
        said = ", ".join(f"{axis.replace('_', ' ')} {value:.4g}" for axis, value in found.items())
        whole = all(one["threshold"] is not None for one in scores.values())
        reasons = said if whole else f"{said}; {UNFIT}"
        return Verdict(self.name, "error", reasons=reasons, scores=scores, cost=0.0, **about).decided({})


def load(model: str, *, base_url: str | None = None, device: str = "auto") -> Judge:
    """``model``: KIND:FOLDER, with its thresholds after a "#" if it has any, such as editscore:weights#6.2,5.5."""
    if base_url:
        raise InputError(f"score judges run here and take no base_url, but got {base_url!r}")
    import torch

    place, thresholds = parted(model)
    name, _, folder = place.partition(":")
    if name not in KINDS:
        raise unknown("kind of score model", name, KINDS)
    if not Path(folder).is_dir():
        raise JudgeError(f"score:{name}: expected a folder with the model's weights, got {folder!r}")
    kind = KINDS[name]
    if not find_spec(kind.package):
        raise JudgeError(f"score:{name} needs the package {kind.package}: {kind.install}")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        scorer = kind.open(Path(folder), device)
    except JudgeError:
        raise
    except Exception as error:
        raise JudgeError(f"score:{place}: the model cannot be opened: {type(error).__name__}: {error}") from error
    return ScoreJudge(f"score:{model}", scorer, thresholds, model=place, served=f"{place}@{name}-{files_of(folder)}")


def _pillow(picture: Any) -> Any:
    from PIL import Image

    return Image.fromarray(to_uint8(picture))


def _model_type(folder: Path) -> str:
    try:
        return str(json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type"))
    except (OSError, ValueError, AttributeError):
        return ""
