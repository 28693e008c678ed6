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
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InputError, JudgeError, unknown
from ..images import resize
from ..types import Case, Judge, OnStep, State, Step, Verdict
from .cases import case_problem

SIZE = 64
WEIGHTS = Path(__file__).parents[1] / "miniature" / "weights"
TOKENIZER = WEIGHTS / "miniature-ip2p" / "tokenizer"
BATCH = 32


def evidence(source: Tensor, edited: Tensor) -> Tensor:
    """What both networks look at, (B, 15, 64, 64): the pictures, what changed, and their fine texture amplified.

    The miniature tells materials apart by low-contrast texture alone, so the detail (picture minus its 5x5 mean) enters
    amplified; otherwise flat colour drowns it.
    """

    def detail(x: Tensor) -> Tensor:
        return 8 * (x - F.avg_pool2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), 5, stride=1))

    return torch.cat([2 * source - 1, 2 * edited - 1, 2 * (edited - source), detail(source), detail(edited)], dim=1)


class FilmBlock(nn.Module):
    """A residual block of two 3x3 convolutions whose features the instruction scales and shifts."""

    def __init__(self, channels: int, text: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, channels), nn.GroupNorm(8, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.film = nn.Linear(text, 2 * channels)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        scale, shift = self.film(text)[:, :, None, None].chunk(2, dim=1)
        h = self.norm2(self.conv1(F.silu(self.norm1(x)))) * (1 + scale) + shift
        return x + self.conv2(F.silu(h))


class ConvJudge(nn.Module):
    """Convolutions over both pictures, conditioned on a recurrent reading of the instruction.

    ``forward(source, edited, token_ids)``: (B, 3, 64, 64) in [0, 1] twice and (B, length) int64 -> (B, 2) logits of
    (semantic mismatch, perceptual degradation).
    """

    def __init__(self, vocab_size: int, length: int = 16, width: int = 64, text: int = 64, blocks: int = 4) -> None:
        super().__init__()
        self.config = {"vocab_size": vocab_size, "length": length, "width": width, "text": text, "blocks": blocks}
        self.embed = nn.Embedding(vocab_size, text)
        self.read = nn.GRU(text, text, batch_first=True)
        self.stem = nn.Sequential(
            nn.Conv2d(15, width, 4, stride=2, padding=1), nn.SiLU(), nn.Conv2d(width, width, 4, stride=2, padding=1)
        )
        self.blocks = nn.ModuleList(FilmBlock(width, text) for _ in range(blocks))
        self.norm = nn.GroupNorm(8, width)
        self.where = nn.Conv2d(width, 2, 1)
        self.head = nn.Sequential(nn.Linear(4 * width + text, 64), nn.SiLU(), nn.Linear(64, 2))

    def forward(self, source: Tensor, edited: Tensor, token_ids: Tensor) -> Tensor:
        text = self.read(self.embed(token_ids))[0].amax(dim=1)
        x = self.stem(evidence(source, edited))
        for block in self.blocks:
            x = block(x, text)
        x = F.silu(self.norm(x))
        where = self.where(x).flatten(2).softmax(dim=-1)
        x = x.flatten(2)
        seen = torch.einsum("bcn,bkn->bkc", x, where).flatten(1)
        return self.head(torch.cat([seen, x.mean(-1), x.amax(-1), text], dim=1))


class PatchJudge(nn.Module):
    """A transformer over 8x8 patches of both pictures and the words of the instruction; called like ConvJudge."""

    def __init__(self, vocab_size: int, length: int = 16, width: int = 96, layers: int = 3, heads: int = 4) -> None:
        super().__init__()
        self.config = {"vocab_size": vocab_size, "length": length, "width": width, "layers": layers, "heads": heads}
        self.embed = nn.Embedding(vocab_size, width)
        self.patch = nn.Sequential(nn.Linear(15 * 64, width), nn.GELU(), nn.Linear(width, width))
        self.answer = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.position = nn.Parameter(torch.randn(1, 1 + length + (SIZE // 8) ** 2, width) * 0.02)
        layer = nn.TransformerEncoderLayer(width, heads, 3 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(2 * width, 2)

    def forward(self, source: Tensor, edited: Tensor, token_ids: Tensor) -> Tensor:
        patches = self.patch(F.unfold(evidence(source, edited), 8, stride=8).transpose(1, 2))
        answer = self.answer.expand(len(source), -1, -1)
        x = self.body(torch.cat([answer, self.embed(token_ids), patches], dim=1) + self.position)
        return self.head(torch.cat([x[:, 0], x[:, 1 + token_ids.shape[1] :].amax(dim=1)], dim=1))


NETWORKS: dict[str, type[ConvJudge] | type[PatchJudge]] = {"conv": ConvJudge, "patch": PatchJudge}


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


class MiniatureJudge:
    """Answers with a trained network. Pictures of any size are resized to 64x64, as the miniature draws them."""

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
        self.served = f"{name}@{hashlib.sha256(weights.read_bytes()).hexdigest()[:12]}"

    def judge(self, cases: Sequence[Case], *, on_step: OnStep | None = None) -> list[Verdict]:
        verdicts: list[Verdict] = []
        for start in range(0, len(cases), BATCH):
            verdicts += self._judge_batch(cases[start : start + BATCH])
            if on_step:
                on_step(Step("judge", len(verdicts), len(cases)))
        return verdicts

    def _judge_batch(self, cases: Sequence[Case]) -> list[Verdict]:
        started = time.perf_counter()
        problems = [self._problem(case) for case in cases]
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
            self._verdict("error", reasons=problem) if problem else self._answer(next(shares), latency)
            for problem in problems
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
