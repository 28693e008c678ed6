"""Benchmarks: run, resume, look, report, export, compare."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

import typer

from ..errors import InputError, SifmError
from ..judges import REMOTE
from .app import app
from .flags import options
from .judging import Asking
from .output import dump, forecast, show_table, tell
from .shared import Demonstration, Device, Dtype, Json, distinct

if TYPE_CHECKING:
    from ..bench.config import Plan
    from ..bench.executors import Executor
    from ..report import Report
    from ..store import Store

bench = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(bench, name="bench", help="Run grids of pictures, methods and judges; resume, report, compare.")

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a run.", show_default=False)]
Folders = Annotated[list[Path], typer.Argument(metavar="DIR ...", help="The folders of runs.", show_default=False)]
Workers = Annotated[int, typer.Option("--workers", metavar="N", help="So many processes; 0: in this one.")]
RayAddress = Annotated[str, typer.Option("--ray", metavar="auto|ADDRESS", help="On the workers of a Ray cluster.")]
Verify = Annotated[bool, typer.Option("--verify", help="Look at every pixel of what is there already.")]
NONE = "none"
MOST_WORKERS, MOST_SEEDS, MOST_SHOWN = 1024, 10_000, 10_000


def check_workers(workers: int) -> None:
    if not 0 <= workers <= MOST_WORKERS:
        raise InputError(f"--workers: expected 0 (in this process) to {MOST_WORKERS}, got {workers}")


@bench.command()
@options
def run(
    what: Annotated[str, typer.Argument(metavar="PRESET|FILE.toml|DIR", help="See `sifm bench presets`.")],
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Default: runs/NAME-PROFILE.")] = None,
    profile: Annotated[str, typer.Option("--profile", help="miniature or paper.")] = "miniature",
    images: Annotated[int | None, typer.Option("--images", metavar="N", help="Only the first N.")] = None,
    unseen: Annotated[int | None, typer.Option("--unseen", metavar="N", help="So many unseen prompts.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", metavar="N", help="Iterations.")] = None,
    seeds: Annotated[int | None, typer.Option("--seeds", metavar="N", help="Attacks of each kind.")] = None,
    data: Annotated[str | None, typer.Option("--data", metavar="MANIFEST", help="Other pictures.")] = None,
    editor: Annotated[
        list[str] | None, typer.Option("--editor", metavar="NAME", help="Others; 'A -> B', 'A & B -> C': transfer.")
    ] = None,
    judges: Annotated[
        list[str] | None, typer.Option("--judge", metavar="BACKEND:MODEL", help="Other judges; none: judge later.")
    ] = None,
    clip: Annotated[
        str | None, typer.Option("--clip", metavar="FOLDER|HUB_ID", help="For fig3: a CLIP that is here already.")
    ] = None,
    upscaler: Annotated[
        str | None, typer.Option("--upscaler", metavar="FOLDER|HUB_ID", help="For noisy_upscale; must be here already.")
    ] = None,
    *,
    asking: Asking,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="First test the judges on cases whose answer is known.")
    ] = False,
    batch: Annotated[int | None, typer.Option("--batch", metavar="N", help="Pictures at a time.")] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    download: Annotated[bool, typer.Option("--download", help="Allow fetching hub editors.")] = False,
    demonstration: Demonstration = False,
    workers: Workers = 0,
    ray: RayAddress = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say how much work it is.")] = False,
    tflops: Annotated[
        float | None, typer.Option("--tflops", help="For --dry-run: sustained speed of a device, in TFLOP/s.")
    ] = None,
    hourly: Annotated[
        float | None, typer.Option("--hourly", help="For --dry-run: dollars that an hour of a device costs.")
    ] = None,
    verify: Verify = False,
    reuse: Annotated[
        list[Path] | None,
        typer.Option(
            "--reuse", metavar="DIR", help="Take from this run what it has already; --dry-run counts it still."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run a benchmark, or go on with it.

    The same command again goes on where it was stopped; so does the run's folder in place of a name. With other judges
    nothing is edited again. What paid judges answer and cost stands in the run's answers.sqlite.
    """
    from ..bench import config
    from ..bench.estimate import estimate

    check_workers(workers)
    asking.given()  # a cap that is none is refused before anything is made
    for flag, value in (("--tflops", tflops), ("--hourly", hourly)):
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"{flag}: expected a number above 0, got {value}")
    if seeds is not None and not 1 <= seeds <= MOST_SEEDS:
        raise InputError(f"--seeds: expected 1 to {MOST_SEEDS}, got {seeds}")
    changes: dict[str, Any] = {
        "images": images,
        "unseen": unseen,
        "steps": steps,
        "seeds": None if seeds is None else list(range(seeds)),
        "data": data,
        "editors": editor,
        "judges": [] if judges == [NONE] else distinct(judges) if judges else None,
        "upscaler": upscaler,
        "clip": clip,
        "batch": batch,
        "device": None if device == "auto" else device,
        "dtype": None if dtype == "auto" else dtype,
        "download": download,
        "demonstration": demonstration or None,
    }
    folder = Path(what)
    if (folder / "run.sqlite").is_file():
        if out and out.resolve() != folder.resolve():
            raise InputError(f"--out {out}: {folder} goes on where it is; name its preset or TOML file for another run")
        plan, out = config.changed(_opened(folder)[1], **changes), folder
    else:
        plan = config.load(what, profile, **changes)
        out = out or Path("runs") / f"{plan.name}-{profile}"
    if dry_run:
        from ..editors import check_dtype, parsed
        from ..judges import parted
        from ..store import Store

        check_dtype(dtype, parsed(device))
        for name in judges or ():
            if name != NONE:
                parted(name)
        known = Store(out, create=False) if (out / "run.sqlite").is_file() else None
        chosen = {"preset": asking.preset} if asking.preset else {}
        controls = _controls(plan) if calibrate else 0
        lines = estimate(plan, known, tflops, hourly, prices=asking.prices, controls=controls, **chosen)
        if as_json:
            return dump({"plan": plan.as_dict(), "phases": [asdict(line) for line in lines]})
        tell(f"{plan.title} ({plan.profile}), would go to {out}")
        for line in lines:
            tell(f"  {line.phase:9} {line.jobs:>9} {_hours(line.seconds):>9} {_money(line.dollars):>9}  {line.basis}")
        return None
    others = [_opened(other)[0] for other in reuse or ()]
    if any(name.partition(":")[0] in REMOTE for name in plan.settings.judges):
        controls = _controls(plan) if calibrate else 0
        lines = estimate(plan, preset=asking.preset or "two_calls", prices=asking.prices, controls=controls)
        asked = [line for line in lines if line.phase in ("calibrate", "judge")]
        dollars = [line.dollars for line in asked]
        cost = None if None in dollars else sum(filter(None, dollars))
        print(f"judges: {sum(line.jobs for line in asked)} verdicts, {_money(cost)} at most", file=sys.stderr)
    if calibrate:
        plan = _calibrated(plan, out, asking)
    fill(plan, out, workers, ray, retry=False, verify=verify, as_json=as_json, asking=asking, reuse=others)


