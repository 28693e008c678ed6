"""What protecting and attacking take at full size: the true architectures with random weights, run on this machine.

    python -m benchmarks.full_size [--only TEXT] [--editor NAME|FOLDER] [--size 512] [--minutes 6] [--json]

Seconds are of whole iterations (gradient, step and projection) after those in which libraries set themselves up; they
are those of real weights, since no work depends on their values. Of the same iteration, four forms: "sequential" runs
one timestep after the other, "rows" as many at once as the editor's rule says; with "graph" an iteration is recorded
once and replayed (CUDA). "literal" is Algorithm 1 as it stands. An edit is the attacker's, by the editor's own
defaults. GB: CUDA's most allocated bytes, weights and all; on a CPU how far resident memory rose above what was held.
TFLOP are counted on the meta device, of SIFM alone. A case that fails is named, and the next one runs; when the minutes
are over, those that are left are named too.
"""

from __future__ import annotations

import argparse
import gc
import inspect
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from benchmarks.gradient_cost import Subject, literal, spread
from sifm_core import methods
from sifm_core.editors import check_device, check_dtype
from sifm_core.editors.skeleton import skeleton
from sifm_core.features import resolve
from sifm_core.graphs import WARM_UP, replayed
from sifm_core.memory import peak
from sifm_core.pgd import pgd
from sifm_core.plan import Settings, plan
from sifm_core.types import Editor, GradFn

EDITORS = ("instruct-pix2pix", "sd3-medium")
PEAK = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12, "3090": 71e12}
"""FLOP/s of dense bfloat16 products by name of the card, from the makers' data sheets."""
ROWS_OF = {"sequential": 1, "graph": 1, "rows": 0, "rows, graph": 0}
"""The forms of an iteration, and what they set `rows` to: one, or the editor's rule."""


class Case(NamedTuple):
    """One row of the table; ``form`` of :data:`ROWS_OF`, "literal" or, of an edit, ""."""

    editor: str
    work: str
    form: str
    timesteps: int | None
    batch: int

    def __str__(self) -> str:
        times = "" if self.timesteps is None else f" T={self.timesteps}"
        return f"{self.editor} {self.work}{times} x{self.batch} {self.form}".strip()


def cases(editors: Sequence[str], only: Sequence[str] = ()) -> list[Case]:
    """The table, an editor's cases together, what matters most first; of those only what has one of the words."""
    found = []
    for editor in editors:
        found += [Case(editor, "sifm", form, t, 1) for t in (4, 10) for form in (*reversed(ROWS_OF), "literal")]
        found += [Case(editor, "sifm", form, t, 8) for t in (4, 10) for form in ("rows, graph", "sequential")]
        others = [name for name in methods.METHODS if name != "sifm" and hasattr(methods.get_method(name), "build")]
        found += [Case(editor, name, form, None, 1) for name in others for form in ("rows, graph", "sequential")]
        found += [Case(editor, "edit", "", None, batch) for batch in (1, 4, 8, 16)]
    return [case for case in found if not only or any(words in str(case) for words in only)]


def measure(case: Case, editor: Editor, size: int, iterations: int) -> dict[str, Any]:
    """The row of one case."""
    height, width = editor.work_size(size, size)
    draw = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (case.batch, 3, height, width), generator=draw).div(255).to(editor.device)
    with peak(editor.device) as bytes_:
        if case.work == "edit":
            seconds, count = _edits(editor, x, iterations), 1
        else:
            seconds, count = _iterations(case, editor, x, iterations), 100
    flops = None
    if case.work == "sifm" and case.form != "literal":
        dtype = str(editor.dtype).removeprefix("torch.")
        cost = Settings(case.editor, size, case.timesteps or 0, 1, batch=case.batch, dtype=dtype)
        flops = plan(cost, calibrate=False).cost.flops
    return {
        **case._asdict(),
        "seconds": seconds,
        "seconds_per_image": count * seconds / case.batch,
        "gigabytes": None if bytes_[0].value is None else bytes_[0].value / 1e9,
        "gigabytes_are": bytes_[0].definition,
        "teraflop": flops and flops / 1e12,
        "teraflop_per_second": flops and flops / seconds / 1e12,
    }


