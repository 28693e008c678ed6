"""The loop that every vision-language judge shares: ask, check, record. A backend only knows how to send one call.

Back-off lives here and not in the providers' clients, whose own retries are off: they also repeat calls that timed out,
which may have been paid, and they would do it outside the ledger.
"""

from __future__ import annotations

import json
import random
import re
import threading
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Literal, TypeAlias

from ..errors import InputError, JudgeError, unknown
from ..types import Case, OnStep, State, Step, Verdict
from .cache import Cache, key_of
from .cases import case_problem
from .prices import FREE, Price, read_prices
from .rubric import PRESETS, Answer, Part, Question, parse, preset_hash

_LONGEST_WAIT = 60.0
"""Seconds between two attempts, at most."""


@dataclass(frozen=True)
class Reply:
    """What one attempt to send a call brought back.

    ``state`` "ok" means that text arrived, not that it is an answer; ``tokens`` (in, out with thinking); ``billed``:
    whether it was paid; ``wait``: None if the reply is final, else the seconds that the server asks to wait, or 0.
    """

    state: State
    text: str = ""
    reason: str = ""
    served: str = ""
    tokens: tuple[int, int] | None = None
    billed: Literal["yes", "no", "maybe"] = "no"
    wait: float | None = None
    seconds: float = 0.0


Paid: TypeAlias = tuple[Reply, float | None]
"""A reply and what it cost in US dollars; None: unknown."""


@dataclass
class _Round:
    """What the threads of one call of ``judge`` share."""

    asked: dict[str, Future[Paid]] = field(default_factory=dict)
    stop: threading.Event = field(default_factory=threading.Event)


class Client(ABC):
    """A backend: how to send one call.

    ``config``: everything besides the question that the answer depends on; ``key``: the provider's, kept out of all
    that is written ("": none is used, and nothing is billed); ``timeout`` in seconds.
    """

    backend: ClassVar[str]

    def __init__(self, model: str, base_url: str, key: str, *, config: Mapping[str, Any], timeout: float) -> None:
        self.model, self.base_url, self.key = model, base_url, key
        self.config, self.timeout = config, timeout

    @abstractmethod
    def connect(self) -> None:
        """Get ready to send; raises JudgeError where the provider's package is missing."""

    @abstractmethod
    def send(self, parts: Sequence[Part], question: Question) -> Reply:
        """One attempt; every failure that can be told apart is a Reply, not an exception."""


