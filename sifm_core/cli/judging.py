"""What every command that asks judges lets one choose, and how the judges are set up."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError
from .shared import distinct

if TYPE_CHECKING:
    from ..judges.vlm import VlmJudge
    from ..store import Store
    from ..types import Judge


@dataclass(frozen=True)
class Calling:
    """Options of vision-language models (:class:`sifm_core.judges.vlm.VlmJudge`), whatever they are asked."""

    max_cost: Annotated[
        float | None, typer.Option("--max-cost", metavar="USD", help="All that the cache holds may cost this at most.")
    ] = None
    prices: Annotated[
        Path | None, typer.Option("--prices", metavar="FILE", help="Prices (TOML) that add to the shipped ones.")
    ] = None
    concurrency: Annotated[
        int | None, typer.Option("--concurrency", metavar="N", help="How many calls are under way at once.")
    ] = None
    offline: Annotated[bool, typer.Option("--offline", help="Send nothing: answer from the cache alone.")] = False
    resend_lost: Annotated[
        bool, typer.Option("--resend-lost", help="Send calls again that may have been paid but never answered.")
    ] = False

    def given(self) -> dict[str, Any]:
        """What was chosen; what was not keeps the judge's own default. Raises InputError for a cap that is none."""
        if self.max_cost is not None and not self.max_cost >= 0:
            raise InputError(f"--max-cost: expected US dollars, 0 or more, got {self.max_cost}")
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None and value is not False}


@dataclass(frozen=True)
class Asking(Calling):
    """The same of judges."""

    preset: Annotated[
        str | None, typer.Option("--preset", metavar="two_calls|paper|ranked", help="What models are asked.")
    ] = None


@dataclass(frozen=True)
class AskingAlone(Asking):
    """The same where no run keeps the answers."""

    cache: Annotated[
        Path | None, typer.Option("--cache", metavar="FILE", help="Keep answers and spending here; resume from it.")
    ] = None
    batch: Annotated[bool, typer.Option("--batch", help="Ask in jobs: cheaper, within a day (Gemini).")] = False
    patience: Annotated[
        float | None,
        typer.Option("--patience", metavar="SECONDS", help="With --batch: wait so long, then collect later."),
    ] = None


def load_judges(specs: Iterable[str], asking: AskingAlone) -> list[Judge]:
    """The judges, all with one ledger, so that a cap holds for what they spend together.

    What is chosen in ``asking`` goes to those that are vision-language models; InputError when none is.
    """
    from ..judges import VLM, load_judge
    from ..judges.cache import Cache

    specs = distinct(specs)
    models = [spec for spec in specs if spec.partition(":")[0] in VLM]
    given = asking.given()
    if given and not models:
        names = ", ".join("--" + name.replace("_", "-") for name in given)
        raise InputError(f"{names}: only for judges that are vision-language models ({', '.join(VLM)}:MODEL)")
    if asking.offline and asking.cache is None:
        raise InputError("--offline answers from a cache: name its file with --cache")
    shared: dict[str, Any] = {**given, "cache": Cache(asking.cache)} if models else {}
    return [load_judge(spec, **(shared if spec in models else {})) for spec in specs]


def load_model(spec: str, **options: Any) -> VlmJudge:
    """A vision-language model to be asked something else than verdicts."""
    from ..judges import VLM, load_judge
    from ..judges.vlm import VlmJudge

    model = load_judge(spec, **options) if spec.partition(":")[0] in VLM else None
    if not isinstance(model, VlmJudge):
        raise InputError(
            f"expected a language model such as {' or '.join(f'{name}:MODEL' for name in VLM)}, got {spec!r}"
        )
    return model


def run_store(run: Path) -> Store:
    """The store of a run, or of a demo's folder, which holds it in ``store``."""
    from ..store import Store

    inner = run / "store"
    return Store(inner if inner.is_dir() and not (run / "run.sqlite").is_file() else run, create=False)
