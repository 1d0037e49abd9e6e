"""A whole text study in a second or two: made-up texts, a random encoder of two layers with its own vocabulary."""

import csv
import random
from pathlib import Path
from typing import Any

WORDS = {"fine": ["good", "kind", "warm", "calm"], "foul": ["bad", "cruel", "cold", "harsh"]}
FILLER = ["the", "a", "day", "night", "was", "is", "and", "very", "dog", "cat", "house", "tree"]


def write_texts(path: Path, count: int, seed: int) -> Path:
    """A CSV of texts whose class shows in one word of several."""
    rng = random.Random(seed)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for index in range(count):
            label = "foul" if index % 3 == 0 else "fine"
            words = rng.choices(FILLER, k=rng.randint(2, 9)) + [rng.choice(WORDS[label])]
            rng.shuffle(words)
            # The number keeps texts apart: a split drops doubles.
            writer.writerow([" ".join([*words, str(index)]), label])
    return path


def write_encoder(folder: Path, kind: str = "bert", layers: int = 2) -> Path:
    """Random weights from a fixed seed, as `save_pretrained` writes them."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    words = [*special, *(word for group in WORDS.values() for word in group), *FILLER]
    words += [str(digit) for digit in range(10)] + [f"##{digit}" for digit in range(10)]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        random_encoder(kind, len(vocabulary), layers).save_pretrained(folder)
    return folder


def random_encoder(kind: str, vocabulary: int, layers: int) -> Any:
    from transformers import (
        BertConfig,
        BertModel,
        DistilBertConfig,
        DistilBertModel,
        ElectraConfig,
        ElectraModel,
        RobertaConfig,
        RobertaModel,
    )

    if kind == "distilbert":
        return DistilBertModel(
            DistilBertConfig(
                vocab_size=vocabulary, dim=32, hidden_dim=64, n_layers=layers, n_heads=2, max_position_embeddings=64
            )
        )
    sizes: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
    }
    if kind == "electra":
        return ElectraModel(ElectraConfig(embedding_size=16, **sizes))
    if kind == "roberta":
        return RobertaModel(RobertaConfig(pad_token_id=0, **sizes))
    return BertModel(BertConfig(**sizes), add_pooling_layer=False)


def settings(folder: Path, **training: Any) -> dict[str, Any]:
    """The configuration of a study on the texts and the encoder in `folder`."""
    return {
        "data": {"train": str(folder / "train.csv"), "test": str(folder / "test.csv"), "validation_texts": 30},
        "model": {"encoder": str(folder / "encoder"), "max_length": 16},
        "training": {
            "seeds": [1, 2],
            "epochs": 2,
            "batch_size": 16,
            "learning_rate": 2e-3,
            "monitor_texts": 20,
            **training,
        },
        "swag": {"start": 1, "learning_rate": 0.02, "every": "1 step", "rank": 4, "other_rates": []},
        "evaluation": {"samples": 2, "resamples": 50, "bins": 10, "other_scales": []},
    }


def prepare(folder: Path) -> Path:
    """Write everything that a study reads, and its configuration as study.toml."""
    write_texts(folder / "train.csv", 96, seed=0)
    write_texts(folder / "test.csv", 40, seed=1)
    write_encoder(folder / "encoder")
    from lowland.studies.runs.settings import to_toml
    from lowland.studies.text import from_mapping

    (folder / "study.toml").write_text(to_toml(from_mapping(settings(folder))), encoding="utf-8")
    return folder
