"""What an immunization will take."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any

import typer

from ..loop import Loop
from .app import app
from .shared import EDITOR, Checkpointing, Device, Dtype, EditorName, Json, NoT5, Offload, Size, Steps


@app.command()
def plan(
    editor: EditorName = EDITOR,
    timesteps: Annotated[int, typer.Option("--timesteps", metavar="T", help="How many.")] = 10,
    steps: Steps = Loop.steps,
    layers: Annotated[str, typer.Option("--layers", help="Presets of the editor or module paths.")] = "deep",
    batch: Annotated[int, typer.Option("--batch", metavar="B", help="Pictures at a time.")] = 1,
    rows: Annotated[
        int,
        typer.Option(
            "--rows",
            metavar="N",
            help="Rows of the network at once; 0: the editor's rule.",
        ),
    ] = 0,
    memory: Annotated[
        float | None, typer.Option("--memory", metavar="GB", help="What there is; proposes what fits.")
    ] = None,
    offload: Offload = "none",
    checkpointing: Checkpointing = False,
    no_t5: NoT5 = False,
    size: Size = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    as_json: Json = False,
) -> None:
    """What SIFM on an editor will take: TFLOP, GB, seconds.

    Counted on the editor's architecture, without its weights; the seconds after two of calibration on this machine.
    """
    from .. import plan as plans
    from ..editors import check_device, check_dtype, check_offload
    from ..editors.skeleton import skeleton

    where = check_device(device)
    kind = str(check_dtype(dtype, where)).removeprefix("torch.")
    native = size if size is not None else int(skeleton(editor, text=False).settings["size"])
    wanted = plans.Settings(
        editor,
        native,
        timesteps,
        steps,
        layers,
        batch,
        kind,
        str(where),
        check_offload(offload),
        checkpointing,
        not no_t5,
        rows,
    )
    planned = plans.plan(wanted, memory=None if memory is None else memory * 1e9)
    if as_json:
        print(json.dumps(_plain(planned)))
        return
    cost = planned.cost
    print(f"{editor} at {native} px, {batch} x {steps} iterations of {timesteps} timesteps, {kind} on {where}:")
    print(f"  {cost.flops / 1e12:.4g} TFLOP, about {planned.seconds:.3g} s on this machine")
    print(f"  {plans.rows_of(wanted)} rows of the network at once (pictures x timesteps): --option rows=N of immunize")
    print(
        f"  {cost.memory / 1e9:.2f} GB at the peak: networks {cost.networks / 1e9:.2f}, text encoders "
        f"{cost.text / 1e9:.2f}, the loop's own {cost.working / 1e9:.2f}"
    )
    if planned.fits:
        print(f"  fits into {memory:g} GB")
    elif planned.fitting:
        other, less = planned.fitting
        changed = {name: value for name, value in asdict(other).items() if value != asdict(wanted)[name]}
        print(f"  does not fit into {memory:g} GB; this does, with {less.memory / 1e9:.2f} GB:")
        print("  " + " ".join(_flag(name, value) for name, value in changed.items()))
    elif planned.fits is False:
        print(f"  does not fit into {memory:g} GB, and no smaller size, type or batch does")


def _flag(name: str, value: Any) -> str:
    """As this command takes it, and but for the batch `sifm immunize` too."""
    if name == "rows":
        return f"--option rows={value}"
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    return f"--{name} {value}"


def _plain(found: Any) -> dict[str, Any]:
    fitting = found.fitting and {"settings": asdict(found.fitting[0]), "cost": found.fitting[1]._asdict()}
    return {
        "settings": asdict(found.settings),
        "cost": found.cost._asdict(),
        "seconds": found.seconds,
        "fits": found.fits,
        "fitting": fitting,
    }
