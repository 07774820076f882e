"""Makes small tokenizers and chat templates, and what transformers makes of texts and conversations with
them.

    python make_text_oracles.py FOLDER

FOLDER/cases.json lists the cases: the folder of the tokenizer, texts with their token ids and what those
decode to, and conversations with the prompts that the chat template writes, or what it refuses them with.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

LINES = [
    "The quick brown fox jumps over the lazy dog.",
    "A server that batches requests well is a joy for ever; isn't it?",
    "Naïve café, déjà vu: Ünïcödé everywhere, 12,345 times!",
    "東京タワー と 京都 の 間",
    "def add(a, b):\n    return a + b\n",
]

TEXTS = [
    "The quick brown fox",
    "",
    " ",
    "a",
    "  two spaces, and  more   inside  ",
    "Straße, 東京, Ελλάδα, 🦊🦊 and Ångström — naïve café",
    "tabs\tand\nlines\r\n\r\nand a nul \x00 byte",
    "👩‍👩‍👧‍👦 family, e\u0301 combined, \u200b zero width, \ufffd replaced",
    "<s>typed</s> <|end|> marks<|end|>and <unk> more",
    "12345 + 67890 = 80235",
    "\ufeffmarked ▁ and ▁▁",
    "don't, can't, I'll, we've , done .",
]


# In the manner of Llama 3: headers, trimmed contents, a mark at the start.
HEADERS = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = "today" %}
    {%- else %}
        {%- set date_string = "never" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = "" %}
{%- endif %}
{{- "<|head|>system<|/head|>\\n\\n" }}
{{- "Date: " ~ date_string ~ "\\n" }}
{%- if tools is not none %}
    {{- "Tools!" }}
{%- endif %}
{{- system ~ "<|end|>" }}
{%- for message in messages %}
    {{- '<|head|>' + message['role'] + '<|/head|>\\n\\n' + message['content'] | trim + '<|end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|head|>assistant<|/head|>\\n\\n' }}
{%- endif %}
"""

# In the manner of Qwen 2.5: a system message of its own where there is none.
DEFAULTS = """{%- if messages[0]['role'] == 'system' %}
    {{- '<|start|>system\\n' + messages[0]['content'] + '<|end|>\\n' }}
{%- else %}
    {{- '<|start|>system\\nYou are of some use.<|end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == \
"assistant" and not message.tool_calls) %}
        {{- '<|start|>' + message.role + '\\n' + message.content + '<|end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|start|>' + message.role }}
        {%- for call in message.tool_calls %}
            {%- if call.function is defined %}{%- set call = call.function %}{%- endif %}
            {{- '\\n<call>' }}{{ call.arguments | tojson }}{{ '</call>' }}
        {%- endfor %}
        {{- '<|end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start|>assistant\\n' }}
{%- endif %}
"""

# In the manner of Mistral: roles must alternate, answers end with a mark.
ALTERNATING = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set ns = namespace(index=0, seen='') %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
        {{- raise_exception("After " ~ loop.index0 ~ " messages the roles do not alternate") }}
    {%- endif %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[I] " + system_message + "\\n\\n" + message["content"] + "[/I]" }}
        {%- else %}
            {{- "[I] " + message["content"] + "[/I]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"].strip() + eos_token }}
    {%- else %}
        {{- raise_exception('Only user and assistant: "' + message.role + '"') }}
    {%- endif %}
    {%- set ns.index = ns.index + 1 %}
    {%- set ns.seen = ns.seen ~ message.role[0] %}
{%- endfor %}
"""

# In the manner of ChatML, with the blocks that mark answers for training, and blanks left to be trimmed.
MARKED = """{% for message in messages %}
    {% if message['role'] == 'assistant' %}
