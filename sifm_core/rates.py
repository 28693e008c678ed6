"""Immunization success rate: samples in, rate with interval, clean floor, net effect and bounds out.

An editor fails on unprotected pictures too, so the rate alone says little: compare it with the *clean* rate, and read
the *net* rate, the share of samples whose clean edit worked and whose protected edit failed. An unclear sample (None)
is counted, left out of the rates and bounded by ``worst`` and ``best``. What there is no data for is None, never 0.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple, TypeVar

from .errors import InputError
from .stats import clustered_wilson, wilson
from .verdicts import net

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Isr:
    """``rate`` = ``successes`` / ``n``, ``n`` the clear samples; ``low``, ``high`` its interval.

    ``worst``, ``best``: the rate if every ``unclear`` sample had failed or succeeded. With clean edits to compare with,
    over the ``pairs`` that are clear on both sides: ``clean_rate``; ``net``, the share in which the protection made the
    edit fail, with its interval; ``improved``, the share in which only the protected edit worked, with its interval. So
    net - improved is the difference of the two rates on these pairs. None: no data.
    """

    rate: float | None
    n: int
    unclear: int
    successes: int
    low: float | None
    high: float | None
    worst: float | None
    best: float | None
    clean_rate: float | None = None
    pairs: int = 0
    net: float | None = None
    net_low: float | None = None
    net_high: float | None = None
    improved: float | None = None
    improved_low: float | None = None
    improved_high: float | None = None

    def as_dict(self) -> dict[str, float | int | None]:
        """Every field, ready for JSON."""
        return asdict(self)


def isr(
    successes: Sequence[bool | None],
    *,
    clean: Sequence[bool | None] | None = None,
    clusters: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
) -> Isr:
    """Immunization success rate of samples (True: the edit failed, False: it worked, None: unclear).

    ``clean``: the same for the unprotected pictures, sample by sample (same picture, prompt, editor and seed).
    ``clusters``: the picture of each sample, when several prompts or seeds share one: the interval then is
    :func:`sifm_core.stats.clustered_wilson`, else Wilson's. Raises InputError when lengths differ.
    """
    for name, values in (("clean", clean), ("clusters", clusters)):
        if values is not None and len(values) != len(successes):
            raise InputError(f"{name}: expected {len(successes)} values, one per sample, but got {len(values)}")
    clear = [value for value in successes if value is not None]
    hits, total = sum(clear), len(successes)
    share = _share(successes, clusters, confidence)
    worst, best = (hits / total, (hits + total - len(clear)) / total) if total else (None, None)
    alone = Isr(share.rate, len(clear), total - len(clear), hits, share.low, share.high, worst, best)
    if clean is None:
        return alone
    pairs = list(zip(successes, clean, strict=True))
    caused = _share([net(ours, floor) for ours, floor in pairs], clusters, confidence)
    helped = _share([net(floor, ours) for ours, floor in pairs], clusters, confidence)
    floors = [floor for ours, floor in pairs if ours is not None and floor is not None]
    return replace(
        alone,
        clean_rate=sum(floors) / len(floors) if floors else None,
        pairs=len(floors),
        net=caused.rate,
        net_low=caused.low,
        net_high=caused.high,
        improved=helped.rate,
        improved_low=helped.low,
        improved_high=helped.high,
    )


class _Share(NamedTuple):
    rate: float | None = None
    low: float | None = None
    high: float | None = None


def _share(values: Sequence[bool | None], clusters: Sequence[Hashable] | None, confidence: float) -> _Share:
    """The rate of the clear values, with its interval."""
    clear = [value for value in values if value is not None]
    if not clear:
        return _Share()
    if clusters is None:
        return _Share(sum(clear) / len(clear), *wilson(sum(clear), len(clear), confidence))
    return _Share(sum(clear) / len(clear), *clustered_wilson(values, clusters, confidence))


def worst_of(successes: Sequence[bool | None], groups: Sequence[K]) -> dict[K, bool | None]:
    """The hardest test: a group (all seeds of one attack) succeeds only if every sample of it does.

    One edit that worked is enough for False; otherwise one unclear sample makes the group unclear.
    """
    members: dict[K, list[bool | None]] = {}
    for value, group in zip(successes, groups, strict=True):
        members.setdefault(group, []).append(value)
    return {group: False if False in values else None if None in values else True for group, values in members.items()}
