"""The pack's own socket types: what flows between its nodes beside pictures and text."""

from comfy_api.latest import io

Editor = io.Custom("SIFM_EDITOR")
"""A :class:`nodes._comfy.ManagedEditor`."""
Hook = io.Custom("SIFM_HOOK")
"""A dict of options for SIFM's objective: which layers, at which timesteps."""
Protection = io.Custom("SIFM_PROTECTION")
"""A :class:`nodes.immunize.Protection`: protected picture, original, budget and settings."""
Metrics = io.Custom("SIFM_METRICS")
"""Metric name -> one :class:`sifm_core.types.Metric` per picture."""
Verdicts = io.Custom("SIFM_VERDICTS")
"""Arm ("protected", "clean", "control") -> one :class:`sifm_core.types.Verdict` per picture."""
