"""What every command that asks judges lets one choose, and how the judges are set up."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError
from .shared import distinct

if TYPE_CHECKING:
    from ..store import Store
    from ..types import Judge

CacheFile = Annotated[
    Path | None, typer.Option("--cache", metavar="FILE", help="Keep answers and spending here; resume from it.")
]
Offline = Annotated[bool, typer.Option("--offline", help="Send nothing: answer from the cache alone.")]
MaxCost = Annotated[
    float | None, typer.Option("--max-cost", metavar="USD", help="All that the cache holds may cost this at most.")
]
Prices = Annotated[
    Path | None, typer.Option("--prices", metavar="FILE", help="Prices (TOML) that add to the shipped ones.")
]
Concurrency = Annotated[int | None, typer.Option("--concurrency", metavar="N", help="Calls under way at once.")]
Preset = Annotated[str | None, typer.Option("--preset", metavar="two_calls|paper", help="What models are asked.")]
Batch = Annotated[bool, typer.Option("--batch", help="Ask in jobs: cheaper, within a day (Gemini).")]
Patience = Annotated[
    float | None, typer.Option("--patience", metavar="SECONDS", help="With --batch: wait so long, then collect later.")
]
ResendLost = Annotated[
    bool, typer.Option("--resend-lost", help="Send calls again that may have been paid but never answered.")
]


def load_judges(specs: Iterable[str], *, cache: Path | None = None, **chosen: Any) -> list[Judge]:
    """The judges, all with one ledger, so that a cap holds for what they spend together.

    ``chosen``: options of :class:`sifm_core.judges.vlm.VlmJudge`; None and False leave the default. They go
    to the judges that are vision-language models; InputError when none is.
    """
    from ..judges import VLM, load_judge
    from ..judges.cache import Cache

    specs = distinct(specs)
    models = [spec for spec in specs if spec.partition(":")[0] in VLM]
    given = {name: value for name, value in chosen.items() if value is not None and value is not False}
    if (given or cache) and not models:
        names = ", ".join("--" + name.replace("_", "-") for name in [*given, *(["cache"] if cache else [])])
        raise InputError(f"{names}: only for judges that are vision-language models ({', '.join(VLM)}:MODEL)")
    if given.get("offline") and cache is None:
        raise InputError("--offline answers from a cache: name its file with --cache")
    shared: dict[str, Any] = {"cache": Cache(cache), **given} if models else {}
    return [load_judge(spec, **(shared if spec in models else {})) for spec in specs]


def run_store(run: Path) -> Store:
    """The store of a run, or of a demo's folder, which holds it in ``store``."""
    from ..store import Store

    inner = run / "store"
    return Store(inner if inner.is_dir() and not (run / "run.sqlite").is_file() else run, create=False)
