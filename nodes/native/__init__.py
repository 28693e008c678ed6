"""An editor from what ComfyUI has loaded: MODEL, VAE and CLIP, with the person's own sampler, LoRAs and number types.

``editor`` is the engine's :class:`sifm_core.types.Editor` on them, ``networks`` what is known of their layers,
``recipes/`` how a source enters each class of model, ``gradients`` what makes core's networks differentiable and takes
it back, ``doctor`` what is checked before a protection starts, ``identity`` what all of it depends on, as one hash.
"""
