"""Benchmarks: a grid of pictures x rows x editors x seeds x purifiers x judges -> records in a store.

``grid.py`` says what is to be run, ``phases.py`` computes what is missing, ``executors.py`` where, ``work.py`` how one
batch of it; ``presets/`` holds the paper's tables as TOML, read by ``config.py``.
"""

from ..isr import CLEAN as CLEAN
from .executors import Executor as Executor
from .executors import Inline as Inline
from .executors import Pool as Pool
from .executors import Ray as Ray
from .grid import ROWS as ROWS
from .grid import Grid as Grid
from .grid import Row as Row
from .grid import Sample as Sample
from .grid import benchmark as benchmark
from .phases import FIDELITY as FIDELITY
from .phases import fill as fill
from .phases import provenance as provenance
from .phases import run as run
from .provenance import hardware as hardware
from .provenance import package_version as package_version