<|start|>assistant
{%- generation -%}
{{ message['content'] }}<|end|>
{% endgeneration %}
    {% else %}
{{ '<|start|>' + message['role'] + '\\n' + message['content'] + '<|end|>' + '\\n' }}
    {% endif %}
{% endfor %}
{% if add_generation_prompt %}{{ '<|start|>assistant\\n' }}{% endif %}
"""

# What else templates do: macros, loop controls, methods of Python, JSON, tests, slices, filters.
VARIED = """{% macro turn(role, text, end=true) -%}
<{{ role | upper }}>{{ text }}{% if end %}</{{ role | upper }}>{% endif %}
{%- endmacro %}
{#- a comment that is left out -#}
{% set counts = namespace(user=0, last=none) %}
{% for message in messages | reverse %}
{% if message.role == 'user' %}{% set counts.last = message.content %}{% break %}{% endif %}
{% endfor %}
{% for message in messages %}
{% if message.content is not string %}{% continue %}{% endif %}
{% if message.role == 'user' %}{% set counts.user = counts.user + 1 %}{% endif %}
{{ turn(message.role, message.content.split('</think>')[-1].lstrip('\\n'), end=not loop.last) }}
{% if loop.previtem is defined and loop.previtem.role == message.role %}(again){% endif %}
{{ '%s/%d' | format(message.role, loop.index) }} {{ message | tojson }} {{ loop.cycle('odd', 'even') }}
{% for key, value in message.items() %}{{ key }}={{ value | length }}{{ ', ' if not loop.last }}{% endfor %}
{% endfor %}
{{ counts.user }} of {{ messages | length }}: {{ (counts.last or 'nobody').title() }}
{{ messages | map(attribute='role') | unique | join('+') }} {{ messages | selectattr('role', 'equalto', \
'user') | list | length }}
{{ {'b': [1, 2.5, 1e20, true, none], 'a': {'<&>': "it's"}} | tojson(indent=2) }}
{{ ['é', "\\"", '<'] | tojson(ensure_ascii=true) }} {{ {'b': 1, 'a': 2} | tojson(sort_keys=true) }}
{{ messages[::-1][0].role }} {{ messages[-1]['role'].startswith('us') }} {{ 'x' in messages[0] }}
{{ "a" ~ 1 ~ true ~ none }} {{ 7 // 2 }} {{ 7 % 4 }} {{ 2 ** 5 }} {{ [1, 2] + [3] }} {{ undefined_name }}|
{{ messages[0].content.replace('e', '3') | replace('o', '0') }} {{ ' x '.strip() }}
{{ messages[0].role.removeprefix('us').removesuffix('r') }}
{{ extra | default('none') }}
"""

CONVERSATIONS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "Hello"}],
    [{"role": "system", "content": " Be brief. "}, {"role": "user", "content": "  Who are you?\n"}],
    [
        {"role": "user", "content": "Straße 東京 🦊"},
        {"role": "assistant", "content": "  \"quoted\" <b>&amp;</b> 'and'\ttabs "},
        {"role": "user", "content": "{{ not_a_template }} {% nor_this %}"},
    ],
    [
        {"role": "system", "content": "Ünï"},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\ntwo"},
        {"role": "user", "content": "three"},
        {"role": "assistant", "content": "four"},
    ],
    [{"role": "assistant", "content": "I begin"}],
    [{"role": "user", "content": "one"}, {"role": "user", "content": "two"}],
    [{"role": "tool", "content": "42"}],
    [{"role": "user", "content": ""}],
    [
        {"role": "user", "content": "call"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"function": {"name": "f", "arguments": {"z": 1, "a": ["<", "é"]}}}],
        },
    ],
    [{"role": "user", "content": f"message {index}"} for index in range(3)]
    + [{"role": "assistant", "content": "done"}],
]

SPECIAL = ["<unk>", "<s>", "</s>", "<|end|>"]


def byte_level() -> Tokenizer:
    """As GPT-2 and Llama 3: bytes spelled as characters, no special treatment of spaces."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(LINES, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    tokenizer.add_tokens([AddedToken("joyful ", normalized=False), "東京タワー"])
    return tokenizer


def byte_fallback() -> Tokenizer:
    """As Llama 2: a mark for each space and one in front, bytes for characters that are not known."""
    vocabulary = {token: index for index, token in enumerate(SPECIAL)}
    for byte in range(256):
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    merges = []
    for character in [*sorted(set("".join(LINES[:2]).replace(" ", "▁"))), "▁▁", "東"]:
        vocabulary.setdefault(character, len(vocabulary))
    merges.append(("▁", "▁"))
    for word in ["▁t", "▁th", "▁the", "▁a", "er", "▁The", "▁T", "▁Th", "an", "▁an", "▁and"]:
        for cut in range(1, len(word)):
            if word[:cut] in vocabulary and word[cut:] in vocabulary and word not in vocabulary:
                vocabulary[word] = len(vocabulary)
                merges.append((word[:cut], word[cut:]))
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    return tokenizer


def metaspace() -> Tokenizer:
    """As T5 and newer SentencePiece models: a metaspace decoder, and unknown characters lost."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=SPECIAL, unk_token="<unk>")
    tokenizer.train_from_iterator(LINES, trainer)
    return tokenizer


def word_piece() -> Tokenizer:
    """As BERT: pieces that go on are marked; saved with padding and truncation that must not be obeyed."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=250, special_tokens=SPECIAL)
    tokenizer.train_from_iterator(LINES, trainer)
    tokenizer.enable_padding(length=128, pad_id=0)
    tokenizer.enable_truncation(4)
    return tokenizer


def bare() -> Tokenizer:
    """No decoder at all: tokens are joined with spaces."""
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate([*SPECIAL, "The", "fox"])}))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.model.unk_token = "<unk>"
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def prompts(loaded: Any) -> list[dict[str, Any]]:
    """What the chat template makes of every conversation."""
    found = []
    for messages in CONVERSATIONS:
        for options in [
            {"add_generation_prompt": False},
            {"add_generation_prompt": True},
            {"add_generation_prompt": True, "extra": "given", "date_string": "1 May"},
            {"continue_final_message": True},
        ]:
            case: dict[str, Any] = {"messages": messages, "options": options}
            try:
                case["prompt"] = loaded.apply_chat_template(messages, tokenize=False, **options)
            except TemplateError as error:
                case["refused"] = str(error)
            except ValueError as error:
                case["not_continued"] = str(error)
            # Where a text is written twice, transformers leaves its mark in the prompt.
            if "CONTINUE_FINAL_MESSAGE_TAG" in case.get("prompt", ""):
                case.pop("prompt")
                case["not_continued"] = "more than once"
            found.append(case)
    return found


def decoded(raw: Tokenizer, ids: list[int]) -> list[dict[str, Any]]:
    """What a list of tokens decodes to, with special tokens and without."""
    return [
        {"ids": ids, "skip_special": skip, "text": raw.decode(ids, skip_special_tokens=skip)}
        for skip in (False, True)
    ]


def case(folder: Path, name: str, tokenizer: Tokenizer, template: str) -> dict[str, Any]:
    """Saves a tokenizer and computes with it."""
    loaded = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token=AddedToken("</s>", special=True),
        unk_token="<unk>",
    )
    loaded.chat_template = template
    # Templates lie in chat_template.jinja or in tokenizer_config.json.
    loaded.save_pretrained(folder / name, save_jinja_files=name != "metaspace")
    if tokenizer.padding:
        tokenizer.save(str(folder / name / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    texts = [
        {
            "text": text,
            "plain": tokenizer.encode(text, add_special_tokens=False).ids,
            "special": tokenizer.encode(text).ids,
        }
        for text in TEXTS
    ]
    # In transformers' own words too, for what is around the tokenizer.
    assert [loaded.encode(text) for text in TEXTS] == [text["special"] for text in texts]
    lists: list[list[int]] = [loaded.encode(text) for text in TEXTS]
    rng = random.Random(name)
    if name != "byte_fallback":
        # There one wrong byte makes transformers lose the right ones beside it.
        size = tokenizer.get_vocab_size()
        lists += [[rng.randrange(size) for _ in range(rng.randrange(1, 30))] for _ in range(200)]
    return {
        "folder": str(folder / name),
        "texts": texts,
        "decoded": [one for ids in lists for one in decoded(tokenizer, ids)],
        "prompts": prompts(loaded),
        "size": tokenizer.get_vocab_size(),
    }


def main(folder: Path) -> None:
    """Makes every case."""
    made = [
        ("byte_level", byte_level(), HEADERS),
        ("byte_fallback", byte_fallback(), ALTERNATING),
        ("metaspace", metaspace(), DEFAULTS),
        ("word_piece", word_piece(), MARKED),
        ("bare", bare(), VARIED),
    ]
    cases = {name: case(folder, name, tokenizer, template) for name, tokenizer, template in made}
    (folder / "cases.json").write_text(json.dumps(cases))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
