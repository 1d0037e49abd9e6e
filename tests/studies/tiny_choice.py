"""A whole choice study in seconds: made-up questions whose answer shares a word with them, random models."""

import json
import random
from pathlib import Path
from typing import Any

from .tiny_study import FILLER, WORDS, write_encoder

KINDS = ("pairs", "letters")


def write_questions(path: Path, count: int, seed: int, options: int = 3) -> Path:
    """JSONL of questions; rows differ in how they write options and answer, as files do."""
    rng = random.Random(seed)
    with path.open("w", encoding="utf-8") as file:
        for index in range(count):
            nouns = rng.sample(FILLER, options)
            right = rng.randrange(options)
            words = rng.choices(WORDS["fine"], k=rng.randint(1, 5))
            row: dict[str, Any] = {"question": " ".join([nouns[right], *words, str(seed), str(index)])}
            if index % 2:
                row |= {"options": nouns, "answer": right}
            else:
                lettered = [f"{letter}. {noun}" for letter, noun in zip("ABCDE", nouns, strict=False)]
                row |= {"options": "\n" + "\n".join(lettered), "answer": lettered[right]}
            file.write(json.dumps(row) + "\n")
    return path


def write_language_model(folder: Path) -> Path:
    """A random causal model of two layers with a vocabulary of words and letters."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    prompt = ["Select", "one", "of", "the", "choices", "that", "answers", "following", "question", "Choices", "Answer"]
    words = ["[UNK]", "</s>", ":", ".", *"ABCDE", *prompt]
    words += [word for group in WORDS.values() for word in group] + FILLER + [word.capitalize() for word in FILLER]
    words += [str(number) for number in range(80)]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(words))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", eos_token="</s>").save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(vocabulary),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=96,
            initializer_range=0.3,
        )
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def settings(folder: Path, kind: str) -> dict[str, Any]:
    return {
        "data": {
            "train": str(folder / "questions.jsonl"),
            "shifted": [str(folder / "other.jsonl")],
            "validation_questions": 12,
        },
        "model": {"kind": kind, "model": str(folder / kind), "max_length": 64 if kind == "letters" else 16},
        "lora": {"rank": 2, "alpha": 4, "dropout": 0.2, "layers": [1]},
        "training": {"seeds": [1, 2], "epochs": 2, "batch_size": 8, "learning_rate": 5e-3},
        "swag": {"start": 1, "learning_rate": 1e-3, "anneal": 0.5, "every": "1 step", "rank": 3, "other_rates": []},
        "evaluation": {"samples": 3, "dropout_samples": 3, "resamples": 50, "bins": 10, "other_scales": []},
    }


def prepare(folder: Path) -> Path:
    """Write everything that both kinds of study read, and their configurations."""
    from lowland.studies.choice.config import from_mapping
    from lowland.studies.runs.settings import to_toml

    write_questions(folder / "questions.jsonl", 60, seed=0)
    write_questions(folder / "other.jsonl", 20, seed=1, options=2)
    write_encoder(folder / "pairs")
    write_language_model(folder / "letters")
    for kind in KINDS:
        (folder / f"{kind}.toml").write_text(to_toml(from_mapping(settings(folder, kind))), encoding="utf-8")
    return folder
