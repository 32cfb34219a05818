"""What a judged step leaves: clearances and what a person decides, the count of refusals, the history, the log, the events."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from langchain_core.runnables import RunnableConfig
from langgraph.config import get_stream_writer

from mosaic_guard._ask import Answer
from mosaic_guard._channel import CHECKPOINTER, Channel, channel_of
from mosaic_guard._decision import Decision
from mosaic_guard._evidence import REJECTED
from mosaic_guard._guard import Guard, Judgement, Plan
from mosaic_guard._hold import announce
from mosaic_guard._refusals import judged_mark
from mosaic_guard._trace import TraceWriter
from mosaic_guard._waiting import Waiting, humans, refusals_so_far, remember, step_record

NOT_RUN = "another call of the same step was refused and the run ends"
NOBODY_TO_ASK = "a person would have to decide, and the graph has no checkpointer to wait with"


class StepVerdicts:
    """What `plan`, `check` and `ask` write into the guard's channel, and log: part of `GuardNodes`.

    Attributes:
        guard: Judges the steps.
        on_refuse: As for `GuardNodes`.
        max_refusals: As for `GuardNodes`.
        after_refusals: As for `GuardNodes`.
        trace: Where judged steps are logged.
        events: Whether plans and decisions are sent to the `custom` stream.
    """

    guard: Guard
    on_refuse: Literal["replan", "end"]
    max_refusals: int
    after_refusals: Literal["end", "ask"]
    trace: TraceWriter | None
    events: bool

    def can_ask(self, config: RunnableConfig) -> str | None:
        """Why nobody can be asked in this run; None if somebody can."""
        return NOBODY_TO_ASK if config.get("configurable", {}).get(CHECKPOINTER) in (None, False) else None

    def _planned(self, waiting: Waiting, plan: Plan) -> dict[str, Any]:
        if self.events and waiting.step.calls:
            calls = [call.to_dict() for call in waiting.step.calls]
            self._event(
                waiting,
                event="plan",
                think=plan.think,
                error=plan.error,
                calls=calls,
                seconds={"plan": round(plan.seconds, 4)},
            )
        opened = {
            "routes": waiting.routes,
            "beside": list(waiting.beside),
            "seen": waiting.seen,
            "known": bool(waiting.history),
            "trajectory": waiting.trajectory,
            "number": waiting.number,
            "edits": dict(waiting.edits),
            "plan": plan.to_dict(),
        }
        return {"open": opened, "bounced": None, "edits": {}}

    def _passed(self, waiting: Waiting) -> dict[str, Any]:
        """A route was taken without calls to judge: the tool node runs none."""
        return {
            "go": waiting.routes,
            "beside": list(waiting.beside),
            "seen": waiting.seen,
            "clearances": self._clearances(waiting, {}),
            "ending": False,
            "edits": {},
        }

    def _checked(self, config: RunnableConfig, waiting: Waiting, judgement: Judgement) -> dict[str, Any]:
        channel = channel_of(config)
        judgement = self._asks_instead(config, waiting, judgement)
        if waiting.edits:
            verdicts = dict(channel["clearances"]["verdicts"])
            for (digest, edit), decision in zip(waiting.edits.items(), judgement.decisions, strict=True):
                verdicts[digest] = {"verdict": decision.verdict, "reason": decision.reason, "run": dict(edit)}
        else:
            verdicts = {}
            for call, decision in zip(waiting.step.calls, judgement.decisions, strict=True):
                # Calls that are alike cannot be told apart at the gate: one that does not run keeps all from running.
                if verdicts.get(call.digest, {}).get("verdict", "act") == "act":
                    verdicts[call.digest] = {
                        "verdict": decision.verdict,
                        "reason": decision.reason,
                        **judged_mark(decision),
                    }
        self._log(config, waiting, judgement)
        if self.events:
            self._event(
                waiting,
                event="decision",
                think=judgement.think,
                safety_thoughts=judgement.safety_thoughts,
                calls=[call.to_dict() for call in waiting.step.calls],
                decisions=[d.to_dict() for d in judgement.decisions],
                seconds=judgement.seconds,
            )
        asked = any(found["verdict"] == "ask" for found in verdicts.values())
        refused = any(found["verdict"] == "refuse" for found in verdicts.values())
        refusals = refusals_so_far(channel, waiting.messages)
        # Counted once for each step, when it is first judged.
        refusals = refusals if waiting.edits else (refusals + 1 if refused else refusals if asked else 0)
        ending = refused and (self.on_refuse == "end" or refusals >= self.max_refusals)
        announce(config, waiting.step.calls, judgement.decisions)
        return {
            "go": waiting.routes,
            "beside": list(waiting.beside),
            "seen": waiting.seen,
            "clearances": self._clearances(waiting, _settled(verdicts, ending)),
            "ending": ending,
            "refusals": refusals,
            "humans": humans(waiting.messages),
            "history": remember(waiting.history, judgement.judged),
            "trajectory": waiting.trajectory,
            "step": waiting.number + 1,
            "at": waiting.at,
            "logged": waiting.digests if self.trace else None,
            "edits": {},
            "open": None,
            "bounced": None,
        }

    def _asks_instead(self, config: RunnableConfig, waiting: Waiting, judgement: Judgement) -> Judgement:
        """The decisions as they can be kept: nobody can be asked without a checkpointer; some are asked after refusals."""
        nobody = self.can_ask(config)
        often = refusals_so_far(channel_of(config), waiting.messages) + 1 >= self.max_refusals
        decisions = []
        for d in judgement.decisions:
            if (
                d.verdict == "refuse"
                and d.source != "policy"
                and often
                and nobody is None
                and self.after_refusals == "ask"
            ):
                d = Decision(d.call, "ask", d.reason, d.p_refuse, "limit")
            elif d.verdict == "ask" and nobody is not None:
                reason = f"{d.reason}; {nobody}" if d.reason else nobody
                d = Decision(d.call, "refuse", reason, d.p_refuse, d.source)
            decisions.append(d)
        return replace(judgement, decisions=tuple(decisions))

    def _answered(self, config: RunnableConfig, channel: Channel, answers: Mapping[str, Answer]) -> dict[str, Any]:
        """What the channel holds once a person has answered; edited calls wait to be judged again."""
        verdicts = dict(channel["clearances"]["verdicts"])
        edits: dict[str, Any] = {}
        for digest, answer in answers.items():
            known = verdicts[digest]
            if answer.type == "approve":
                verdicts[digest] = {**known, "verdict": "act", "reason": "a person approved it"}
            elif answer.type == "edit" and answer.action is not None:
                edits[digest] = dict(answer.action)
            elif answer.type == "respond":
                verdicts[digest] = {"verdict": "respond", "reason": answer.message}
            else:
                why = f": {answer.message}" if answer.message else ""
                verdicts[digest] = {"verdict": "refuse", "reason": f"a person rejected it{why}", "mark": REJECTED}
        rejected = any(answer.type == "reject" for answer in answers.values())
        ending = bool(channel["ending"]) or (rejected and self.on_refuse == "end")
        if self.trace is not None and channel.get("trajectory"):
            said = [{"digest": d, "type": a.type, "message": a.message, "action": a.action} for d, a in answers.items()]
            self.trace.feedback(channel["trajectory"], channel["step"] - 1, channel["at"], said)
        clearances = {**channel["clearances"], "verdicts": _settled(verdicts, ending)}
        return {"clearances": clearances, "ending": ending, "edits": {} if ending else edits}

    def _again(self, config: RunnableConfig, waiting: Waiting, judgement: Judgement) -> Mapping[str, str]:
        self._log(config, waiting, judgement, fresh=True)
        decision = judgement.decisions[0]
        if decision.verdict == "ask":
            return {"verdict": "refuse", "reason": "it was changed after the check, and a person would have to decide"}
        return {"verdict": decision.verdict, "reason": decision.reason}

    def _clearances(self, waiting: Waiting, verdicts: dict[str, Any]) -> dict[str, Any]:
        nodes = sorted({name for name, _, _ in waiting.routes})
        return {"step": waiting.position, "nodes": nodes, "verdicts": verdicts}

    def _farewell(self, verdicts: Mapping[str, Mapping[str, str]], refusals: int) -> str:
        reasons = [found["reason"] for found in verdicts.values() if found["reason"] != NOT_RUN]
        often = "" if self.on_refuse == "end" else f" after {refusals} refused steps in a row"
        return f"I stopped{often}: the guard refused what I was about to do ({'; '.join(reasons)[:600]})."

    def _log(self, config: RunnableConfig, waiting: Waiting, judgement: Judgement, *, fresh: bool = False) -> None:
        if self.trace is None:
            return
        channel = {} if fresh or not waiting.number else channel_of(config)
        record = step_record(
            waiting,
            judgement,
            task=(config.get("metadata") or {}).get("mosaic_task"),
            after=channel.get("at"),
            thread=config.get("configurable", {}).get("thread_id"),
            logged=channel.get("logged") or (),
        )
        named = {"guard": self.trace.header(self.guard.describe()), "tools": self.trace.tools(waiting.step.tools)}
        self.trace.step({**named, **record})

    def _event(self, waiting: Waiting, **event: Any) -> None:
        writer = get_stream_writer()
        writer({"type": "mosaic_guard", "trajectory": waiting.trajectory, "step": waiting.number, **event})


def _settled(verdicts: Mapping[str, Mapping[str, Any]], ending: bool) -> dict[str, Any]:
    """Where the run ends, no call of the step runs and nobody is asked."""
    if not ending:
        return dict(verdicts)
    return {
        digest: found if found["verdict"] in ("refuse", "respond") else {"verdict": "refuse", "reason": NOT_RUN}
        for digest, found in verdicts.items()
    }
