"""The table of a sweep: quality by task with its interval, then cost; one row a variant."""

from collections.abc import Mapping, Sequence

from fusionkit.reporting.statistics import estimate
from fusionkit.reporting.study_runs import Run, values_of, variants_of

METRICS = {
    "vqa_agreement": "VQA, agreement",
    "vqa_accuracy": "VQA",
    "grounding_acc50": "grounding, IoU ≥ 0.5",
    "itm_accuracy": "matching",
    "mlm_accuracy": "masked words",
    "text_to_image_r1": "text to image R@1",
    "image_to_text_r1": "image to text R@1",
}
COSTS = {  # key of a cost -> title, divisor, digits
    "parameters": ("parameters of the fusion, M", 1e6, 2),
    "fusion_flops_per_sample": ("MFLOPs a sample, fusion alone", 1e6, 1),
    "flops_per_sample": ("MFLOPs a sample, whole model", 1e6, 1),
    "step_seconds": ("ms a step", 1e-3, 0),
    "samples_per_s": ("samples/s", 1, 0),
    "peak_mb": ("peak memory, MB", 1, 0),
}


def study_table(runs: Sequence[Run], costs: Mapping[str, Mapping[str, float]]) -> str:
    """Markdown: the best at the first metric first; costs where they were measured; what guessers score at the end."""
    metrics = {name: title for name, title in METRICS.items() if any(name in run.metrics for run in runs)}
    shown = {name: spec for name, spec in COSTS.items() if any(name in row for row in costs.values())}
    rows = [
        [variant, *(quality(runs, variant, metric) for metric in metrics), *(_cost(costs.get(variant, {}), shown))]
        for variant in ranked(runs, next(iter(metrics)))
    ]
    for title, suffix in (("text only", "baseline"), ("chance", "chance")):
        rows.append([f"*{title}*", *(_guess(runs, f"{metric}_{suffix}") for metric in metrics), *([""] * len(shown))])
    return markdown(["", *metrics.values(), *(title for title, _, _ in shown.values())], rows)


def ranked(runs: Sequence[Run], metric: str) -> list[str]:
    """The variants, the best mean first; those without the metric last."""

    def key(variant: str) -> float:
        values = values_of(runs, variant, metric)
        return -estimate(values).mean if values else 0.0

    return sorted(variants_of(runs), key=key)


def quality(runs: Sequence[Run], variant: str, metric: str) -> str:
    """Mean and interval; where the variant has none, as it cannot do the task, what a guess from the text alone scores."""
    if values := values_of(runs, variant, metric):
        return str(estimate(values))
    return f"refused (text only: {_guess(runs, f'{metric}_baseline')})"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table, numbers to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _cost(row: Mapping[str, float], shown: Mapping[str, tuple[str, float, int]]) -> list[str]:
    return [f"{row[name] / unit:,.{digits}f}" if name in row else "" for name, (_, unit, digits) in shown.items()]


def _guess(runs: Sequence[Run], name: str) -> str:
    found = {run.metrics[name] for run in runs if name in run.metrics}
    return f"{max(found):.1f}" if found else ""


def growth_table(exponents: Mapping[str, Mapping[str, float]], theory: Mapping[str, str]) -> str:
    """Markdown: the theoretical cost, and the measured exponents, whose columns are those of ``exponents``."""
    columns = list(next(iter(exponents.values())))
    titles = [column.replace("_", " ").replace("/", ": ") for column in columns]
    rows = [
        [name, f"O({theory[name]})" if name in theory else "", *(f"{row[column]:.2f}" for column in columns)]
        for name, row in exponents.items()
    ]
    return markdown(["exponent by", "theory, a layer", *titles], rows)
