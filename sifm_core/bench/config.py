"""TOML -> grid. A benchmark is a TOML file: one of the package's (``presets/``), or one's own in the same words.

``[grid]`` holds what all profiles share, ``[profiles.NAME]`` what another editor or another size changes; ``rows``
names rows of ``rows.toml`` or spells its own; ``[layout]`` says how the report shows it, ``[paper]`` what the
paper printed, figure by figure.
"""

from __future__ import annotations

import importlib
import itertools
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from ..errors import InputError, unknown
from ..files import read_text
from ..judges import REMOTE, VLM, load_judge, parted
from ..loop import Loop
from ..metrics import DEFAULT
from ..types import Judge

if TYPE_CHECKING:
    from .grid import Grid, Row, Sample

FOLDER = Path(__file__).with_name("presets")
ROWS = Path(__file__).with_name("rows.toml")
"""Rows that several presets share."""
TABLE = ("psnr", "ssim", "vifp", "fsim", "lpips", "isr")
MOST_ROWS = 10_000
"""Rows of a benchmark, sweeps spelt out."""
_BRACES = re.compile(r"\{(\w+)(?::(\.?\d{0,2}[efg%]?))?\}")
"""A swept setting in a row's name, and how its number is written."""
HERE = (*REMOTE, "human")
"""Judges that compute elsewhere: asked from this process, which keeps their rate limits and keys."""


@dataclass(frozen=True)
class Settings:
    """What ``[grid]`` and a profile may say; see :class:`sifm_core.bench.Grid`.

    ``data``: "miniature" or a manifest (:mod:`sifm_core.data`); ``images`` its first so many (0: all), ``unseen`` so
    many other prompts of each. ``clip``: a CLIP that scores the clean edits (Fig. 3), "" for none. ``demonstration``: a
    toy may work on pictures larger than its own.
    """

    data: str = "miniature"
    images: int = 0
    unseen: int = 0
    editors: tuple[str, ...] = ("miniature-ip2p",)
    judges: tuple[str, ...] = ("miniature:conv", "miniature:patch", "miniature:renderer")
    seeds: tuple[int, ...] = (0,)
    purifiers: tuple[str, ...] = ("",)
    eps: float = Loop.eps
    steps: int = Loop.steps
    alpha: float = Loop.alpha
    batch: int = 8
    edit_options: dict[str, Any] = field(default_factory=dict)
    upscaler: str = ""
    clip: str = ""
    device: str = "auto"
    dtype: str = "auto"
    download: bool = False
    demonstration: bool = False


@dataclass(frozen=True)
class RowSpec:
    """A row as TOML spells it; ``sweep`` makes one row per combination, its values in the name's braces.

    Braces hold a swept setting and, for a number, how it is written: ``{eps}``, ``{lam:g}``. A swept word that is one
    of the loop's settings (``eps``) goes there, any other is an option of the method.
    """

    name: str
    method: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    loop: dict[str, Any] = field(default_factory=dict)
    seed_shift: int = 0
    instruction: str | None = None
    sweep: dict[str, list[Any]] = field(default_factory=dict)

    def rows(self) -> list[Row]:
        """The rows that it stands for."""
        from .grid import SETTINGS, Row

        made = []
        for values in itertools.product(*self.sweep.values()):
            swept = dict(zip(self.sweep, values, strict=True))
            loop = self.loop | {key: value for key, value in swept.items() if key in SETTINGS}
            options = self.options | {key: value for key, value in swept.items() if key not in SETTINGS}
            name = _BRACES.sub(lambda found, swept=swept: self._named(found, swept), self.name)  # type: ignore[misc]
            made.append(Row(name, self.method or None, options, loop, self.seed_shift, self.instruction))
        return made

    def count(self) -> int:
        """How many rows it stands for."""
        return math.prod(len(values) for values in self.sweep.values())

    def _named(self, found: re.Match[str], swept: Mapping[str, Any]) -> str:
        setting, spelling = found[1], found[2] or ""
        if setting not in swept:
            return found[0]
        try:
            return format(swept[setting], spelling) if spelling else str(swept[setting])
        except (ValueError, TypeError):
            raise InputError(
                f"row {self.name}: {found[0]} writes numbers, but {setting} is {swept[setting]!r}"
            ) from None


@dataclass(frozen=True)
class Layout:
    """How a report shows the records.

    ``columns``: metrics and "isr", in order. ``kind``: besides the table, what it is about: "agreement" of the judges
    (Table I), "predictors" (what metrics say about verdicts, Fig. 2), "gallery". ``plot``: what stands on the
    horizontal axis of the curve, "" for none: an option or loop setting of the rows ("lam", "eps"), "purifier",
    "prompts" (distance between the attacker's prompt and that of the protection) or "rows".
    """

    columns: tuple[str, ...] = TABLE
    kind: Literal["table", "agreement", "predictors", "gallery"] = "table"
    plot: str = ""


