"""What a request for a text can say; the keyword options of `generate`, `stream` and `chat`.

A parameter that is left out is the model's own (generation_config.json), or else neutral.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    from trustformers_serve.replies import Priority


class _Common(TypedDict, total=False):
    max_tokens: int
    """The most tokens of the text."""
    min_tokens: int
    """Before so many the text does not end."""
    temperature: float
    """0 always takes the likeliest token."""
    top_k: int
    """How many of the likeliest tokens are drawn from; 0 and -1 for all."""
    top_p: float
    """Which share of the likeliest is drawn from."""
    min_p: float
    """Tokens below this share of the likeliest are not drawn."""
    repetition_penalty: float
    """Divides the logits of what stands in prompt or text; 1 for none."""
    presence_penalty: float
    """Taken off the logits of what stands in the text."""
    frequency_penalty: float
    """Taken off them once for each time that it stands there."""
    logit_bias: Mapping[int, float]
    """Added to the logits of these tokens."""
    seed: int
    """The same request with the same seed draws the same tokens, whatever runs beside it."""
    stop: str | Sequence[str]
    """Strings that end the text, and are no part of it."""
    stop_token_ids: Sequence[int]
    """Tokens that end it."""
    include_stop_str_in_output: bool
    """Whether the string that ended the text is part of it after all."""
    ignore_eos: bool
    """Whether the text goes on after the model's end token."""
    skip_special_tokens: bool
    """Whether special tokens are left out of the text."""
    add_special_tokens: bool
    """Whether the tokenizer puts around the prompt what it puts around a text."""
    cache_salt: str
    """Only requests with the same salt share what was computed for their prompts."""
    priority: Priority
    """How urgent the request is."""
    timeout_ms: int
    """Milliseconds in which the whole text must be there."""


class StreamOptions(_Common, total=False):
    """Of `stream`."""

    n: int
    """How many texts are made."""
    logprobs: int
    """How many of the likeliest tokens are told in each place, beside the one drawn."""
    echo: bool
    """Whether the text begins with the prompt."""


class GenerateOptions(StreamOptions, total=False):
    """Of `generate`."""

    best_of: int
    """How many are made to keep the `n` likeliest."""


class ChatOptions(_Common, total=False):
    """Of `chat`."""

    n: int
    """How many answers are made."""
    logprobs: bool
    """Whether tokens are told, with how likely they were."""
    top_logprobs: int
    """How many of the likeliest are told beside the one drawn."""
    add_generation_prompt: bool
    """Whether the template begins the assistant's answer; it does by default."""
    continue_final_message: bool
    """Whether the last message is to be gone on with instead of answered."""
    chat_template_kwargs: Mapping[str, Any]
    """Variables for the template."""
