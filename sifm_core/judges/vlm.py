"""The loop that every vision-language judge shares: ask, check, record. A backend only knows how to send one call.

Back-off lives here and not in the providers' clients, whose own retries are off: they also repeat calls that timed out,
which may have been paid, and they would do it outside the ledger.
"""

from __future__ import annotations

import copy
import json
import random
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, TypeAlias, TypeVar

from ..errors import InputError, JudgeError, SifmError, unknown
from ..types import Case, OnStep, State, Step, Verdict
from ..verdicts import QUESTIONS
from .cache import Cache, key_of
from .cases import case_problem
from .client import Client, JobClient, Reply
from .jobs import Jobs, over_cap
from .models import FREE, Price, read_models, same_model
from .rubric import PRESETS, Answer, Form, Part, parse, preset_hash
from .scores import CHANCE, averaged, failed, score

_LONGEST_WAIT = 60.0
"""Seconds between two attempts, at most."""
_HEARTBEAT = 0.5
"""Seconds between two calls of ``on_step``, at most."""
_REASONS, _RAW = 4000, 1 << 16
"""Characters of what a verdict says in words, and of the answers behind it, at most."""
_TOKEN_BYTES = 32
"""A token stands for at most so many bytes of a question, on the average."""

T = TypeVar("T")
Paid: TypeAlias = tuple[Reply, float | None]
"""A reply and what it cost in US dollars; None: unknown."""


@dataclass
class _Round:
    """What the threads of one call of ``judge`` share."""

    missing: Mapping[str, Reply] = field(default_factory=dict)
    """What was asked for in a job and has no answer."""
    asked: dict[str, Future[Paid]] = field(default_factory=dict)
    stop: threading.Event = field(default_factory=threading.Event)


