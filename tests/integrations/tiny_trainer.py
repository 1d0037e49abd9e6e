"""A Trainer's run of a fraction of a second: a random encoder of one layer, made-up texts of three numbers."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

SIZES: dict[str, Any] = {
    "vocab_size": 30,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 16,
}
ROWS = [{"input_ids": [i % 30, (i * 7) % 30, 3 + i % 2], "labels": i % 2} for i in range(48)]


def classifier(seed: int = 0) -> Any:
    from transformers import BertConfig, BertForSequenceClassification

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = BertForSequenceClassification(BertConfig(initializer_range=0.2, **SIZES))
    # PEFT asks for the old name of this one, at which Transformers warns.
    type(model).is_gradient_checkpointing = False
    return model


def adapted(seed: int = 0, **lora: Any) -> Any:
    """The classifier with LoRA on the attention, neither factor zero; the head is trained whole."""
    from peft import LoraConfig, get_peft_model

    base = classifier(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed + 1)
        settings = {"task_type": "SEQ_CLS", "r": 2, "lora_alpha": 4, "target_modules": ["query", "value"], **lora}
        model = get_peft_model(base, LoraConfig(**settings))
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "lora_embedding_A" in name:
                nn.init.normal_(parameter, std=0.2)
    return model


def arguments(folder: Path, **given: Any) -> Any:
    from transformers import TrainingArguments

    settings = {
        "max_steps": 12,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-2,
        "save_steps": 4,
        "logging_steps": 4,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        **given,
    }
    return TrainingArguments(str(folder), **settings)


def trainer(model: Any, folder: Path, *callbacks: Any, kind: Any = None, **given: Any) -> Any:
    from transformers import Trainer
    from transformers.trainer_callback import PrinterCallback

    made = (kind or Trainer)(
        model=model,
        args=arguments(folder, **given),
        train_dataset=ROWS,
        eval_dataset=ROWS[:16],
        callbacks=list(callbacks),
    )
    made.remove_callback(PrinterCallback)
    return made
