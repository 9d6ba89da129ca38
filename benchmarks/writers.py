"""Lets a small T5 and a small GPT-2, both from random weights, learn to write from real texts.

    python -m benchmarks.writers t5 pairs/ --epochs 30       # train.csv, ...: source, target
    python -m benchmarks.writers gpt2 texts/ --epochs 5      # train.csv, ...: text

No pre-trained weights of either can be had where this was written. Tokenizer and network are made
for the texts of `train.csv`: a folder of Hugging Face's format without weights, which
`backbone.weights=none:FOLDER` builds. Everything else is the shipped recipe. Prints the scores, the
first samples, and the loss of every epoch.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import pandas as pd
import sentencepiece
from rich.console import Console
from tokenizers import ByteLevelBPETokenizer

from kerastune_ft import recipe as recipes
from kerastune_ft import workflow

T5 = {
    "model_type": "t5", "vocab_size": 4000, "d_model": 192, "d_kv": 32, "d_ff": 512,
    "num_heads": 6, "num_layers": 3, "num_decoder_layers": 3, "feed_forward_proj": "relu",
    "tie_word_embeddings": True, "pad_token_id": 0, "eos_token_id": 1,
    "decoder_start_token_id": 0,
}  # fmt: skip
GPT2 = {
    "model_type": "gpt2", "vocab_size": 4000, "n_positions": 128, "n_embd": 192, "n_head": 6,
    "n_layer": 4, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip


def t5(texts: list[str], folder: Path) -> None:
    """Writes configuration and vocabulary of a small T5."""
    lines = folder / "texts.txt"
    lines.write_text("\n".join(text.replace("\n", " ") for text in texts), "utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(lines), model_prefix=str(folder / "spiece"), vocab_size=3900, pad_id=0, eos_id=1,
        unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    (folder / "config.json").write_text(json.dumps(T5))


def gpt2(texts: list[str], folder: Path) -> None:
    """Writes configuration and vocabulary of a small GPT-2."""
    made = ByteLevelBPETokenizer()
    made.train_from_iterator(texts, vocab_size=4000, special_tokens=["<|endoftext|>"])
    made.save_model(str(folder))
    (folder / "config.json").write_text(json.dumps(GPT2))


def main() -> None:
    """Trains one of the two and prints what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=["t5", "gpt2"])
    parser.add_argument("data", type=Path)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--folder", type=Path, default=Path("writers"))
    chosen = parser.parse_args()
    folder = chosen.folder / chosen.kind
    folder.mkdir(parents=True, exist_ok=True)
    frame = pd.read_csv(chosen.data / "train.csv", dtype=str, keep_default_na=False)
    overrides = [
        f"backbone.weights=none:{folder}",
        f"data.path={chosen.data}",
        "data.batch_size=32",
        "data.leakage=warn",  # sets that others divided
        "backbone.sequence_length=64",
        "train.early_stopping.patience=10",
        "train.stages.0.learning_rate=1e-3",
        f"train.stages.0.epochs={chosen.epochs}",
    ]
    if chosen.kind == "t5":
        t5([*frame["source"], *frame["target"]], folder)
        overrides += ["task.beams=1", "task.max_new_tokens=40"]
    else:
        gpt2(list(frame["text"]), folder)
        overrides += ["data.text_column=null", "data.label_column=text"]
    file = Path(__file__).parents[1] / "recipes" / f"{chosen.kind}.yaml"
    recipe = recipes.load(file, overrides)
    run = workflow.fit(
        recipe, runs_dir=chosen.folder, default_name=f"run-{chosen.kind}", console=Console()
    )
    scores = run.read_json("scores")["test"]
    print(json.dumps({key: value for key, value in scores.items() if key != "per_class"}))
    with run.history_path.open(encoding="utf-8") as file_:
        losses = pd.read_csv(file_)["val_loss"]
    print("validation perplexity:", " ".join(f"{math.exp(loss):.1f}" for loss in losses))
    print(pd.read_csv(run.predictions_path).head(8).to_string())


if __name__ == "__main__":
    main()
