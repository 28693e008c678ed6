"""Training of the miniature's two judges on what the editors make (clean, attacked, failed) and on rendered cases.

Labels are the renderer's: mismatch, degradation and the four measures behind them (:mod:`sifm_core.miniature.truth`),
and per cell the material, where the instruction applies, the colours it should have, where the edit is wrong and how
much of it nothing explains. A judge that is trained on rendered pictures alone says "right" to everything a real editor
paints, or "degraded".
"""

from __future__ import annotations

import hashlib
import itertools
import json
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
from ..judges.miniature import save_network, tokenize, words_of
from ..judges.miniature_networks import ConvJudge, Look, PatchJudge
from . import gate, language, training, world
from .benchmark import Item
from .pool import material_map
from .truth import ROUGH, Truth

EDITORS = ("miniature-ip2p", "miniature-hq-edit", "miniature-sd3")
KINDS = (
    "clean",
    "prediction",
    "few steps",
    "sifm deep",
    "noise",
    "whole edit",
    "photoguard_encoder",
    "sifm other",
    "prediction",
    "mixed",
)
GROUP, GROUPS, RENDERED, BATCH = 24, 180, 12_000, 48
STEPS = {"conv": 2000, "patch": 3000}
SCALE = torch.tensor([1.0, 1.0, 4.0, 10.0])
"""Brings the four measures to one size."""
Cases = dict[str, Tensor]


def train(out: Path, *, steps: int | None, log: Any, checkpoints: Path, seed: int = 300) -> None:
    """Collect the editors' outputs in `out`, train both judges on two thirds of them, and save both.

    The last third is two rounds of every editor under every kind of attack: one chooses the thresholds, one measures.
    """
    from transformers import CLIPTokenizer

    small = steps is not None and steps < 50  # a smoke run
    groups, rendered = (6, 60) if small else (GROUPS, RENDERED)
    editors = [out / name for name in EDITORS if (out / name / "model_index.json").exists()]
    outputs = collect(editors, groups, seed, log, checkpoints)
    part = outputs["group"] * 6 // groups
    train_on, choose, test = (_select(outputs, which) for which in (part < 4, part == 4, part == 5))
    drawn = _cached(checkpoints / f"judge-rendered-{rendered}-{seed}.pt", lambda: render_cases(rendered, seed + 5))
    held = int((part >= 4).sum())
    log(f"{len(train_on['edit'])} cases from editors, {len(drawn['edit'])} rendered; {held} held back")
    tokenizer = CLIPTokenizer.from_pretrained(editors[0] / "tokenizer")
    said = [text for e in world.EDITS for text in (*language.phrases(e), *language.captions(e))]
    tokens = tokenize(tokenizer, said, 16).unflatten(0, (len(world.EDITS), -1))
    words = [w for text in said for w in words_of(text)]
    torch.manual_seed(seed)
    networks: dict[str, ConvJudge | PatchJudge] = {
        "conv": ConvJudge(len(tokenizer)),
        "patch": PatchJudge(len(tokenizer)),
    }
    said_yes = []
    for name, network in networks.items():
        network = fit(
            network,
            train_on,
            drawn,
            tokens,
            steps=steps or STEPS[name],
            seed=seed,
            log=log,
            checkpoint=checkpoints / f"{name}.pt",
        )
        thresholds = choose_thresholds(predict(network, choose, tokens), choose["label"].numpy())
        shares = predict(network, test, tokens)
        notes = measure(shares, test["label"].numpy(), thresholds)
        said_yes.append(shares >= np.array(thresholds))
        log(f"{name}: thresholds {thresholds}, on held-back editor outputs {json.dumps(notes)}")
        notes = {"held-back editor outputs": notes}
        save_network(network.half(), name, thresholds=thresholds, words=words, folder=out / "judges", notes=notes)
    same = (said_yes[0] == said_yes[1]).mean(0)
    log(f"the two agree on mismatch in {same[0]:.3f}, on degradation in {same[1]:.3f} of {len(test['edit'])} cases")


