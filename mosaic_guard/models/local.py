"""A causal language model in this process, with constrained decoding and a prefix cache.

Free text is one line (a line break ends the block) without any character that could open another block; everything else
of the turn is forced, but for three choices that the model makes: each token of the text, whether to open the safety
block, and the verdict of each call. Their probabilities are read from the logits.
"""

from __future__ import annotations

import hashlib
import math
import os
import threading
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mosaic_guard._blocks import DECISION, DECISION_END, SAFETY, SAFETY_END, THINK, THINK_END, VERDICTS, verdict_line
from mosaic_guard._computed_plan import plan_text
from mosaic_guard._deadline import Deadline, GuardTimeoutError, held
from mosaic_guard._decision import Verdict
from mosaic_guard._errors import ModelLoadError
from mosaic_guard._transcript import Kind, Piece, Prompt, Role, Turn
from mosaic_guard.models.chat_format import ChatFormat
from mosaic_guard.models.guard_model import Checked, Decide, GuardModel, Planned
from mosaic_guard.models.one_row import ordinary_kernels, slow_weights
from mosaic_guard.models.prefix_cache import PrefixCache
from mosaic_guard.models.weights import DEFAULT_BASE, load_base_model


class LocalGuardModel(GuardModel):
    """A guard model on transformers.

    Args:
        base: Path or hub id of a causal language model; None for SmolLM2-135M-Instruct.
        adapter: Directory of a PEFT adapter for it. It is kept apart from the weights: a bfloat16 sum would round small
            changes away.
        device: Default CUDA where there is one, else the CPU.
        dtype: A torch dtype. Default: bfloat16, but float32 for a small model on a CPU that is not fast in it.
        cache_tokens: Most tokens whose attention states are kept; 0 keeps none.

    Raises:
        MissingExtraError: If torch or transformers (or peft, for an adapter) are not installed.
        ModelLoadError: If the model or adapter cannot be loaded or used.
    """

    computes_plans = True

    def __init__(
        self,
        base: str | os.PathLike[str] | None = None,
        *,
        adapter: str | os.PathLike[str] | None = None,
        device: str | None = None,
        dtype: Any = None,
        cache_tokens: int = 16384,
    ) -> None:
        self.base = DEFAULT_BASE if base is None else str(base)
        model, tokenizer = load_base_model(base, device=device, dtype=dtype)
        from mosaic_guard.models.attention import share_keys  # needs torch

        share_keys(model)
        self._adapter_digest: str | None = None
        if adapter is not None:
            model, self._adapter_digest = _with_adapter(model, Path(adapter))
        self._start(model, tokenizer, cache_tokens)

    @classmethod
    def of(cls, model: Any, tokenizer: Any, *, name: str, cache_tokens: int = 16384) -> LocalGuardModel:
        """A guard model around a transformers model and tokenizer that are loaded already."""
        made = cls.__new__(cls)
        made.base, made._adapter_digest = name, None
        made._start(model, tokenizer, cache_tokens)
        return made

    def _start(self, model: Any, tokenizer: Any, cache_tokens: int) -> None:
        self._model, self._format = model, ChatFormat(tokenizer)
        self.name = self.base if self._adapter_digest is None else f"{self.base}+{self._adapter_digest}"
        self.window = int(getattr(model.config, "max_position_embeddings", None) or 8192)
        self._cache = PrefixCache(cache_tokens) if cache_tokens else None
        self._slow = slow_weights(model)
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[int, ...], Any] | None = None
        self._most_known = 0
        self._words = {verdict: self._format.content(f" {verdict}") for verdict in VERDICTS}
        if self._words["act"][0] == self._words["refuse"][0]:
            raise ModelLoadError(f"{self.base!r} does not tell 'act' and 'refuse' apart by their first token")
        self._text_mask = _text_mask(model, tokenizer, self._format)

    @property
    def model(self) -> Any:
        """The transformers (or PEFT) model."""
        return self._model

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer."""
        return self._format.tokenizer

    def remember(self, most: int) -> None:
        """Keep the logits that follow the last so many prefixes, for roll-outs of one task, many of which say the same.

        Args:
            most: Each takes four bytes for each token of the vocabulary.
        """
        self._known, self._most_known = OrderedDict(), most

    def count(self, text: str) -> int:
        """Number of tokens of a text."""
        return len(self._format.content(text))

    def word(self, verdict: Verdict) -> tuple[int, ...]:
        """Token ids of a verdict word, with its leading space."""
        return self._words[verdict]

    def describe(self) -> dict[str, Any]:
        """What a trace's header says about the model."""
        return {"model": self.name, "base_model": self.base, "adapter": self._adapter_digest}

    def plan(self, prompt: Prompt) -> Planned:
        """Read what is new and write the think block."""
        if prompt.plan == "computed":
            return self.state_plan(prompt)
        turns = self._new_turns(prompt)
        with held(self._lock, prompt.deadline):
            ids = [i for turn in (*prompt.turns, *turns) for i in turn.ids]
            writer = _Writer(self, ids, prompt.seed, prompt.deadline)
            marks, mark_ids = self._format.before("user", "assistant")
            writer.add("context", marks, mark_ids)
            writer.force(THINK)
            think = writer.free_text(prompt.limits.plan, THINK_END)
            writer.keep()
        said = f"{THINK}{think}{THINK_END}"
        return Planned(think, (*turns, Turn("assistant", tuple(writer.pieces), said)))

    def state_plan(self, prompt: Prompt, kind: Kind = "forced") -> Planned:
        """The think block with the plan that the evidence gives; nothing is read before `check`.

        Args:
            prompt: As for `plan`.
            kind: What the tokens of the plan are.
        """
        turns = self._new_turns(prompt)
        writer = _Writer(self, [], None)
        writer.add("context", *self._format.before("user", "assistant"))
        writer.force(THINK)
        think = plan_text(prompt.step, self.count, prompt.limits.plan)
        writer.line(kind, think, prompt.limits.plan, THINK_END)
        said = f"{THINK}{think}{THINK_END}"
        return Planned(think, (*turns, Turn("assistant", tuple(writer.pieces), said)))

    def check(self, prompt: Prompt, planned: Planned, decide: Decide) -> Checked:
        """Go on from the plan: open the safety block or not, then decide each call."""
        *before, started = planned.turns
        with held(self._lock, prompt.deadline):
            ids = [i for turn in (*prompt.turns, *planned.turns) for i in turn.ids]
            writer = _Writer(self, ids, None if prompt.seed is None else prompt.seed + 1, prompt.deadline)
            safety = None
            if self._opens_safety(writer, prompt):
                safety = writer.free_text(prompt.limits.safety, SAFETY_END)
                writer.force(DECISION)
            probabilities = self._decide(writer, len(prompt.step.calls), decide)
            writer.force(DECISION_END)
            writer.keep()
        pieces = (*started.pieces, *writer.pieces)
        said = started.content + "".join(piece.text for piece in writer.pieces)
        return Checked(safety, tuple(probabilities), (*before, Turn("assistant", pieces, said)))

    def _decide(self, writer: _Writer, calls: int, decide: Decide) -> list[float]:
        """Write the verdict of each call; returns their probabilities of refusal."""
        probabilities = []
        for index in range(calls):
            writer.force(verdict_line(index))
            p_refuse = writer.probability(self._words["refuse"][0], self._words["act"][0])
            verdict, kind = decide(index, p_refuse)
            probabilities.append(p_refuse)
            chance = p_refuse if verdict == "refuse" else 1 - p_refuse
            writer.choose(kind, f" {verdict}", self._words["refuse" if verdict == "refuse" else "act"], chance)
            writer.force("\n")
        return probabilities

    def _opens_safety(self, writer: _Writer, prompt: Prompt) -> bool:
        """The learned gate: whether the model opens the safety block or goes straight to the decision."""
        if prompt.check != "adaptive":
            writer.force(SAFETY if prompt.check == "always" else DECISION)
            return prompt.check == "always"
        safety, decision = self._format.content(SAFETY), self._format.content(DECISION)
        shared = next(i for i, (a, b) in enumerate(zip(safety, decision, strict=False)) if a != b)
        if shared:
            writer.add("forced", self._text(safety[:shared]), safety[:shared])
        p_safety = writer.probability(safety[shared], decision[shared])
        opens = writer.draw() < p_safety if prompt.seed is not None else p_safety >= 0.5
        ids = (safety if opens else decision)[shared:]
        writer.choose("sampled", self._text(ids), ids, p_safety if opens else 1 - p_safety, self._text)
        return opens

    def _new_turns(self, prompt: Prompt) -> list[Turn]:
        last: Role | None = prompt.turns[-1].role if prompt.turns else None
        turns = []
        for role, text in prompt.new:
            marks, ids = self._format.before(last, role)
            pieces = (Piece("context", marks, ids), Piece("context", text, self._format.content(text)))
            turns.append(Turn(role, pieces, text))
            last = role
        return turns

    def _text(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))