CONTROLS = 24
"""Pictures that judges are tested on before a run; four cases each."""


def _controls(plan: Plan) -> int:
    """How many cases each judge is tested on before a run."""
    return 4 * min(plan.settings.images or CONTROLS, CONTROLS)


def _calibrated(plan: Plan, out: Path, asking: Asking) -> Plan:
    """The plan with the judges by their best thresholds, after what was found of each stands in the run's store.

    The controls are made of the run's own pictures and attacked editor; those that were made before are not made again.
    """
    from .. import controls
    from ..bench import config
    from ..bench.grid import names
    from ..judges import VLM, load_judge
    from ..judges.calibration import cross_fitted, together
    from ..store import Store
    from ..verdicts import TRUTH
    from .output import progress
    from .shared import load_editor

    s, specs = plan.settings, [spec for spec in plan.settings.judges if not spec.startswith((TRUTH, "human:"))]
    store = Store(out)
    kept = store.get("run", "calibrated", dict[str, str]) or {}
    if not set(specs) <= {*kept, *kept.values()}:
        shared = {**asking.given(), "cache": out / "answers.sqlite"}
        loaded = {n: load_judge(n, **(shared if n.partition(":")[0] in VLM else {})) for n in specs}
        editor = load_editor(names(s.editors[0])[1], s.device, s.dtype, s.download)
        with progress() as on_step:
            chosen = config.samples(s.data, min(s.images or CONTROLS, CONTROLS), 1)
            golds = controls.controls(chosen, editor, on_step=on_step("controls"))
            said = {n: one.judge([gold.case for gold in golds], on_step=on_step(n)) for n, one in loaded.items()}
        joint = {}
        for n, verdicts in said.items():
            found = controls.known(n, loaded[n].name, golds, verdicts)
            tuned = found[-1].judge != loaded[n].name
            kept[n] = found[-1].judge if tuned else n
            joint[found[-1].judge] = cross_fitted(golds, verdicts) if tuned else verdicts
            for one in found:
                controls.keep(store, one)
        for one in together(golds, joint):
            controls.keep(store, one)
        store.put("run", "calibrated", kept)
    return config.changed(plan, judges=[kept.get(spec, spec) for spec in s.judges])


