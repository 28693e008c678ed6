"""Does a protection hold?"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from .app import app
from .flags import options
from .judging import AskingAlone, load_judges
from .output import dump, progress, say, tell
from .shared import (
    Background,
    Demonstration,
    Device,
    Download,
    Dtype,
    Json,
    check_writable,
    load_editor,
)


@app.command()
@options
def holds(
    picture: Annotated[Path, typer.Argument(metavar="PICTURE", help="The protected picture.", show_default=False)],
    against: Annotated[
        list[str] | None,
        typer.Option(
            "--against", metavar="NAME|FOLDER|HUB_ID", help="May be repeated; default: the real editors already here."
        ),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option("--source", metavar="ORIGINAL", help="What it was made from; without it nothing is ever green."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="PAGE.html", help="Default: PICTURE.holds.html beside it.")
    ] = None,
    instruction: Annotated[
        list[str] | None,
        typer.Option("--instruction", metavar="TEXT", help="What attackers ask; may be repeated; default: drawn."),
    ] = None,
    subject: Annotated[
        str, typer.Option("--subject", metavar="KIND", help="What it shows, for drawn instructions: portrait, ...")
    ] = "any",
    drawn: Annotated[
        int, typer.Option("--drawn", metavar="N", help="How many instructions are drawn; more make green or red surer.")
    ] = 16,
    seeds: Annotated[int, typer.Option("--seeds", metavar="N", help="Edits of each instruction.")] = 1,
    judges: Annotated[
        list[str] | None,
        typer.Option(
            "--judge", metavar="BACKEND:MODEL", help="May be repeated; all have to agree. None: no light, you look."
        ),
    ] = None,
    *,
    asking: AskingAlone,
    background: Background = "white",
    device: Device = "auto",
    dtype: Dtype = "auto",
    download: Download = False,
    demonstration: Demonstration = False,
    as_json: Json = False,
) -> None:
    """Test whether a protected picture holds.

    It is edited as others may edit it: with several instructions and seeds, as it is, after uploads and after mild
    purifiers. With judges green, amber or red, the weakest case first; always a page with pictures. Where there
    is a light, a certificate beside the picture then says it too.
    """
    from ..certificate import add
    from ..checks import check_count
    from ..files import write_atomically
    from ..holding import forecast, known_uploads
    from ..holding import holds as test
    from ..images import load_image
    from ..protection import at_hand, nothing_at_hand
    from ..report.holds import page

    check_count(seeds, "seeds")
    target = out or picture.with_suffix(".holds.html")
    check_writable(target)
    x = load_image(picture, background)
    x0 = None if source is None else load_image(source, background)
    if not (names := against or at_hand()):
        raise nothing_at_hand()
    editors = [load_editor(name, device, dtype, download) for name in names]
    how: dict[str, Any] = {
        "source": x0,
        "instructions": instruction or (),
        "subject": subject,
        "drawn": drawn,
        "seeds": list(range(1, seeds + 1)),
        "judges": load_judges(judges or (), asking) or None,
        "demonstration": demonstration,
    }
    edits, seconds = forecast(x, editors, **how)
    say(f"{edits} edits, about {max(1, round(seconds / 60))} min" + ", and what the judges take" * bool(judges))
    with progress() as on_step:
        found = test(x, editors, **how, on_step=on_step(picture.name))
    write_atomically(target, page(found, picture.name).encode())
    certified = add(found.tested, picture)
    if as_json:
        plain = {
            "light": found.light,
            "words": list(found.words()),
            "page": str(target),
            "rows": [asdict(row) for row in found.rows],
            "noise": None if found.noise is None else found.noise.as_dict(),
            "calibrations": [asdict(one) for one in found.calibrations],
            "editors": list(found.editors),
            "instructions": list(found.instructions),
            "seeds": list(found.seeds),
            "ways": [asdict(way) for way in found.ways],
            "tested": found.tested,
            "lacking": list(found.lacking),
            "certificate": None if certified is None else str(certified),
            "demonstration": found.demonstration,
            "uploads": {"read": found.uploads_read, "ways": [asdict(way) for way in known_uploads()]},
            "seconds": found.seconds,
        }
        return dump(plain)
    for sentence in found.words():
        tell(sentence)
    tell(f"{target}: the pictures" + (", the weakest case first" if found.light else ""))
    if certified is not None:
        tell(f"{certified}: says so too")
