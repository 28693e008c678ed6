"""What one SIFM iteration costs: Algorithm 1 as it stands, side by side with the engine's exact regrouping of it.

    python -m benchmarks.gradient_cost [--json] [--no-clock]

FLOP: counted, not timed, on the true architectures at 512x512, batch 1, no guidance branch, on the meta device
(shapes only, no weights), from the operations that autograd runs. A multiply-accumulate is 2 FLOP. Convolutions and
matrix products count; attention is its two products forward and four backward, as without a fused kernel; what is
elementwise (activations, norms, softmax) does not count, on either side. A hook on a block is on its output.
Seconds: the fastest of several repeats, in turns, since what else runs on the machine only ever adds. The model is
Stable Diffusion 1.5 with an eighth of its channels, so that autoencoder and U-Net share the work nearly as they truly
do, and the embedded miniature, whose autoencoder has a third of its U-Net's work where the true one has 1.4 times.
Beside them stand the counted ratio of the same model, which the seconds can reach at best, and the share of the rate of
one large convolution on this machine that ours runs at: far below it, the seconds are those of starting operations, not
of the algorithm. Peak bytes: the most resident memory of a fresh process during its first gradient, less what it held
just before (Linux only). Rows: the same gradient of the embedded editors with one timestep after the other, and with as
many as the editor's rule says as rows of one batch of the network, in turns.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sifm_core.editors.latent import LatentEditor
from sifm_core.editors.skeleton import skeleton
from sifm_core.methods import sifm
from sifm_core.noise import fork, normal
from sifm_core.plan import rate
from sifm_core.types import Cond, Editor, GradFn, Gradient, Image

TIMESTEPS = (4, 10)
REPEATS = 5
Hooks = Mapping[str, Sequence[str]]
UNET_HOOKS: Hooks = {
    "mid": ("mid_block",),
    "mid+up0": ("mid_block", "up_blocks.0"),
    "mid+up0+up1": ("mid_block", "up_blocks.0", "up_blocks.1"),
}
SD3_HOOKS: Hooks = {f"to block {k}": tuple(f"transformer_blocks.{i}" for i in range(k + 1)) for k in (12, 20)}


class Subject(NamedTuple):
    """An editor, and a picture and a condition to take the gradient at."""

    editor: Editor
    x: Image
    cond: Cond


def literal(subject: Subject, times: Sequence[int], paths: Sequence[str]) -> GradFn:
    """Algorithm 1, lines 3 and 6 to 12, per timestep: encode, the whole noise predictor, back from its hooks to x."""
    editor, x_orig, cond = subject
    with torch.no_grad():
        z = editor.encode(x_orig)
    noises = normal((len(z), len(times), *z.shape[1:]), fork(0, "noise")).to(z).unbind(dim=1)

    def phi(x: Image, k: int) -> list[torch.Tensor]:
        seen: list[torch.Tensor] = []

        def see(module: Any, args: Any, output: Any) -> None:
            seen.append(output[-1] if isinstance(output, tuple) else output)  # of SD3's two streams the image's

        hooks = [editor.net.get_submodule(path).register_forward_hook(see) for path in paths]
        editor.denoise(editor.encode(x), noises[k], torch.full((len(x),), times[k], device=x.device), cond)
        for hook in hooks:
            hook.remove()
        return [feature.flatten(1) for feature in seen]

    with torch.no_grad():
        phi_orig = [phi(x_orig, k) for k in range(len(times))]

    def gradient(x_imu: Image, n: int) -> Gradient:
        g_total, total = torch.zeros_like(x_imu), x_imu.new_zeros(len(x_imu))
        for k in range(len(times)):
            x = x_imu.detach().clone().requires_grad_()
            losses = [
                f.abs().sum(1) - 0.1 * (f - clean).square().mean(1)
                for f, clean in zip(phi(x, k), phi_orig[k], strict=True)
            ]
            loss = torch.stack(losses).mean(0)
            g_total += torch.autograd.grad(loss.sum(), x)[0]
            total += loss.detach()
        return Gradient(total / len(times), g_total / len(times))

    return gradient


def ours(subject: Subject, times: Sequence[int], paths: Sequence[str]) -> GradFn:
    """The engine's; each layer for itself, since not all of these hooks have one shape (it costs the same)."""
    return sifm.build(*subject, timesteps=times, layers=paths, aggregation="per_layer")


