"""The built-in language model: its grammar, and that it keeps to it."""

from __future__ import annotations

import importlib
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from trustformers_serve import builtin

sys.path.insert(0, str(ROOT / "examples"))
grammar: Any = importlib.import_module("tinylm_grammar")

CHECKPOINT = ROOT / "examples" / "tinylm"
TEXTS = 150
LARGEST_BYTES = 8_000_000


def test_every_story_that_the_grammar_tells_is_of_the_grammar() -> None:
    source = random.Random(5)
    for _ in range(300):
        told = grammar.story(source)
        assert all(grammar.accepts(sentence) for sentence in grammar.sentences(told)), told


@pytest.mark.parametrize(
    "sentence",
    [
        "The old sailor sings.",
        "An honest fox gives the queen a useful key.",
        "Anna and a doctor do not see her.",
        "When he sleeps, the wolves who are near the river sing.",
    ],
)
def test_sentences_of_the_grammar_are_accepted(sentence: str) -> None:
    assert grammar.accepts(sentence)


@pytest.mark.parametrize(
    "sentence",
    [
        "The old sailor sing.",
        "The old sailors sings.",
        "A old sailor sings.",
        "An useful key is red.",
        "The sailor does not sings.",
        "The key who is red is old.",
        "The boat sings.",
        "the old sailor sings.",
        "The old Sailor sings.",
        "The old sailor sings",
        "The old sailor  sings.",
        "The old sailor sings . ",
        "The old sailor.",
        "Sings.",
        "",
        "The fox sees the owl who sees the fox who sees the owl who sees the fox.",
    ],
)
def test_what_breaks_a_rule_is_not_accepted(sentence: str) -> None:
    assert not grammar.accepts(sentence)


def test_relative_clauses_nest_as_deep_as_they_may() -> None:
    assert grammar.accepts("The fox sees the owl who sees the fox who is old.")


def test_the_command_names_what_is_not_of_the_grammar() -> None:
    command = [sys.executable, ROOT / "examples" / "tinylm_grammar.py", "check"]
    stories = "The fox sings. The owl sing.\nHe sleeps.\n"
    run = subprocess.run(command, input=stories, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (1, "not of the grammar: The owl sing.\n")


def test_the_checkpoint_is_small_and_copied_whole(tmp_path: Path) -> None:
    assert sum(path.stat().st_size for path in CHECKPOINT.iterdir()) <= LARGEST_BYTES
    assert builtin.ensure(tmp_path, "tinylm")
    for path in CHECKPOINT.iterdir():
        assert (tmp_path / "tinylm" / path.name).read_bytes() == path.read_bytes()


@pytest.fixture(scope="module")
def speaker() -> tuple[Any, Any]:
    """The tokenizer and the model, as transformers loads them."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.bfloat16)
    return AutoTokenizer.from_pretrained(CHECKPOINT), model.eval()


def spoken(speaker: tuple[Any, Any], prompt: str, count: int) -> list[str]:
    """What the model draws at temperature 1 after a prompt, to the ends of the texts."""
    tokenizer, model = speaker
    ids = tokenizer([prompt] * count, add_special_tokens=False, return_tensors="pt").input_ids
    torch.manual_seed(4)
    made = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=250, top_k=0, pad_token_id=1
    )
    return tokenizer.batch_decode(made[:, ids.shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize("beginning", ["", "The old sailor"])
def test_99_of_100_sentences_are_of_the_grammar(speaker: tuple[Any, Any], beginning: str) -> None:
    texts = [beginning + text for text in spoken(speaker, "<s>" + beginning, TEXTS)]
    sentences = [sentence for text in texts for sentence in grammar.sentences(text)]
    wrong = [sentence for sentence in sentences if not grammar.accepts(sentence)]
    assert len(sentences) > 1.5 * TEXTS
    assert len(wrong) <= 0.01 * len(sentences), wrong
    assert len(set(texts)) > 0.9 * TEXTS


def test_a_chat_is_answered_with_sentences(speaker: tuple[Any, Any]) -> None:
    tokenizer = speaker[0]
    messages = [{"role": "user", "content": "Tell me about the robots."}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert prompt == "<s><|user|>Tell me about the robots.<|assistant|>"
    answers = spoken(speaker, prompt, 20)
    sentences = [sentence for answer in answers for sentence in grammar.sentences(answer)]
    wrong = [sentence for sentence in sentences if not grammar.accepts(sentence)]
    assert len(wrong) <= 1, wrong


def test_any_text_is_encoded(speaker: tuple[Any, Any]) -> None:
    text = "Grüße, 你好 🎉\x00\t<x>"
    assert speaker[0].decode(speaker[0](text).input_ids, skip_special_tokens=True) == text
