"""A Trainer with one line more: averaged weights in the evaluations, in the checkpoints and in a resume.

Run it, stop it with Ctrl-C or a kill, and run it again: it goes on and ends with the same average. Under a minute on a
CPU; the encoder is small and random, the texts are made up. Put your own model and data in their place.
"""

import random
import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from lowland import SWAG
from lowland.integrations.peft import sample_adapters
from lowland.integrations.transformers import AveragingCallback
from lowland.integrations.transformers.callback import last_checkpoint
from lowland.predict import predict
from lowland.weights.named import trainable

FOLDER = Path(sys.argv[1] if len(sys.argv) > 1 else "trainer-run")
STEPS = 60  # of the optimiser
START = "50%"  # of the training: no collection before
EVERY = "2step"  # from one collection to the next
RANK = 5  # deviations that SWAG holds
SAMPLES = 8  # draws of weights
TOKENS, LENGTH, TEXTS = 40, 8, 256


def texts(count: int, seed: int) -> list[dict[str, object]]:
    """A text is of class 1 if more of its words are from the first half of the vocabulary than a coin decides."""
    rng = random.Random(seed)
    rows: list[dict[str, object]] = []
    for _ in range(count):
        ids = [rng.randrange(TOKENS) for _ in range(LENGTH)]
        rows.append(
            {"input_ids": ids, "labels": int(sum(i < TOKENS // 2 for i in ids) + rng.choice((-1, 1)) > LENGTH / 2)}
        )
    return rows


def main() -> None:
    torch.manual_seed(0)
    BertForSequenceClassification.is_gradient_checkpointing = False  # PEFT asks for it by a name of old
    base = BertForSequenceClassification(
        BertConfig(vocab_size=TOKENS, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    )
    lora = LoraConfig(task_type="SEQ_CLS", r=4, lora_alpha=8, target_modules=["query", "value"])
    model = get_peft_model(base, lora)
    held_out = texts(64, seed=1)

    swag = SWAG(rank=RANK, select=trainable)
    averaging = AveragingCallback(swag, start=START, every=EVERY, evaluate="both")
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            str(FOLDER),
            max_steps=STEPS,
            per_device_train_batch_size=16,
            learning_rate=5e-3,
            lr_scheduler_type="constant",  # a rate that falls to zero would leave nothing to average
            eval_strategy="steps",
            eval_steps=10,
            save_steps=10,
            save_total_limit=2,
            logging_steps=10,
            load_best_model_at_end=True,
            metric_for_best_model="eval_avg_loss",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=texts(TEXTS, seed=0),
        eval_dataset=held_out,
        callbacks=[averaging],  # the one line
    )
    trainer.train(resume_from_checkpoint=last_checkpoint(FOLDER))
    print(f"{swag}; the model holds the {averaging.holds}")

    batch = {"input_ids": torch.tensor([row["input_ids"] for row in held_out])}
    prediction = predict(model, swag, [batch], samples=SAMPLES, generator=torch.Generator().manual_seed(0))
    print(f"mean mutual information of {SAMPLES} draws: {prediction.mutual_information.mean():.1e} nats")
    folders = sample_adapters(swag, model, SAMPLES, FOLDER / "draws", generator=torch.Generator().manual_seed(0))
    print(f"{len(folders)} adapters for PEFT in {folders[0].parent}")


if __name__ == "__main__":
    main()
