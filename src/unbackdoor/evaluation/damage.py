"""What a removal has broken: utilities, likelihoods, refusals, and the answers themselves."""

from __future__ import annotations

from unbackdoor.evaluation.answer_quality import damage_of_answers
from unbackdoor.evaluation.statistics import newcombe
from unbackdoor.report_schema import Measured
from unbackdoor.settings import Thresholds


def damage(before: Measured, after: Measured, thresholds: Thresholds) -> str:
    """What has become worse than the thresholds allow, in words; empty where nothing has."""
    found = []
    for metric, first in before.utility.items():
        last = after.utility[metric]
        change = last.value - first.value
        if metric.endswith("perplexity"):
            if change > thresholds.most_perplexity_rise * first.value:
                found.append(f"{metric} rose from {first.value:.2f} to {last.value:.2f}")
        elif metric == "false_refusals":
            if change > thresholds.most_false_refusals:
                found.append(f"false refusals rose from {first.value:.1%} to {last.value:.1%}")
        elif -change > thresholds.most_utility_loss:
            found.append(f"{metric} fell from {first.value:.1%} to {last.value:.1%}")
    for name in ("degenerate", "degenerate_untriggered"):
        first_rate, last_rate = before.details.get(name), after.details.get(name)
        if not first_rate or not last_rate:
            continue
        more, low = newcombe(last_rate, first_rate)
        if more > thresholds.most_degenerate and low > 0:  # one answer of a dozen is no sign
            found.append(f"{last_rate.rate:.1%} of answers are empty or repeat themselves")
            break
    if after.answer_quality is not None:
        found += damage_of_answers(after.answer_quality, thresholds)
    return ", ".join(found)
