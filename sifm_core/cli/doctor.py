"""What this machine has and lacks."""

from __future__ import annotations

from dataclasses import asdict

import typer

from .app import app
from .output import dump
from .shared import Json


@app.command()
def doctor(as_json: Json = False) -> None:
    """Check this machine, and say the cures.

    Packages, weights, keys (never shown), ComfyUI, device. Exit code 1 if something that is needed is missing.
    """
    from ..doctor import examine

    findings = examine()
    sound = all(finding.state != "problem" for finding in findings)
    if as_json:
        dump({"ok": sound, "checks": [asdict(finding) for finding in findings]})
    else:
        for finding in findings:
            print(f"{_MARKS[finding.state]} {finding.name:22} {finding.found}")
            if finding.cure:
                print(f"  {'':22} -> {finding.cure}")
    if not sound:
        raise typer.Exit(1)


_MARKS = {"ok": "✓", "note": "·", "problem": "✗"}