class _Writer:
    """Writes one stretch of a guard turn: appends pieces, reads logits, feeds the model only what it has not seen."""

    def __init__(
        self, owner: LocalGuardModel, ids: list[int], seed: int | None, deadline: Deadline | None = None
    ) -> None:
        import torch

        self.pieces: list[Piece] = []
        self._owner, self._ids, self._deadline = owner, ids, deadline
        self._torch = torch
        # Drawn on the CPU, so that a seed means the same everywhere.
        self._generator = None if seed is None else torch.Generator().manual_seed(seed % 2**63)
        self._states: Any = None
        self._seen = 0
        self._logits: Any = None

    def add(self, kind: Any, text: str, ids: Sequence[int], logprobs: Sequence[float] = ()) -> None:
        """Append a piece, if it has tokens."""
        if not ids:
            return
        self.pieces.append(Piece(kind, text, tuple(ids), tuple(logprobs)))
        self._ids.extend(ids)
        self._logits = None

    def force(self, text: str) -> None:
        """Append grammar."""
        self.add("forced", text, self._owner._format.content(text))

    def line(self, kind: Kind, text: str, limit: int, end: str) -> None:
        """Append one line of given text and its end, in the pieces that `free_text` makes of one that is written."""
        owner = self._owner
        ids, end_ids = owner._format.content(text), owner._format.content(end)
        self.add(kind, text, ids)
        # At the limit the end is not the model's choice.
        self.add(kind if len(ids) < limit else "forced", owner._text(end_ids[:1]), end_ids[:1])
        self.add("forced", owner._text(end_ids[1:]), end_ids[1:])

    def choose(self, kind: Any, text: str, ids: Sequence[int], chance: float, decode: Any = None) -> None:
        """Append a choice that its first token makes; further tokens follow from it."""
        logprobs = (math.log(max(chance, 1e-12)),) if kind == "sampled" else ()
        if len(ids) == 1:
            self.add(kind, text, ids, logprobs)
            return
        decode = decode or self._owner._text
        self.add(kind, decode(ids[:1]), ids[:1], logprobs)
        self.add("forced", decode(ids[1:]), ids[1:])

    def probability(self, yes: int, no: int) -> float:
        """Probability of token `yes` against token `no` as the next one."""
        logits = self._next_logits()
        return float(self._torch.sigmoid(logits[yes] - logits[no]))

    def draw(self) -> float:
        """A number in [0, 1)."""
        return float(self._torch.rand((), generator=self._generator))

    def free_text(self, limit: int, end: str) -> str:
        """At most `limit` tokens of one line, then `end`; returns the line."""
        end_ids = self._owner._format.content(end)
        ids: list[int] = []
        logprobs: list[float] = []
        ended = False
        while len(ids) < limit:
            logits = self._next_logits() + self._owner._text_mask
            # The line break that opens `end` is the model's own way to finish; an empty block is not.
            logits[end_ids[0]] = self._next_logits()[end_ids[0]] if ids else -math.inf
            token, logprob = self._pick(logits)
            if token == end_ids[0]:
                ended = True
                self._write_text(ids, logprobs)
                self.add("sampled", self._owner._text(end_ids[:1]), end_ids[:1], (logprob,))
                break
            ids.append(token)
            logprobs.append(logprob)
            self._ids.append(token)
            self._logits = None
        if not ended:
            self._write_text(ids, logprobs)
            self.add("forced", self._owner._text(end_ids[:1]), end_ids[:1])
        self.add("forced", self._owner._text(end_ids[1:]), end_ids[1:])
        return self._owner._text(ids).strip()

    def keep(self) -> None:
        """Hand the attention states over to the prefix cache."""
        if self._owner._cache is not None and self._states is not None:
            self._owner._cache.put(self._ids[: self._seen], self._states)

    def _write_text(self, ids: list[int], logprobs: list[float]) -> None:
        """The tokens of the text are in `_ids` already; make them a piece."""
        self.pieces.append(Piece("sampled", self._owner._text(ids), tuple(ids), tuple(logprobs)))

    def _pick(self, logits: Any) -> tuple[int, float]:
        logprobs = self._torch.log_softmax(logits, dim=-1)
        if self._generator is None:
            token = int(logprobs.argmax())
        else:
            token = int(self._torch.multinomial(logprobs.exp(), 1, generator=self._generator))
        return token, float(logprobs[token])

    def _stop_in_time(self) -> None:
        """Raise if nobody waits any more; what was read so far stays in the cache, for the next step begins with it."""
        if self._deadline is not None:
            try:
                self._deadline.check()
            except GuardTimeoutError:
                self.keep()
                raise

    def _next_logits(self) -> Any:
        """Logits of the next token, (vocabulary,) in float32 on the CPU."""
        if self._logits is not None:
            return self._logits
        self._stop_in_time()
        owner = self._owner
        prefix = () if owner._known is None else tuple(self._ids)
        if owner._known is not None and prefix in owner._known:
            owner._known.move_to_end(prefix)
            self._logits = owner._known[prefix]
            return self._logits
        if self._states is None and owner._cache is not None:
            self._seen, self._states = owner._cache.take(self._ids)
        if self._states is None:
            from mosaic_guard.models.local_states import GrowingStates

            self._states = GrowingStates(owner._model)
        if len(self._ids) > owner.window:
            raise ValueError(f"the transcript has {len(self._ids)} tokens, more than the window of {owner.window}")
        device = owner._model.device
        with ordinary_kernels(owner._slow), self._torch.inference_mode():
            new = self._torch.tensor([self._ids[self._seen :]], device=device)
            out = owner._model(input_ids=new, past_key_values=self._states, use_cache=True, logits_to_keep=1)
        self._states, self._seen = out.past_key_values, len(self._ids)
        self._logits = out.logits[0, -1].float().cpu()
        if not bool(self._torch.isfinite(self._logits).all()):
            raise ValueError("the guard model's logits are not finite")
        if owner._known is not None:
            owner._known[prefix] = self._logits
            if len(owner._known) > owner._most_known:
                owner._known.popitem(last=False)
        return self._logits


