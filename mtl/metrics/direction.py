"""Whether a higher value of a metric is better."""

from __future__ import annotations

from torchmetrics import Metric


def higher_is_better(metric: Metric) -> bool | None:
    """What a metric says of its direction, or the metric inside of one of torchmetrics' wrappers; None: unknown."""
    for _ in range(8):  # wrappers in wrappers
        if isinstance(metric.higher_is_better, bool):
            return metric.higher_is_better
        inner = getattr(metric, "base_metric", getattr(metric, "wrapped_metric", None))
        if not isinstance(inner, Metric):
            return None
        metric = inner
    return None