@bench.command()
@options
def retry(
    folder: Folder,
    workers: Workers = 0,
    ray: RayAddress = "",
    verify: Verify = False,
    *,
    asking: Asking,
    as_json: Json = False,
) -> None:
    """Try again what failed, and do what is missing."""
    check_workers(workers)
    store, plan = _opened(folder)
    for reason, n in (failed := _status(store, plan)["failed"]).items():
        print(f"again {n:>4}: {reason}", file=sys.stderr)
    if not failed:
        print("nothing failed before; this does what is missing", file=sys.stderr)
    fill(plan, folder, workers, ray, retry=True, verify=verify, as_json=as_json, asking=asking)


@bench.command()
def status(folder: Folder, as_json: Json = False) -> None:
    """How far a run is, and what failed for which reasons."""
    store, plan = _opened(folder)
    found = _status(store, plan)
    if as_json:
        return dump(found)
    tell(f"{found['title']} ({found['profile']}): {found['records']} of {found['total'].get('records', '?')} records")
    for phase, n in found["done"].items():
        tell(f"  {phase:9} {n:>9} of {found['total'].get(phase, 0)}")
    if found["seconds_left"]:
        but = f", and {' and '.join(found['not_timed'])}, not timed yet" if found["not_timed"] else ""
        tell(f"  left: at most {_hours(found['seconds_left'])} on one worker at this run's pace{but}")
    elif found["not_timed"]:
        tell(f"  left: not known, {' and '.join(found['not_timed'])} not timed yet")
    for reason, n in found["failed"].items():
        tell(f"  failed {n:>4}: {reason}")
    if found["failed"]:
        tell(f"  `sifm bench retry {folder}` tries these again")


@bench.command("report")
def report_(
    folders: Folders,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Default: the run's own folder.")] = None,
    pictures: Annotated[int, typer.Option("--pictures", metavar="N", help="Attacks shown in the gallery.")] = 12,
    as_json: Json = False,
) -> None:
    """Write report.html, .md, .tex and .csv from the records as they are now.

    Of several runs: one table of methods and editors, in --out.
    """
    if not 0 <= pictures <= MOST_SHOWN:
        raise InputError(f"--pictures: expected 0 to {MOST_SHOWN}, got {pictures}")
    place = out or folders[0]
    missing: list[str] = []
    if len(folders) == 1:
        store, plan = _opened(folders[0])
        _, written, headline = _report(store, plan, place, pictures)
        missing += [store.missing()] if store.missing() else []
    else:
        from .. import report

        if out is None:
            raise InputError("--out: expected a folder for the table of several runs")
        reports, stores = [], []
        for folder in folders:
            try:
                store, plan = _opened(folder)
                reports.append(report.build(store, plan))
                stores.append(store)
            except SifmError as error:  # one run costs itself
                missing.append(f"{folder} cannot be read and is left out: {error}")
            else:
                missing += [f"{folder}: {store.missing()}"] if store.missing() else []
        if not reports:
            raise SifmError(missing[0])
        found = report.together(reports)
        written, headline = report.write(found, stores[0], place), found.headline
    if as_json:
        dump({"folder": str(place), "files": written, "headline": headline})
    else:
        tell(headline)
        tell(f"Report: {place / 'report.html'}")
    _complain(missing)


