"""How tables are written: CSV with all digits; Markdown and LaTeX as people read them, decimals fixed by the kind of a number."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

SEEDS = "Runs of one cell differ in the seed that drew the calibration sample; the dense checkpoint is one, so nothing is said of others."
LOST = "Points lost are dense minus pruned on the same examples, with 95 % intervals over examples and, from three seeds on, over seeds."
JUDGED = "*collapsed*: no better than an answer that looks at nothing, or one answer for nearly all. *suspect*: a faulty library, to rerun."
ADAPTERS = "Our dense mpnet-base was fine-tuned by rank-16 adapters with frozen embeddings, the published BERT-base as a whole."

CAPTIONS = {  # a sentence, and what has to be known to read the numbers
    "accuracy": ("Scores and points lost by method and share of FLOPs removed; bold: ahead of every other method.", LOST, JUDGED, SEEDS),
    "threshold-free": ("Measures that no threshold can spoil, dense beside pruned: AUC and Matthews' correlation, or correlations.", SEEDS),
    "differences": (
        "By how much K-prune scores above the three best other methods, paired by examples and seed; ahead: the interval excludes zero.",
        JUDGED,
        SEEDS,
    ),
    "best-speedup": (
        "The highest speedup measured on {machine} that loses at most 3 points; mean: geometric, over the tasks that all methods have.",
    ),
    "cost": ("What pruning cost on {machine}: passes over the calibration sample, seconds, memory.",),
    "kept": ("What is left: shares of FLOPs, of the layers' parameters, of single weights.",),
    "dense": ("Dense scores beside what was expected of the checkpoint.",),
    "answers": ("How pruned answers differ from the dense model's, in numbers of examples, and how sure both are.", SEEDS),
    "ranks": (
        "Average ranks of methods by score and by AUC, 1 is best, with Friedman's p and Nemenyi's critical difference.",
        "Collapsed models share the last rank by score. A task and model with a suspect cell is left out.",
    ),
    "perplexity": (
        "Perplexity of language models, dense beside pruned, and by how many percent it grew; best first.",
        "The interval is over the windows of the text, paired. *collapsed*: no better than the tokens' own frequencies.",
    ),
    "weights": ("Methods that remove single weights; passes and speedups on {machine}.", JUDGED, SEEDS),
    "retraining": ("Pruning and retraining beside K-prune, which does not retrain, on {machine}.", SEEDS),
    "published": ("Our scores beside published ones of the same method, task and share of FLOPs removed.", ADAPTERS, SEEDS),
}

WORDS = {  # columns of words or of names, left-aligned
    **{
        name: name
        for name in ("task", "model", "method", "by", "against", "paper", "variant", "how", "why", "suspect", "collapsed", "unit")
    },
    "verdict": "ahead",
    "kprune_collapsed": "K-prune collapsed",
    "model_ours": "our model",
    "model_theirs": "their model",
    "table_or_figure": "table or figure",
    "same_conditions": "same conditions",
}
POINTS = "{:z.2f}"
NUMBERS: dict[str, tuple[str, str]] = {  # heading and form of what is not a score in points; a form in % is of a share
    "sample": ("tokens (thousands)", "{:.0f}"),
    "ratio": ("removed (%)", "%0"),
    "runs": ("runs", "{:.0f}"),
    "paired_seeds": ("paired seeds", "{:.0f}"),
    "rows": ("rows", "{:.0f}"),
    "seeds": ("± seeds", "{:z.1f}"),
    "examples": ("± examples", "{:z.1f}"),
    "auc": ("AUC (%)", "{:z.1f}"),
    "auc_dense": ("AUC, dense (%)", "{:z.1f}"),
    "matthews": ("Matthews (x 100)", "{:z.1f}"),
    "matthews_dense": ("Matthews, dense (x 100)", "{:z.1f}"),
    "pearson": ("Pearson (x 100)", "{:z.1f}"),
    "pearson_dense": ("Pearson, dense (x 100)", "{:z.1f}"),
    "spearman": ("Spearman (x 100)", "{:z.1f}"),
    "spearman_dense": ("Spearman, dense (x 100)", "{:z.1f}"),
    "mean": ("mean", "{:.2f}"),
    "context": ("window (tokens)", "{:.0f}"),
    "seed": ("seed", "{:.0f}"),
    "perplexity_dense": ("perplexity, dense", "{:.2f}"),
    "perplexity": ("perplexity", "{:.2f}"),
    "growth": ("growth (%)", "{:z.1f}"),
    "growth_low": ("growth, 95 % from (%)", "{:z.1f}"),
    "growth_high": ("growth, 95 % to (%)", "{:z.1f}"),
    "passes": ("passes", "{:.2f}"),
    "passes_kprune": ("passes, K-prune", "{:.2f}"),
    "seconds": ("pruning (s)", "{:z.1f}"),
    "peak_mb": ("peak memory (MB)", "{:.0f}"),
    "mask_mb": ("masks (MB)", "{:.2f}"),
    "flops_kept": ("FLOPs kept (%)", "%1"),
    "params_kept": ("parameters kept (%)", "%1"),
    "weights_kept": ("weights kept (%)", "%1"),
    "kept": ("weights kept (%)", "%1"),
    "agreement": ("answered alike (%)", "{:z.1f}"),
    "turned_wrong": ("right, now wrong", "{:.0f}"),
    "turned_right": ("wrong, now right", "{:.0f}"),
    "changed": ("wrong in another way", "{:.0f}"),
    "calibration_dense": ("calibration error, dense (%)", "{:z.1f}"),
    "calibration_pruned": ("calibration error (%)", "{:z.1f}"),
    "divergence": ("divergence (nats)", "{:.3f}"),
    "friedman_p": ("Friedman's p", "{:.3f}"),
    "critical_difference": ("critical difference", "{:.2f}"),
    "times": ("passes, ratio", "{:z.1f}"),
    "published_up_to": ("published, up to", "{:.0f}"),
    "error": ("reading error (points)", POINTS),
    "lost": ("points lost", POINTS),
    "drop": ("points lost", POINTS),
    "drop_ours": ("points lost, ours", POINTS),
    "drop_theirs": ("points lost, theirs", POINTS),
    "score_kprune": ("score, K-prune", POINTS),
    "trivial": ("trivial answer", POINTS),
    "low": ("95 % from", POINTS),
    "high": ("95 % to", POINTS),
}
LATEX = {"published": ["task", "ratio", "method", "model_ours", "ours", "model_theirs", "theirs", "difference"]}  # what fits a page
KEYS = ("task", "model", "sample", "ratio", "method")
MOST = 8  # columns of a table in LaTeX


def write(table: pd.DataFrame, folder: Path, name: str, machine: str = "one machine") -> None:
    """`name`.csv, .md and .tex, without columns that are empty. `machine` is whose timings a caption names.

    The CSV has code's names, shares and every digit; the others have headings with units, percent and fixed decimals.
    """
    names: list[Any] = table.columns.tolist()
    flat = table.set_axis([" ".join(name).strip() if isinstance(name, tuple) else name for name in names], axis=1)
    flat = flat.dropna(axis=1, how="all")
    flat.to_csv(folder / f"{name}.csv", index=False, lineterminator="\n", float_format="%.10g")
    shown = shaped(flat) if name == "accuracy" else flat
    caption, *notes = (sentence.format(machine=machine) for sentence in CAPTIONS[name])
    text = "\n\n".join([caption, _markdown(shown), *notes])
    (folder / f"{name}.md").write_text(text + "\n", encoding="utf-8")
    parts = list(_parts(shown[LATEX.get(name, shown.columns)]))
    latex = (_latex(part, caption, f"{name}-{i}" if i else name, i, len(parts)) for i, part in enumerate(parts))
    (folder / f"{name}.tex").write_text("\n".join(latex), encoding="utf-8")


def readme(names: list[str], machine: str) -> str:
    """What each of the tables in a folder says."""
    lines = [
        f"- [{name}]({name}.md) ([CSV]({name}.csv), [LaTeX]({name}.tex)): {CAPTIONS[name][0].format(machine=machine)}" for name in names
    ]
    return "\n\n".join(["# Tables", f"Timings are those of {machine}.", "\n".join(lines), LOST, JUDGED, SEEDS, ADAPTERS]) + "\n"


def shaped(table: pd.DataFrame) -> pd.DataFrame:
    """The accuracy table as people read it: a row for each method beside its dense score, a column for each ratio."""
    text = [_entry(row) for row in table.to_dict("records")]
    cells = table.assign(text=pd.Series(text, index=table.index, dtype="object"))
    dense = cells.groupby(["task", "model", "sample", "method"]).dense.mean()
    wide = cells.pivot(index=dense.index.names, columns="ratio", values="text")
    wide.columns = [f"{100 * ratio:g} %" for ratio in wide.columns]
    return pd.concat([dense, wide], axis=1).reset_index()


def _entry(row: Any) -> str:
    """Score and number of runs, then the points lost with their interval, or what else is to be known."""
    score = f"**{row['score']:.2f}**" if row["wins"] else f"{row['score']:.2f}"
    runs: str = f"{score} ({row['runs']} run{'s' * (row['runs'] != 1)})"
    lost = "*collapsed*" if row["collapsed"] else f"lost {row['lost']:z.1f} [{row['lost_low']:z.1f}, {row['lost_high']:z.1f}]"
    return f"{runs}, {lost}" + ", *suspect*" * bool(pd.notna(row.get("suspect")))


def _heading(column: str) -> str:
    return WORDS.get(column) or NUMBERS.get(column, (column.replace("_", " "), ""))[0]


def _form(column: str) -> Callable[[Any], str]:
    """How a column's values are printed; what is missing is left empty."""
    form = "" if column in WORDS else NUMBERS.get(column, ("", POINTS))[1]

    def text(value: Any) -> str:
        if pd.isna(value):
            return ""
        if isinstance(value, str) or not form:
            return {True: "yes", False: ""}.get(value, str(value)) if isinstance(value, bool) else str(value)
        if form.startswith("%"):
            return f"{100 * value:.10g}" if form == "%0" else f"{100 * value:.{form[1]}f}"
        return form.format(value)

    return text


