"""The linear probe: what an encoder's frozen features say about arrhythmia."""

import warnings

from torch import nn

from data.beats import Beats
from data.split import stratified
from models.inference import apply


def probe_recall(encoder: nn.Module, beats: Beats, seed: int) -> float:
    """Macro recall (0 … 1) of a linear classifier on frozen features of labelled `beats`.

    Balanced logistic regression on standardised features, fitted on one stratified half of the beats and scored on
    the other. `beats` is the validation part of the arrhythmia *training* files: no test beat is seen.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import recall_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    assert beats.target is not None
    features, target = apply(encoder, beats.signal).numpy(), beats.target.numpy()
    fit, score = (index.numpy() for index in stratified(beats.target, 0.5, seed))
    classifier = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=200))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        classifier.fit(features[fit], target[fit])
    return float(recall_score(target[score], classifier.predict(features[score]), average="macro"))
