"""A pre-trained model becomes a classifier: a head on top, fitted first, then everything together."""

from course_lib.finetuning.classifier import Classifier, FineTuning, fine_tune, fit_head, predictions

__all__ = ["Classifier", "FineTuning", "fine_tune", "fit_head", "predictions"]
