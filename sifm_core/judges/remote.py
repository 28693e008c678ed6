"""What the judges over a network share: one call that is sent, with what a server refuses left out, and read."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

from ..errors import InputError, unknown
from .client import Client, Reply
from .reading import body_of, failure_in
from .rubric import Form, Part
from .wire import Wire

_REFUSES = (400, 422, 501)
_LEAST = {"timeout": 0.001, "temperature": 0.0, "max_output_tokens": 1, "thinking_budget": -1}
_WORDS = {
    "thinking_level": ("minimal", "low", "medium", "high"),
    "media_resolution": ("low", "medium", "high"),
    "reasoning_effort": ("none", "minimal", "low", "medium", "high", "xhigh", "max"),
}


class RemoteClient(Client):
    """A server that is spoken to through a provider's package, which writes the requests.

    ``optional``: settings that some models refuse -> a pattern of what servers call them. ``takes`` holds those that
    the model is known to take, with what is sent where ``given`` says nothing (None); what is given to a model whose
    settings are ``known``, and is none of them, is left out at once. Which others are refused is found out by asking,
    remembered, and said in the reply. ``rungs``: in how many ways an answer of a form can be asked for, from the
    strictest; a refused one leads to the next.
    """

    optional: ClassVar[Mapping[str, str]]
    _rung = 0
    _unsent: tuple[str, ...] = ()
    _unnamed = False
    wire: Wire

    def __init__(
        self,
        model: str,
        base_url: str,
        key: str,
        *,
        takes: Mapping[str, Any],
        known: bool,
        given: Mapping[str, Any],
        max_output_tokens: int,
        timeout: float,
    ) -> None:
        chosen = {name: value for name, value in given.items() if value is not None}
        config = {**takes, **chosen, "max_output_tokens": max_output_tokens}
        for name, value in {"timeout": timeout, **config}.items():
            if name in _WORDS and value not in _WORDS[name]:
                raise unknown(name, value, _WORDS[name])
            if name not in _WORDS and not _LEAST.get(name, -math.inf) <= value < math.inf:
                raise InputError(f"{name}: expected a number of at least {_LEAST.get(name)}, got {value!r:.40}")
        super().__init__(model, base_url, key, config=config, timeout=timeout)
        self._unsent = tuple(name for name in self.optional if known and name in chosen and name not in takes)

    @abstractmethod
    def call(self, parts: Sequence[Part], form: Form, settings: Mapping[str, Any], rung: int) -> object:
        """Have the package send one request."""

    def rungs(self, form: Form) -> int:
        return 1

    @abstractmethod
    def read(self, body: Any) -> Reply:
        """What a body of JSON that reports no error holds."""

    def ranked(self, reply: Reply, body: Any) -> Reply:
        """The reply to a ranked question, whose probabilities stand in the body."""
        return reply

    def settings(self, unsent: Sequence[str]) -> dict[str, Any]:
        """The optional settings that are to be sent."""
        return {name: self.config[name] for name in self.optional if name in self.config and name not in unsent}

    def send(self, parts: Sequence[Part], form: Form) -> Reply:
        rung, unsent, unnamed, until = self._rung, self._unsent, self._unnamed, self.wire.deadline()
        while True:
            settings = self.settings(unsent)
            came = self.wire.carry(partial(self.call, parts, form, settings, rung), until=until)
            if isinstance(came, Reply):
                return replace(came, unsent=unsent, unnamed=unnamed)
            body = body_of(came)
            failure = failure_in(came, body)
            if failure is None:
                reply = self.read(body)
                reply = self.ranked(reply, body) if form.ranked else reply
                break
            mixed = self.read(body)
            if mixed.text or mixed.tokens:  # perhaps paid: nothing more is sent
                why = f"the server sent an answer and an error ({failure.reply().reason})"
                reply = replace(mixed, state="error", text="", reason=why, billed="maybe")
                break
            if refused := failure.about({name: self.optional[name] for name in settings}):
                unsent += refused
            elif settings and failure.unnamed:
                unsent, unnamed = (*unsent, *settings), True
            elif failure.code in _REFUSES and rung < self.rungs(form) - 1:
                rung += 1
            else:
                reply = failure.reply()
                break
        if reply.billed == "yes":
            self._rung, self._unsent, self._unnamed = rung, unsent, unnamed
        return replace(reply, unsent=unsent, unnamed=unnamed)