@dataclass(frozen=True)
class Block:
    """One block of a printed table: method -> its figures, in the order of :attr:`Paper.columns`; rates as 0 to 1."""

    title: str
    rows: dict[str, list[float]]


@dataclass(frozen=True)
class Paper:
    """What the paper printed; ``blocks`` in the order of the table's."""

    source: str = ""
    columns: tuple[str, ...] = TABLE
    blocks: tuple[Block, ...] = ()


@dataclass(frozen=True)
class Plan:
    """A benchmark as it is run: preset or file, profile and changes made one. Plain data: it is kept in the run."""

    name: str
    title: str
    about: str
    profile: str
    settings: Settings
    rows: tuple[RowSpec, ...]
    layout: Layout = Layout()
    paper: Paper = Paper()

    def grid(self, judges: Sequence[Judge | str] | None = None) -> Grid:
        """The grid, its pictures found and checked; editors and local judges are loaded when they are needed."""
        from .grid import Grid

        s = self.settings
        return Grid(
            samples=samples(s.data, s.images, s.unseen),
            editors=s.editors,
            judges=s.judges if judges is None else judges,
            rows=self.all_rows(),
            seeds=s.seeds,
            purifiers=s.purifiers,
            eps=s.eps,
            steps=s.steps,
            alpha=s.alpha,
            batch=s.batch,
            edit_options=s.edit_options,
            upscaler=s.upscaler,
            compare_prompts=self.layout.plot == "prompts",
            load={"device": s.device, "dtype": s.dtype, "local_files_only": not s.download},
            demonstration=s.demonstration,
        )

    def all_rows(self) -> list[Row]:
        """The rows, sweeps spelt out."""
        return [row for spec in self.rows for row in spec.rows()]

    def as_dict(self) -> dict[str, Any]:
        """Plain data; :func:`from_dict` is the way back."""
        return asdict(self)


def names() -> dict[str, str]:
    """The presets: name -> title."""
    return {path.stem: read_toml(path)["title"] for path in sorted(FOLDER.glob("*.toml"))}


def load(source: str | os.PathLike[str], profile: str = "miniature", **changes: Any) -> Plan:
    """The plan of a preset's name or of a TOML file, for a profile; ``changes`` go over its settings (None: as it is).

    Raises InputError for unknown names, words and values, each with what was expected.
    """
    text = os.fspath(source)
    path = FOLDER / f"{text}.toml" if text in names() else Path(text)
    if not path.is_file():
        raise unknown("benchmark (or TOML file)", text, names())
    table = read_toml(path)
    profiles = _table(table.pop("profiles", {}), f"{path} [profiles]")
    if profile not in profiles and (profiles or profile != "miniature"):
        raise unknown(f"profile of {text}", profile, profiles)
    settings = {
        **_table(table.pop("grid", {}), f"{path} [grid]"),
        **_table(profiles.get(profile, {}), f"{path} [profiles.{profile}]"),
    }
    _shared(settings, path)
    printed_of = settings.get("editors", Settings.editors)
    settings |= {key: value for key, value in changes.items() if value is not None}
    table = {"name": path.stem, "about": "", "title": path.stem, **table, "profile": profile}
    rows = table.get("rows", [])
    if not isinstance(rows, list):
        raise InputError(f"{path}: rows: expected a list of rows, got {rows!r}")
    table["rows"] = [row_of(row) for row in rows]
    plan = from_dict({**table, "settings": settings}, os.fspath(path))
    printed = [name for name in printed_of if isinstance(name, str)] if isinstance(printed_of, list | tuple) else []
    return plan if _stand_for(plan.settings.editors, printed) else replace(plan, paper=Paper())


def _shared(settings: Mapping[str, Any], path: Path) -> None:
    """Raise InputError for what only the user of a file may decide, not the file that somebody shares."""
    if settings.get("download"):
        raise InputError(f"{path}: download: a file does not decide what is fetched; give --download")
    data = settings.get("data", "")
    if isinstance(data, str) and (Path(data).is_absolute() or ".." in Path(data).parts):
        raise InputError(f"{path}: data: a file names pictures below this folder, not {data}; give --data {data}")
    for judge in judges if isinstance(judges := settings.get("judges"), list) else ():
        url = parted(judge)[2] if isinstance(judge, str) and judge.partition(":")[0] in REMOTE else None
        if url and urlsplit(url).hostname not in ("localhost", "127.0.0.1", "::1"):
            raise InputError(f"{path}: judges: a file does not decide where pictures are sent; give --judge {judge}")


