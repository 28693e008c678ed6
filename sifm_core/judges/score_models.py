"""Models that score edits (EditScore, EditReward) as judges: a number, and a threshold from cases with known answers.

Without a threshold the verdict is unclear and keeps the number: `sifm calibrate` finds one and says how to name the
judge with it. Nothing is fetched: weights lie in a folder, and the models' own packages run them.
"""

from __future__ import annotations

import importlib
import json
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any, TypeAlias

from ..errors import InputError, JudgeError, unknown
from ..files import in_cache
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


class Unread(Exception):
    """What a model wrote gave no number."""


def _edit_score(folder: Path, device: str) -> Scorer:
    """EditScore (arXiv 2509.23909): the worse of what was asked for and what was to stay, and quality; 0 to 10.

    A folder as it is published, an adapter of LoRA beside the model that its ``adapter_config.json`` names, or merged.
    """
    kinds = {"qwen2_5_vl": "qwen25vl", "qwen3_vl": "qwen3vl"}
    base = _said(folder / "adapter_config.json", "base_model_name_or_path")
    model = Path(_here(folder, base)) if base else folder
    backbone = kinds.get(_said(model / "config.json", "model_type"))
    if backbone is None:
        raise JudgeError(
            f"{folder}: expected an EditScore, the adapter_config.json of one or a merged one's config.json "
            f"({' or '.join(kinds)})"
        )
    if device != "cuda":
        raise JudgeError("score:editscore: its package runs on CUDA alone, which this machine has not")
    adapter = {"lora_path": str(folder)} if base else {}
    package = importlib.import_module("editscore")
    scorer = package.EditScore(backbone=backbone, model_name_or_path=str(model), seed=0, **adapter)

    def scored(source: Any, edited: Any, instruction: str) -> dict[str, float]:
        found = scorer.evaluate([source, edited], instruction)
        for name in ("SC_reasoning", "PQ_reasoning"):
            if "guess_if_cannot_parse" in str(found.get(name)):  # then its package has drawn the number at random
                raise Unread("what the model wrote is no score")
        content = min(found["prompt_following"], found["consistency"])
        return dict(zip(QUESTIONS, (content, found["perceptual_quality"]), strict=True))

    return scored


def _edit_reward(folder: Path, device: str) -> Scorer:
    """EditReward (arXiv 2509.26346): one number for all, without bounds."""
    import torch

    settings = sorted(folder.glob("*.yaml"))
    if len(settings) != 1:
        raise JudgeError(
            f"{folder}: expected the checkpoint of an EditReward, and the one .yaml of EditReward/config/ that it was "
            "trained by"
        )
    named = re.search(
        r"^model_name_or_path:\s*[\"']?([^\"'#\s]+)", settings[0].read_text(encoding="utf-8"), re.MULTILINE
    )
    if not named:
        raise JudgeError(f"{settings[0]}: expected a model_name_or_path")
    kind = _said(Path(_here(folder, named[1])) / "config.json", "model_type")
    module, inferencer = {
        "qwen3_vl": ("inference_qwen3_vl_edit", "EditRewardQwen3Inferencer"),
    }.get(kind, ("inference_edit", "EditRewardInferencer"))
    package = importlib.import_module(f"EditReward.{module}")
    model = getattr(package, inferencer)(config_path=str(settings[0]), checkpoint_path=str(folder), device=device)

    def scored(source: Any, edited: Any, instruction: str) -> dict[str, float]:
        with torch.no_grad():
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
            with redirect_stdout(StringIO()):  # EditScore prints what its model wrote
                given = self._scorer(_pillow(case.source), _pillow(case.edited), case.prompt)
            found = {axis: float(value) for axis, value in given.items()}
        except Unread as error:
            return Verdict(self.name, "unparsable", reasons=str(error), **about)
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
    place, thresholds = parted(model)
    name, _, folder = place.partition(":")
    if name not in KINDS:
        raise unknown("kind of score model", name, KINDS)
    if not Path(folder).is_dir():
        raise JudgeError(f"score:{name}: expected a folder with the model's weights, got {folder!r}")
    kind = KINDS[name]
    if not find_spec(kind.package):
        raise JudgeError(f"score:{name} needs the package {kind.package}: {kind.install}")
    device = _fastest() if device == "auto" else device
    try:
        with _offline(), redirect_stdout(StringIO()):
            scorer = kind.open(Path(folder), device)
    except JudgeError:
        raise
    except Exception as error:
        raise JudgeError(f"score:{place}: the model cannot be opened: {type(error).__name__}: {error}") from error
    return ScoreJudge(f"score:{model}", scorer, thresholds, model=place, served=f"{place}@{name}-{files_of(folder)}")


def _fastest() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _pillow(picture: Any) -> Any:
    from PIL import Image

    return Image.fromarray(to_uint8(picture))


def _said(file: Path, field: str) -> str:
    """A text that a JSON file holds under a name, or ""."""
    try:
        found = json.loads(file.read_text(encoding="utf-8")).get(field)
    except (OSError, ValueError, AttributeError):
        return ""
    return found if isinstance(found, str) else ""


def _here(folder: Path, base: str) -> str:
    """The folder of the model that a checkpoint is built on."""
    found = in_cache(base)
    if not Path(found).is_dir():
        raise JudgeError(
            f"{folder}: it is built on {base}, which is not on this machine (`hf download {base}` fetches it)"
        )
    return found


@contextmanager
def _offline() -> Iterator[None]:
    """Packages of somebody else's fetch nothing."""
    import huggingface_hub.constants as hub

    before, hub.HF_HUB_OFFLINE = hub.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        hub.HF_HUB_OFFLINE = before