SIDES = {"literal": literal, "ours": ours}


def sd15(size: int = 512, narrow: int = 1, device: str = "meta") -> Subject:
    """InstructPix2Pix on Stable Diffusion 1.5, its channels divided by ``narrow``, with random weights."""
    return _subject(skeleton("timbrooks/instruct-pix2pix", device=device, text=False, narrow=narrow), size)


def sd3_medium() -> Subject:
    """Stable Diffusion 3 medium, on the meta device; its text is 77 tokens of CLIP and 256 of T5."""
    return _subject(skeleton("stabilityai/stable-diffusion-3-medium-diffusers", text=False), 512)


def miniature(device: str = "meta") -> Subject:
    """The embedded editor, with random weights."""
    return _subject(skeleton("miniature-ip2p", device=device, text=False), 64)


TRUE: Mapping[str, tuple[Callable[[], Subject], Hooks]] = {
    "SD1.5-InstructPix2Pix": (sd15, UNET_HOOKS),
    "SD3-medium": (sd3_medium, SD3_HOOKS),
}
SMALL: Mapping[str, Callable[[str], Subject]] = {
    "SD1.5-InstructPix2Pix / 8, 256x256": lambda device: sd15(size=256, narrow=8, device=device),
    "miniature-ip2p, 64x64": miniature,
}
SMALL_HOOKS = ("mid+up0", "mid+up0+up1")
EMBEDDED = ("miniature-ip2p", "miniature-sd3")
FORMS = {"one_by_one": 1, "together": 0}
"""How timesteps run -> the option `rows` that makes them."""


def flops(subject: Subject, paths: Sequence[str], timesteps: Sequence[int]) -> list[dict[str, int]]:
    """FLOP of one gradient of each side, for each |T|.

    One more timestep runs the same operations once more, so that the counts for one and two give all the others.
    """

    def counts(n: int) -> dict[str, int]:
        return {side: count(make(subject, spread(n), paths), subject.x) for side, make in SIDES.items()}

    one, two = counts(1), counts(2)
    return [{side: one[side] + (n - 1) * (two[side] - one[side]) for side in SIDES} for n in timesteps]


