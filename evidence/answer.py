"""The answer at the top of docs/results.md: three bullets, and the table that they rest on."""

import itertools

from evidence.arms import (
    BASE,
    BLOCKS,
    CONTROLS,
    LAYERWISE,
    MEAN_SCALE,
    MEAN_SCALE_BLOCKS,
    SAGE,
    label,
)
from evidence.intervals import paired, pooled
from evidence.tables import difference_cells, mean, table
from evidence.values import ENOUGH_SEEDS, FURTHER_RATES

FINDINGS = {1: "better", 0: "not distinguishable from chance", -1: "worse"}
FURTHER_SEEDS = 20


def bullets(evidence):
    """The three answers, in plain words, as a list in Markdown."""
    asked = {
        "Does Sage train better than a tuned AdamW?": [(SAGE, BASE, "with all weights guided")],
        "And with the transformer blocks alone guided, as the authors do?": [(BLOCKS, BASE, "")],
        "Is it the sensitivity?": [
            (BLOCKS, MEAN_SCALE_BLOCKS, "against one mean scale for all weights of the blocks"),
            (BLOCKS, LAYERWISE, "against AdamW with the blocks at half the rate"),
            (SAGE, MEAN_SCALE, "with all weights guided, against one mean scale for all"),
        ],
    }
    return "\n".join(
        f"- **{question}** {answer(evidence, pairs)}" for question, pairs in asked.items()
    )


def answer(evidence, pairs):
    """The findings on some pairs of arms, those that are alike in one sentence."""
    findings = [finding(evidence, *pair) for pair in pairs]
    groups = itertools.groupby(findings, key=lambda one: one[0])
    return " ".join(f"{found}{';'.join(what for _, what in some)}." for found, some in groups)


def finding(evidence, arm, base, what):
    """The finding over the finished tasks, and on which of them it is not chance."""
    what = f" {what}" if what else ""
    tasks = evidence.compared(arm, base)
    if not tasks:
        return "Not finished", what
    signs = {task: evidence.difference(task, arm, base).sign for task in tasks}
    clear = [f"{FINDINGS[sign]} on {task}" for task, sign in signs.items() if sign]
    if clear and len(clear) < len(tasks):
        clear.append("not distinguishable on the others")
    where = f": {', '.join(clear)}" if clear and len(tasks) > 1 else ""
    found = FINDINGS[evidence.pooled(arm, base).sign].capitalize()
    return found, f"{what} ({len(tasks)} task{'s' * (len(tasks) > 1)}{where})"


def verdicts(evidence):
    """A row for each question, and what its cells are."""
    rows = [["question", "answer", "points", "95 % interval", "where"]]
    asked = [
        (SAGE, BASE, "all weights guided"),
        (BLOCKS, BASE, "the blocks alone guided"),
        *((SAGE, control, what) for control, what in CONTROLS.items()),
        (BLOCKS, MEAN_SCALE_BLOCKS, "one mean scale for all blocks"),
        (BLOCKS, LAYERWISE, "the blocks at half the rate"),
        (LAYERWISE, BASE, "the blocks at half the rate"),
    ]
    for arm, base, what in asked:
        question = f"{label(arm)} against {label(base)}: {what}"
        tasks = evidence.compared(arm, base)
        if not tasks:
            rows.append([question, "not finished", "", "", ""])
            continue
        difference = evidence.pooled(arm, base)
        single = [
            f"{task} {100 * evidence.difference(task, arm, base).mean:+.2f}" for task in tasks
        ]
        cells = difference_cells(difference)
        rows.append([question, FINDINGS[difference.sign], *cells, ", ".join(single)])
    unit = (
        "Points are hundredths of the metric: the mean over the tasks, each of which counts the "
        "same, and beside it each task's own."
    )
    return f"{table(rows)}\n\n{unit}"


def further_section(evidence):
    """SageBlocks against its control with seeds of their own, as a list of one part or none."""
    rows = [["task", "rates", "seeds", "SageBlocks", "MeanScaleBlocks", "difference", "interval"]]
    pairs = []
    for task, rates in FURTHER_RATES.items():
        values, others = (evidence.further(task, arm, rates) for arm in (BLOCKS, MEAN_SCALE_BLOCKS))
        seeds = values.keys() & others.keys()
        if len(seeds) >= ENOUGH_SEEDS:
            pairs.append((values, others))
            means = [mean([one[seed] for seed in seeds]) for one in (values, others)]
            written = ", ".join(f"{rate:g}" for rate in rates)
            cells = difference_cells(paired(values, others))
            rows.append([task, written, f"{len(seeds)} of {FURTHER_SEEDS}", *means, *cells])
    if not pairs:
        return []
    rows.append(["all", *[""] * 4, *difference_cells(pooled(pairs))])
    counts = [len(values.keys() & others.keys()) for values, others in pairs]
    under_way = len(pairs) < len(FURTHER_RATES) or min(counts) < FURTHER_SEEDS
    text = (
        "SageBlocks 0.75 against MeanScaleBlocks 0.75 with seeds that had no part in the question, "
        "at rates that were fixed before."
    )
    if under_way:
        text += (
            f" Under way: it decides nothing before all {len(FURTHER_RATES)} tasks have "
            f"{FURTHER_SEEDS} seeds."
        )
    return [f"## Further seeds\n\n{text}\n\n{table(rows)}", *_rates_alone(evidence)]


def _rates_alone(evidence):
    """AdamW, LayerwiseAdamW and SageBlocks on translation with the further seeds."""
    best = evidence.best.get("translation", {})
    fixed = FURTHER_RATES["translation"][0]
    rates = {BASE: best.get(BASE), LAYERWISE: best.get(LAYERWISE)}
    rates |= dict.fromkeys((BLOCKS, MEAN_SCALE_BLOCKS), fixed)
    values = {arm: evidence.further("translation", arm, (rate,)) for arm, rate in rates.items()}
    rows = [
        [
            "translation",
            "rate",
            "seeds",
            "mean",
            "to AdamW",
            "interval",
            "to LayerwiseAdamW",
            "interval",
        ]
    ]
    for arm, own in values.items():
        if len(own.keys() & values[BASE].keys()) >= ENOUGH_SEEDS:
            cells = [
                cell
                for base in (BASE, LAYERWISE)
                for cell in difference_cells(None if arm == base else paired(own, values[base]))
            ]
            rows.append([label(arm), f"{rates[arm]:g}", str(len(own)), mean(own.values()), *cells])
    if len(rows) < 3:
        return []
    text = "Is the gain on `translation` that of the rates alone?"
    return [f"{text}\n\n{table(rows)}"]
