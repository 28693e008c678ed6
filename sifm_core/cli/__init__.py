"""The ``sifm`` command: one file a command, in ``app.py`` what holds for all of them.

A new command is a new file and its place in the list below, which is the order of ``sifm --help``.
"""

# isort: off
from . import protect, holds, certificate  # noqa: F401
from . import immunize, edit, purify, metrics, judge, calibrate, consistency, clip, demo, bench, data  # noqa: F401
from . import annotate  # noqa: F401
from . import queue, plan, layers, list, judges, doctor  # noqa: F401

# isort: on
from .app import YIELDING as YIELDING
from .app import main as main
