"""The guard: policy, then model and evidence, then threshold; a step in, a decision per call out. One that fails refuses."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import random
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal

from langchain_core.messages import AIMessage, convert_to_messages

from mosaic_guard._deadline import Deadline, GuardTimeoutError
from mosaic_guard._decision import Call, Decision, Source, Step, Verdict
from mosaic_guard._digest import messages_digest
from mosaic_guard._errors import GuardWarning
from mosaic_guard._evidence import explain, gather_evidence
from mosaic_guard._evidence_model import EvidenceModel
from mosaic_guard._evidence_numbers import evidence_numbers
from mosaic_guard._final_answer import FINAL
from mosaic_guard._guard_options import check_names_a_model, check_number, limits_of, policy_of
from mosaic_guard._policy import Policy
from mosaic_guard._refusals import call_subject, standing_refusals
from mosaic_guard._transcript import (
    JudgedStep,
    Kind,
    Limits,
    Prompt,
    Turn,
    build_prompt,
    step_end,
    summary_line,
)
from mosaic_guard.models.guard_model import Checked, GuardModel, Planned

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel
    from langchain_core.messages import MessageLikeRepresentation
    from langchain_core.tools import BaseTool

Check = Literal["adaptive", "always", "never"]
PlanMode = Literal["written", "computed"]


@dataclass(frozen=True)
class Plan:
    """What `Guard.plan` found out about a step, to be handed to `Guard.check`.

    Attributes:
        think: The plan text; empty where the model was not asked.
        planned: The model's unfinished turn; None where it was not asked or failed.
        error: Why there is no plan.
        seconds: Time it took.
    """

    think: str = ""
    planned: Planned | None = None
    error: str | None = None
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """The form that checkpoints hold."""
        p = self.planned
        planned = p and {"think": p.think, "turns": [turn.to_dict() for turn in p.turns], "state": p.state}
        return {"think": self.think, "planned": planned, "error": self.error, "seconds": self.seconds}

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Plan:
        """Read what `to_dict` wrote."""
        p = record["planned"]
        planned = p and Planned(p["think"], tuple(map(Turn.from_dict, p["turns"])), p["state"])
        return cls(**{**record, "planned": planned})


@dataclass(frozen=True)
class Judgement:
    """What `Guard.check` decided about a step.

    Attributes:
        decisions: One per call, in order.
        think: The plan text.
        safety_thoughts: The safety block; None where the model did not open one.
        judged: What the thread remembers of the step; None where the model was not asked or failed.
        seconds: Time that `plan` and `check` took.
    """

    decisions: tuple[Decision, ...]
    think: str = ""
    safety_thoughts: str | None = None
    judged: JudgedStep | None = None
    seconds: dict[str, float] = field(default_factory=dict)


_LOG = logging.getLogger("mosaic_guard")


class Guard:
    """Turns a step into decisions.

    Args:
        model: A `GuardModel`; a LangChain chat model; a path or hub id of a causal language model; None for the guard that
            comes with the package (SmolLM2-135M-Instruct with an adapter, run in this process), which brings its own defaults
            for `threshold`, `check`, `plan`, `limits` and `evidence_model`.
        policy: Rules that are evaluated before the model: a `Policy`, or the path of a file that holds one.
        threshold: A call is refused where the probability of refusal reaches it. In (0, 1]. Default 0.5.
        ask_threshold: Where the probability reaches this but not `threshold`, a person decides (`ask`). In (0, threshold].
            Default: nobody is asked.
        check: Whether the safety block is the model's choice (`adaptive`, the default), always there, or never.
        plan: Whether the model writes its plan (the default), or begins with one that is computed from the evidence
            (`computed`), which is read and not written, and so costs less time. A chat model writes its whole turn in any case.
        sample: Draw from the model's probabilities instead of taking the likelier: `"decisions"` for the decisions, `True`
            for its text as well. For roll-outs to train on, not for protection.
        seed: Makes sampling repeatable.
        on_error: What becomes of a call that the guard fails to judge: `refuse`, `ask` (a person decides), or `act`, which lets
            it through with a `GuardWarning` each time.
        timeout: Most seconds that `plan` and `check` of one step may take together; after that the guard has failed to judge
            it. None for no limit. A synchronous call then runs in a thread of its own; a model that does not look at
            `Prompt.deadline` goes on there, unheard.
        limits: Sizes in tokens: `Limits`, or those of its fields that are not the defaults.
        evidence_model: What weighs the model's probability with the call's evidence read as numbers: an `EvidenceModel`, or
            the text of one, as manifests hold it; empty for none. It is not used where `sample` is set.

    Raises:
        MissingExtraError: If the model needs packages that are not installed.
        ModelLoadError: If the model cannot be loaded.
        FileNotFoundError: If there is no such policy file, or no such directory of a model.
        PolicyError: If the policy's file cannot be read, or says something that can never match.
        ValueError: For a threshold outside (0, 1], a timeout that is not positive, an unknown option or an evidence model that
            this version cannot read.
        TypeError: For an option of another type.
    """

    def __init__(
        self,
        model: GuardModel | BaseChatModel | str | os.PathLike[str] | None = None,
        *,
        policy: Policy | str | os.PathLike[str] | None = None,
        threshold: float | None = None,
        ask_threshold: float | None = None,
        check: Check | None = None,
        plan: PlanMode | None = None,
        sample: bool | Literal["decisions"] = False,
        seed: int | None = None,
        on_error: Literal["refuse", "ask", "act"] = "refuse",
        timeout: float | None = None,
        limits: Limits | Mapping[str, int] | None = None,
        evidence_model: EvidenceModel | str | None = None,
    ) -> None:
        own: Mapping[str, Any] = {}
        if model is None:
            model, own = _named("default")
        threshold = own.get("threshold", 0.5) if threshold is None else threshold
        check = own.get("check", "adaptive") if check is None else check
        plan = own.get("plan", "written") if plan is None else plan
        limits = own.get("limits") if limits is None else limits
        evidence_model = own.get("evidence_model") if evidence_model is None else evidence_model
        check_number("threshold", threshold)
        check_number("ask_threshold", ask_threshold)
        check_number("timeout", timeout)
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold is a probability in (0, 1], not {threshold!r}")
        if ask_threshold is not None and not 0 < ask_threshold <= threshold:
            raise ValueError(
                f"ask_threshold is a probability in (0, {threshold}] (the threshold), not {ask_threshold!r}"
            )
        if check not in ("adaptive", "always", "never"):
            raise ValueError(f"check is 'adaptive', 'always' or 'never', not {check!r}")
        if plan not in ("written", "computed"):
            raise ValueError(f"plan is 'written' or 'computed', not {plan!r}")
        if sample not in (False, True, "decisions"):
            raise ValueError(f"sample is False, True or 'decisions', not {sample!r}")
        if on_error not in ("refuse", "ask", "act"):
            raise ValueError(f"on_error is 'refuse', 'ask' or 'act', not {on_error!r}")
        if timeout is not None and not timeout > 0:
            raise ValueError(f"timeout is a number of seconds above 0, or None, not {timeout!r}")
        # Before a model is loaded.
        if isinstance(evidence_model, str):
            evidence_model = EvidenceModel.from_text(evidence_model) if evidence_model else None
        if not isinstance(evidence_model, (EvidenceModel, NoneType)):
            raise TypeError(
                f"evidence_model is an EvidenceModel or the text of one, not {type(evidence_model).__name__}"
            )
        self.limits = limits_of(limits)
        self.evidence_model = evidence_model
        self.policy = policy_of(policy)
        self.model = _model(model)
        self.threshold = threshold
        self.ask_threshold = ask_threshold
        self.check_mode: Check = check
        self.plan_mode: PlanMode = plan if self.model.computes_plans else "written"
        self.sample: bool | Literal["decisions"] = sample
        self.seed = random.SystemRandom().getrandbits(32) if seed is None else seed
        self.on_error = on_error
        self.timeout = timeout

    @classmethod
    def load(cls, path: str | os.PathLike[str] = "default", **options: Any) -> Guard:
        """The default guard, its base model without any training, or a guard that `mosaic_guard.train` wrote.

        Args:
            path: `"default"`, `"untrained"`, or a directory with a `manifest.json`.
            **options: As for `Guard`; they win over what the manifest says.

        Raises:
            FileNotFoundError: If the directory holds no guard.
            ValueError: If its manifest cannot be read, or its evidence model is of another version.
        """
        model, own = _named(path)
        return cls(model, **{**own, **options})

    def describe(self) -> dict[str, Any]:
        """What a trace's header says about the guard."""
        return {
            **self.model.describe(),
            "check": self.check_mode,
            "plan": self.plan_mode,
            "limits": asdict(self.limits),
            "threshold": self.threshold,
            "sample": self.sample,
            "evidence_model": self.evidence_model.to_text() if self.evidence_model else "",
        }

    def __repr__(self) -> str:
        return (
            f"<Guard {self.model.name}, threshold {self.threshold}, check {self.check_mode!r}, plan {self.plan_mode!r}>"
        )

    def judge(self, messages: Sequence[MessageLikeRepresentation], tools: Sequence[BaseTool] = ()) -> Judgement:
        """Judge the calls that a conversation ends with, without a graph; never raises for what a guard fails at.

        Args:
            messages: The conversation in any form that LangChain reads, up to the AI message that proposes the calls.
            tools: The tools that the agent has. What they say of themselves is read, and none is run.

        Raises:
            ValueError: If the last AI message proposes no call.
        """
        step = _last_step(messages, tools)
        return self.check(step, self.plan(step))

    async def ajudge(self, messages: Sequence[MessageLikeRepresentation], tools: Sequence[BaseTool] = ()) -> Judgement:
        """`judge` for event loops."""
        step = _last_step(messages, tools)
        return await self.acheck(step, await self.aplan(step))

    def plan(self, step: Step, history: Sequence[JudgedStep] = (), *, key: str = "") -> Plan:
        """State what the user wants and what the calls would do; never raises.

        Args:
            step: The step; its evidence is computed if it has none.
            history: The steps of the thread that were judged before.
            key: Distinguishes this step from others when sampling is repeatable.
        """
        started, deadline = time.perf_counter(), Deadline(self.timeout)
        try:
            if self._settled(step):
                return Plan()
            planned = _is_planned(deadline.run(lambda: self.model.plan(self._prompt(step, history, key, deadline))))
        except Exception as error:
            return Plan(error=_said(error), seconds=time.perf_counter() - started)
        return Plan(planned.think, planned, seconds=time.perf_counter() - started)

    async def aplan(self, step: Step, history: Sequence[JudgedStep] = (), *, key: str = "") -> Plan:
        """`plan` for event loops."""
        started, deadline = time.perf_counter(), Deadline(self.timeout)
        try:
            if self._settled(step):
                return Plan()
            said = await deadline.arun(lambda: self.model.aplan(self._prompt(step, history, key, deadline)))
            planned = _is_planned(said)
        except Exception as error:
            return Plan(error=_said(error), seconds=time.perf_counter() - started)
        return Plan(planned.think, planned, seconds=time.perf_counter() - started)

    def check(
        self, step: Step, plan: Plan, history: Sequence[JudgedStep] = (), *, key: str = "", number: int = 0
    ) -> Judgement:
        """Decide about each call of a step; never raises.

        Args:
            step: The step that `plan` saw.
            plan: What `plan` returned.
            history: What `plan` got.
            key: What `plan` got.
            number: The step's number in its trajectory.
        """
        checking = _Checking(self, step, plan, history, key, number)
        if plan.planned is not None and not checking.failed:
            with checking.failure():
                asked, planned = self.model.check, plan.planned
                checking.finish(checking.deadline.run(lambda: asked(checking.prompt(), planned, checking.decide)))
        return checking.judgement()

    async def acheck(
        self, step: Step, plan: Plan, history: Sequence[JudgedStep] = (), *, key: str = "", number: int = 0
    ) -> Judgement:
        """`check` for event loops."""
        checking = _Checking(self, step, plan, history, key, number)
        if plan.planned is not None and not checking.failed:
            with checking.failure():
                asked, planned = self.model.acheck, plan.planned
                checking.finish(
                    await checking.deadline.arun(lambda: asked(checking.prompt(), planned, checking.decide))
                )
        return checking.judgement()

    def lets_all_act(self, step: Step) -> bool:
        """Whether the policy alone lets every call of a step act; False where it fails to say."""
        try:
            rules = [self.policy.decide(call, step) for call in step.calls]
        except Exception:
            return False
        return len(rules) <= self.limits.calls and all(rule is not None and rule.verdict == "act" for rule in rules)

    def _settled(self, step: Step) -> bool:
        """Whether no model is needed: every call decided by a rule, or more calls than are judged."""
        return len(step.calls) > self.limits.calls or all(self.policy.decide(call, step) for call in step.calls)

    def _prompt(self, step: Step, history: Sequence[JudgedStep], key: str, deadline: Deadline | None = None) -> Prompt:
        if not step.evidence:
            step = replace(step, evidence=gather_evidence(step.heard, step.calls))
        prompt = build_prompt(
            step,
            history,
            model=self.model.name,
            count=self.model.count,
            window=self.model.window,
            limits=self.limits,
            operator=self.policy.text,
            check=self.check_mode,
            plan=self.plan_mode,
        )
        seed = self.step_seed(key) if self.sample is True else None
        return replace(prompt, seed=seed, deadline=deadline)

    def step_seed(self, key: str) -> int:
        """The seed of one step's sampling, from the guard's seed and the step's key."""
        return int.from_bytes(hashlib.sha256(f"{self.seed}\0{key}".encode()).digest()[:8])


