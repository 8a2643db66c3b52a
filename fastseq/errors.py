"""What fastseq raises for input it cannot use. Each is a ValueError: ``except ValueError`` keeps working.

``nearest`` and ``did_you_mean`` say what an unknown word may have meant.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from numbers import Integral

# Words that name one thing in different libraries, configurations and files; the most usual meaning first.
_SYNONYMS = tuple(
    words.split()
    for words in (
        "learning_rate lr",
        "batch_size batch bs train_batch_size",
        "hidden_size hidden hidden_dim hidden_units",
        "embedding_size emb emb_size embedding_dim emb_dim dim d_model factors n_factors hidden hidden_units",
        "dropout_prob dropout dropout_rate drop_rate dropout_p hidden_dropout_prob",
        "attn_dropout_prob attn_dropout attention_dropout attention_probs_dropout_prob",
        "n_layers num_layers layers n_blocks num_blocks blocks",
        "n_heads heads num_heads num_attention_heads",
        "inner_size inner_dim ffn_dim dim_feedforward intermediate_size",
        "max_seq_len max_len seq_len sequence_length session_max_len max_item_list_length",
        "neg_samples n_negatives num_negatives num_neg negative_samples train_neg_sample_num",
        "reg_weight l2 reg regularization",
        "weight_decay wd",
        "loss loss_type loss_func",
        "initializer_range init_std",
        "window_stride stride",
        "seed random_state random_seed",
        "gradient_clip clip clip_norm grad_clip max_grad_norm gradient_clip_val",
        "patience stopping_step early_stopping_patience",
        "lr_scheduler scheduler schedule",
        "precision dtype amp",
        "device gpu gpu_id accelerator",
        "eval_every_n validate_every eval_step",
        "local_path path file filename data_path",
        "sep separator delimiter field_separator",
        "top_k k ks cutoffs",
        "mask_seen filter_seen",
        "local_experiment_path out output output_dir checkpoint_dir",
        "reader data dataset",
        "splitter split splits splitting",
        "filtering filter filters",
        "evaluation eval",
        "writer output out",
        "user_id_label user_id user uid customer_id reviewer_id visitor_id",
        "item_id_label item_id item iid movie_id product_id track_id article_id asin",
        "timestamp_label timestamp time ts date datetime event_time",
        "hr hit_rate hit hits",
        "coverage item_coverage",
    )
)


class DataError(ValueError):
    """Interactions that cannot be used; the message names the file, row and column, and the remedy."""


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the key, its value, and the remedy."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file, what was expected, and what was found."""


class TrainingError(RuntimeError):
    """Training that cannot go on: the loss or the weights are not finite, or one of several processes is lost."""


def check_integer(name: str, value: object, low: int) -> int:
    """The integer ``value``, NumPy's too; refuses what is none, or less than ``low``, or does not fit 64 bits.

    Raises:
        ConfigError: naming the argument, its value and what is accepted.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < low:
        raise ConfigError(f"{name} is {value!r}, expected an integer >= {low}")
    if int(value) >= 2**63:
        raise ConfigError(f"{name} is {value!r}, expected an integer below 2**63")
    return int(value)


def nearest(word: object, known: Iterable[str]) -> str | None:
    """The known word that an unknown one means: the same but for case and underscores, a usual synonym, or spelt alike;
    None where none is near."""
    names = {_plain(name): name for name in known}
    text = _plain(word)
    meant = [name for words in _SYNONYMS if text in map(_plain, words) for name in map(_plain, words)]
    alike = difflib.get_close_matches(text, names, n=1, cutoff=0.75)
    return next((names[name] for name in (text, *meant, *alike) if name in names), None)


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """The same as a question; where none is near, what is known."""
    names = list(known)
    near = nearest(word, names)
    if near is None:
        return f"expected {'one of ' if len(names) > 1 else ''}{', '.join(names)}"
    return f"did you mean {near!r}?"


def _plain(word: object) -> str:
    return re.sub(r"[\W_]", "", str(word).lower())
