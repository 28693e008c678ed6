"""The models of a run: what is known of each, as its keys were made, and whether it is still that one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import SifmError
from ..purify.noisy_upscale import UPSCALER
from ..store import Store, fingerprint
from ..types import Editor
from .config import HERE
from .documents import SHAPES
from .executors import Executor, Failure
from .grid import Grid, homes, names, takes
from .keys import Key, identity
from .work import Model, Task, perform


class OtherModel(Exception):
    """A model that is known by name has changed since the keys were made."""


class Models:
    """Editors by name, judges in their order, the upscaler; ``known``: name, fingerprint, settings, ... of each."""

    def __init__(self, grid: Grid, store: Store, executor: Executor) -> None:
        self._store, self._executor = store, executor
        self.editors = {name: _model("editor", _side(name, editor), grid.load) for name, editor in _sides(grid)}
        self.judges = [_model("judge", judge, {}) for judge in grid.judges]
        self.upscaler = Model("upscaler", grid.upscaler or UPSCALER)
        upscales = any(takes(chain, "upscaler") for chain in grid.purifiers)
        used = (*self.editors.values(), *self.judges, *([self.upscaler] if upscales else []))
        self.known = {model: self._known(model) for model in used}
        self._confirmed = {model for model in self.known if model.live is not None}

    def confirm(self, model: Model) -> None:
        """Before a model computes anything: raises :class:`OtherModel` when the keys were made with another one."""
        if model in self._confirmed:
            return
        if identity(self._identify(model)) != identity(self.known[model]):
            raise OtherModel
        self._confirmed.add(model)

    def _known(self, model: Model) -> dict[str, Any]:
        """Of one that is only named, as it was when it was last loaded."""
        if model.live is not None or model.kind == "judge":
            return self._identify(model)
        return self._store.get("model", _spelled(model), SHAPES["model"]) or self._identify(model)

    def _identify(self, model: Model) -> dict[str, Any]:
        task = Task("identify", model, {})
        if model.live is not None or is_here(model):
            identity = perform(task)[0]
        else:
            _, outcome = next(iter(self._executor.run([(None, task)])))
            if isinstance(outcome, Failure):
                raise outcome.error or SifmError(f"{model.name}: {outcome.reason}")
            identity = outcome[0]
        self._store.put("model", _spelled(model), identity)
        return identity


def is_here(judge: Model) -> bool:
    """Is it a judge that answers from elsewhere, so that this process asks it, whatever workers there are?"""
    return judge.kind == "judge" and judge.name.partition(":")[0] in HERE


def _sides(grid: Grid) -> list[tuple[str, Editor | str]]:
    """The editors that protect or attack, by name; one that a row protects against as well only where it is named."""
    of = [(e, (*homes(e), names(e)[1]) if isinstance(e, str) else (e.name,)) for e in grid.editors]
    sides = [(name, e) for e, found in of for name in found]
    named = {name for name, _ in sides}
    return [(name, name) for row in grid.rows for name in row.also() if name not in named] + sides


def _side(name: str, editor: Editor | str) -> Editor | str:
    return name if isinstance(editor, str) else editor


def _model(kind: str, model: Any, load: Mapping[str, Any]) -> Model:
    return Model(kind, model, load) if isinstance(model, str) else Model(kind, model.name, live=model)


def _spelled(model: Model) -> Key:
    return fingerprint(kind=model.kind, name=model.name, load={key: str(value) for key, value in model.load.items()})