def _text_mask(model: Any, tokenizer: Any, chat_format: ChatFormat) -> Any:
    """(vocabulary,) 0 where a token may stand in free text, -inf where it may not: marks, line breaks, special tokens."""
    import torch

    size = model.config.get_text_config().vocab_size
    known = min(len(tokenizer), size)
    texts = tokenizer.batch_decode([[i] for i in range(known)], clean_up_tokenization_spaces=False)
    mask = torch.full((size,), -math.inf)
    for i, text in enumerate(texts):
        if text and not any(c in "<>＜＞﹤﹥" or (ord(c) < 32) or ord(c) == 127 for c in text):
            mask[i] = 0.0
    mask[[i for i in chat_format._special if i < size]] = -math.inf
    return mask


def _with_adapter(model: Any, directory: Path) -> tuple[Any, str]:
    from importlib.util import find_spec

    from mosaic_guard._errors import MissingExtraError

    if find_spec("peft") is None:
        raise MissingExtraError("a guard adapter", "local")
    from peft import PeftModel

    weights = directory / "adapter_model.safetensors"
    try:
        with warnings.catch_warnings():
            # peft still uses names of transformers that are being renamed; nothing that a user could put right.
            warnings.simplefilter("ignore", FutureWarning)
            adapted = PeftModel.from_pretrained(model, str(directory)).eval()
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()[:12]
        return adapted, digest
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelLoadError(
            f"cannot load the adapter at {str(directory)!r} ({str(error).splitlines()[0][:200]}); "
            "name a directory that PEFT saved for this base model"
        ) from error
