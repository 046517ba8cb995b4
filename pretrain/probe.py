"""The linear probe: what an encoder's frozen features say about arrhythmia."""

from torch import nn

from data.beats import Beats
from models.inference import apply

NUM_FOLDS = 5


def probe_recall(encoder: nn.Module, beats: Beats, seed: int) -> float:
    """Macro recall (0 … 1) of a linear classifier on frozen features of labelled `beats`.

    Balanced logistic regression on standardised features, cross-validated: each beat is judged by a classifier that
    was fitted without its fold. `beats` is the validation part of the arrhythmia *training* files, never test beats.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import recall_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features, target = apply(encoder, beats.signal).numpy(), beats.labels.numpy()
    classifier = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", solver="newton-cholesky"))
    folds = StratifiedKFold(NUM_FOLDS, shuffle=True, random_state=seed)
    predicted = cross_val_predict(classifier, features, target, cv=folds)
    return float(recall_score(target, predicted, average="macro"))