def _texts(table: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame({column: [_form(column)(value) for value in table[column].tolist()] for column in table.columns}, dtype="object")


def _markdown(table: pd.DataFrame) -> str:
    sides = ["left" if column in WORDS else "right" for column in table.columns]
    return _texts(table).rename(columns=_heading).to_markdown(index=False, disable_numparse=True, colalign=sides)


def _parts(table: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """The table in pieces of at most eight columns, each with the columns that name a row."""
    keys = [column for column in table.columns if column in KEYS] if len(table.columns) > MOST else []
    rest = [column for column in table.columns if column not in keys]
    for start in range(0, len(rest), MOST - len(keys)):
        yield table[keys + rest[start : start + MOST - len(keys)]]


def _latex(table: pd.DataFrame, caption: str, label: str, part: int, parts: int) -> str:
    text = _texts(table).map(_escaped).rename(columns=lambda column: _escaped(_heading(column)))
    sides = "".join("l" if column in WORDS else "r" for column in table.columns)
    told = _escaped(caption + f" Part {part + 1} of {parts}." * (parts > 1))
    return text.style.hide(axis="index").to_latex(hrules=True, column_format=sides, caption=told, label=f"tab:{label}")


SIGNS = {"_": r"\_", "%": r"\%", "&": r"\&", "±": r"$\pm$", "~": r"\textasciitilde{}", "#": r"\#"}


def _escaped(text: str) -> str:
    """Signs that LaTeX reads otherwise; stars as bold or as italics."""
    for stars, command in (("**", "textbf"), ("*", "emph")):
        before, *inside = text.split(stars, 2)
        if len(inside) == 2:
            return rf"{_escaped(before)}\{command}{{{_escaped(inside[0])}}}{_escaped(inside[1])}"
    return "".join(SIGNS.get(sign, sign) for sign in text)
