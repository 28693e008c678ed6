"""Training of the miniature's two judges on real editor outputs (clean, attacked, failed) and on rendered ones.

Labels are the renderer's: the mismatch and the unexplained detail of :mod:`sifm_core.miniature.truth`. A judge that
is trained on rendered pictures alone says "right" to everything a real editor paints, or "degraded" to all of it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import pipeline
from ..editors import load_editor
from ..judges.miniature import ConvJudge, PatchJudge, save_network, tokenize, words_of
from . import world
from .benchmark import make
from .truth import Truth

KINDS = (
    "clean",
    "few steps",
    "pixel noise",
    "block4",
    "block8",
    "block16",
    "photoguard_encoder",
    "sifm up",
    "sifm down",
    "sifm deep",
    "sifm up",
    "sifm down",
)
GROUP = 24
Cases = dict[str, Tensor]


def train(out: Path, *, editor: Path, steps: int, seed: int, log: Any, checkpoints: Path, groups: int = 60) -> None:
    """Collect editor outputs, train both judges, choose thresholds on held-back outputs and save all to `out`."""
    outputs = collect(editor, groups, seed, log, checkpoints / "judge-cases.pt")
    rendered = {
        k: torch.cat([a, b])
        for (k, a), b in zip(
            render_cases(8 * GROUP * groups, seed + 5).items(),
            composites(editor, groups // 2, seed, log, checkpoints / "judge-composites.pt").values(),
            strict=True,
        )
    }
    held = outputs["source"].shape[0] // 6
    test = {k: v[:held] for k, v in outputs.items()}
    outputs = {k: v[held:] for k, v in outputs.items()}
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(editor / "tokenizer")
    phrases = [p for e in world.EDITS for p in world.phrases(e)]
    tokens = tokenize(tokenizer, phrases, 16)
    words = [w for p in phrases for w in words_of(p)]
    for name, network in (("conv", ConvJudge(len(tokenizer))), ("patch", PatchJudge(len(tokenizer)))):
        torch.manual_seed(seed)
        fit(network, outputs, rendered, tokens, steps, log, checkpoints / f"{name}.pt")
        shares = predict(network, test, tokens)
        truth = test["label"].numpy()
        thresholds, notes = [], {}
        for axis, what in enumerate(("mismatch", "degradation")):
            threshold, sensitivity, specificity = choose_threshold(shares[:, axis], truth[:, axis])
            thresholds.append(threshold)
            notes[what] = {
                "sensitivity": round(sensitivity, 3),
                "specificity": round(specificity, 3),
                "n": len(truth),
                "positive": int(truth[:, axis].sum()),
            }
        log(f"{name}: thresholds {thresholds}, on held-back editor outputs {notes}")
        save_network(
            network.half(),
            name,
            thresholds=(thresholds[0], thresholds[1]),
            words=words,
            folder=out,
            notes={"held-back editor outputs": notes},
        )


def collect(editor: Path, groups: int, seed: int, log: Any, cache: Path) -> Cases:
    """Editor outputs with their labels, GROUP pictures a group; resumes from `cache`."""
    done: list[Cases] = torch.load(cache, weights_only=True) if cache.exists() else []
    model, started = load_editor(editor), time.time()
    for g in range(len(done), groups):
        rng = np.random.default_rng(seed + 10_000 + g)
        items = [make(f"judge-{i}", world.CATEGORIES[i % 3], rng, local=i % 6 != 5) for i in range(GROUP)]
        prompts, source = [i.instruction for i in items], torch.stack([i.image for i in items])
        kind, given = KINDS[g % len(KINDS)], source
        seeds = [int(s) for s in rng.integers(1 << 30, size=GROUP)]
        eps = float(rng.uniform(0.02, 0.06))
        if kind not in ("clean", "few steps"):
            method, _, layers = kind.partition(" ")
            options: dict[str, Any] = {"layers": layers, "timesteps": [300, 700]} if layers and method == "sifm" else {}
            if method in ("pixel", "block4", "block8", "block16"):
                method, options = "random_noise", {"pattern": method}
            given = pipeline.immunize(
                source, model, prompt=prompts, method=method, eps=eps, steps=16, seed=seeds, **options
            ).image
        hurry: dict[str, Any] = {"steps": int(rng.integers(1, 4))} if kind == "few steps" else {}
        edited = pipeline.edit(given, model, prompt=prompts, seed=seeds, **hurry)
        rows = []
        for item, picture, start in zip(items, edited, given, strict=True):
            asked = item.truth(item.instruction).edit
            others = [e for e in item.scene.edits if e != asked]
            rows.append(_case(item.scene, item.image, picture, asked))
            rows.append(
                _case(item.scene, item.image, picture, str(rng.choice(others)))
            )  # judged against a wrong instruction
            if rng.uniform() < 0.25:
                rows.append(_case(item.scene, item.image, start, asked))  # an editor that changed nothing
        done.append({k: torch.stack([r[k] for r in rows]) for k in rows[0]})
        if (g + 1) % 4 == 0:
            torch.save(done, cache)
            log(f"group {g + 1}/{groups} ({kind}) {time.time() - started:.0f} s")
    return {k: torch.cat([d[k] for d in done]) for k in done[0]}


def composites(editor: Path, groups: int, seed: int, log: Any, cache: Path) -> Cases:
    """Two edits of one picture mixed by blobs: the asked change half there, elsewhere, or not at all."""
    if cache.exists():
        return torch.load(cache, weights_only=True)
    model, started, rows = load_editor(editor), time.time(), []
    for g in range(groups):
        rng = np.random.default_rng(seed + 20_000 + g)
        items = [make(f"mixed-{i}", world.CATEGORIES[i % 3], rng) for i in range(GROUP)]
        source = torch.stack([i.image for i in items])
        seeds = [int(s) for s in rng.integers(1 << 30, size=GROUP)]
        asked = [i.truth(i.instruction).edit for i in items]
        other = [f"{m} {e.split()[1]}" for i, e in zip(items, asked, strict=True) for m in [_another(i, e, rng)]]
        right, wrong = (
            pipeline.edit(source, model, prompt=[world.phrases(e)[0] for e in edits], seed=seeds)
            for edits in (asked, other)
        )
        plain = pipeline.edit(source, model, prompt="let the marble thing be", seed=seeds)  # changes nothing
        for k, item in enumerate(items):
            for kind in rng.permutation(6)[:4]:
                base = (plain, wrong, plain, wrong, right, plain)[kind][k]
                mask = (
                    torch.from_numpy(blob(rng, float(rng.uniform(0.2, 0.8)))) if kind in (0, 1, 4) else torch.zeros(())
                )
                picture = mask * right[k] + (1 - mask) * base
                if rng.uniform() < 0.25:
                    picture = torch.from_numpy(spoil(picture.numpy(), rng))
                rows.append(_case(item.scene, item.image, picture, asked[k]))
    log(f"{len(rows)} composites {time.time() - started:.0f} s")
    cases = {k: torch.stack([r[k] for r in rows]) for k in rows[0]}
    torch.save(cases, cache)
    return cases


def _another(item: Any, edit: str, rng: np.random.Generator) -> str:
    """A material of the picture other than the edit's."""
    return str(rng.choice([m for m in item.scene.materials if m != edit.split()[0]]))


