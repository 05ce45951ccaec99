"""Clip scores of HTS-AT as a Hugging Face metric: mean average precision, AUC, d-prime and accuracy."""

# `evaluate` reads these lines with a regular expression, for which `import a, b` is one module called "a,".
from typing import Any

import datasets
import evaluate

from modeling_htsat.metrics import clip_scores

_DESCRIPTION = """
Macro-averaged scores of clip tagging. Classes without a positive clip are left out of the mean average precision, and
classes without positive or without negative clips out of the AUC; the result says how many were counted and skipped.
"""

_INPUTS_DESCRIPTION = """
Args:
    predictions: one list of scores per clip, one score per class; any scores that rank clips, as logits do.
    references: one list of 0 and 1 per clip, or one class index per clip; class indices also give the accuracy.
Returns:
    mean_average_precision, mean_auc, d_prime, map_classes_counted, map_classes_skipped, auc_classes_counted,
    auc_classes_skipped, and accuracy where references are class indices.
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _INPUTS_DESCRIPTION)
class HTSATClipScores(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        scores = datasets.List(datasets.Value("float64"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS_DESCRIPTION,
            features=[
                datasets.Features({"predictions": scores, "references": datasets.List(datasets.Value("int64"))}),
                datasets.Features({"predictions": scores, "references": datasets.Value("int64")}),
            ],
        )

    def _compute(self, predictions: list[list[float]], references: list[Any]) -> dict[str, float]:
        return clip_scores(predictions, references)