def count(grad_fn: GradFn, x: Image) -> int:
    """FLOP of one call."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        grad_fn(x, 0)
    return counter.get_total_flops()


def seconds(subject: Subject, paths: Sequence[str], timesteps: int) -> dict[str, float]:
    """The fewest seconds of one gradient of each side."""
    return fewest({side: make(subject, spread(timesteps), paths) for side, make in SIDES.items()}, subject.x)


def rows(name: str, batch: int, timesteps: int) -> dict[str, float]:
    """The fewest seconds of one gradient of an embedded editor, in each of :data:`FORMS`."""
    editor = skeleton(name, device="cpu", text=False)
    x = torch.full((batch, 3, 64, 64), 0.5)
    build = partial(sifm.build, editor, x, editor.blank(batch), timesteps=spread(timesteps))
    return fewest({form: build(rows=n) for form, n in FORMS.items()}, x)


def fewest(grad_fns: Mapping[str, GradFn], x: Image) -> dict[str, float]:
    """The fewest seconds of one call of each, in turns, after one of each that does not count."""
    taken: dict[str, list[float]] = {side: [] for side in grad_fns}
    for _ in range(1 + REPEATS):
        for side, grad_fn in grad_fns.items():
            start = time.perf_counter()
            grad_fn(x, 0)
            taken[side].append(time.perf_counter() - start)
    return {side: min(values[1:]) for side, values in taken.items()}


def peak(model: str, side: str, paths: Sequence[str], timesteps: int) -> int:
    """Bytes by which one gradient raises this process's resident memory at its highest; for a fresh process.

    Not getrusage's ru_maxrss: it starts at the peak of the process that started this one.
    """
    subject = SMALL[model]("cpu")
    grad_fn = SIDES[side](subject, spread(timesteps), paths)
    Path("/proc/self/clear_refs").write_text("5")  # the highest so far is forgotten
    held = _resident("VmRSS")
    grad_fn(subject.x, 0)
    return _resident("VmHWM") - held


def spread(timesteps: int) -> list[int]:
    """So many timesteps, evenly spaced."""
    return [round((k + 1) * 1000 / (timesteps + 1)) for k in range(timesteps)]


def measure(clock: bool) -> Iterator[dict[str, Any]]:
    """The rows of the table, one after the other."""

    def row(measured: str, model: str, hooks: str, timesteps: int, values: Mapping[str, float]) -> dict[str, Any]:
        what = {"measured": measured, "architecture": model, "hooks": hooks, "timesteps": timesteps}
        return {**what, **values, "ratio": values["ours"] / values["literal"]}

    for model, (make, hooks) in TRUE.items():
        subject = make()
        for name, paths in hooks.items():
            for n, counts in zip(TIMESTEPS, flops(subject, paths, TIMESTEPS), strict=True):
                yield row("FLOP", model, name, n, counts)
    if not clock:
        return
    top = rate("cpu", "float32").convolution
    for model, small in SMALL.items():
        subject, shapes = small("cpu"), small("meta")
        for name in SMALL_HOOKS:
            (counts,) = flops(shapes, UNET_HOOKS[name], (4,))
            timed = seconds(subject, UNET_HOOKS[name], 4)
            beside = {"counted": counts["ours"] / counts["literal"], "reached": counts["ours"] / timed["ours"] / top}
            yield row("seconds", model, name, 4, timed) | beside
    for model in EMBEDDED:
        for batch in (1, 8):
            timed = rows(model, batch, 10)
            what = {"measured": "rows", "architecture": model, "hooks": "deep", "timesteps": 10, "batch": batch}
            yield {**what, **timed, "ratio": timed["together"] / timed["one_by_one"]}
    if platform.system() == "Linux":
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as fresh:
            for model in SMALL:
                for name in SMALL_HOOKS:
                    peaks = {side: fresh.apply(peak, (model, side, UNET_HOOKS[name], 4)) for side in SIDES}
                    yield row("peak bytes", model, name, 4, peaks)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, or with --json one object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    parser.add_argument("--no-clock", action="store_true", help="only count: no seconds, no memory")
    chosen = parser.parse_args(arguments)
    machine = {
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    table = measure(clock=not chosen.no_clock)
    if chosen.json:
        print(json.dumps({"machine": machine, "flop_per_multiply_accumulate": 2, "rows": list(table)}, indent=1))
        return
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    print(
        f"{'measured':<11}{'architecture':<36}{'hooks':<13}{'|T|':>3}{'literal':>10}{'ours':>10}{'ratio':>7}{'less':>7}"
    )
    for row in table:
        if row["measured"] == "rows":
            print(
                f"{'rows, s':<11}{row['architecture'] + ', batch ' + str(row['batch']):<36}{row['hooks']:<13}"
                f"{row['timesteps']:>3}{row['one_by_one']:>10.3f}{row['together']:>10.3f}{row['ratio']:>7.3f}"
                f"{1 / row['ratio']:>6.2f}x  one timestep after the other, and together",
                flush=True,
            )
            continue
        scale, unit = {"FLOP": (1e12, "TFLOP"), "seconds": (1, "seconds"), "peak bytes": (2**20, "peak MiB")}[
            row["measured"]
        ]
        print(
            f"{unit:<11}{row['architecture']:<36}{row['hooks']:<13}{row['timesteps']:>3}"
            f"{row['literal'] / scale:>10.2f}{row['ours'] / scale:>10.2f}{row['ratio']:>7.3f}{1 / row['ratio']:>6.2f}x"
            + (
                f"  counted {1 / row['counted']:.2f}x, at {row['reached']:.0%} of full speed"
                if "counted" in row
                else ""
            ),
            flush=True,
        )


def _subject(editor: LatentEditor, size: int) -> Subject:
    return Subject(editor, torch.full((1, 3, size, size), 0.5, device=editor.device), editor.blank(1))


def _resident(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return 1024 * int(found[1])


if __name__ == "__main__":
    main()
