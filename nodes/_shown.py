"""What nodes have shown last, kept on the server: a page that is opened again, anywhere, finds it there.

ComfyUI's own history ends with the server and knows no node of a page that was reloaded. So every output that a node
of the pack gives its page is kept under the workflow's id and the node's, with its pictures, in a store of the engine
in ``sifm/shown``; a page asks for those of the workflow that it has loaded.
"""

from __future__ import annotations

import functools
import math
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypedDict

from torch import Tensor

from sifm_core.errors import SifmError
from sifm_core.images import resize
from sifm_core.store import Store

from ._store import home

FOLDER = "sifm"
"""In ComfyUI's folder for temporary files, which is emptied when the server starts."""
MAX_SIDE = 512
"""Pixels of a picture that is only to be looked at."""
MOST = 300
"""Workflows whose outputs are kept; those that ran longest ago go first."""
_WORKFLOW, _NODE, _PICTURE = (
    re.compile(r"[0-9a-f-]{36}"),
    re.compile(r"[\w.:-]{1,200}"),
    re.compile(r"[0-9a-f]{64}\.png"),
)


class _Kept(TypedDict):
    prompt: str
    time: float
    output: dict[str, list[Any]]


def remembered(node: Any) -> type:
    """The node class, whose outputs are kept from now on; the same class, changed in place, once."""
    if "execute" in vars(node) and not hasattr(node.execute, "__wrapped__"):
        schema, execute = node.define_schema.__func__, node.execute.__func__

        @functools.wraps(schema)
        def define_schema(cls: Any) -> Any:
            from comfy_api.latest import io

            made = schema(cls)
            made.hidden = list(dict.fromkeys([*(made.hidden or ()), io.Hidden.extra_pnginfo]))
            return made

        @functools.wraps(execute)
        def executed(cls: Any, *args: Any, **inputs: Any) -> Any:
            out = execute(cls, *args, **inputs)
            shown = out.ui.as_dict() if hasattr(out.ui, "as_dict") else out.ui
            if shown:
                with suppress(SifmError, OSError):  # a full disk must not take the result with it
                    keep(cls.hidden, shown)
            return out

        node.define_schema, node.execute = classmethod(define_schema), classmethod(executed)
    return node


def keep(hidden: Any, shown: Mapping[str, Any]) -> None:
    """Keep what the node that is executing shows; of a node that runs for each item of a list, all of them."""
    from comfy_execution.utils import get_executing_context

    context, about = get_executing_context(), getattr(hidden, "extra_pnginfo", None) or {}
    workflow = str((about.get("workflow") or {}).get("id", ""))
    if context is None or not _WORKFLOW.fullmatch(workflow) or not _NODE.fullmatch(str(context.node_id)):
        return
    node, output = str(context.node_id), _finite({name: _listed(items) for name, items in shown.items()})
    with Store(home() / "shown") as store:
        before = store.get(workflow, node, _Kept)
        if before and context.list_index and before["prompt"] == context.prompt_id:
            known = before["output"]
            output = {name: known.get(name, []) + output.get(name, []) for name in {**known, **output}}
        store.put(workflow, node, {"prompt": context.prompt_id, "time": time.time(), "output": output})


def recalled(workflow: str) -> dict[str, dict[str, Any]]:
    """Node id -> its last output, for a workflow's id; its pictures are where ComfyUI's ``/view`` finds them."""
    if not _WORKFLOW.fullmatch(workflow) or not (home() / "shown" / "run.sqlite").is_file():
        return {}
    with Store(home() / "shown") as store:
        found = {
            node: kept["output"] for node, kept in store.documents(workflow) if isinstance(kept.get("output"), dict)
        }
        for name in set(_names(found)):
            kept = store.folder / "images" / name[:2] / name
            if kept.is_file():
                _place(kept, name)
    return found


def picture(image: Tensor) -> dict[str, str]:
    """A picture (3, H, W), made small, as a temporary file named by its content, in the words of ``/view``."""
    height, width = image.shape[-2:]
    scale = MAX_SIDE / max(height, width)
    small = resize(image[None], (round(height * scale), round(width * scale)))[0] if scale < 1 else image
    return whole_picture(small)


def whole_picture(image: Tensor) -> dict[str, str]:
    """The same in its own size, for who looks at single pixels."""
    with Store(home() / "shown") as store:
        name = f"{store.put_image(image.detach().float().cpu())}.png"
        _place(store.folder / "images" / name[:2] / name, name)
    return {"filename": name, "subfolder": FOLDER, "type": "temp"}


def tidy(most: int = MOST) -> None:
    """Forget all but the workflows that ran last, and the pictures that only they showed."""
    if not (home() / "shown" / "run.sqlite").is_file():
        return
    with Store(home() / "shown") as store:
        kinds = [kind for kind in store.counts() if kind != "records"]
        ran = {kind: max((kept.get("time", 0.0) for _, kept in store.documents(kind)), default=0.0) for kind in kinds}
        for kind in sorted(kinds, key=lambda kind: ran[kind], reverse=True)[most:]:
            for node in [node for node, _ in store.documents(kind)]:
                store.remove(kind, node)
            kinds.remove(kind)
        used = {name for kind in kinds for _, kept in store.documents(kind) for name in _names(kept)}
        for file in (store.folder / "images").glob("*/*.png"):
            if file.name not in used:
                file.unlink(missing_ok=True)


def _place(kept: Path, name: str) -> None:
    import folder_paths

    path = Path(folder_paths.get_temp_directory(), FOLDER, name)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(kept, path)


def _names(value: Any) -> Iterator[str]:
    """The names of the pack's pictures anywhere in a value."""
    if isinstance(value, str):
        if _PICTURE.fullmatch(value):
            yield value
    elif isinstance(value, Mapping | list):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _names(item)


def _listed(items: Any) -> list[Any]:
    return list(items) if isinstance(items, list | tuple) else [items]


def _finite(value: Any) -> Any:
    """The value as JSON has it: what is no number is nothing."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): _finite(item) for name, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
