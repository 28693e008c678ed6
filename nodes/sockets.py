"""The pack's own socket types: what flows between its nodes beside pictures and text."""

from comfy_api.latest import io

Editor = io.Custom("SIFM_EDITOR")
"""A :class:`nodes._comfy.ManagedEditor`."""
Hook = io.Custom("SIFM_HOOK")
"""A dict of options for SIFM's objective: which layers, at which timesteps."""
Protection = io.Custom("SIFM_PROTECTION")
"""A :class:`nodes._attacks.Protection`: protected picture, original, budget and settings."""
Attack = io.Custom("SIFM_ATTACK")
"""A :class:`nodes._attacks.Attack`: who is to be attacked with what, from Attack Plan."""
Edit = io.Custom("SIFM_EDIT")
"""A :class:`nodes._attacks.Edit`: an edit and who made it how, from Attacker Edit."""
Metrics = io.Custom("SIFM_METRICS")
"""Metric name -> one :class:`sifm_core.types.Metric` per picture."""
Verdicts = io.Custom("SIFM_VERDICTS")
"""Arm ("protected", "clean", "control") -> one :class:`nodes._cards.Seen` per picture: a verdict and what it is on."""
Records = io.Custom("SIFM_RECORDS")
"""A :class:`nodes._attacks.Run`: the engine's records and the store that holds their pictures."""
Judge = io.Custom("SIFM_JUDGE")
"""A dict of MLLM Judge's settings: which judge, and how it is asked."""
