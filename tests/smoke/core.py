"""Run from an installed wheel with nothing but the core dependencies: import, train a step, recommend."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import fastseq
from fastseq import GRU4Rec, SASRec
from fastseq.data import from_sequences, leave_one_out
from fastseq.training import Trainer, TrainingOptions

assert Path(fastseq.__file__).is_relative_to(sys.prefix), f"not the wheel: {fastseq.__file__}"

histories = [[f"i{(user + step) % 40}" for step in range(12)] for user in range(60)]
interactions = from_sequences(histories)
split = leave_one_out(interactions)
info = {"n_users": interactions.n_users, "n_items": interactions.n_items}
shared = {
    "embedding_size": 16,
    "dropout_prob": 0.1,
    "weight_decay": 0.0,
    "learning_rate": 0.01,
    "epochs": 2,
    "neg_samples": 1,
    "max_seq_len": 10,
    "batch_size": 128,
}
sasrec = {"n_layers": 1, "n_heads": 2, "inner_size": 32, "attn_dropout_prob": 0.1}
for model in (SASRec(shared | sasrec, info), GRU4Rec(shared | {"hidden_size": 16, "num_layers": 1}, info)):
    Trainer(model, split, TrainingOptions()).fit()
    answer = model.recommend([histories[0]], k=3)
    print(type(model).__name__, answer)
print(fastseq.explain())
print("torch", torch.__version__)
