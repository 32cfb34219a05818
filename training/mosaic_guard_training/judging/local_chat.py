"""A causal language model in this process as a LangChain chat model: greedy, one request at a time."""

from __future__ import annotations

import threading
from typing import Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from pydantic import PrivateAttr

from mosaic_guard._evidence import message_text

_ROLES = {"system": "system", "human": "user", "ai": "assistant"}


class LocalChatModel(BaseChatModel):
    """Writes the likeliest answer.

    Attributes:
        model_name: Path or hub id.
        max_new_tokens: Where an answer is cut off.
    """

    model_name: str
    max_new_tokens: int = 160
    _model: Any = PrivateAttr()
    _tokenizer: Any = PrivateAttr()
    _lock: threading.Lock = PrivateAttr(default_factory=threading.Lock)

    def __init__(self, model: Any, tokenizer: Any, **fields: Any) -> None:
        super().__init__(**fields)
        self._model, self._tokenizer = model, tokenizer

    @classmethod
    def load(cls, path: str | None = None, **fields: Any) -> LocalChatModel:
        """Load a model.

        Args:
            path: A path or hub id; None for the default guard's base model.
            fields: Its attributes.

        Raises:
            MissingExtraError: If torch or transformers are not installed.
            ModelLoadError: If there is no such model.
        """
        from mosaic_guard.models.weights import DEFAULT_BASE, load_base_model

        model, tokenizer = load_base_model(path)
        return cls(model, tokenizer, model_name=path or DEFAULT_BASE, **fields)

    @property
    def _llm_type(self) -> str:
        return "mosaic-guard-local"

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        import torch

        said = [{"role": _ROLES.get(m.type, "user"), "content": message_text(m)} for m in messages]
        text = self._tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
        ids = self._tokenizer(text, add_special_tokens=False, return_tensors="pt").to(self._model.device)
        length = ids["input_ids"].shape[1]
        window = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        if window and length + self.max_new_tokens > window:
            raise ValueError(
                f"{length} tokens and an answer of {self.max_new_tokens} do not fit into the window of {window}: "
                "lower --max-characters"
            )
        with self._lock, torch.inference_mode():
            written = self._model.generate(
                **ids,
                max_new_tokens=self.max_new_tokens,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                pad_token_id=self._tokenizer.eos_token_id,
            )
        answer = self._tokenizer.decode(written[0, length:], skip_special_tokens=True)
        return ChatResult(generations=[ChatGeneration(message=AIMessage(answer))])
