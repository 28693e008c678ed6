"""SIFM+: SIFM's distance near the editor's output, over instructions that are drawn and need not be known.

What SIFM does with one instruction, fixed timesteps and fixed noise in one direction, this does with a few runs of the
network per iteration, each with an instruction, a timestep and a noise of its own; the loop sums up the directions. So
what it finds is common to instructions, and whoever protects need not know the attacker's. The instructions come from a
pool by what the picture shows (:func:`pool`), and of those the ones on which the editor would do most to this picture;
one that is known is among them.
"""

from __future__ import annotations

import importlib
import itertools
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from ..errors import InputError, unknown
from ..features import capture, resolve
from ..files import read_text
from ..gradients import through_latent
from ..noise import Seed, fork, generators, normal
from ..types import Cond, Editor, Gradient, Image, Latent, Sampled
from . import ROWS, configured
from .batches import Batch, at_once, split
from .sifm import patterns, times_of

PROVENANCE = (
    "our own, of no paper: the distance of SIFM (2512.14320, Eq. 4) alone, summed over instructions as universal "
    "perturbations are over pictures (Moosavi-Dezfooli et al., 1610.08401), with momentum (Dong et al., 1710.06081); "
    "the preset robust: expectation over transformation (Athalye et al., 1707.07397); chosen by measurement"
)
RANDOM_START = True
UPDATE = "momentum"
PROMPTLESS = True
PRESETS: dict[str, dict[str, Any]] = {"robust": {"eot": ("jpeg:60-95", "resize:0.4-0.7")}}
"""robust: for a picture that is scaled and compressed on its way, as platforms do, before somebody edits it."""
CANDIDATES = 4
"""How many instructions are tried for each that a picture is protected against."""
POOLS = Path(__file__).with_name("instructions.toml")
OWN = "miniature"
"""The subject whose instructions stand alone: an editor of its own small language understands no others."""

Subject = Literal["auto", "any", "portrait", "landscape", "artwork", "product", "animal", "interior", "miniature"]