@bench.command()
def export(
    folder: Folder,
    out: Annotated[Path, typer.Argument(metavar="OUT.csv|OUT.jsonl", help="Where to.", show_default=False)],
) -> None:
    """Write all records as CSV or JSON lines."""
    store, _ = _opened(folder)
    ways = {".csv": store.export_csv, ".jsonl": store.export_jsonl}
    if out.suffix not in ways:
        raise InputError(f"{out}: expected a name that ends in .csv or .jsonl")
    ways[out.suffix](out)
    left_out = sum(place.startswith("record ") for place in store.unreadable)
    tell(f"{out}: {store.counts()['records'] - left_out} records")
    _complain([store.missing()] if left_out else [])


@bench.command()
def diff(one: Folder, two: Folder, as_json: Json = False) -> None:
    """Compare two runs: settings, and row by row how the rates differ on the attacks that both have."""
    from ..report import compare

    runs = [_opened(folder) for folder in (one, two)]
    found = compare.runs(*((store, plan.layout) for store, plan in runs))
    if as_json:
        dump(asdict(found))
    else:
        tell(f"one: {one}, two: {two}; ISR on the attacks that both have, p by picture (exact)\n{compare.text(found)}")
    _complain([f"{store.folder}: {store.missing()}" for store, _ in runs if store.missing()])


@bench.command()
def presets(as_json: Json = False) -> None:
    """The paper's tables and figures, and what else can be run by name."""
    from ..bench import config

    if as_json:
        return dump(config.names())
    for name, title in config.names().items():
        tell(f"  {name:12} {title}")


class _Named(TypedDict):
    name: str
    profile: str


def _opened(folder: Path) -> tuple[Store, Plan]:
    from ..bench import config
    from ..store import Store

    store = Store(folder, create=False)
    kept = store.get("run", "config")
    if kept is None:
        why = store.unreadable.get("run config")
        raise InputError(
            f"{folder}: expected a run of `sifm bench run`, but "
            + (f"what it is of is damaged ({why})" if why else "it does not say of what")
        )
    return store, config.changed(config.from_dict(kept, str(folder)), download=False)  # which is asked for each time


def _complain(missing: Sequence[str]) -> None:
    """After all that could be done: exit 1 where something of what was asked for is missing."""
    if missing:
        raise SifmError(f"{missing[0]}{f' (and {len(missing) - 1} more)' if len(missing) > 1 else ''}")


def fill(
    plan: Plan,
    out: Path,
    workers: int = 0,
    ray: str = "",
    *,
    retry: bool = False,
    verify: bool = False,
    as_json: bool = False,
    asking: Asking | None = None,
    reuse: Sequence[Store] = (),
    pictures: int = 12,
    table: bool = False,
) -> None:
    """Run a plan, or go on with it, and report; ``table``: with the first block's lines."""
    from .. import bench as grids
    from .. import report
    from ..bench import config
    from ..bench.artefacts import UNANSWERED
    from ..bench.documents import Planned
    from ..store import Store
    from ..types import Verdict

    grid = plan.grid()  # what is wrong with it is found before anything is written
    store = Store(out)
    kept = store.get("run", "config", _Named)
    if kept and (kept["name"], kept["profile"]) != (plan.name, plan.profile):
        raise InputError(f"{out} holds {kept['name']} ({kept['profile']}): choose another --out for {plan.name}")
    options = asking.given() if asking else {}
    judges = config.open_judges(plan.settings.judges, cache=out / "answers.sqlite", **options)
    grid = replace(grid, judges=judges)
    store.put("run", "config", plan.as_dict())
    with forecast(grid.counts(), store) as on_step:
        grids.fill(grid, store, on_step, executor=_executor(workers, ray), retry=retry, verify=verify, reuse=reuse)
    made, written, headline = _report(store, plan, out, pictures)
    status = _status(store, plan)
    lines = made.parts[0].lines if table and made.parts else ()
    if as_json:
        rows = {"table": [asdict(line) for line in lines]} if table else {}
        dump({"folder": str(out), "files": written, "headline": headline, **status, **rows})
    else:
        for part in report.terminal(lines) if lines else ():
            show_table(part)
        tell(f"{headline}\n\n{status['records']} records. Report: {out / 'report.html'}")
    if status["failed"]:
        (first, n), *others = status["failed"].items()
        jobs = f"{n + sum(n for _, n in others)} jobs failed{f', {n} of them' if others else ''}"
        raise SifmError(f"{jobs}: {first}; `sifm bench retry {out}` tries again")
    asked = set((store.get("run", "plan", Planned) or {}).get("judges", ()))
    verdicts = [verdict for _, verdict in store.documents("verdict", Verdict) if verdict["judge"] in asked]
    if missing := [verdict for verdict in verdicts if verdict["state"] in UNANSWERED]:
        first = f"{missing[0]['judge']}: {missing[0]['reasons']}"
        raise SifmError(f"{len(missing)} verdicts are missing, the first of {first}; the same command asks again")