class VlmJudge:
    """Asks a vision-language model the questions of a preset, for several cases at a time.

    - ``preset``: a name in :data:`sifm_core.judges.rubric.PRESETS` (None: the backend's own).
    - ``thresholds``: by axis, the probability of a ranked answer below which the edit failed (see :mod:`.scores`).
    - ``cache``: a file (or :class:`Cache`) that keeps answers and spending; None keeps them in memory only.
    - ``max_cost``: US dollars that everything in the cache, together, may cost at most.
    - ``prices``: a file with models and their prices that add to the shipped table or replace its entries.
    - ``repeat``: the number of this draw, where one question is to be asked several times.
    - ``offline``: send nothing, answer from the cache alone; needs no key.
    - ``resend_lost``: send calls again whose answer never arrived though they may have been paid (None: only where
      nothing is billed).
    - ``batch``: ask in jobs, cheaper and within a day, where the backend takes them; what has not ended after
      ``patience`` seconds stays unclear and is collected when the same is asked again, from the same cache.
    - ``concurrency``: calls under way at once; ``attempts`` per call; ``first_delay``: seconds before the second one,
      doubling from there.
    """

    def __init__(
        self,
        client: Client,
        *,
        name: str,
        preset: str | None = None,
        thresholds: Mapping[str, float] | None = None,
        cache: Any = None,
        max_cost: float | None = None,
        prices: Any = None,
        repeat: int = 0,
        offline: bool = False,
        resend_lost: bool | None = None,
        batch: bool = False,
        patience: float = 3600.0,
        concurrency: int = 4,
        attempts: int = 5,
        first_delay: float = 1.0,
    ) -> None:
        preset = preset or client.preset
        if preset not in PRESETS:
            raise unknown("judging preset", preset, PRESETS)
        if any(question.ranked for question in PRESETS[preset]) and not client.ranks:
            raise InputError(f"preset {preset}: {client.backend} judges do not say how likely their answers are")
        if not (concurrency >= 1 and attempts >= 1 and first_delay >= 0):
            raise InputError("expected concurrency >= 1, attempts >= 1 and first_delay >= 0")
        if max_cost is not None and not max_cost >= 0:
            raise InputError(f"max_cost: expected US dollars, 0 or more, got {max_cost}")
        if batch and not isinstance(client, JobClient):
            raise InputError(f"batch: {client.backend} judges take no jobs; leave it out")
        if not patience >= 0:
            raise InputError(f"patience: expected seconds, 0 or more, got {patience}")
        self.name = name
        self.client = client
        self.questions = PRESETS[preset]
        self._thresholds = dict.fromkeys(QUESTIONS, CHANCE) | dict(thresholds or {})
        self.prompt_hash = preset_hash(self.questions)
        self.cache = cache if isinstance(cache, Cache) else Cache(cache)
        self.max_cost = max_cost
        self._models = read_models(prices)
        self._batch = batch
        priced = self._price_of(client.model) is not None
        self._charged = [client.model]
        self._unpriced = ""
        self._repeat = repeat
        self._offline = offline
        if not offline:
            client.connect()
        self._resend_lost = not client.key if resend_lost is None else resend_lost
        self._patience = patience
        self.concurrency = concurrency
        self._attempts = attempts
        self._first_delay = first_delay
        self._lock = threading.Lock()
        self._not_before = 0.0
        self._warned: set[str] = set()
        for served in self.cache.served(name):
            self._heed(served)
        self._named = {"thresholds": dict(thresholds)} if thresholds else {}
        if max_cost is not None and not priced and not offline:
            raise JudgeError(
                f"max_cost needs a price to hold: none is known for {client.backend} model {client.model!r}; "
                f'give one with prices="FILE.toml" (the form is that of sifm_core/judges/models.toml)'
            )

    @property
    def served(self) -> str:
        """What else than the name this judge's answers depend on: part of what a run keeps them under."""
        config = dict(self.client.config)
        return key_of(config=config, prompt=self.prompt_hash, repeat=self._repeat, **self._named)[:12]

    def again(self) -> VlmJudge:
        """The same judge, by another draw of each answer."""
        other = copy.copy(self)
        other._repeat += 1
        return other

    def swapped(self) -> VlmJudge:
        """The same judge, shown the edited picture before its source."""
        other = copy.copy(self)
        other.questions = tuple(replace(question, swapped=not question.swapped) for question in self.questions)
        other.prompt_hash = preset_hash(other.questions)
        return other

    def at_most(self, cases: Sequence[Case]) -> float | None:
        """US dollars that judging these can cost, were nothing of it known yet; None where no price is known."""
        if self._price_of(self.client.model) is None:
            return None
        sound = [case for case in cases if not case_problem(case)]
        return sum(self._at_most(question.parts(case)) for case in sound for question in self.questions)

    def judge(self, cases: Sequence[Case], *, on_step: OnStep | None = None) -> list[Verdict]:
        round_ = _Round(self._ask_in_jobs(cases, on_step))
        return self._watched("judge", [partial(self._judge_one, case, round_) for case in cases], round_, on_step)

    def ask(self, parts: Sequence[Part], form: Form, *, on_step: OnStep | None = None) -> Reply:
        """The reply to any other question, with the same ledger, cap and back-off."""
        round_ = _Round()
        return self._watched("ask", [partial(self._once, parts, form, round_)], round_, on_step)[0][0]

    def _watched(self, phase: str, calls: Sequence[Callable[[], T]], round_: _Round, on_step: OnStep | None) -> list[T]:
        """The calls' results, several calls at a time; ``on_step`` is asked also while none ends, and may stop them."""
        with ThreadPoolExecutor(self.concurrency) as pool:
            futures = [pool.submit(call) for call in calls]
            waiting = set(futures)
            try:
                while waiting:
                    ended, waiting = wait(waiting, _HEARTBEAT, FIRST_COMPLETED)
                    for future in ended:
                        future.result()
                    if on_step:
                        on_step(Step(phase, len(calls) - len(waiting), len(calls)))
            except BaseException:  # calls under way finish and are recorded; nothing further is sent
                round_.stop.set()
                pool.shutdown(cancel_futures=True)
                raise
        return [future.result() for future in futures]

    def _ask_in_jobs(self, cases: Sequence[Case], on_step: OnStep | None) -> dict[str, Reply]:
        if not self._batch or self._offline or not isinstance(self.client, JobClient):
            return {}
        asked = {
            key: (case, question)
            for case in cases
            for question in (() if case_problem(case) else self.questions)
            if not self.cache.find(key := self._key(question.parts(case), question))
        }
        jobs = Jobs(
            self.client,
            self.cache,
            judge=self.name,
            at_most=self._at_most,
            cost=self._cost,
            cap=self.max_cost,
            patience=self._patience,
            attempts=self._attempts,
            first_delay=self._first_delay,
            heartbeat=_HEARTBEAT,
            closed=self._closed(),
            resend_lost=self._resend_lost,
        )
        return jobs.answer(asked, on_step)

    def _judge_one(self, case: Case, round_: _Round) -> Verdict:
        try:
            return self._answered(case, round_)
        except (SifmError, CancelledError):
            raise
        except Exception as error:  # one case costs one verdict, whatever nobody foresaw about it
            return self._verdict("error", [], reasons=f"{type(error).__name__}: {error}")

    def _answered(self, case: Case, round_: _Round) -> Verdict:
        if problem := case_problem(case):
            return self._verdict("error", [], reasons=problem)
        replies: list[Paid] = []
        answers: list[Answer] = []
        for question in self.questions:
            parts = question.parts(case)
            replies.append(self._once(parts, question, round_))
            reply = replies[-1][0]
            if reply.state != "ok":
                return self._verdict(reply.state, replies, reasons=f"{question.name}: {reply.reason}")
            try:
                answer = parse(reply.text, question.answer)
            except ValueError as error:
                return self._verdict("unparsable", replies, reasons=f"{question.name}: {error}")
            if answer.verdict == "cannot_judge":
                return self._verdict("refused", replies, reasons=f"{question.name}: cannot judge: {answer.reasons()}")
            answers.append(answer)
        found = {axis: value for answer in answers for axis, value in answer.findings().items()}
        scores = {axis: score(mean, self._thresholds[axis]) for axis, mean in averaged(answers).items()}
        return self._verdict(
            "ok",
            replies,
            reasons="\n".join(answer.reasons() for answer in answers),
            confidence=min(answer.confidence for answer in answers),
            scores=scores,
            **found | failed(scores),
        )

    def _verdict(self, state: State, replies: Sequence[Paid], *, reasons: str, **fields: Any) -> Verdict:
        served = " + ".join(dict.fromkeys(reply.served for reply, _ in replies if reply.served))
        others = [s for s in served.split(" + ") if s and not same_model(self.client.model, s)]
        notes = [self._rerouted(other) for other in others]
        if unsent := dict.fromkeys(name for reply, _ in replies for name in reply.unsent):
            refuses = "refuses, without saying which" if any(reply.unnamed for reply, _ in replies) else "refuses"
            notes.append(f"asked without {' and '.join(unsent)}, which {self.client.model} {refuses}")
        costs = [cost for _, cost in replies]
        raw = json.dumps([reply.text for reply, _ in replies], ensure_ascii=False) if replies else ""
        return Verdict(
            self.name,
            state,
            reasons=self.client.shown("\n".join([*notes, reasons]), _REASONS),
            raw=self.client.shown(raw, _RAW),
            model_requested=self.client.model,
            model_served=served,
            prompt_hash=self.prompt_hash,
            cost=None if None in costs else sum(cost or 0.0 for cost in costs),
            latency=sum(reply.seconds for reply, _ in replies),
            **fields,
        )

    def _rerouted(self, served: str) -> str:
        message = f"{self.client.model} was asked for, but {served} answered: these verdicts are the other model's"
        with self._lock:
            new = served not in self._warned
            self._warned.add(served)
        if new:
            warnings.warn(f"{self.name}: {message}", stacklevel=2)
        return message

    def _once(self, parts: Sequence[Part], form: Form, round_: _Round) -> Paid:
        """The reply to a question, which is asked once even if several cases share it."""
        key = self._key(parts, form)
        with self._lock:
            mine = key not in round_.asked
            future = round_.asked.setdefault(key, Future())
        if mine:
            try:
                future.set_result(self._ask(key, parts, form, round_))
            except BaseException as error:
                future.set_exception(error)
        return future.result()

    def _key(self, parts: Sequence[Part], form: Form) -> str:
        client = self.client
        return key_of(
            backend=client.backend,
            model=client.model,
            base_url=client.base_url,
            config=dict(client.config),
            prompt=form.hash,
            parts=list(parts),
            repeat=self._repeat,
        )

    def _ask(self, key: str, parts: Sequence[Part], form: Form, round_: _Round) -> Paid:
        if found := self.cache.find(key):
            reply = self.client.clean(Reply.of(found[0]))
            self._heed(reply.served)
            return reply, found[1]
        if missing := round_.missing.get(key):
            return missing, 0.0 if missing.billed == "no" else None
        if self._offline:
            return Reply("unreachable", reason="offline, and the cache holds no answer to this question"), 0.0
        if not self._resend_lost and self.cache.lost(key):
            why = "sent before, but no answer arrived (time-out, or the program was ended), and it may have been paid"
            return Reply("unreachable", reason=f"{why}: sent again only with resend_lost=True"), None
        not_before = 0.0
        for attempt in range(self._attempts):
            if round_.stop.wait(max(0.0, max(not_before, self._not_before) - time.monotonic())):
                raise CancelledError
            if closed := self._closed():
                return closed, 0.0
            at_most = self._at_most(parts)
            call = self.cache.reserve(key, judge=self.name, at_most=at_most, cap=self.max_cost)
            if call is None:
                return over_cap(self.max_cost, self.cache.spent(), at_most), 0.0
            reply = self._send(parts, form)
            if reply.billed == "yes":
                cost = self._cost(reply, parts)
                self.cache.settle(call, "answered", reply=asdict(reply), cost=cost)
                self._heed(reply.served)
                return reply, cost
            self.cache.settle(call, "lost" if reply.billed == "maybe" else "unpaid")
            if reply.wait is None or attempt == self._attempts - 1:
                break
            delay = max(reply.wait, self._first_delay * 2**attempt * random.uniform(0.75, 1.25))
            not_before = time.monotonic() + min(delay, _LONGEST_WAIT)
            if reply.wait:  # the server named a time: it is meant for every caller
                self._not_before = max(self._not_before, not_before)
        return reply, None if reply.billed == "maybe" and self.client.key else 0.0

    def _send(self, parts: Sequence[Part], form: Form) -> Reply:
        started = time.perf_counter()
        try:
            reply = self.client.send(parts, form)
        except Exception as error:  # what no backend foresaw still leaves a verdict, an unclear one
            reply = Reply("error", reason=f"{type(error).__name__}: {error}", billed="maybe")
        return replace(self.client.clean(reply), seconds=time.perf_counter() - started)

    def _heed(self, served: str) -> None:
        """From now on, reserve what the dearest of the models that answer may cost."""
        if served and not same_model(self.client.model, served):
            with self._lock:
                if self._price_of(served) is None:
                    self._unpriced = served
                elif served not in self._charged:
                    self._charged.append(served)

    def _closed(self) -> Reply | None:
        """Why nothing may be sent any more; None where something may."""
        if not self._unpriced or self.max_cost is None:
            return None
        why = f"{self._unpriced} answers in place of {self.client.model}, and its price is not known"
        reason = f"the cost cap of ${self.max_cost:g} cannot be held: {why}; give its price, or no cap"
        return Reply("error", reason=reason)

    def _price_of(self, model: str) -> Price | None:
        if not self.client.key:
            return FREE
        price = self._models.price(self.client.backend, model)
        return price.in_batch() if price and self._batch else price

    def _at_most(self, parts: Sequence[Part]) -> float:
        if not self.client.key:
            return 0.0
        limit = self.client.config["max_output_tokens"]
        prices = [price for model in self._charged for price in self._models.dearest(self.client.backend, model)]
        charged = (price.in_batch() if self._batch else price for price in prices)
        return max((price.at_most(*_weight(parts), limit) for price in charged), default=0.0)

    def _cost(self, reply: Reply, parts: Sequence[Part]) -> float | None:
        """US dollars; None where the price is unknown, or the server's figures cannot be those of such a call."""
        price = self._price_of(reply.served or self.client.model)
        if price is FREE:
            return 0.0
        if price is None or reply.tokens is None:
            return None
        text, pictures = _weight(parts)
        (read, written), limit = reply.tokens, self.client.config["max_output_tokens"]
        if not len(text.encode()) // _TOKEN_BYTES < read <= price.most_tokens(text, pictures):
            return None
        return price.cost(read, written) if bool(reply.text) <= written <= limit else None


def _weight(parts: Sequence[Part]) -> tuple[str, int]:
    """The text of a question, and how many pictures it has."""
    return "".join(p for p in parts if isinstance(p, str)), sum(isinstance(p, bytes) for p in parts)