def choose_thresholds(shares: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Both axes' thresholds by :func:`choose_threshold`."""
    return choose_threshold(shares[:, 0], truth[:, 0]), choose_threshold(shares[:, 1], truth[:, 1])


def measure(shares: np.ndarray, truth: np.ndarray, thresholds: tuple[float, float]) -> dict[str, Any]:
    """Sensitivity, specificity and their mean (balanced agreement) per axis; None where there is no such case."""

    def share(right: np.ndarray) -> float | None:
        return round(float(right.mean()), 3) if len(right) else None

    notes = {}
    for axis, what in enumerate(("mismatch", "degradation")):
        said, yes = shares[:, axis] >= thresholds[axis], truth[:, axis] > 0.5
        found, cleared = share(said[yes]), share(~said[~yes])
        notes[what] = {
            "positives": int(yes.sum()),
            "negatives": int((~yes).sum()),
            "sensitivity": found,
            "specificity": cleared,
            "balanced agreement": None if found is None or cleared is None else round((found + cleared) / 2, 3),
        }
    return notes


# --- cases ------------------------------------------------------------------------------------------------------------


def collect(editors: Sequence[Path], groups: int, seed: int, log: Any, checkpoints: Path) -> Cases:
    """What the editors make of GROUP pictures a group, each against several instructions.

    Resumes from a file in `checkpoints` that is of these very editors.
    """
    loaded, began = [load_editor(folder, device="cpu") for folder in editors], time.time()
    which = hashlib.sha256("".join([str(seed), *(editor.fingerprint for editor in loaded)]).encode()).hexdigest()[:12]
    cache = checkpoints / f"judge-outputs-{which}.pt"
    done: list[Cases] = torch.load(cache, weights_only=True)[:groups] if cache.exists() else []
    for g in range(len(done), groups):
        rng = np.random.default_rng(seed + 10_000 + g)
        editor, kind = loaded[g % len(loaded)], KINDS[(g // len(loaded)) % len(KINDS)]
        items = gate.fresh(GROUP, seed + 20_000 + g)
        edited = _edited(kind, editor, items, rng)
        rows = []
        for item, picture in zip(items, edited, strict=True):
            asked = item.truth(item.instruction).edit
            wrong = [e for e in item.scene.edits if e != asked]
            near = [e for e in wrong if world.kind(e) == world.kind(asked)] or wrong
            rows.append(_case(item.scene, item.image, picture, asked))
            rows.append(_case(item.scene, item.image, picture, str(rng.choice(near))))
            if rng.uniform() < 0.2:  # an editor that changed nothing
                rows.append(_case(item.scene, item.image, item.image, asked))
        group = {k: torch.stack([r[k] for r in rows]) for k in rows[0]} | {"group": torch.full((len(rows),), g)}
        done.append(group)
        if (g + 1) % 5 == 0 or g + 1 == groups:
            _save(done, cache)
            bad = torch.cat([d["label"] for d in done])[:, 1].mean()
            log(f"group {g + 1}/{groups} ({kind}) {time.time() - began:.0f} s; {bad:.0%} degraded")
    return {k: torch.cat([d[k] for d in done]) for k in done[0]}


def _edited(kind: str, editor: Any, items: Sequence[Item], rng: np.random.Generator) -> Tensor:
    """One group's edits, after what the kind does to the pictures or to the editor."""
    prompts, source = [i.instruction for i in items], torch.stack([i.image for i in items])
    seeds = [int(s) for s in rng.integers(1 << 30, size=GROUP)]
    eps, layers = float(rng.uniform(0.02, 0.07)), str(rng.choice([k for k in editor.layer_presets if k != "all"]))
    if kind == "few steps":
        least = 3 if editor.family == "sd3" else 1
        return pipeline.edit(source, editor, prompt=prompts, seed=seeds, steps=least + int(rng.integers(2)))
    if kind == "mixed":  # two edits of one picture by blobs: the asked change half there, elsewhere, or not at all
        others = [str(rng.choice([p for p in i.unseen])) for i in items]
        right, wrong = (pipeline.edit(source, editor, prompt=p, seed=seeds) for p in (prompts, others))
        masks = [torch.from_numpy(blob(rng, float(rng.uniform(0.2, 0.8))))[None] for _ in items]
        base = [w if rng.uniform() < 0.6 else s for w, s in zip(wrong, source, strict=True)]
        return torch.stack([m * r + (1 - m) * b for m, r, b in zip(masks, right, base, strict=True)])
    given = source
    if kind in ("prediction", "whole edit"):
        given = gate.attack(kind, editor, source, prompts, eps, 12 if kind == "prediction" else 6, seeds[0])
    elif kind == "noise":
        pattern = str(rng.choice(["pixel", "block4", "block8", "block16"]))
        given = _immunized(source, editor, prompts, seeds, eps, "random_noise", pattern=pattern)
    elif kind.startswith("sifm"):
        layers = "deep" if kind == "sifm deep" else layers
        given = _immunized(
            source, editor, prompts, seeds, eps, "sifm", layers=layers, timesteps=[300, 900], aggregation="per_layer"
        )
    elif kind != "clean":
        given = _immunized(source, editor, prompts, seeds, eps, kind)
    return pipeline.edit(given, editor, prompt=prompts, seed=seeds)


def _immunized(
    x: Tensor, editor: Any, prompts: list[str], seeds: list[int], eps: float, method: str, **o: Any
) -> Tensor:
    return pipeline.immunize(x, editor, prompt=prompts, method=method, eps=eps, steps=12, seed=seeds, **o).image


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
        if world.kind(asked) == "material" and rng.uniform() < 0.6:  # the asked colour elsewhere is the hardest case
            materials = [m for m in scene.materials if m != asked.split()[0]]
            other = f"{rng.choice(materials)} {asked.split()[1]}"
        source, right = world.render(scene), world.render(scene, asked)
        base = world.render(scene, other) if rng.uniform() < 0.5 else source
        mask = (np.float32(1), np.float32(0), blob(rng, float(rng.uniform(0.1, 0.9))), np.float32(1))[rng.integers(4)]
        picture = mask * right + (1 - mask) * base
        grain = rng.standard_normal((3, world.SIZE // 2, world.SIZE // 2)).repeat(2, 1).repeat(2, 2)
        picture = (picture + grain * rng.uniform(0.0, 0.06)).clip(0, 1).astype(np.float32)
        if rng.uniform() < 0.25:
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
        padded = F.pad(torch.from_numpy(picture)[None], (k, k, k, k), mode="reflect")
        picture = F.avg_pool2d(padded, 2 * k + 1, 1)[0].numpy()
    elif kind == 4:
        picture = np.where(np.arange(size) < rng.integers(16, 48), picture, rng.uniform(size=(3, 1, 1)))
    return picture.clip(0, 1).astype(np.float32)


def _case(scene: world.Scene, source: Tensor, edited: Tensor, edit: str) -> Cases:
    truth, target = Truth(scene, edit), torch.from_numpy(world.render(scene, edit))
    mismatch, degraded, _ = truth.check(edited)
    changed = ((target - source).abs().amax(0, keepdim=True) > 0.1).float()
    shown = (edited * 255).round().byte()
    rest = torch.from_numpy(truth.unexplained(shown.double().numpy() / 255)).float()
    return {
        "source": (source * 255).round().byte(),
        "edited": shown,
        "edit": torch.tensor(world.EDITS.index(edit)),
        "label": torch.tensor([float(mismatch), float(degraded)]),
        "measures": torch.tensor(truth.measure(edited.double().numpy())).float().clamp(-1, 1.5),
        "material": torch.from_numpy(material_map(scene)).byte(),
        "asked": (F.avg_pool2d(changed, 4) > 0.5).byte(),
        "target": (F.avg_pool2d(target, 4) * 255).round().byte(),
        "rough": F.avg_pool2d(rest.square().mean(0, keepdim=True), 4).sqrt(),
    }


def _select(cases: Cases, rows: Tensor) -> Cases:
    return {k: v[rows] for k, v in cases.items()}


def _cached(path: Path, make: Any) -> Cases:
    if not path.exists():
        _save(make(), path)
    return torch.load(path, weights_only=True)


def _save(cases: Any, path: Path) -> None:
    torch.save(cases, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


# --- fitting ----------------------------------------------------------------------------------------------------------


def fit(
    network: ConvJudge | PatchJudge,
    outputs: Cases,
    rendered: Cases,
    tokens: Tensor,
    *,
    steps: int,
    seed: int,
    log: Any,
    checkpoint: Path,
) -> ConvJudge | PatchJudge:
    """Train one judge, two thirds on editor outputs; positives weigh as much as negatives."""
    positive = torch.cat([outputs["label"], rendered["label"]]).mean(0).clamp(0.05, 0.95)
    turns = itertools.cycle((rendered, outputs, outputs))

    def loss() -> tuple[Tensor, dict[str, float]]:
        cases = next(turns)
        k = torch.randint(len(cases["edit"]), (BATCH,))
        cases = _turned(_select(cases, k), torch.rand(BATCH) < 0.5)
        source, edited, ids = _inputs(cases, torch.arange(BATCH), tokens, torch.randint(18, (BATCH,)))
        with torch.autocast("cpu", torch.bfloat16, enabled=isinstance(network, ConvJudge)):
            seen = network.look(source, edited, ids)
        return _loss(seen, cases, edited, positive), {}

    return training.fit(
        network,
        loss,
        steps=steps,
        rate=training.cosine(1.5e-3),
        seed=seed,
        log=log,
        checkpoint=checkpoint,
        betas=(0.9, 0.999),
        weight_decay=1e-2,
        save=100,
    )


def _turned(cases: Cases, which: Tensor) -> Cases:
    """The cases with some of their pictures and maps upside down, which changes no material."""

    def turn(v: Tensor) -> Tensor:
        return torch.where(which.reshape(-1, *[1] * (v.dim() - 1)), v.flip(-2, -1), v) if v.dim() > 2 else v

    return {k: turn(v) for k, v in cases.items()}


def _loss(seen: Look, cases: Cases, edited: Tensor, positive: Tensor) -> Tensor:
    target, label = cases["target"] / 255, cases["label"].clone()
    wrong = ((F.avg_pool2d(edited, 4) - target).abs().amax(1, keepdim=True) > 0.12).float()
    label[:, 1] = ((cases["measures"][:, 3] - ROUGH) / 0.004).sigmoid()  # on the line, either answer is as good
    loss = F.binary_cross_entropy_with_logits(seen.logits.float(), label, pos_weight=((1 - positive) / positive))
    loss = loss + F.smooth_l1_loss(seen.measures.float(), cases["measures"] * SCALE)
    loss = loss + 0.3 * F.cross_entropy(seen.material.float(), cases["material"].long())
    loss = loss + 0.3 * F.binary_cross_entropy_with_logits(seen.asked.float(), cases["asked"].float())
    loss = loss + 0.3 * F.binary_cross_entropy_with_logits(seen.wrong.float(), wrong)
    loss = loss + F.smooth_l1_loss(10 * seen.rough.float(), 10 * cases["rough"])
    return loss if seen.target is None else loss + 10 * F.mse_loss(seen.target.float(), target)


def _inputs(cases: Cases, k: Tensor, tokens: Tensor, trained: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows k in words: `trained` below 12 is an instruction, from 12 on a caption."""
    text = torch.where(trained < language.TRAINED_PHRASES, trained, trained + 16 - language.TRAINED_PHRASES)
    return cases["source"][k] / 255, cases["edited"][k] / 255, tokens[cases["edit"][k], text]


@torch.no_grad()
def predict(network: ConvJudge | PatchJudge, cases: Cases, tokens: Tensor) -> np.ndarray:
    """Probabilities (n, 2) of mismatch and degradation, with trained instructions in turn."""
    network.eval()
    rows = torch.arange(len(cases["edit"])).split(64)
    parts = [network(*_inputs(cases, k, tokens, k % language.TRAINED_PHRASES)).sigmoid() for k in rows]
    return torch.cat(parts).numpy()


def choose_threshold(share: np.ndarray, truth: Sequence[float] | np.ndarray) -> float:
    """The threshold that clears 95% of the negatives.

    Most edits are fine, so a judge that often cries wolf would drown what protection does.
    """
    no = share[np.asarray(truth) <= 0.5]
    return float(np.nextafter(np.quantile(no, 0.95, method="higher"), 1)) if len(no) else 0.5
