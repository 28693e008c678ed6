"""The miniature: a small procedural world, editors trained on it and judges that know its truth.

It is the embedded default, the test bed of every method and a teaching model. It is **no evidence about Stable
Diffusion**: its pictures are 64 px wide, what a thing *is* is told by a fine low-contrast texture, and the texture's
amplitude was chosen so that budgets near eps = 0.03 matter. See docs/miniature.md.
"""

EVIDENCE = (
    "The miniature is a procedural 64-px world with an editor trained on it in minutes; its texture amplitudes were "
    "chosen so that a budget of 0.03 can matter. It shows how methods, controls, judges and statistics behave; it is "
    "no evidence about Stable Diffusion or any other real editor."
)
