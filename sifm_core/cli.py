"""The ``sifm`` command: results on stdout (one JSON document with --json), progress and errors on stderr.

Exit codes: 0 done, 1 failed, 2 wrong input, 130 interrupted. An error is one line; --debug, anywhere, shows where.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import __version__
from .errors import InputError, SifmError

if TYPE_CHECKING:
    from .types import Editor, OnStep, Step

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif")
"""What counts as a picture in a folder."""
JUDGES = ("miniature:conv", "miniature:patch")
INTERRUPTED = 130
QUIET_SECONDS, WINDOW_SECONDS = 10, 60
"""Where stderr is no terminal: between lines of progress; what the remaining time is guessed from."""

app = typer.Typer(
    name="sifm",
    help="Protect pictures against text-guided diffusion editing, and measure honestly whether it worked.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code; never raises unless --debug is given."""
    given = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in given
    try:
        code = int(app([a for a in given if a != "--debug"], standalone_mode=False) or 0)
        return _say("interrupted", code) if code == INTERRUPTED else code
    except (KeyboardInterrupt, typer.Abort):
        return _say("interrupted", INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if debug:
            raise
        if isinstance(error, SifmError):
            return _say(str(error), error.exit_code)
        if hasattr(error, "format_message"):  # a usage error of click, wherever typer keeps it
            return _say(error.format_message(), 2)
        return _say(f"failed: {type(error).__name__}: {error}; --debug shows where", 1)


def _say(message: str, code: int) -> int:
    print("sifm: " + " ".join(message.split()), file=sys.stderr)
    return code


# ---- options that several commands share


def _number(given: str | float) -> float:
    """A number, also written as a fraction: 0.03 or 8/255."""
    text = str(given)
    try:
        return float(Fraction(text.replace(" ", ""))) if "/" in text else float(text)
    except (ValueError, ZeroDivisionError):
        raise typer.BadParameter(f"expected a number such as 0.03 or 8/255, got {text!r}") from None


Source = Annotated[Path, typer.Argument(metavar="IN", help="A picture, or a folder of pictures.", show_default=False)]
Out = Annotated[
    Path, typer.Option("-o", "--out", metavar="OUT.png", help="A .png file; for a folder of pictures, a folder.")
]
EditorName = Annotated[str, typer.Option("--editor", metavar="NAME|FOLDER|HUB_ID", help="See `sifm list editors`.")]
Prompt = Annotated[str, typer.Option("--prompt", metavar="TEXT", help="The instruction, such as 'make it night'.")]
Seed = Annotated[int, typer.Option("--seed", metavar="S", help="Same seed, same bytes.")]
Eps = Annotated[
    float, typer.Option("--eps", metavar="E", parser=_number, help="Budget: the most a value may change, in [0, 1].")
]
Alpha = Annotated[
    float, typer.Option("--alpha", metavar="A", parser=_number, show_default="2/255", help="Step size, in [0, 1].")
]
Options = Annotated[
    list[str] | None, typer.Option("--option", metavar="KEY=VALUE", help="An option of its own; may be repeated.")
]
Judges = Annotated[
    list[str] | None,
    typer.Option("--judge", metavar="BACKEND:MODEL", help=f"May be repeated; default {' and '.join(JUDGES)}."),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 or mps.")]
Dtype = Annotated[str, typer.Option("--dtype", help="auto, float32, bfloat16 or float16.")]
Download = Annotated[bool, typer.Option("--download", help="Allow fetching a hub editor that is not here yet.")]
Json = Annotated[bool, typer.Option("--json", help="Print exactly one JSON document on stdout.")]

EDITOR = "miniature-ip2p"


def _version(wanted: bool) -> None:
    if wanted:
        print(f"sifm {__version__}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
]


@app.callback()
def _root(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks; may stand anywhere.")] = False,
    version: Version = False,
) -> None:
    """Only what holds for every command; :func:`main` takes --debug out itself."""


# ---- the four verbs


@app.command()
def immunize(
    source: Source,
    out: Out,
    prompt: Prompt,
    editor: EditorName = EDITOR,
    method: Annotated[str, typer.Option("--method", metavar="NAME", help="See `sifm list methods`.")] = "sifm",
    eps: Eps = 0.03,
    steps: Annotated[int, typer.Option("--steps", metavar="N", help="Iterations.")] = 100,
    alpha: Alpha = 2 / 255,
    seed: Seed = 0,
    mask: Annotated[
        Path | None, typer.Option("--mask", metavar="FILE", help="A picture of the same size: black stays as it is.")
    ] = None,
    option: Options = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    download: Download = False,
    as_json: Json = False,
) -> None:
    """Protect a picture against editing.

    It is changed by at most eps, so that the editor no longer edits it as asked, and saved as PNG.
    """
    from . import pipeline
    from .images import load_picture, save_png, verify_budget

    jobs = _jobs(source, out)
    options = _method_options(method, option or [])
    eps, alpha = pipeline.check_budget(eps), pipeline.check_unit(alpha, "alpha")
    pipeline.check_count(steps, "steps")
    pipeline.check_prompts(prompt, 1)
    pipeline.check_seed(seed, 1)
    pictures = [load_picture(path) for path, _ in jobs]
    cover = None if mask is None else load_picture(mask).pixels.mean(dim=1, keepdim=True)
    for picture in pictures:
        pipeline.check_mask(cover, picture.pixels)
    loaded = _load_editor(editor, device, dtype, download)
    results = []
    with _progress() as on_step:
        for (path, target), picture in zip(jobs, pictures, strict=True):
            done = pipeline.immunize(
                picture.pixels,
                loaded,
                prompt=prompt,
                method=method,
                eps=eps,
                steps=steps,
                alpha=alpha,
                seed=seed,
                mask=cover,
                on_step=on_step(path.name),
                **options,
            )
            public = {k: v for k, v in done.settings.items() if k not in ("prompt", "editor")}
            save_png(done.image, target, like=picture, metadata={"sifm": public})
            linf = verify_budget(target, picture.pixels, eps)
            losses = [step.loss for step in done.history]
            results.append(
                {
                    "source": str(path),
                    "output": str(target),
                    "linf": linf,
                    "seconds": round(done.seconds, 3),
                    "loss": {"first": losses[0], "last": losses[-1]} if losses else None,
                    **done.settings,
                }
            )
    text = "{output}: changed by at most {linf:.4f} (eps {eps:g}) with {method} in {seconds:.1f} s"
    _show(results, source, as_json, text)


@app.command()
def edit(
    source: Source,
    out: Out,
    prompt: Prompt,
    editor: EditorName = EDITOR,
    seed: Seed = 0,
    option: Options = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    download: Download = False,
    as_json: Json = False,
) -> None:
    """Edit a picture as an attacker would.

    Run it on the clean and on the protected picture with the same seed, and compare.
    """
    from . import pipeline
    from .images import load_picture, save_png

    jobs = _jobs(source, out)
    pipeline.check_prompts(prompt, 1)
    pipeline.check_seed(seed, 1)
    pictures = [load_picture(path) for path, _ in jobs]
    options = {key: _value(text) for key, text in _pairs(option or []).items()}
    loaded = _load_editor(editor, device, dtype, download)
    options = pipeline.check_edit_options(loaded, options)
    results = []
    with _progress() as on_step:
        for (path, target), picture in zip(jobs, pictures, strict=True):
            start = time.perf_counter()
            edited = pipeline.edit(
                picture.pixels, loaded, prompt=prompt, seed=seed, on_step=on_step(path.name), **options
            )
            save_png(edited, target, like=picture)
            results.append(
                {
                    "source": str(path),
                    "output": str(target),
                    "prompt": prompt.strip(),
                    "seed": seed,
                    "editor": loaded.name,
                    "editor_fingerprint": loaded.fingerprint,
                    "options": options,
                    "seconds": round(time.perf_counter() - start, 3),
                }
            )
    _show(results, source, as_json, "{output}: {prompt!r} with seed {seed} in {seconds:.1f} s")


@app.command()
def metrics(
    reference: Annotated[Path, typer.Argument(metavar="REFERENCE", show_default=False)],
    distorted: Annotated[Path, typer.Argument(metavar="DISTORTED", show_default=False)],
    name: Annotated[
        list[str] | None, typer.Option("--metric", metavar="NAME", help="Only this one; may be repeated.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure how far two pictures are apart.

    PSNR, SSIM, VIFp, FSIM and LPIPS of two files, or of two folders by file name.
    """
    from .images import load_image
    from .pipeline import measure
    from .report import number

    results = []
    for one, two in _matched(reference, distorted):
        measured = measure(load_image(one), load_image(two), name or None)
        values = {key: asdict(column[0]) for key, column in measured.items()}
        results.append(values if reference.is_file() else {"reference": str(one), "distorted": str(two), **values})
        if not as_json:
            print(f"{one} -> {two}")
            for key, column in measured.items():
                print(f"  {key:6} {number(column[0].value, 4):>9}  {column[0].definition} {column[0].reason}".rstrip())
    if as_json:
        _dump(results[0] if reference.is_file() else results)


@app.command()
def judge(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="The picture before the edit.", show_default=False)],
    edited: Annotated[Path, typer.Argument(metavar="EDITED", help="The edit to be judged.", show_default=False)],
    prompt: Prompt,
    judges: Judges = None,
    as_json: Json = False,
) -> None:
    """Ask judges whether an edit failed.

    Does it miss the instruction, or is it degraded beyond it? Folders are paired by file name.
    """
    from . import pipeline
    from .images import load_image
    from .judges import consensus, load_judge

    pairs = _matched(source, edited)
    pipeline.check_prompts(prompt, 1)
    loaded = [load_judge(spec) for spec in _distinct(judges or JUDGES)]
    results, answered = [], False
    for one, two in pairs:
        verdicts = pipeline.judge(load_image(one), load_image(two), prompt, loaded)
        agreed = consensus(verdicts)
        answered |= any(v.success is not None for v in verdicts)
        found = {"edit_failed": agreed, "verdicts": [{**asdict(v), "success": v.success} for v in verdicts]}
        results.append(found if source.is_file() else {"source": str(one), "edited": str(two), **found})
        if not as_json:
            print(f"{two}: {_WORDS[agreed]}")
            for v in verdicts:
                print(f"  {v.judge}: {_WORDS[v.success]} ({v.state}) {v.reasons}".rstrip())
    if as_json:
        _dump(results[0] if source.is_file() else results)
    if not answered:
        raise SifmError("no judge gave an answer; the verdicts say why")


_WORDS = {True: "the edit failed", False: "the edit works", None: "unclear"}


# ---- the demo


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Report, pictures, records.")] = Path("sifm-demo"),
    images: Annotated[int, typer.Option("--images", metavar="N", help="How many of the benchmark.")] = 8,
    steps: Annotated[int, typer.Option("--steps", metavar="N", help="Iterations.")] = 100,
    eps: Eps = 0.03,
    alpha: Alpha = 2 / 255,
    seeds: Annotated[int, typer.Option("--seeds", metavar="N", help="Attacks per picture, each its own seed.")] = 1,
    unseen: Annotated[int, typer.Option("--unseen", metavar="N", help="Attack with so many other prompts too.")] = 0,
    editor: EditorName = EDITOR,
    judges: Judges = None,
    batch: Annotated[int, typer.Option("--batch", metavar="N", help="Pictures at a time.")] = 8,
    device: Device = "auto",
    dtype: Dtype = "auto",
    as_json: Json = False,
) -> None:
    """Do the whole job on embedded pictures.

    Immunize, attack, measure, judge, ISR with its controls, one HTML report. Run again with the same settings, it goes
    on where it was stopped.
    """
    from . import bench, pipeline, report
    from .images import write_atomically
    from .judges import load_judge
    from .miniature import benchmark
    from .store import Store

    for value, name in ((images, "images"), (steps, "steps"), (seeds, "seeds"), (batch, "batch")):
        pipeline.check_count(value, name)
    if unseen < 0:
        raise InputError(f"unseen: expected a whole number of at least 0, got {unseen}")
    eps, alpha = pipeline.check_budget(eps), pipeline.check_unit(alpha, "alpha")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: expected a folder for the report, but this is a file")
    specs = _distinct(judges or (*JUDGES, report.TRUTH))
    start = time.perf_counter()
    grid = bench.Grid(
        samples=bench.benchmark(benchmark.load(n=images), unseen),
        editor=_load_editor(editor, device, dtype, False),
        judges=[load_judge(spec) for spec in specs],
        seeds=range(seeds),
        eps=eps,
        steps=steps,
        alpha=alpha,
        batch=batch,
    )
    store = Store(out / "store")
    with _progress() as on_step:
        records = bench.run(grid, store, on_step(""))
    run = bench.provenance(grid) | {"seconds": round(time.perf_counter() - start, 1)}
    written = {
        "report.html": report.page(records, store, run).encode(),
        "report.md": report.markdown(records, run).encode(),
        "grid.png": report.grid(records, store),
        "records.json": _text([asdict(record) for record in records]).encode(),
    }
    for name, content in written.items():
        write_atomically(out / name, content)
    table = report.lines(records)
    if as_json:
        _dump({"folder": str(out), "files": sorted(written), "run": run, "table": [asdict(line) for line in table]})
    else:
        from rich.console import Console

        for part in report.terminal(table):
            Console().print(part)
        print(f"{report.headline(table)}\n\nReport: {out / 'report.html'}")
    if failed := [reason for line in table for reason in line.failed]:
        raise SifmError(f"{len(failed)} kinds of failure, the report names them; the first: {failed[0]}")


# ---- looking around


@app.command("list")
def list_(
    what: Annotated[str, typer.Argument(metavar="[editors|methods|judges|metrics]", show_default=False)] = "all",
    as_json: Json = False,
) -> None:
    """List editors, methods, judges, metrics."""
    from .doctor import catalogue
    from .errors import unknown

    tables = catalogue()
    if what not in ("all", *tables):
        raise unknown("list", what, ("all", *tables))
    chosen = tables if what == "all" else {what: tables[what]}
    if as_json:
        return _dump(chosen if what == "all" else chosen[what])
    for title, table in chosen.items():
        print(f"{title}:")
        for name, entry in table.items():
            print(f"  {name:24} {entry['about']}")
            for key, option in entry.get("options", {}).items():
                print(f"  {'':24}   {key}={option['default']}  {option['about']}".rstrip())


@app.command()
def doctor(as_json: Json = False) -> None:
    """Check this machine, and say the cures.

    Packages, weights, keys (never shown), ComfyUI, device. Exit code 1 if something that is needed is missing.
    """
    from .doctor import examine

    findings = examine()
    sound = all(finding.state != "problem" for finding in findings)
    if as_json:
        _dump({"ok": sound, "checks": [asdict(finding) for finding in findings]})
    else:
        for finding in findings:
            print(f"{_MARKS[finding.state]} {finding.name:22} {finding.found}")
            if finding.cure:
                print(f"  {'':22} -> {finding.cure}")
    if not sound:
        raise typer.Exit(1)


_MARKS = {"ok": "✓", "note": "·", "problem": "✗"}


# ---- arguments


def _jobs(source: Path, out: Path) -> list[tuple[Path, Path]]:
    """(picture, .png to write) for a file or for each picture of a folder; refuses what could not be saved."""
    if source.is_dir():
        found = _pictures(source)
        if not found:
            raise InputError(f"{source}: expected pictures ({', '.join(SUFFIXES)}) in this folder, but found none")
        if out.suffix or out.is_file():
            raise InputError(f"{out}: expected a folder, because {source} is one")
        stems = [path.stem for path in found]
        if twice := sorted({stem for stem in stems if stems.count(stem) > 1}):
            raise InputError(f"{source}: several pictures would be saved as {twice[0]}.png; rename them")
        jobs = [(path, out / f"{path.stem}.png") for path in found]
    elif out.is_dir():
        jobs = [(source, out / f"{source.stem}.png")]
    elif out.suffix.lower() != ".png":
        came = f"{out.suffix}, which may not keep every pixel" if out.suffix else "no suffix"
        raise InputError(f"{out}: expected a .png file, but got {came}; use {out.with_suffix('.png')}")
    else:
        jobs = [(source, out)]
    for path, target in jobs:
        if target.exists() and path.exists() and target.samefile(path):
            raise InputError(f"{target}: would overwrite its own source; choose another output")
        if target.is_dir():
            raise InputError(f"{target}: expected a file to write, but this is a folder")
        parent = next(p for p in target.absolute().parents if p.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
            raise InputError(f"{target}: cannot be written, {parent} is no folder that you may write to")
    return jobs


def _matched(one: Path, two: Path) -> list[tuple[Path, Path]]:
    """Two files, or the pictures of two folders paired by name (without suffix)."""
    if one.is_dir() != two.is_dir() and one.exists() and two.exists():
        raise InputError(f"expected two pictures or two folders, but {one} and {two} are one of each")
    if not one.is_dir():
        return [(one, two)]
    left, right = ({path.stem: path for path in _pictures(folder)} for folder in (one, two))
    if not left or left.keys() != right.keys():
        odd = ", ".join(sorted(left.keys() ^ right.keys())[:5]) or "nothing in either"
        raise InputError(f"{one} and {two}: expected pictures of the same names in both folders, but found {odd}")
    return [(left[stem], right[stem]) for stem in left]


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())


def _distinct(specs: Iterable[str]) -> list[str]:
    listed = list(specs)
    if len(set(listed)) != len(listed):
        raise InputError("expected different judges: one that is asked twice does not agree with anybody")
    return listed


def _pairs(given: Sequence[str]) -> dict[str, str]:
    pairs = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not (key.strip() and equals):
            raise InputError(f"option: expected KEY=VALUE such as timesteps=4, got {text!r}")
        pairs[key.strip()] = value.strip()
    return pairs


def _value(text: str) -> Any:
    """JSON where it is JSON (4, 0.5, true, [200, 400]), else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _method_options(method: str, given: Sequence[str]) -> dict[str, Any]:
    """--option pairs as the method's own types; InputError for an unknown name or a value of another type."""
    from pydantic import TypeAdapter, ValidationError

    from .methods import options
    from .pipeline import check_method

    known, pairs = options(method), _pairs(given)
    check_method(method, pairs)
    chosen = {}
    for key, text in pairs.items():
        kind = known[key].type
        if kind is Any:
            raise InputError(f"option {key} of {method} takes an object: it can only be set from Python")
        for value in (_value(text), text, [_value(text)]):
            try:
                chosen[key] = TypeAdapter(kind).validate_python(value)
                break
            except ValidationError:
                continue
        else:
            raise InputError(f"option {key} of {method}: expected {_type_name(kind)}, got {text!r}")
    return chosen


def _type_name(kind: Any) -> str:
    name = kind.__name__ if isinstance(kind, type) else str(kind)
    return name.replace("typing.", "").replace("collections.abc.", "")


def _load_editor(name: str, device: str, dtype: str, download: bool) -> Editor:
    from .editors import load_editor

    return load_editor(name, device=device, dtype=dtype, local_files_only=not download)


# ---- output


@contextmanager
def _progress() -> Iterator[Callable[[str], OnStep]]:
    """Bars with the remaining time on a terminal, else a line every ten seconds; yields label -> on_step."""
    if not sys.stderr.isatty():
        yield _lines
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:28}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        TextColumn("left,"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[loss]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        tasks: dict[str, Any] = {}

        def bars(label: str) -> OnStep:
            def on_step(step: Step) -> None:
                name = f"{step.phase} {label}".strip()
                if name not in tasks:
                    tasks[name] = progress.add_task(name, total=step.n, loss="")
                loss = "" if step.loss is None else f"loss {step.loss:.4g}"
                progress.update(tasks[name], completed=step.i, loss=loss)

            return on_step

        yield bars


def _lines(label: str) -> OnStep:
    recent: deque[tuple[str, float, int]] = deque()
    said = time.monotonic()

    def on_step(step: Step) -> None:
        nonlocal said
        now = time.monotonic()
        recent.append((step.phase, now, step.i))
        while recent[0][0] != step.phase or recent[0][1] < now - WINDOW_SECONDS:
            recent.popleft()
        _, start, first = recent[0]
        if now - said < QUIET_SECONDS or step.i <= first:
            return
        said, left = now, (now - start) / (step.i - first) * (step.n - step.i)
        print(f"{step.phase} {label} {step.i / step.n:.0%}, {left:.0f} s left".replace("  ", " "), file=sys.stderr)

    return on_step


def _show(results: list[dict[str, Any]], source: Path, as_json: bool, text: str) -> None:
    """A file gives one object or line, a folder a list of them."""
    if as_json:
        return _dump(results if source.is_dir() else results[0])
    for result in results:
        print(text.format(**result))


def _dump(document: Any) -> None:
    print(_text(document))


def _text(document: Any) -> str:
    return json.dumps(_plain(document), indent=2, ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    """What JSON can hold: infinity and NaN become null, tuples lists."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | range):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, str | int | bool) else str(value)


if __name__ == "__main__":
    sys.exit(main())