class VlmJudge:
    """Asks a vision-language model the questions of a preset, for several cases at a time.

    - ``preset``: a name in :data:`sifm_core.judges.rubric.PRESETS`.
    - ``cache``: a file (or :class:`Cache`) that keeps answers and spending; None keeps them in memory only.
    - ``max_cost``: US dollars that everything in the cache, together, may cost at most.
    - ``prices``: a file with prices that add to the shipped table or replace its entries.
    - ``repeat``: the number of this draw, where one question is to be asked several times.
    - ``offline``: send nothing, answer from the cache alone; needs no key.
    - ``resend_lost``: send calls again whose answer never arrived though they may have been paid (None: only where
      nothing is billed).
    - ``concurrency``: calls under way at once; ``attempts`` per call; ``first_delay``: seconds before the second one,
      doubling from there.
    """

    def __init__(
        self,
        client: Client,
        *,
        name: str,
        preset: str = "default",
        cache: Any = None,
        max_cost: float | None = None,
        prices: Any = None,
        repeat: int = 0,
        offline: bool = False,
        resend_lost: bool | None = None,
        concurrency: int = 4,
        attempts: int = 5,
        first_delay: float = 1.0,
    ) -> None:
        if preset not in PRESETS:
            raise unknown("judging preset", preset, PRESETS)
        if concurrency < 1 or attempts < 1 or first_delay < 0:
            raise InputError("expected concurrency >= 1, attempts >= 1 and first_delay >= 0")
        if max_cost is not None and not max_cost >= 0:
            raise InputError(f"max_cost: expected US dollars, 0 or more, got {max_cost}")
        self.name = name
        self.client = client
        self.questions = PRESETS[preset]
        self.prompt_hash = preset_hash(self.questions)
        self.cache = cache if isinstance(cache, Cache) else Cache(cache)
        self.max_cost = max_cost
        self._prices = read_prices(prices)
        self._price = self._price_of(client.model)
        self._repeat = repeat
        self._offline = offline
        if not offline:
            client.connect()
        self._resend_lost = not client.key if resend_lost is None else resend_lost
        self._concurrency = concurrency
        self._attempts = attempts
        self._first_delay = first_delay
        self._lock = threading.Lock()
        self._not_before = 0.0
        self._warned: set[str] = set()
        if max_cost is not None and self._price is None and not offline:
            raise JudgeError(
                f"max_cost needs a price to hold: none is known for {client.backend} model {client.model!r}; "
                f'give one with prices="FILE.toml" (the form is that of sifm_core/judges/prices.toml)'
            )

    def judge(self, cases: Sequence[Case], *, on_step: OnStep | None = None) -> list[Verdict]:
        round_ = _Round()
        with ThreadPoolExecutor(self._concurrency) as pool:
            futures = [pool.submit(self._judge_one, case, round_) for case in cases]
            try:
                for done, future in enumerate(as_completed(futures), 1):
                    future.result()
                    if on_step:
                        on_step(Step("judge", done, len(cases)))
            except BaseException:  # calls under way finish and are recorded; nothing further is sent
                round_.stop.set()
                pool.shutdown(cancel_futures=True)
                raise
        return [future.result() for future in futures]

    def _judge_one(self, case: Case, round_: _Round) -> Verdict:
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
        return self._verdict(
            "ok",
            replies,
            reasons="\n".join(answer.reasons() for answer in answers),
            confidence=min(answer.confidence for answer in answers),
            **found,
        )

    def _verdict(self, state: State, replies: Sequence[Paid], *, reasons: str, **fields: Any) -> Verdict:
        served = " + ".join(dict.fromkeys(reply.served for reply, _ in replies if reply.served))
        others = [s for s in served.split(" + ") if s and not same_model(self.client.model, s)]
        costs = [cost for _, cost in replies]
        return Verdict(
            self.name,
            state,
            reasons="\n".join([*(self._rerouted(other) for other in others), reasons]),
            raw=json.dumps([reply.text for reply, _ in replies], ensure_ascii=False) if replies else "",
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

    def _once(self, parts: Sequence[Part], question: Question, round_: _Round) -> Paid:
        """The reply to a question, which is asked once even if several cases share it."""
        client = self.client
        key = key_of(
            backend=client.backend,
            model=client.model,
            base_url=client.base_url,
            config=dict(client.config),
            prompt=question.hash,
            parts=list(parts),
            repeat=self._repeat,
        )
        with self._lock:
            mine = key not in round_.asked
            future = round_.asked.setdefault(key, Future())
        if mine:
            try:
                future.set_result(self._ask(key, parts, question, round_))
            except BaseException as error:
                future.set_exception(error)
        return future.result()

    def _ask(self, key: str, parts: Sequence[Part], question: Question, round_: _Round) -> Paid:
        if found := self.cache.find(key):
            return Reply(**found[0]), found[1]
        if self._offline:
            return Reply("unreachable", reason="offline, and the cache holds no answer to this question"), 0.0
        if not self._resend_lost and self.cache.lost(key):
            why = "sent before, but no answer arrived (time-out, or the program was ended), and it may have been paid"
            return Reply("unreachable", reason=f"{why}: sent again only with resend_lost=True"), None
        at_most, not_before = self._at_most(parts), 0.0
        for attempt in range(self._attempts):
            if round_.stop.wait(max(0.0, max(not_before, self._not_before) - time.monotonic())):
                raise CancelledError
            call = self.cache.reserve(key, judge=self.name, at_most=at_most, cap=self.max_cost)
            if call is None:
                why = f"${self.cache.spent():.4f} spent, and this call could cost ${at_most:.4f}"
                return Reply("error", reason=f"the cost cap of ${self.max_cost:g} is reached: {why}"), 0.0
            reply = self._send(parts, question)
            if reply.billed == "yes":
                cost = self._cost(reply)
                self.cache.settle(call, "answered", reply=asdict(reply), cost=cost)
                return reply, cost
            self.cache.settle(call, "lost" if reply.billed == "maybe" else "unpaid")
            if reply.wait is None or attempt == self._attempts - 1:
                break
            wait = max(reply.wait, self._first_delay * 2**attempt * random.uniform(0.75, 1.25))
            not_before = time.monotonic() + min(wait, _LONGEST_WAIT)
            if reply.wait:  # the server named a time: it is meant for every caller
                self._not_before = max(self._not_before, not_before)
        return reply, None if reply.billed == "maybe" else 0.0

    def _send(self, parts: Sequence[Part], question: Question) -> Reply:
        started = time.perf_counter()
        try:
            reply = self.client.send(parts, question)
        except Exception as error:  # what no backend foresaw still leaves a verdict, an unclear one
            reply = Reply("error", reason=f"{type(error).__name__}: {error}", billed="maybe")
        return replace(
            reply,
            text=redact(reply.text, self.client.key),
            reason=redact(reply.reason, self.client.key),
            served=redact(reply.served, self.client.key),
            seconds=time.perf_counter() - started,
        )

    def _price_of(self, model: str) -> Price | None:
        if not self.client.key:
            return FREE
        known = (name for backend, name in self._prices if backend == self.client.backend and same_model(name, model))
        name = next(known, None)
        return None if name is None else self._prices[self.client.backend, name]

    def _at_most(self, parts: Sequence[Part]) -> float:
        if self._price is None:
            return 0.0
        text = "".join(part for part in parts if isinstance(part, str))
        pictures = sum(isinstance(part, bytes) for part in parts)
        return self._price.at_most(text, pictures, self.client.config["max_output_tokens"])

    def _cost(self, reply: Reply) -> float | None:
        price = self._price_of(reply.served or self.client.model)
        return None if price is None or reply.tokens is None else price.cost(*reply.tokens)


def same_model(requested: str, served: str) -> bool:
    """Whether ``served`` is ``requested`` itself or a dated or numbered version of it, such as -001 or -2026-10-07."""
    return re.fullmatch(re.escape(requested) + r"(-\d+)*", served) is not None


def redact(text: str, key: str) -> str:
    """``text`` without the key, which a server may echo."""
    return text.replace(key, "[key]") if key else text


def http_failure(code: int, message: str, retry_after: float = 0.0) -> Reply:
    """The reply that an HTTP status other than 200 means. Providers do not bill these."""
    reason = f"HTTP {code}: {message[:500]}"
    if code in (401, 403) or (code == 400 and "api key" in message.lower()):
        return Reply("missing_key", reason=f"the key was refused ({reason})")
    if code in (408, 425, 429) or code >= 500:
        return Reply("unreachable", reason=reason, wait=retry_after)
    return Reply("error", reason=reason)


def transport_failure(error: BaseException) -> Reply | None:
    """The reply that a failure below HTTP means, or None if it is none. Told by class name: two httpx are about."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    reason = f"{type(error).__name__}: {error}"
    if kinds & {"ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError", "UnsupportedProtocol"}:
        return Reply("unreachable", reason=f"no connection ({reason})", wait=0.0)
    if kinds & {"TimeoutException", "TransportError"}:
        return Reply("unreachable", reason=f"the call was sent, but no answer arrived ({reason})", billed="maybe")
    return None


def environment_key(names: Sequence[str], environ: Mapping[str, str]) -> str:
    """The first of these variables that is set, or ""."""
    return next((environ[name].strip() for name in names if environ.get(name, "").strip()), "")


def check_base_url(base_url: str) -> str:
    """``base_url`` without a trailing slash; refused where it could carry a key, because it is written into records."""
    if re.search(r"//[^/]*@|[?#]", base_url):
        raise InputError("base_url: expected http(s)://host[:port]/path, but got one with a user, password or query")
    return base_url.rstrip("/")
