"""Makes the checkpoint of the built-in language model ``tinylm``, from a seed and nothing else.

    python examples/train_tinylm.py examples/tinylm

Draws stories from ``tinylm_grammar.py``, makes a byte-level BPE tokenizer of them, trains a Llama of 1.2
million parameters, and writes a folder in Hugging Face's layout. It takes about ten minutes on two cores. Of
the texts it learns, most are stories; the others are chats, in which a user asks for a story about something,
and stories that begin in the middle of something else, so that any prompt leads to sentences.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import string
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import tinylm_grammar as grammar
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from torch.nn import functional

SEED = 20240229
VOCABULARY = 880
HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, INTERMEDIATE = 128, 5, 4, 2, 32, 448
CONTEXT = 2048
ROPE_THETA = 10000.0
NORM_EPS = 1e-5

BEGIN, END, USER, ASSISTANT = "<s>", "</s>", "<|user|>", "<|assistant|>"
SPECIAL = [BEGIN, END, USER, ASSISTANT]
BEGIN_ID, END_ID, USER_ID, ASSISTANT_ID = range(len(SPECIAL))

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<|assistant|>{{ message['content'] }}{{ eos_token }}"
    "{% else %}<|user|>{{ message['content'] }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

BATCH_TOKENS = 4096
WARMUP_STEPS = 50
LEARNING_RATE = 3e-3
SHARPNESS = 2.0
"""What logits are multiplied with in the end. So small a model gives each of many wrong words a little of the
probability; drawn as it learnt them, 96 of 100 sentences are right, and as it is saved, more than 99."""


class Norm(nn.Module):
    """Divides rows by their root mean square."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(HIDDEN))

    def forward(self, x: Tensor) -> Tensor:
        """``[..., HIDDEN]`` to the same."""
        return functional.rms_norm(x, (HIDDEN,), self.weight, NORM_EPS)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(HIDDEN, HEADS * HEAD_DIM, bias=False)
        self.k_proj = nn.Linear(HIDDEN, KV_HEADS * HEAD_DIM, bias=False)
        self.v_proj = nn.Linear(HIDDEN, KV_HEADS * HEAD_DIM, bias=False)
        self.o_proj = nn.Linear(HEADS * HEAD_DIM, HIDDEN, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """``[batch, length, HIDDEN]`` to the same."""
        heads = [
            projection(x).unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        ]
        queries, keys = (rotated(part, cos, sin) for part in heads[:2])
        out = functional.scaled_dot_product_attention(
            queries, keys, heads[2], is_causal=True, enable_gqa=True
        )
        return self.o_proj(out.transpose(1, 2).flatten(2))


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Heads turned by the angles of their positions (Su et al. 2021), halves as Hugging Face pairs them."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class Perceptron(nn.Module):
    """``down(silu(gate(x)) * up(x))``."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(HIDDEN, INTERMEDIATE, bias=False)
        self.up_proj = nn.Linear(HIDDEN, INTERMEDIATE, bias=False)
        self.down_proj = nn.Linear(INTERMEDIATE, HIDDEN, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., HIDDEN]`` to the same."""
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """Attention and a perceptron, each added to what came in."""

    def __init__(self) -> None:
        super().__init__()
        self.input_layernorm = Norm()
        self.self_attn = Attention()
        self.post_attention_layernorm = Norm()
        self.mlp = Perceptron()

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """``[batch, length, HIDDEN]`` to the same."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    """The decoder; its parts are called as in Hugging Face's checkpoints, below ``model.``."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCABULARY, HIDDEN)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = Norm()
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)
        for layer in self.layers:
            # Sums of many layers start no wider than one of them.
            for last in (layer.self_attn.o_proj, layer.mlp.down_proj):
                nn.init.normal_(last.weight, std=0.02 / math.sqrt(2 * LAYERS))

    def forward(self, tokens: Tensor) -> Tensor:
        """Ids ``[batch, length]`` to logits ``[batch, length, VOCABULARY]``."""
        frequencies = ROPE_THETA ** (-torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
        angles = torch.outer(torch.arange(tokens.shape[1]), frequencies)
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x, angles.cos(), angles.sin())
        return functional.linear(self.norm(x), self.embed_tokens.weight)