class _Checking:
    """One run of `check`: collects decisions, and turns any failure into refusals."""

    def __init__(
        self, guard: Guard, step: Step, plan: Plan, history: Sequence[JudgedStep], key: str, number: int
    ) -> None:
        self._started = time.perf_counter()
        self._guard, self._step, self._plan, self._history = guard, step, plan, history
        self._key, self._number = key, number
        self.deadline = Deadline(guard.timeout, used=plan.seconds)
        self._error = plan.error
        self._decisions: dict[int, Decision] = {}
        self._prompt: Prompt | None = None
        self._checked: Checked | None = None
        self._random = random.Random(guard.step_seed(f"{key}\0check"))
        # A guard that samples roll-outs to train on is to be seen as it is.
        self._standing = standing_refusals(step.heard) if plan.planned is not None and not guard.sample else frozenset()
        self._rules: list[Decision | None] = [None] * len(step.calls)
        for index, call in enumerate(step.calls):
            # Each by itself: a rule that fails on one call takes no refusal from another, whatever `on_error` says.
            with self.failure():
                self._rules[index] = guard.policy.decide(call, step)
        with self.failure():
            # Where no model is asked nothing reads it, and it costs a search through the whole history.
            if plan.planned is not None and not step.evidence:
                self._step = replace(step, evidence=gather_evidence(step.heard, step.calls))
        # Before a model that others wait for is held.
        self._numbers: list[tuple[float, ...] | None] = [None] * len(step.calls)
        with self.failure():
            if plan.planned is not None and guard.evidence_model and not guard.sample:
                self._numbers = [self._read(index) for index in range(len(step.calls))]

    @property
    def failed(self) -> bool:
        return self._error is not None

    def prompt(self) -> Prompt:
        self._prompt = self._prompt or self._guard._prompt(self._step, self._history, self._key, self.deadline)
        return self._prompt

    @contextmanager
    def failure(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._error = _said(error)
            self._decisions.clear()
            self._checked = None

    def decide(self, index: int, p_refuse: float) -> tuple[Verdict, Kind]:
        """The verdict of a call, and who chose it: the `Decide` that the model calls."""
        self.deadline.check()
        if index != len(self._decisions) or index >= len(self._step.calls):
            raise ValueError(f"the model decided call {index + 1} out of order")
        if not (math.isfinite(p_refuse) and 0 <= p_refuse <= 1):
            raise ValueError(f"the model's probability of refusal is {p_refuse!r}")
        weighed = self._weighed(index, float(p_refuse))
        verdict, source = self._choose(index, weighed, _own(p_refuse))
        reason = self._reason(index, verdict) if source != "policy" else self._rules[index].reason  # type: ignore[union-attr]
        self._decisions[index] = Decision(index, verdict, reason, weighed, source)
        if verdict == "ask":  # a person decides, later: the transcript says what the model itself would have
            return _own(p_refuse), "sampled"
        return verdict, "sampled" if source == "model" else "overridden"

    def _weighed(self, index: int, p_refuse: float) -> float:
        """The probability of refusal that decides."""
        weigher, numbers = self._guard.evidence_model, self._numbers[index]
        return p_refuse if weigher is None or numbers is None else weigher.weigh(p_refuse, numbers)

    def _read(self, index: int) -> tuple[float, ...] | None:
        """What an evidence model reads of a call; None of one that a rule decides, and of an answer: no tool runs there."""
        call = self._step.calls[index]
        if self._rules[index] is not None or call.name == FINAL:
            return None
        return evidence_numbers(self._step.heard, call, self._step.evidence[index])

    def _choose(self, index: int, p_refuse: float, own: Verdict) -> tuple[Verdict, Source]:
        rule = self._rules[index]
        if rule is not None:
            return rule.verdict, "policy"
        # Identical calls of a step cannot be told apart at the gate, so they share the first one's verdict.
        digest = self._step.calls[index].digest
        for earlier in range(index):
            if self._step.calls[earlier].digest == digest:
                return self._decisions[earlier].verdict, "threshold"
        if self._stands(index):
            return "refuse", "threshold"
        if self._guard.sample:
            return ("refuse" if self._random.random() < p_refuse else "act"), "model"
        verdict: Verdict = "refuse" if p_refuse >= self._guard.threshold else "act"
        if verdict == "act" and self._guard.ask_threshold is not None and p_refuse >= self._guard.ask_threshold:
            return "ask", "threshold"
        return verdict, "model" if verdict == own else "threshold"

    def _stands(self, index: int) -> bool:
        """Whether the guard has refused the same call since a human last spoke."""
        call = self._step.calls[index]
        return bool(self._standing) and call_subject(call.name, call.args) in self._standing

    def _reason(self, index: int, verdict: Verdict) -> str:
        if verdict == "act":
            return ""
        why = explain(self._step.calls[index], self._step.evidence[index])
        return f"{why}; it was refused before, and nobody has asked for it since" if self._stands(index) else why

    def finish(self, checked: Checked) -> None:
        if not isinstance(checked, Checked):
            raise TypeError(f"the guard model's check returned {type(checked).__name__}, not Checked")
        if len(self._decisions) != len(self._step.calls):
            raise ValueError(f"the model decided {len(self._decisions)} of {len(self._step.calls)} calls")
        self._checked = checked

    def judgement(self) -> Judgement:
        calls = self._step.calls
        if self._checked is None:
            decisions = tuple(self._fallback(i) for i in range(len(calls)))
        else:
            decisions = tuple(self._decisions[i] for i in range(len(calls)))
        seconds = {"plan": round(self._plan.seconds, 4), "check": round(time.perf_counter() - self._started, 4)}
        safety = self._checked.safety_thoughts if self._checked else None
        return Judgement(decisions, self._plan.think, safety, self._judged(decisions), seconds)

    def _fallback(self, index: int) -> Decision:
        """The decision without a model: the rule that matches, else the guard has failed."""
        rule = self._rules[index]
        if rule is not None:
            return rule
        limit, name, number = self._guard.limits.calls, self._step.calls[index].name, len(self._step.calls)
        if number > limit:  # no failure of the guard: whoever wants its calls unjudged would propose many
            reason = (
                f"the step has {number} calls, more than the {limit} that are judged at once: propose fewer at a time"
            )
            return Decision(index, "ask" if self._guard.on_error == "ask" else "refuse", reason, source="error")
        error = self._error or "it has no plan"
        if self._guard.on_error == "act":
            warnings.warn(f"the guard failed ({error}); on_error='act' lets {name} through", GuardWarning, stacklevel=2)
            return Decision(index, "act", f"let through although the guard failed: {error}", source="error")
        # Who runs the agent reads neither its messages nor the decisions.
        _LOG.warning("the guard failed to judge a call of %s: %s", name, error)
        return Decision(index, self._guard.on_error, f"the guard could not judge this call: {error}", source="error")

    def _judged(self, decisions: tuple[Decision, ...]) -> JudgedStep | None:
        if self._checked is None:
            return None
        messages = self._step.messages
        seen = step_end(messages)
        return JudgedStep(
            step=self._number,
            segment=self.prompt().segment,
            model=self._guard.model.name,
            seen=seen,
            digest=messages_digest(messages[:seen]),
            turns=self._checked.turns,
            summary=summary_line(self._number, self._step.calls, decisions),
        )


def _last_step(messages: Sequence[MessageLikeRepresentation], tools: Sequence[BaseTool]) -> Step:
    """The step that a conversation ends with."""
    history = convert_to_messages(messages)
    last = next((message for message in reversed(history) if isinstance(message, AIMessage)), None)
    if last is None or not last.tool_calls:
        raise ValueError("the last AI message of the conversation proposes no tool call: there is nothing to judge")
    calls = [Call(at, call.get("id"), call["name"], call["args"]) for at, call in enumerate(last.tool_calls)]
    return Step(history, calls, {tool.name: tool for tool in tools})


def as_guard(guard: Any) -> Guard:
    """A guard, or the default one for None.

    Raises:
        TypeError: If it is something else.
    """
    if guard is None:
        return Guard.load("default")
    if not isinstance(guard, Guard):
        shown = f"the class {guard.__name__}" if isinstance(guard, type) else repr(guard)[:80]
        raise TypeError(f"guard is a Guard, such as Guard(), Guard(model) or Guard.load(directory), not {shown}")
    return guard


def _own(p_refuse: float) -> Verdict:
    """The likelier verdict."""
    return "refuse" if p_refuse >= 0.5 else "act"


def _is_planned(planned: Any) -> Planned:
    if not isinstance(planned, Planned) or not isinstance(planned.think, str):
        raise TypeError(f"the guard model's plan returned {type(planned).__name__}, not Planned with a text")
    return planned


def _said(error: Exception) -> str:
    if isinstance(error, GuardTimeoutError):
        return str(error)
    return f"{type(error).__name__}: {error}"[:300]


def _named(name: str | os.PathLike[str]) -> tuple[GuardModel, Mapping[str, Any]]:
    """The model of a guard, and the options of `Guard` that it is for; `name` as for `Guard.load`."""
    from mosaic_guard.models.manifest import find_guard

    found = find_guard(name)
    from mosaic_guard.models.local import LocalGuardModel

    return LocalGuardModel(found.base_model, adapter=found.adapter), found.guard_options


def _model(model: Any) -> GuardModel:
    if isinstance(model, GuardModel):
        return model
    from langchain_core.language_models import BaseChatModel

    if isinstance(model, BaseChatModel):
        from mosaic_guard.models.chat import ChatGuardModel

        return ChatGuardModel(model)
    if isinstance(model, (str, os.PathLike)):
        check_names_a_model(model)
        from mosaic_guard.models.local import LocalGuardModel

        return LocalGuardModel(model)
    raise TypeError(f"a guard model is a GuardModel, a chat model or the path of a language model, not {model!r}")
