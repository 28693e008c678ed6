"""How a protection looks at 100%: ``python -m benchmarks.strengths [--out docs/strengths.png]``.

Part of a photograph (scikit-image's astronaut) and of a flat drawing, as they were and under each strength of ``sifm
protect``. The networks are InstructPix2Pix's with an eighth of its channels and random weights, at a quarter of the
pictures' size, so that patterns are as coarse as in a photograph of 2048 pixels that an editor sees at 512: what is
shown is how it looks, not that it holds. Prints how visible each is.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from sifm_core.editors.skeleton import skeleton
from sifm_core.images import from_uint8, to_uint8
from sifm_core.protection import STRENGTHS, protect

SIDE, PART, GAP = 512, 256, 8
AT = {"photograph": (40, 130), "drawing": (150, 130)}
"""Top and left of the part that is shown."""


def pictures() -> dict[str, np.ndarray]:
    """The two pictures, 512x512."""
    from skimage import data

    drawing = Image.new("RGB", (SIDE, SIDE), "#f3ecdc")
    pen = ImageDraw.Draw(drawing)
    pen.rectangle((0, 0, SIDE, 260), fill="#96c8eb")
    pen.ellipse((150, 130, 360, 390), fill="#f0c8aa")
    for left in (205, 275):
        pen.ellipse((left, 215, left + 30, 245), fill="#282828")
    pen.arc((205, 260, 305, 340), 20, 160, fill="#a02828", width=6)
    pen.polygon([(0, SIDE), (200, 400), (SIDE, SIDE)], fill="#5a9650")
    return {"photograph": data.astronaut(), "drawing": np.asarray(drawing)}


def sheet(steps: int) -> Image.Image:
    """One row a picture, one column for it as it was and each strength."""
    editor, rows = skeleton("instruct-pix2pix", device="cpu", text=False, narrow=8, size=SIDE // 4), []
    for name, pixels in pictures().items():
        top, left = AT[name]
        part = (slice(top, top + PART), slice(left, left + PART))
        row = [pixels[part]]
        for strength in STRENGTHS:
            done = protect(from_uint8(pixels), editor, strength=strength, steps=steps)
            row.append(to_uint8(done.image)[part])
            print(f"{name}, {strength}: {next(done.words())}", flush=True)
        rows.append(np.concatenate([np.pad(x, ((0, GAP), (0, GAP), (0, 0)), constant_values=255) for x in row], axis=1))
    return Image.fromarray(np.concatenate(rows)[:-GAP, :-GAP])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/strengths.png"))
    parser.add_argument("--steps", type=int, default=12, help="enough to use up the budget; the strengths take more")
    args = parser.parse_args()
    sheet(args.steps).save(args.out)


if __name__ == "__main__":
    main()