def make_tokenizer(source: random.Random) -> Tokenizer:
    """Byte-level BPE: the grammar's words are single tokens for the most part, and any text is bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((grammar.story(source) for _ in range(20_000)), trainer)
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{BEGIN} $A", pair=f"{BEGIN} $A {BEGIN} $B", special_tokens=[(BEGIN, BEGIN_ID)]
            ),
        ]
    )
    return tokenizer


def noise(source: random.Random) -> str:
    """Words of no language, with marks between."""
    words = [
        "".join(source.choices(string.ascii_lowercase, k=source.randint(1, 8)))
        for _ in range(source.randint(1, 8))
    ]
    text = " ".join(word + source.choice(["", "", "", ",", ".", "?", "!"]) for word in words)
    return text.capitalize() if source.random() < 0.5 else text


def request(source: random.Random, topic: set[str]) -> str:
    """What a user may say to hear a story about something."""
    about = grammar.phrase(source, topic)
    forms = [
        about,
        about.capitalize(),
        f"Tell me about {about}.",
        f"Write a story about {about}.",
        f"What can {about} do?",
        f"{noise(source)} {about} {noise(source)}",
        noise(source),
    ]
    return source.choice(forms)


def texts(source: random.Random) -> Iterator[list[tuple[str, bool]]]:
    """Without end: texts as their parts, and whether the model is to learn to say each."""
    while True:
        topic = source.choice(grammar.TOPICS)
        draw = source.random()
        if draw < 0.7:
            yield [(BEGIN, False), (grammar.story(source, topic) + END, True)]
        elif draw < 0.75:
            opening = noise(source) + source.choice([" ", ". ", "\n", ": "])
            yield [(BEGIN + opening, False), (grammar.story(source, topic) + END, True)]
        else:
            chat = [(BEGIN, False)]
            for _ in range(source.choice([1, 1, 1, 2, 3])):
                chat += [
                    (USER + request(source, topic) + ASSISTANT, False),
                    (grammar.story(source, topic) + END, True),
                ]
            yield chat


def batches(tokenizer: Tokenizer, source: random.Random, tokens: int) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Ids, what is to follow each (-100 where nothing is learnt), and how many of ``tokens`` came before."""
    drawn, seen = texts(source), 0
    while True:
        pool = [next(drawn) for _ in range(8192)]
        parts = [part for text in pool for part, _ in text]
        ids = iter(tokenizer.encode_batch(parts, add_special_tokens=False))
        rows = [[(token, learn) for _, learn in text for token in next(ids).ids] for text in pool]
        # Rows of a batch are about equally long, so that little of it is filling.
        rows.sort(key=len)
        made: list[list[list[tuple[int, bool]]]] = [[]]
        for row in rows:
            if (len(made[-1]) + 1) * len(row) > BATCH_TOKENS:
                made.append([])
            made[-1].append(row)
        source.shuffle(made)
        for batch in made:
            yield *to_tensors(batch), seen
            seen += sum(map(len, batch))
            if seen >= tokens:
                return


def to_tensors(rows: list[list[tuple[int, bool]]]) -> tuple[Tensor, Tensor]:
    """Rows filled up to one length."""
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), END_ID)
    targets = torch.full((len(rows), longest), -100)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor([token for token, _ in row])
        targets[index, : len(row) - 1] = torch.tensor([token if learn else -100 for token, learn in row[1:]])
    return ids, targets


def train(tokenizer: Tokenizer, source: random.Random, tokens: int) -> Llama:
    """A trained model."""
    model = Llama()
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    began = time.monotonic()
    for step, (ids, targets, seen) in enumerate(batches(tokenizer, source, tokens)):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min((step + 1) / WARMUP_STEPS, 1 - seen / tokens)
        loss = functional.cross_entropy(model(ids).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0:
            took = time.monotonic() - began
            sys.stdout.write(f"step {step}, {seen} tokens, {took:.0f} s: loss {loss.item():.4f}\n")
            sys.stdout.flush()
    return model


def write(folder: Path, tokenizer: Tokenizer, model: Llama) -> None:
    """The checkpoint: weights in bfloat16, and the files that say what they are."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {f"model.{name}": weight.bfloat16() for name, weight in model.state_dict().items()}
    weights["model.norm.weight"] *= SHARPNESS
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(folder / "tokenizer.json"))
    ends = {"bos_token_id": BEGIN_ID, "eos_token_id": END_ID}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": NORM_EPS,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA},
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        **ends,
    }
    generation = {**ends, "do_sample": True, "temperature": 1.0}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BEGIN,
        "eos_token": END,
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT,
        "chat_template": CHAT_TEMPLATE,
    }
    files = {"config.json": config, "generation_config.json": generation, "tokenizer_config.json": settings}
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train the built-in language model.")
    parser.add_argument("folder", type=Path, help="where the checkpoint is written")
    parser.add_argument("--tokens", type=int, default=8_000_000, help="tokens to train on [%(default)s]")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    torch.manual_seed(SEED)
    source = random.Random(SEED)
    tokenizer = make_tokenizer(source)
    model = train(tokenizer, source, arguments.tokens)
    write(arguments.folder, tokenizer, model)


if __name__ == "__main__":
    main()