def gradient(case: Case, editor: Any, x: torch.Tensor) -> GradFn:
    """The gradient of one case, its prompts random."""
    cond = editor.blank(len(x))
    cond = replace(
        cond, prompt=torch.randn(cond.prompt.shape, generator=torch.Generator().manual_seed(1)).to(cond.prompt)
    )
    if case.form == "literal":
        paths = resolve(editor.net, editor.layer_presets["deep"])
        return literal(Subject(editor, x, cond), spread(case.timesteps or 1), paths)
    module = methods.get_method(case.work)
    options: dict[str, Any] = {} if case.timesteps is None else {"timesteps": spread(case.timesteps)}
    if case.work == "sifm":
        options["aggregation"] = "per_layer"
    if case.work == "semantic_attack":  # random weights know no word
        editor.words = lambda cond: torch.ones(len(x), cond.prompt.shape[1], dtype=torch.bool, device=x.device)
    if "rows" in methods.options(case.work):
        options["rows"] = ROWS_OF[case.form]
    seeded = {"seed": 0} if "seed" in inspect.signature(module.build).parameters else {}
    grad_fn: GradFn = module.build(editor, x, cond, **seeded, **options)
    return replayed(grad_fn) if case.form.endswith("graph") else grad_fn


def _iterations(case: Case, editor: Editor, x: torch.Tensor, iterations: int) -> float:
    grad_fn = gradient(case, editor, x)

    def run(steps: int) -> float:
        start = _now(x.device)
        pgd(x, grad_fn, eps=0.03, alpha=2 / 255, steps=steps, random_start=True)
        return _now(x.device) - start

    run(WARM_UP + 1)
    return run(iterations) / iterations


def _edits(editor: Any, x: torch.Tensor, iterations: int) -> float:
    """Of one batch of edits, after a short one that does not count."""
    cond, seeds = editor.blank(len(x)), list(range(len(x)))
    editor.edit(x, cond, seed=seeds, steps=4)
    start = _now(x.device)
    editor.edit(x, cond, seed=seeds, **({} if x.is_cuda else {"steps": 4}))
    return _now(x.device) - start


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def table(chosen: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The rows, one after the other: measured, or with the "problem" that there was."""
    device = check_device(chosen.device)
    dtype = check_dtype(chosen.dtype, device)
    end = time.perf_counter() + 60 * chosen.minutes
    loaded: tuple[str, Any] = ("", None)
    for case in cases(chosen.editor or EDITORS, chosen.only):
        if time.perf_counter() > end:
            yield {**case._asdict(), "problem": "not run: the minutes are over"}
            continue
        try:
            if loaded[0] != case.editor:
                loaded = ("", None)
                _tidy(device)
                editor = skeleton(case.editor, device=device, dtype=dtype, text=False, size=chosen.size)
                editor.pipe.set_progress_bar_config(disable=True)
                loaded = (case.editor, editor)
            yield measure(case, loaded[1], chosen.size, chosen.iterations)
        except Exception as error:
            yield {**case._asdict(), "problem": f"{type(error).__name__}: {error}"[:300]}
        finally:
            _tidy(device)


def _tidy(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def line(row: dict[str, Any], top: float | None) -> str:
    """A row as text; ``top`` FLOP/s of the card, if it is known."""
    case = Case(*(row[name] for name in Case._fields))
    head = f"{case.editor:<17}{case.work:<21}{case.timesteps or '':>3}{case.batch:>6}  {case.form:<13}"
    if "problem" in row:
        return f"{head}{row['problem']}"
    size = "" if row["gigabytes"] is None else f"{row['gigabytes']:.1f}"
    rate = row["teraflop_per_second"]
    share = "" if rate is None or top is None else f"{1e12 * rate / top:.0%}"
    each = f"{row['seconds']:>9.4f}{row['seconds_per_image']:>10.2f}{size:>7}"
    return f"{head}{each}{'' if rate is None else f'{rate:.1f}':>10}{share:>6}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, or with --json an object a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--editor", action="append", help="a built-in name, folder or hub id; may be repeated")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="TEXT",
        help="cases with this in their name, such as 'sifm T=4'; may be repeated",
    )
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--iterations", type=int, default=8, help="timed, of each case")
    parser.add_argument("--minutes", type=float, default=6, help="after which no further case is started")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    chosen = parser.parse_args(arguments)
    device = check_device(chosen.device)
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    half = check_dtype(chosen.dtype, device) is torch.bfloat16
    top = next((value for name, value in PEAK.items() if name in card), None) if half else None
    if not chosen.json:
        print(f"{card}, torch {torch.__version__}, {chosen.size} px, {check_dtype(chosen.dtype, device)}")
        print(f"{'editor':<17}{'work':<21}{'|T|':>3}{'batch':>6}  {'form':<13}{'s':>9}{'s/image':>10}{'GB':>7}", end="")
        print(f"{'TFLOP/s':>10}{'share':>6}   (s: an iteration, or a batch of edits; s/image: 100 iterations)")
    for row in table(chosen):
        print(json.dumps(row | {"device": card}) if chosen.json else line(row, top), flush=True)


if __name__ == "__main__":
    main()
