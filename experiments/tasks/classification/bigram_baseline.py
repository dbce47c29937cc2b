"""Logistic regression on words and pairs of words: the baseline of text classifiers."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from experiments.tasks.classification.text_encoding import split_text

# Inverse strengths of the penalty; one is chosen on the validation split.
_STRENGTHS = (0.03, 0.1, 0.3, 1.0, 3.0)


class Baseline(NamedTuple):
    """The predictions of the baseline.

    Attributes:
      predictions: a label for each text.
      strength: the inverse strength of the penalty (scikit-learn's C) chosen on the validation split.
      features: number of words and pairs.
    """

    predictions: list[str]
    strength: float
    features: int


def bigram_baseline(examples: Mapping[str, Sequence[tuple[str, str]]], split: str) -> Baseline:
    """Trains logistic regression on which words and pairs of words occur, and predicts a split.

    Args:
      examples: (text, label) pairs by split; the penalty is chosen on "validation", if there is one.
      split: what to predict.

    Returns:
      The predictions.

    Raises:
      ImportError: scikit-learn is not installed.

    Source: Wang & Manning, "Baselines and bigrams: simple, good sentiment and topic classification", 2012.

    Example:
      >>> examples = {"train": [("so good", "+"), ("not good", "-")] * 4, "test": [("not good at all", "-")]}
      >>> bigram_baseline(examples, "test").predictions
      ['-']
    """
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    # In a large corpus, pairs that occur once are useless, and there are millions of them.
    rare = 2 if len(examples["train"]) > 10_000 else 1
    vectorizer = CountVectorizer(
        tokenizer=split_text, token_pattern=None, ngram_range=(1, 2), binary=True, min_df=rare
    )
    texts, labels = zip(*examples["train"], strict=True)
    counts = vectorizer.fit_transform(texts)
    validation = examples.get("validation", ())
    held_out = vectorizer.transform([text for text, _ in validation]) if validation else None
    best = None
    for strength in _STRENGTHS if validation else (1.0,):
        model = LogisticRegression(C=strength, solver="liblinear" if len(set(labels)) == 2 else "lbfgs")
        model.set_params(max_iter=1000, random_state=0).fit(counts, labels)
        score = model.score(held_out, [label for _, label in validation]) if validation else 0.0
        if best is None or score > best[0]:
            best = (score, model, strength)
    _, model, strength = best
    predictions = model.predict(vectorizer.transform([text for text, _ in examples[split]])).tolist()
    return Baseline(predictions, strength, len(vectorizer.vocabulary_))
