"""A method of your own in ten lines, compared with the controls: push the latent away from where it was.

    python docs/examples/your_own_method.py

To keep it, put `build` in a file of sifm_core/methods and list it in METHODS.
"""

import torch

from sifm_core import edit, load_editor, measure
from sifm_core.gradients import through_latent
from sifm_core.images import round_to_budget
from sifm_core.methods import random_noise
from sifm_core.miniature import benchmark
from sifm_core.pgd import pgd

editor = load_editor("miniature-ip2p")
items = benchmark.load(n=4)
x, prompts = torch.stack([item.image for item in items]), [item.instruction for item in items]

home = editor.encode(x).detach()
grad_fn = through_latent(editor.encode, [lambda z: -(z - home).flatten(1).norm(dim=1)])  # minimised: go far
mine = round_to_budget(pgd(x, grad_fn, eps=0.03, alpha=2 / 255, steps=50, random_start=True), x, 0.03)

clean = edit(x, editor, prompt=prompts)
for name, attacked in {"mine": mine, "noise": random_noise.perturb(x, eps=0.03, seed=0)}.items():
    values = measure(clean, edit(attacked, editor, prompt=prompts), ["psnr", "ssim"])
    print(name, {metric: [round(m.value, 2) for m in column] for metric, column in values.items()})