def _table(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise InputError(f"{where}: expected a table, got {value!r}")
    return dict(value)


def from_dict(table: Mapping[str, Any], where: str = "plan") -> Plan:
    """A plan from plain data, checked word by word."""
    from pydantic import TypeAdapter, ValidationError

    for part, kind in (("", Plan), ("settings", Settings), ("layout", Layout), ("paper", Paper)):
        given = _table(table.get(part, {}), f"{where} [{part}]") if part else table
        for word in given:
            if word not in (known := [f.name for f in fields(kind)]):
                raise unknown(f"word in {where} {f'[{part}]' if part else ''}".strip(), word, known)
    try:
        plan = TypeAdapter(Plan).validate_python(dict(table))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise InputError(f"{where}: {place}: {first['msg']}, got {first['input']!r}") from None
    for column in plan.layout.columns:
        if column not in (*DEFAULT, "isr"):
            raise unknown(f"column in {where} [layout]", column, (*DEFAULT, "isr"))
    for word, name in (("name", plan.name), ("profile", plan.profile)):
        if not name.isprintable() or not 0 < len(name) <= 100 or name.startswith(".") or set(name) & set('/\\:*?"<>|'):
            raise InputError(f"{where}: {word}: expected the name of a folder that can be made here, got {name!r}")
    for spec in plan.rows:
        for setting, values in spec.sweep.items():
            if not values:
                raise InputError(f"{where}: row {spec.name}: sweep of {setting}: expected at least one value")
    if (rows := sum(spec.count() for spec in plan.rows)) > MOST_ROWS:
        raise InputError(f"{where}: expected at most {MOST_ROWS} rows, but sweeps make {rows:.3g} of them")
    for block in plan.paper.blocks if plan.layout.kind == "table" else ():
        for name, figures in block.rows.items():
            if len(figures) != len(plan.paper.columns):
                raise InputError(
                    f"{where}: [paper] {name}: expected {len(plan.paper.columns)} figures, got {len(figures)}"
                )
    return plan


def _stand_for(editors: Sequence[str], printed: Sequence[str]) -> bool:
    """May the paper's figures of some editors stand beside these? Not where another built-in one took a place.

    Folders and hub ids, which may hold the very model, are taken at their user's word.
    """
    if list(editors) == list(printed):
        return True
    from ..editors import BUILTIN
    from .grid import names

    pairs = zip(editors, printed, strict=False)
    sides = [pair for one, other in pairs for pair in zip(names(one), names(other), strict=True)]
    return len(editors) == len(printed) and all(one == other or one not in BUILTIN for one, other in sides)


def changed(plan: Plan, **changes: Any) -> Plan:
    """The plan with other settings (None: as it is)."""
    settings = replace(plan.settings, **{k: v for k, v in changes.items() if v is not None})
    paper = plan.paper if _stand_for(settings.editors, plan.settings.editors) else Paper()
    return replace(plan, settings=settings, paper=paper)


def samples(data: str, images: int, unseen: int) -> list[Sample]:
    """The attacks that a benchmark's data ask for: pictures x (original and the first `unseen` other prompts)."""
    from ..data import load as load_data
    from .grid import Sample

    found = []
    if unseen < 0:
        raise InputError(f"unseen: expected 0 or more unseen prompts, got {unseen}")
    for item in load_data(data, images or None):
        for n, prompt in enumerate([item.instruction, *item.unseen[:unseen]]):
            kind = "unseen" if n else "original"
            truth = item.truth(prompt)
            found.append(
                Sample(item.id, item.pixels, item.instruction, prompt, item.category, kind, truth, item.wordings())
            )
    return found


def open_judges(specs: Sequence[str], **options: Any) -> list[Judge | str]:
    """Judges that are asked from here, set up now so that a missing key is found before the work; others by name.

    ``options`` are those of vision-language models, such as ``cache`` and ``max_cost``.
    """
    opened: list[Judge | str] = []
    for spec in specs:
        backend = spec.partition(":")[0]
        opened.append(load_judge(spec, **(options if backend in VLM else {})) if backend in HERE else spec)
    return opened


def row_of(row: Any) -> dict[str, Any]:
    """A row in the words of :class:`RowSpec`: a shared one by its name, or spelled; InputError for any other."""
    if isinstance(row, str):
        shared = {entry["name"]: entry for entry in read_toml(ROWS)["rows"]}
        if row not in shared:
            raise unknown("row", row, shared)
        return dict(shared[row])
    if not isinstance(row, Mapping) or "name" not in row:
        raise InputError(f"rows: expected a name or a table with a name, got {row!r}")
    for word in row:
        if word not in (known := [f.name for f in fields(RowSpec)]):
            raise unknown(f"word in row {row['name']}", word, known)
    return dict(row)


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file as plain data; InputError when it is none."""
    toml: Any = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        return toml.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: expected a benchmark in TOML: {error}") from None