@configured
def build(
    editor: Editor,
    x: Image,
    cond: Cond,
    *,
    subject: Annotated[
        Subject, "what the picture shows, for the instructions to draw from; auto: what fits the editor's language"
    ] = "auto",
    instructions: Annotated[Sequence[str], "draw from these instead"] = (),
    drawn: Annotated[
        int, "how many each picture is protected against: of four times as many, those that its editor responds to most"
    ] = 8,
    known: Annotated[float, "the share of runs that take the picture's own instruction, where there is one"] = 0.5,
    runs: Annotated[int, "runs of the network per iteration, each with a drawn instruction and noise"] = 4,
    timesteps: Annotated[
        int | str | Sequence[int], "in turn, one for each run: how many, evenly spaced; a list; early, mid or late"
    ] = 4,
    layers: Annotated[
        str | Sequence[str],
        "presets of the editor or module paths with wildcards; auto: what the editor says, such as last of a U-Net and "
        "mid of a transformer",
    ] = "auto",
    avoid: Annotated[
        Sequence[Sequence[str]], "for an evaluation: per picture, instructions that are not drawn in any wording"
    ] = (),
    rows: Annotated[int, ROWS] = 0,
    seed: Seed = 0,
) -> Sampled:
    """The gradient of minus the mean distance between features of picture and clean picture, in drawn runs.

    An editor responds to an instruction by as much as its prediction differs (mean square) from that without one, for
    the clean picture at the least noisy timestep: what it cannot do to the picture, it need not be kept from.

    ``x`` (B, 3, h, w): the clean image at the editor's working size. ``cond`` of a prompt without words: no instruction
    is known. Raises InputError for values out of range, LayerError for layers that match nothing.
    """
    if not 0 <= known <= 1:
        raise InputError(f"known: expected a share from 0 to 1, got {known!r}")
    for name, number in (("drawn", drawn), ("runs", runs)):
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise InputError(f"{name}: expected a whole number of at least 1, got {number!r}")
    pictures, size = len(x), (x.shape[-2], x.shape[-1])
    paths = resolve(editor.net, patterns(editor.telling if layers == "auto" else layers, editor.layer_presets))
    times = torch.tensor(times_of(timesteps, editor.num_train_timesteps))
    seeds = [seed] * pictures if isinstance(seed, int) else list(seed)
    wishes = [(text,) for text in instructions] or pool(_subject(editor, subject))
    chosen = choose(partial(_reads, editor, x[:1]), wishes, CANDIDATES * drawn, avoid, seeds)
    conds = [cond, *(editor.prepare(list(texts), x) for texts in itertools.zip_longest(*chosen, fillvalue=""))]
    stack, words = editor.join(conds), editor.words(cond)
    given = [True] * pictures if words.is_meta else words.any(dim=1).tolist()  # whose work is only counted
    if not all(texts or has for texts, has in zip(chosen, given, strict=True)):
        raise InputError(f"instructions: {editor.name} can read none that there are to draw from: give a prompt")
    together = at_once(editor, size, rows)

    with torch.no_grad():
        z_clean = editor.encode(x)
        probe = normal(z_clean.shape, fork(seeds, "probe")).to(z_clean)
        none = editor.prepare([""] * pictures, x)
        asked = split(editor, [(int(times.min()), probe, c) for c in (none, *conds[1:])], together)
        predicted = torch.cat([batch.denoise(editor, z_clean) for batch in asked]).unflatten(0, (-1, pictures))
        responses = (predicted[1:] - predicted[0]).square().flatten(2).mean(dim=2)
        kept = [_largest(found[: len(texts)], drawn) for found, texts in zip(responses.T, chosen, strict=True)]

    def features(z: Latent, batch: Batch) -> list[Tensor]:
        found = capture(editor.net, paths, lambda: batch.denoise(editor, z), editor.hidden)
        return [feature.to(z.dtype).flatten(1) for feature in found.values()]

    def term(z: Latent, *, batch: Batch) -> Tensor:
        with torch.no_grad():
            clean = features(z_clean, batch)
        pairs = zip(features(z, batch), clean, strict=True)
        distances = torch.stack([(f - g).square().mean(dim=1) for f, g in pairs]).mean(dim=0)
        return -batch.sum(distances) / runs

    def draw(step: int) -> Sequence[Tensor]:
        which = []
        for generator, some, has in zip(generators(fork(seeds, "runs", step), pictures), kept, given, strict=True):
            n = max(1, len(some))
            orders = torch.cat([torch.randperm(n, generator=generator) for _ in range(0, runs, n)])[:runs]
            own = torch.rand(runs, generator=generator) < (known if len(some) else 1)
            picked = 1 + some[orders] if len(some) else orders
            which.append(torch.where(own, 0, picked) if has else picked)
        noises = normal((pictures, runs, *z_clean.shape[1:]), fork(seeds, "noise", step))
        rows = torch.stack(which, dim=1) * pictures + torch.arange(pictures)
        return rows, noises.transpose(0, 1), times[(step * runs + torch.arange(runs)) % len(times)]

    def gradient(x: Image, index: Tensor, noises: Tensor, t: Tensor) -> Gradient:
        most = max(1, together // pictures)
        batches = [
            Batch(
                len(some),
                t[first : first + len(some)].repeat_interleave(pictures),
                noises[first : first + len(some)].to(z_clean).flatten(0, 1),
                editor.take(stack, some.flatten()),
                runs=(),
            )
            for first, some in zip(range(0, runs, most), index.split(most), strict=True)
        ]
        return through_latent(editor.encode, [partial(term, batch=batch) for batch in batches]).gradient(x)

    return Sampled(draw, gradient)


def _largest(responses: Tensor, n: int) -> Tensor:
    if responses.is_meta:
        return torch.arange(min(n, len(responses)))
    return responses.topk(min(n, len(responses))).indices.sort().values.cpu()


def choose(
    reads: Callable[[Sequence[str]], bool],
    wishes: Sequence[Sequence[str]],
    drawn: int,
    avoid: Sequence[Sequence[str]],
    seeds: Sequence[int],
) -> list[list[str]]:
    """For each picture, by its seed, ``drawn`` instructions or all there are, one wording of a wish each.

    What ``reads``, asked about several at once, refuses is passed over. Raises InputError where there is not one list
    to avoid for each picture.
    """
    if avoid and len(avoid) != len(seeds):
        raise InputError(f"avoid: expected a list of instructions for each of {len(seeds)} pictures, got {len(avoid)}")
    found = []
    for seed, shunned in zip(seeds, avoid or [()] * len(seeds), strict=True):
        draw, left = random.Random(f"{seed}/instructions"), [wish for wish in wishes if not {*wish} & {*shunned}]
        texts = [draw.choice(wish) for wish in draw.sample(left, len(left))]
        if not reads(texts[:drawn]):
            texts = list(itertools.islice((text for text in texts if reads([text])), drawn))
        found.append(texts[:drawn])
    return found


def _subject(editor: Editor, subject: str) -> str:
    return subject if subject != "auto" else "any" if editor.toy is None else OWN


def _reads(editor: Editor, x: Image, texts: Sequence[str]) -> bool:
    try:
        editor.prepare(texts, x.expand(len(texts), -1, -1, -1))
    except InputError:
        return False
    return True


@cache
def pool(subject: str) -> tuple[tuple[str, ...], ...]:
    """The wishes for what a picture shows, each as its wordings: those for any picture and the subject's own."""
    tables = pools()
    if subject not in tables:
        raise unknown("subject", subject, tables)
    named = [subject] if subject in (OWN, "any") else ["any", subject]
    entries = [entry for name in named for kind in tables[name].values() for entry in kind]
    return tuple((entry,) if isinstance(entry, str) else tuple(entry) for entry in entries)


def pools() -> Mapping[str, Mapping[str, Sequence[str | Sequence[str]]]]:
    """The file of instructions: subject -> kind of change -> wishes, each an instruction or a list of wordings."""
    toml: Any = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    tables: Mapping[str, Any] = toml.loads(read_text(POOLS))
    return tables
