"""Makes the small language model that the integration tests serve. Usage: make_language_model.py FOLDER

FOLDER/chatty is a Llama with random weights from a seed, a byte-level tokenizer and a chat template;
FOLDER/plain is the same without the template.
"""

import shutil
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

LINES = [
    "The quick brown fox jumps over the lazy dog.",
    "user assistant system: hello, who are you?",
    "é 🦊 東京",
]

TEMPLATE = """{{ bos_token }}
{%- for message in messages %}
    {%- if message.role == 'system' and not loop.first %}
        {{- raise_exception('the system message comes first') }}
    {%- endif %}
    {{- '[' + message.role + '] ' + message.content + eos_token }}
{%- endfor %}
{{- note | default('') }}
{%- if add_generation_prompt %}{{ '[assistant] ' }}{% endif %}"""


def main(folder: Path) -> None:
    """Writes both folders."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(LINES, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=1,
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "chatty")
    saved = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    saved.chat_template = TEMPLATE
    saved.save_pretrained(folder / "chatty")
    shutil.rmtree(folder / "plain", ignore_errors=True)
    shutil.copytree(folder / "chatty", folder / "plain")
    (folder / "plain" / "chat_template.jinja").unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
