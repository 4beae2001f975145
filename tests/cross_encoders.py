"""A real cross-encoder of sentence-transformers, made on the spot: it counts the word "good" in a passage."""

from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

LETTERS = "abcdefghijklmnopqrstuvwxyz"
VOCABULARY = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS), "good")
WIDTH = 8


def counting_model(folder: Path, *, labels: int = 1) -> Path:
    """Every token looks at all others alike, and the score is what they are in the mean: 1 for "good", 0 for others."""
    config = BertConfig(
        vocab_size=len(VOCABULARY), hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=1,
        intermediate_size=1, max_position_embeddings=128, num_labels=labels,
    )  # fmt: skip
    model = BertForSequenceClassification(config)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            weights.fill_(1.0 if "LayerNorm.weight" in name else 0.0)
        words = model.bert.embeddings.word_embeddings.weight
        words[:, 1] = 1.0
        words[VOCABULARY.index("good")] = torch.eye(WIDTH)[0]
        layer = model.bert.encoder.layer[0]
        layer.attention.self.value.weight.copy_(torch.eye(WIDTH))
        layer.attention.output.dense.weight.copy_(torch.eye(WIDTH))
        model.bert.pooler.dense.weight.copy_(torch.eye(WIDTH))
        model.classifier.weight[0, 0] = 1.0
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder
