"""Protect one photograph and save it.

    python docs/examples/protect_a_photo.py photo.jpg protected.png "turn her into a zombie" EDITOR

EDITOR is a built-in name, such as instruct-pix2pix, a diffusers folder or a hub id that is already on this machine.
"""

import sys

from sifm_core import immunize, load_editor, load_picture, save_png
from sifm_core.images import verify_budget

source, output, prompt, name = sys.argv[1:]
editor = load_editor(name)
picture = load_picture(source)

protected = immunize(
    picture.pixels,
    editor,
    prompt=prompt,
    eps=0.03,  # at most 7 levels of 255 per value
    on_step=lambda step: print(f"\rstep {step.i} of {step.n}, loss {step.loss:.4g}", end="", file=sys.stderr),
)

save_png(protected.image, output, like=picture)  # keeps size, alpha and colour profile
print(f"\n{output}: changed by at most {verify_budget(output, picture.pixels, 0.03):.4f}, in {protected.seconds:.1f} s")
