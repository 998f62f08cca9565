"""Published results: a table of facts with sources, what of it may be drawn, and ours beside theirs."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from analysis import frame, published
from bench.records import store
from tests.test_store import made

CONF = Path(__file__).resolve().parent.parent / "conf"
COUNTS = {  # rows of each source, as counted when they were read
    ("K-prune", "Fig. 2 (v1)"): 281,
    ("K-prune", "Fig. 2 (v1), printed label"): 12,
    ("K-prune", "Table 2 (v1)"): 21,
    ("K-prune", "ICLR 2024 poster"): 14,
    ("K-prune", "abstract"): 1,
    ("SMP", "README table"): 30,
    ("SMP", "results figure (SMP_results.png)"): 149,
    ("SMP", "results figure (SMP_results.png), by eye"): 48,
    ("SMP", "Table 1"): 150,
    ("SMP", "Table 2"): 45,
    ("SMP", "Tables 3-5 (ablations)"): 38,
    ("Movement pruning", "Table 2"): 24,
    ("Movement pruning", "Table 3"): 14,
    ("CoFi", "README model list"): 14,
    ("CoFi", "main results figure"): 107,
    ("CoFi", "ACL 2022 talk"): 20,
    ("Block pruning", ""): 12,
    ("GRAIN", "Table 1"): 67,
    ("Kwon et al.", ""): 5,
    ("KCM", ""): 3,
    ("OPTIN", "README table 1"): 6,
    ("SparseGPT", "Table 1"): 8,
}
WHOLE = ("Fig. 2 (v1)", "Table 1", "Table 2", "Table 3", "results figure (SMP_results.png)")  # beginnings of other names, too


@pytest.fixture(scope="module")
def facts():
    return published.load()


def test_every_source_has_all_its_rows(facts):
    def rows(paper, where):
        named = facts.table_or_figure == where if where in WHOLE else facts.table_or_figure.str.startswith(where)
        return int((facts.paper.str.startswith(paper) & named).sum())

    assert {key: rows(*key) for key in COUNTS} == COUNTS
    assert len(facts) == sum(COUNTS.values()) == 750 + 319


def test_every_row_says_where_it_is_from(facts):
    for name in ("method", "paper", "arxiv", "table_or_figure", "metric", "source_note"):
        assert facts[name].str.len().gt(0).all(), name
    assert facts.arxiv.str.fullmatch(r"\d{4}\.\d{5}").all()
    assert facts.groupby("paper").arxiv.nunique().eq(1).all()
    assert set(facts.how) == {"verbatim", "digitised", "text"}
    assert set(facts.ratio_kind) == {"flops", "params", "weights", "latency", ""}


def test_only_what_was_measured_in_a_picture_has_a_reading_error(facts):
    drawn = facts[facts.how == "digitised"]
    assert drawn.error.between(0, 1, inclusive="right").all()
    assert facts[facts.how == "verbatim"].error.isna().all()
    assert facts[facts.table_or_figure.str.endswith("by eye")].error.eq(0.2).all()


def test_numbers_are_in_their_ranges(facts):
    assert facts.ratio_removed.dropna().between(0, 1, inclusive="left").all()
    assert facts.score_dense.dropna().between(50, 95).all()
    assert facts[facts["plot"]].score.between(5, 95).all()
    assert facts.score_drop.dropna().between(-4, 80).all()
    assert facts.speedup.dropna().between(0.9, 13).all()
    assert facts["std"].dropna().between(0, 2).all()
    assert facts.perplexity.dropna().between(10, 300).all()
    assert facts[facts.ratio_removed.eq(0) & (facts.method == "dense") & facts.score.notna()].score_drop.eq(0).all()
    assert facts.score_drop.sub(facts.score_dense - facts.score).abs().dropna().max() < 0.06


def test_no_fact_is_there_twice(facts):
    key = ["method", "variant", "paper", "table_or_figure", "model", "task", "metric", "ratio_kind", "ratio_removed", "speedup"]
    assert not facts.duplicated([*key, "score"]).any()
    assert not facts[facts.ratio_removed.notna()].duplicated(key).any(), "one point has one score"


def test_methods_of_ours_have_the_score_that_was_published(facts):
    comparable = facts[facts["plot"] & (facts.ratio_kind == "flops")]
    for ours, theirs in published.TASKS.items():
        score = yaml.safe_load((CONF / "task" / f"{ours}.yaml").read_text())["score"]
        assert set(comparable[comparable.task == theirs].metric.str.removesuffix(" (assumed)")) <= {score}, ours
    assert set(published.METHODS) <= {path.stem for path in (CONF / "method").glob("*.yaml")}
    assert set(published.MODELS) <= {path.stem for path in (CONF / "model").glob("*.yaml")}
    for names, column in ((published.METHODS, "method"), (published.MODELS, "model"), (published.TASKS, "task")):
        assert set(names.values()) <= set(facts[column]), column


def test_only_accuracies_are_drawn(facts):
    drawn = facts[facts["plot"]]
    assert drawn.score.notna().all()
    assert (drawn.ratio_removed.notna() | drawn.speedup.notna()).all()
    assert not drawn.method.str.startswith("gap ").any()
    assert not drawn.method.eq("SparseGPT").any()
    assert not drawn.variant.eq("not a plot point").any()
    assert not drawn.metric.str.contains("gain|cost|bound|difference|speedup|time|perplexity|mean|std").any()
    assert not drawn.task.isin(["average", ""]).any()


def test_of_sources_that_overlap_one_is_drawn(facts):
    drawn = facts[facts["plot"]]
    smp = drawn[drawn.paper.str.startswith(("SMP", "Movement"))]
    smp = smp.assign(variant=smp.variant.str.replace(r"^KD \(.*", "KD", regex=True))
    for key, group in smp.groupby(["method", "variant", "model", "task", "metric"]):
        printed = group[group.how == "verbatim"].ratio_removed
        assert printed.is_unique, key
        assert group.ratio_removed.is_unique, key
        for ratio in group[group.how == "digitised"].ratio_removed:
            assert not printed.sub(ratio).abs().lt(0.005).any(), (key, ratio)
    cofi = drawn[(drawn.method == "CoFi") & drawn.paper.str.startswith("CoFi")]
    assert not cofi.table_or_figure.str.contains("talk").any()
    assert len(cofi[cofi.how == "digitised"]) == 28 - 8
    quoted = drawn[drawn.variant == "quoted from CoFi paper"]
    assert [*zip(quoted.task, quoted.metric, strict=True)] == [("MNLI", "accuracy (mm)"), ("QQP", "accuracy")]


@pytest.mark.parametrize("ratio", [0.5, 0.9, 0.97])
def test_distilled_smp_is_drawn_from_its_table(facts, ratio):
    same = facts[(facts.method == "SMP-S") & (facts.variant == "KD") & (facts.ratio_removed == ratio)]
    drawn = same[same["plot"]]
    assert len(drawn) == 6
    assert set(drawn.table_or_figure) == {"Table 1"}
    for _, row in drawn.iterrows():
        others = same[(same.task == row.task) & (same.metric == row.metric)]
        assert others.score.sub(row.score).abs().max() < 0.05, "the README and the figure agree"


def test_what_was_read_by_eye_agrees_with_what_was_measured(facts):
    key = ["method", "variant", "task", "metric", "ratio_removed"]
    figure = facts[facts.table_or_figure == "results figure (SMP_results.png)"]
    pairs = facts[facts.table_or_figure.str.endswith("by eye")].merge(figure, on=key, suffixes=("_eye", ""))
    assert len(pairs) == 35
    assert (pairs.score_eye - pairs.score).abs().max() <= 0.2


def test_a_curve_is_found_by_our_names():
    found = published.curves("mrpc", "kwon")
    assert found.ratio_removed.tolist() == pytest.approx([0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8])
    assert found.score.iloc[0] == 85.6
    assert set(published.curves("mrpc").method) == {"K-prune", "Kwon et al.", "KCM"}
    assert published.curves("mrpc", "kprune", "DistilBERT").score.iloc[0] == 85.2
    assert set(published.curves("squad", "kcm").variant) == {"authors' own", "as run by K-prune authors"}
    assert published.curves("docstrings").empty
    assert published.curves("mrpc", "magnitude").empty


def entry(method, task="mrpc", ratio=0.75, model="bert-base", dense=87.0, score=80.0, tokens=100_020, **changes):
    record = made(task=task, model=model, ratio=ratio, **changes)
    record["method"] = {"name": method}
    record["calibration"]["tokens"] = tokens
    record["dense"] |= {"score": dense, "metrics": {"accuracy": dense}}
    record["pruned"] |= {"score": score}
    return record


class Kept(store.Stored):
    """A record whose arrays lie nowhere: two examples, both right."""

    def arrays(self):
        logits = np.eye(2, dtype=np.float32)
        return {"gold": np.array([0, 1]), "logits_dense": logits, "logits_pruned": logits}


def compared(*records):
    stored = {str(i): Kept(record, Path(str(i))) for i, record in enumerate(records)}
    return published.compare(frame.of(stored))


def against(found, model="BERT-base"):
    return found[found.model_theirs == model].to_dict("records")


def test_ours_are_beside_theirs_as_means_over_seeds():
    found = compared(entry("kwon", score=70.0), entry("kwon", score=66.0, seed=1))
    assert found.model_theirs.tolist() == ["BERT-base", "DistilBERT"]
    (row,) = against(found)
    assert (row["ours"], row["theirs"], row["paper"], row["how"]) == (68.0, 68.4, "K-prune (Park, Choi, Kang)", "digitised")
    assert (row["difference"], row["drop_ours"], row["drop_theirs"]) == pytest.approx((-0.4, 19.0, 18.7))
    assert (row["variant"], row["error"]) == ("as run by K-prune authors", 0.14)
    assert row["same_conditions"]
    assert row["why"] == "their calibration tokens not known, digitised"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, ""),
        ({"model": "mpnet-base"}, "other model, "),
        ({"model": "distilbert-base"}, "other model, "),
        ({"dense": 85.9}, "other dense score, "),
        ({"tokens": 25_020}, "other number of calibration tokens, "),
        ({"model": "minilm", "dense": 81.0, "tokens": 25_020}, "other model, other dense score, other number of calibration tokens, "),
    ],
)
def test_what_differs_is_said(changes, why):
    (row,) = against(compared(entry("kprune", **changes)))
    assert row["why"] == why + "their setting chosen by task, digitised, one seed"
    assert row["same_conditions"] == (not why)


def test_a_ratio_between_theirs_has_no_counterpart():
    assert compared(entry("kprune", ratio=0.72)).empty
    assert len(compared(entry("kprune", ratio=0.7 + 1e-9))) == 2


def test_two_papers_on_one_method_are_two_rows():
    rows = against(compared(entry("kcm", "squad", 0.4, dense=88.5, score=77.0)))
    assert {row["variant"]: row["theirs"] for row in rows} == {"as run by K-prune authors": 37.2, "authors' own": 76.92}
    own = next(row for row in rows if row["variant"] == "authors' own")
    assert own["paper"] == "KCM (Nova, Dai, Schuurmans, ICML 2023)"
    assert pd.isna(own["drop_theirs"])
    assert own["why"] == (
        "their dense score not given, their calibration tokens not known, their setting chosen by task, second-hand, one seed"
    )


def test_samples_of_other_sizes_are_not_averaged_and_the_newest_run_of_a_seed_counts():
    found = compared(
        entry("kprune", score=50.0, created="2026-01-02"),
        entry("kprune", score=60.0, created="2026-01-03"),
        entry("kprune", score=70.0, created="2026-01-01"),
        entry("kprune", score=80.0, tokens=25_020),
    )
    assert [(row["sample"], row["ours"]) for row in against(found)] == [(25.0, 80.0), (100.0, 60.0)]


def test_what_cannot_be_compared_is_left_out():
    others = [entry("magnitude"), entry("kprune", task="docstrings"), entry("kprune", status="failed"), entry("kprune", unit="params")]
    found = compared(*others)
    assert found.empty
    assert found.columns.tolist() == compared(entry("kprune")).columns.tolist() == compared().columns.tolist()
    assert compared(entry("magnitude"), entry("kwon")).method.unique().tolist() == ["kwon"]
    assert compared().empty