def blob(rng: np.random.Generator, share: float) -> np.ndarray:
    """A smooth random mask (64, 64) in {0, 1} that covers about `share` of the picture."""
    field = np.kron(rng.standard_normal((8, 8)), np.ones((8, 8), np.float32))
    field = F.avg_pool2d(torch.from_numpy(field)[None, None].float(), 9, 1, 4)[0, 0].numpy()
    return (field > np.quantile(field, 1 - share)).astype(np.float32)


def render_cases(n: int, seed: int) -> Cases:
    """Rendered edits with an editor's grain: right, wrong, half there, elsewhere, not at all, or spoilt; labelled."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(n):
        scene = world.sample(rng)
        asked, other = (str(e) for e in rng.choice(scene.edits, 2, replace=False))
        if rng.uniform() < 0.6:  # the asked colour in the wrong place is the hardest case
            materials = [m for m in scene.materials if m != asked.split()[0]]
            other = f"{rng.choice(materials)} {asked.split()[1] if ' ' in asked else rng.choice(list(world.COLOURS))}"
        source, right = world.render(scene), world.render(scene, asked)
        base = world.render(scene, other) if rng.uniform() < 0.5 else source
        kind = rng.integers(4)
        mask = (np.float32(1), np.float32(0), blob(rng, float(rng.uniform(0.1, 0.9))), np.float32(1))[kind]
        picture = mask * right + (1 - mask) * base
        grain = rng.standard_normal((3, world.SIZE // 2, world.SIZE // 2)).repeat(2, 1).repeat(2, 2)
        picture = (picture + grain * rng.uniform(0.0, 0.06)).clip(0, 1).astype(np.float32)
        if rng.uniform() < 0.2:
            picture = spoil(picture, rng)
        rows.append(_case(scene, torch.from_numpy(source), torch.from_numpy(picture), asked))
    return {k: torch.stack([r[k] for r in rows]) for k in rows[0]}


def spoil(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The picture (3, 64, 64), untouched, noisy, blotched, blurred or half of it replaced."""
    kind, size = rng.integers(5), world.SIZE
    if kind == 1:
        picture = picture + rng.standard_normal(picture.shape) * rng.uniform(0.02, 0.25)
    elif kind == 2:
        k = int(rng.choice([4, 8, 16]))
        blots = rng.standard_normal((3, size // k, size // k)).repeat(k, 1).repeat(k, 2) * (
            rng.uniform(size=(1, size // k, size // k)) < 0.3
        ).repeat(k, 1).repeat(k, 2)
        picture = picture + blots * rng.uniform(0.1, 0.5)
    elif kind == 3:
        k = int(rng.integers(2, 9))
        soft = F.avg_pool2d(F.pad(torch.from_numpy(picture)[None], (k, k, k, k), mode="reflect"), 2 * k + 1, 1)[
            0
        ].numpy()
        picture = soft
    elif kind == 4:
        picture = np.where(np.arange(size) < rng.integers(16, 48), picture, rng.uniform(size=(3, 1, 1)))
    return picture.clip(0, 1).astype(np.float32)


def _case(scene: world.Scene, source: Tensor, edited: Tensor, edit: str) -> Cases:
    mismatch, degraded, _ = Truth(scene, edit).check(edited)
    return {
        "source": (source * 255).round().byte(),
        "edited": (edited * 255).round().byte(),
        "edit": torch.tensor(world.EDITS.index(edit)),
        "label": torch.tensor([float(mismatch), float(degraded)]),
    }


def fit(
    network: Any,
    outputs: Cases,
    rendered: Cases,
    tokens: Tensor,
    steps: int,
    log: Any,
    checkpoint: Path,
    batch: int = 48,
) -> None:
    """Train one judge, half on editor outputs; both labels are balanced by weight."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=1e-3)
    positive = [torch.cat([outputs["label"], rendered["label"]])[:, a].mean().clamp(0.05, 0.95) for a in (0, 1)]
    weight = torch.stack([(1 - p) / p for p in positive])
    first, started, smooth = 0, time.time(), 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    for step in range(first, steps):
        for group in optimizer.param_groups:
            group["lr"] = 1.5e-3 * min(1, (step + 1) / 100) * max(0.01, 0.5 + 0.5 * float(np.cos(np.pi * step / steps)))
        cases = outputs if step % 2 else rendered
        k = torch.randint(len(cases["edit"]), (batch,))
        source, edited, ids = _inputs(cases, k, tokens, augment=True)
        loss = F.binary_cross_entropy_with_logits(network(source, edited, ids), cases["label"][k], pos_weight=weight)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        smooth = 0.97 * smooth + 0.03 * loss.item() if step > first else loss.item()
        if (step + 1) % 100 == 0:
            log(f"{checkpoint.stem} step {step + 1}/{steps} {time.time() - started:.0f} s  loss {smooth:.3f}")
            torch.save(
                {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}, checkpoint
            )


def _inputs(cases: Cases, k: Tensor, tokens: Tensor, augment: bool) -> tuple[Tensor, Tensor, Tensor]:
    source, edited = cases["source"][k] / 255, cases["edited"][k] / 255
    phrase = torch.randint(world.TRAINED_PHRASES, (len(k),)) if augment else k % world.TRAINED_PHRASES
    return source, edited, tokens[cases["edit"][k] * 16 + phrase]


@torch.no_grad()
def predict(network: Any, cases: Cases, tokens: Tensor) -> np.ndarray:
    """Probabilities (n, 2) of mismatch and degradation."""
    network.eval()
    parts = [
        network(*_inputs(cases, k, tokens, augment=False)).sigmoid() for k in torch.arange(len(cases["edit"])).split(64)
    ]
    return torch.cat(parts).numpy()


def choose_threshold(share: np.ndarray, truth: Sequence[float] | np.ndarray) -> tuple[float, float, float]:
    """The threshold (in steps of 0.01) with the best sensitivity among those that clear 95% of the negatives.

    Returns it with its sensitivity and specificity. Most edits are fine, so a judge that often cries wolf would drown
    what protection does.
    """
    yes, no = share[np.asarray(truth) > 0.5], share[np.asarray(truth) <= 0.5]
    if not len(yes) or not len(no):
        return 0.5, float("nan"), float("nan")
    clearing = [t for t in np.arange(5, 96) / 100 if (no < t).mean() >= 0.95] or [0.95]
    best = float(clearing[0])
    return best, float((yes >= best).mean()), float((no < best).mean())