def _executor(workers: int, ray: str) -> Executor | None:
    from ..bench import Pool, Ray

    if ray:
        return Ray(ray, workers or None)
    return Pool(workers) if workers else None


def _status(store: Store, plan: Plan) -> dict[str, Any]:
    from ..bench.documents import Failed, Planned, Rate
    from ..bench.estimate import remaining
    from ..types import Verdict

    counts, grid = store.counts(), store.get("run", "plan", Planned) or {}
    total = grid.get("counts", {})
    if counts["records"] != total.get("records"):  # verdicts of judges that were asked before stay in the store
        judges = set(grid.get("judges", ()))
        counts["verdict"] = sum(verdict["judge"] in judges for _, verdict in store.documents("verdict", Verdict))
    reasons: dict[str, int] = {}
    for _, failure in store.documents("failed", Failed):
        reason = f"{failure['phase']}: {failure['reason']}"
        reasons[reason] = reasons.get(reason, 0) + 1
    kinds = {"immunize": "immunize", "purify": "purify", "edit": "edit", "measure": "measure", "judge": "verdict"}
    done = {phase: min(counts.get(kind, 0), total[phase]) for phase, kind in kinds.items() if total.get(phase)}
    if counts["records"] == total.get("records") and not reasons:  # rows that end at the same picture share its edits
        total = total | done
    todo = {phase: total[phase] - n for phase, n in done.items()}
    rates: dict[str, Any] = dict(store.documents("rate", Rate))
    if (left := rates.get("immunize", {}).get("left")) is not None:  # by what each method costs
        todo["immunize"] = left
    seconds, untimed = remaining(todo, rates)
    return {
        "title": plan.title,
        "profile": plan.profile,
        "records": counts["records"],
        "done": done,
        "seconds_left": seconds if seconds or not untimed else None,
        "not_timed": untimed,
        "total": total,
        "failed": dict(sorted(reasons.items(), key=lambda item: -item[1])),
    }


def _report(store: Store, plan: Plan, out: Path, pictures: int) -> tuple[Report, list[str], str]:
    from .. import report

    made = report.build(store, plan)
    written, headline = [], made.headline
    if plan.settings.clip:
        from .. import fig3
        from ..files import write_atomically

        pairs = fig3.edits_that_work(store.records(), store)
        scored = fig3.preferences(pairs, model=plan.settings.clip)
        kept = not fig3.decided(scored) and (out / "clip.png").is_file()  # scored before, where that CLIP is
        for name, content in ({} if kept else fig3.files(pairs, scored)).items():
            write_atomically(out / name, content)
            written.append(name)
        headline += "\n" + fig3.sentence(scored, plan.settings.clip) + ("; the scores there are stay" if kept else "")
    return made, [*report.write(made, store, out, pictures), *written], headline


def _hours(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    if seconds < 7200:
        return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _money(dollars: float | None) -> str:
    return "$ ?" if dollars is None else f"$ {dollars:.2f}" if dollars else ""
