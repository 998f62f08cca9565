"""The frame, the tables, what to choose and what changed, from faked records."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis import changes, choose, frame, layout, published, tables
from bench.errors import UserError
from bench.records import rows, store
from bench.records.reading import OTHER_WORK
from tests.test_store import made

GOLD = np.arange(400) % 2


def entry(folder, method="magnitude", score=70.0, seed=0, ratio=0.5, speedup=2.0, masks=None, machine="test-2c", tokens=100_020, **more):
    """A stored record whose pruned model is right on the first `score` percent of 400 examples."""
    record = made(
        status=more.pop("status", "ok"), seed=seed, task="mrpc", model="minilm", ratio=ratio, id=f"{method}{ratio}{seed}{machine}"
    )
    record["method"] = {"name": method}
    record["machine"] |= {"name": machine, "load": 0.0}
    record["calibration"] |= {"tokens": tokens}
    record["dense"] |= {"score": 80.0, "metrics": {"accuracy": 80.0, "f1": 50.0}, "expected": 81.0}
    record["pruned"] |= {"score": score, "metrics": {"accuracy": score, "f1": 50.0}, "flops_kept": 1 - ratio, "params_kept": 0.6}
    record["prune"] |= {
        "seconds": 8.0,
        "passes": 2.0,
        "peak_bytes": 5_000_000,
        "notes": [],
        "stages": {"measure": 8.0},
        "pass_seconds": 4.0,
    }
    record["latency"]["headline"] |= {"speedup": speedup, "low": speedup - 0.1, "high": speedup + 0.1}
    arrays_too = more.pop("arrays", {})
    record |= more
    right = (np.arange(400) + 97 * len(method)) % 400 < 4 * score  # methods err on other examples
    logits = {"logits_pruned": answered(right), "logits_dense": answered(np.arange(400) % 5 > 0)}
    heads = np.ones((2, 4)) if masks is None else masks
    arrays = {"gold": GOLD, **logits, "heads": heads, "neurons": np.ones((2, 8))} | arrays_too
    return store.Stored(record, store.write(folder, record, arrays))


def answered(right):
    """Logits that are right where it is said."""
    return np.stack([(GOLD == 0) == right, (GOLD == 1) == right], 1).astype(np.float32)


ONE_ANSWER = {"logits_pruned": np.tile(np.float32([1, 0]), (400, 1))}


def framed(*entries):
    stored = {one.folder.as_posix(): one for one in entries}
    return frame.Frame(frame.of(stored), stored, [])


def test_a_frame_says_what_it_passed_over(tmp_path):
    entry(tmp_path)
    (tmp_path / "test-2c" / "half").mkdir()
    (tmp_path / "test-2c" / "half" / "record.json").write_text('{"schema": 1')
    (tmp_path / "test-2c" / "other").mkdir()
    (tmp_path / "test-2c" / "other" / "record.json").write_text('{"schema": 99}')
    found = frame.load([tmp_path])
    assert len(found.table) == 1
    assert len(found.problems) == 2
    assert set(map(str, found.table.dtypes)) == {"string", "boolean", "Float64", "Int64"}


def test_a_record_that_failed_before_it_looked_is_read(tmp_path):
    early = entry(tmp_path, status="failed")
    del early.record["machine"]["load"]
    table = frame.of({"x": early})
    assert not table.quiet.iloc[0]
    assert frame.scored(table).empty


def test_no_records_is_an_empty_frame(tmp_path):
    assert frame.load([tmp_path]).table.empty
    assert tables.accuracy(frame.load([tmp_path])).empty


def test_accuracy_tells_seeds_and_examples_apart(tmp_path):
    masks = [np.ones((2, 4)), np.tril(np.ones((2, 4)))]
    found = tables.accuracy(framed(*(entry(tmp_path, score=70.0 + 2 * seed, seed=seed, masks=masks[seed]) for seed in (0, 1))))
    (row,) = found.to_dict("records")
    assert (row["runs"], row["score"], row["dense"], row["sample"]) == (2, 71.0, 80.0, 100)
    assert row["seeds"] == pytest.approx(stats.t.ppf(0.975, 1) * stats.sem([70.0, 72.0]))
    assert 3 < row["examples"] < 6


def test_equal_masks_of_all_seeds_are_one_run(tmp_path):
    (row,) = tables.accuracy(framed(*(entry(tmp_path, seed=seed) for seed in (0, 1, 2)))).to_dict("records")
    assert row["runs"] == 1
    assert pd.isna(row["seeds"])
    assert "1 run" in layout.shaped(tables.accuracy(framed(entry(tmp_path))))["50 %"].iloc[0]


def test_equal_masks_of_retrained_models_are_runs_of_their_own(tmp_path):
    """Their weights differ, and so do their scores."""
    table = tables.accuracy(framed(*(entry(tmp_path, seed=seed, score=70.0 + seed) for seed in range(3))))
    assert table.runs.tolist() == [3]
    assert table.seeds.item() > 0


def test_what_the_command_line_set_is_another_method(tmp_path):
    """Never averaged as if it were a seed; the label tells them apart, and can be typed."""
    usual = entry(tmp_path, "kprune", 78.0, command="python -m bench method=kprune")
    other = entry(tmp_path, "kprune", 40.0, seed=1, command="python -m bench '++method.mu=0.1' method=kprune seed=1")
    found = framed(usual, other)
    assert tables.accuracy(found)[["method", "score"]].to_numpy().tolist() == [["kprune", 78.0], ["kprune mu=0.1", 40.0]]
    assert found.table.typed.tolist() == ["method=kprune", "method=kprune method.mu=0.1"]
    assert rows.label(other.record) == "kprune mu=0.1"


@pytest.mark.parametrize(("where", "name"), [("dense", "model"), ("data", "task")])
def test_other_dense_models_and_other_data_of_one_name_are_told_apart(tmp_path, where, name):
    def one(seed, content):
        of = entry(tmp_path, seed=seed)
        of.record[where] |= {"checkpoint": {"source": "path", "sha256": content}} if where == "dense" else {"validation": content}
        return of

    same = framed(one(0, "abcdef01"), one(1, "abcdef01"))
    assert tables.accuracy(same)[name].tolist() == [{"model": "minilm", "task": "mrpc"}[name]]
    several = framed(one(0, "abcdef01"), one(1, "fedcba01"))
    assert [label.split("@")[1] for label in tables.accuracy(several)[name]] == ["abcdef", "fedcba"]


def test_samples_of_other_sizes_are_other_cells(tmp_path):
    found = tables.accuracy(framed(entry(tmp_path), entry(tmp_path, seed=1, tokens=25_010)))
    assert found["sample"].tolist() == [25, 100]


@pytest.mark.parametrize(("other", "wins"), [(79.0, False), (60.0, True)])
def test_a_winner_is_one_beyond_noise(tmp_path, other, wins):
    found = tables.accuracy(framed(entry(tmp_path, "kprune", 80.0), entry(tmp_path, "kwon", other))).set_index("method")
    assert found.wins["kprune"] == wins
    assert not found.wins["kwon"]
    assert ("**80.00**" in layout.shaped(found.reset_index()).set_index("method")["50 %"]["kprune"]) == wins


def test_a_method_alone_wins_nothing(tmp_path):
    assert not tables.accuracy(framed(entry(tmp_path))).wins.any()


def test_the_best_speedup_is_among_runs_that_lose_little(tmp_path):
    found = framed(
        entry(tmp_path, "kprune", 78.0, ratio=0.5, speedup=1.9),
        entry(tmp_path, "kprune", 77.5, ratio=0.6, speedup=2.4),
        entry(tmp_path, "kprune", 70.0, ratio=0.75, speedup=3.9),
        entry(tmp_path, "kwon", 60.0, speedup=2.0),
        entry(tmp_path, "kwon", 79.0, speedup=9.0, machine="other"),
    )
    table = tables.best_speedups(found, "test-2c")
    assert table.loc["kprune", ("minilm", "mrpc")] == 2.4
    assert table.loc["kprune", ("mean", "")] == pytest.approx(2.4)
    assert table.loc["kwon"].isna().all()


def test_the_mean_speedup_is_over_tasks_that_all_rows_have(tmp_path):
    entries = [entry(tmp_path, "kprune", 78.0, speedup=2.0), entry(tmp_path, "kwon", 78.0, speedup=1.8)]
    entries.append(entry(tmp_path, "kprune", 78.0, speedup=8.0, seed=1, task="sst2"))
    table = tables.best_speedups(framed(*entries), "test-2c")
    assert table[("mean", "")].to_dict() == pytest.approx({"kprune": 2.0, "kwon": 1.8})
    entries.append(entry(tmp_path, "kwon", 78.0, speedup=3.2, seed=1, task="sst2"))
    table = tables.best_speedups(framed(*entries), "test-2c")
    assert table[("mean", "")].to_dict() == pytest.approx({"kprune": 4.0, "kwon": 2.4})


def test_what_collapsed_says_so_and_wins_nothing(tmp_path):
    found = tables.accuracy(framed(entry(tmp_path, "flap", 80.0, arrays=ONE_ANSWER), entry(tmp_path, "kwon", 60.0)))
    assert found.set_index("method").wins.to_dict() == {"flap": False, "kwon": False}
    assert layout.shaped(found).set_index("method")["50 %"]["flap"] == "80.00 (1 run), *collapsed*"


def test_points_lost_are_paired_with_the_dense_model(tmp_path):
    (row,) = tables.accuracy(framed(entry(tmp_path, score=70.0))).to_dict("records")
    assert row["lost"] == pytest.approx(10.0)
    assert row["lost_low"] < 10.0 < row["lost_high"]
    unchanged = entry(tmp_path, seed=1, arrays={"logits_pruned": answered(np.arange(400) % 5 > 0)})
    (same,) = tables.accuracy(framed(unchanged)).to_dict("records")
    assert (same["lost"], same["lost_low"], same["lost_high"]) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(("other", "ahead"), [(79.0, "neither"), (60.0, "kprune"), (98.0, "kwon")])
def test_who_is_ahead_is_told_where_the_interval_excludes_zero(tmp_path, other, ahead):
    entries = [entry(tmp_path, "kprune", 80.0), entry(tmp_path, "kwon", other), entry(tmp_path, "kprune-one-shot", 70.0)]
    (row,) = tables.differences(framed(*entries, entry(tmp_path, "flap", 50.0, arrays=ONE_ANSWER))).to_dict("records")
    assert (row["against"], row["verdict"], row["paired_seeds"]) == ("kwon", ahead, 1)
    assert row["difference"] == pytest.approx(80.0 - other)
    assert (row["low"] > 0, row["high"] < 0) == (ahead == "kprune", ahead == "kwon")


def test_collapsed_models_share_the_last_rank_and_have_their_own_by_auc(tmp_path):
    shifted = {"logits_pruned": np.stack([np.full(400, 9.0), GOLD + 0.0], 1)}  # one answer, but in the right order
    entries = []
    for seed, task in enumerate(("mrpc", "sst2")):
        entries += [entry(tmp_path, "kprune", 70.0, seed=seed, task=task)]
        entries += [entry(tmp_path, "flap", 90.0, seed=seed, task=task, arrays=shifted)]
        entries += [entry(tmp_path, "kcm", 50.0, seed=seed, task=task, arrays=ONE_ANSWER)]
    found = tables.ranks(framed(*entries)).set_index(["by", "method"])["rank"].to_dict()
    assert {method: found["score", method] for method in ("kprune", "flap", "kcm")} == {"kprune": 1.0, "flap": 2.5, "kcm": 2.5}
    assert {method: found["AUC", method] for method in ("kprune", "flap", "kcm")} == {"kprune": 2.0, "flap": 1.0, "kcm": 3.0}


def test_tables_for_people_have_fixed_decimals_percent_and_no_empty_columns(tmp_path):
    found = framed(entry(tmp_path / "r", "kprune", 80.0), entry(tmp_path / "r", "kwon", 50.5))
    layout.write(tables.kept(found), tmp_path, "kept")
    rows = (tmp_path / "kept.md").read_text(encoding="utf-8").splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in (rows[0], rows[2])]
    assert cells[0][3:] == ["removed (%)", "method", "FLOPs kept (%)", "parameters kept (%)"]
    assert cells[1][3:] == ["50", "kprune", "50.0", "60.0"]
    assert pd.read_csv(tmp_path / "kept.csv").flops_kept.tolist() == [0.5, 0.5]


def test_wide_tables_are_split_for_latex(tmp_path):
    layout.write(tables.answers(framed(entry(tmp_path / "r"))), tmp_path, "answers")
    latex = (tmp_path / "answers.tex").read_text(encoding="utf-8")
    sides = [line.split("{tabular}{")[1].rstrip("}") for line in latex.splitlines() if "begin{tabular}" in line]
    assert sides == ["llrrlrrr", "llrrlrrr", "llrrlr"]
    assert latex.count(r"\caption") == 3
    assert "Part 3 of 3" in latex


def test_every_table_has_a_caption_and_published_ones_say_how_ours_was_made(tmp_path):
    names = [name for name, _ in tables.all_tables(framed(entry(tmp_path / "r")), "test-2c")]
    assert {*names, "published", "perplexity"} == set(layout.CAPTIONS)
    page = layout.readme(names, "test-2c")
    assert all(f"[{name}]({name}.md)" in page for name in names)
    assert "one, so nothing is said of others" in page
    layout.write(published.compare(framed(entry(tmp_path / "r", "kprune", 80.0)).table), tmp_path, "published")
    assert "rank-16 adapters with frozen embeddings" in (tmp_path / "published.md").read_text(encoding="utf-8")


def test_costs_are_those_of_one_machine_and_of_quiet_hours(tmp_path):
    busy = entry(tmp_path, seed=1)
    busy.record["prune"] |= {"seconds": 99.0, "notes": ["other work on the machine while pruning: 0.40 per core"]}
    (row,) = tables.costs(framed(entry(tmp_path), busy, entry(tmp_path, seed=2, machine="other")), "test-2c").to_dict("records")
    assert (row["passes"], row["seconds"], row["peak_mb"]) == (2.0, 8.0, 5.0)


def test_dense_scores_stand_beside_what_was_expected(tmp_path):
    (row,) = tables.dense(framed(entry(tmp_path))).to_dict("records")
    assert (row["dense"], row["expected"], row["difference"]) == (80.0, 81.0, -1.0)


def test_tables_are_written_the_same_twice_and_escaped(tmp_path):
    found = framed(entry(tmp_path / "r", "my_method", 80.0), entry(tmp_path / "r", "kwon", 60.0))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for table, content in tables.all_tables(found, "test-2c"):
            if not content.empty:
                layout.write(content, tmp_path / name, table)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert {name.split(".")[0] for name in files} == {"accuracy", "threshold-free", "best-speedup", "cost", "kept", "dense", "answers"}
    assert len(files) == 3 * 7, "ranks need more than one task, differences need K-prune"
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)
    latex = (tmp_path / "a" / "accuracy.tex").read_text()
    assert r"my\_method" in latex
    assert r"\textbf{80.00}" in latex
    assert pd.read_csv(tmp_path / "a" / "accuracy.csv").score.tolist() == [60.0, 80.0]


def test_every_latex_table_escapes_its_underscores_headings_too(tmp_path):
    found = framed(entry(tmp_path, method="a_b"), entry(tmp_path, method="a_b", seed=1))
    for name, table in tables.all_tables(found, "test-2c"):
        if table.empty:
            continue
        layout.write(table, tmp_path, name)
        assert "_" not in (tmp_path / f"{name}.tex").read_text(encoding="utf-8").replace(r"\_", "")
    assert "peak" in (tmp_path / "cost.tex").read_text(encoding="utf-8")


def chosen(goal, *entries, machine="test-2c"):
    return choose.choose(framed(*entries), machine, "mrpc", "minilm", goal)


def test_choose_names_what_reaches_a_speedup_best_score_first(tmp_path):
    entries = [
        entry(tmp_path, "kprune", 78.0, speedup=2.2),
        entry(tmp_path, "kwon", 79.0, speedup=2.05),
        entry(tmp_path, "flap", 60.0, speedup=1.5),
    ]
    answer = chosen(choose.Goal(2.0, None), *entries)
    assert [(row[0], row[-1]) for row in answer.rows] == [("kwon", "likely"), ("kprune", "surely")]
    assert answer.command.endswith("save=DIR")
    answer = chosen(choose.Goal(None, 12.0), *entries)
    assert [(row[0], row[-1]) for row in answer.rows] == [("kwon", "surely"), ("kprune", "surely")]
    assert chosen(choose.Goal(None, 2.5), *entries).rows[-1][-1] == "likely", "2 points, but its interval goes beyond"


def test_choose_believes_the_scores_of_all_runs(tmp_path):
    """One timed seed of three: the timing is its own, the score is all of theirs."""
    entries = [entry(tmp_path, "kwon", 60.0 + 9 * seed, seed=seed, speedup=3.0) for seed in range(3)]
    for untimed in entries[:2]:
        untimed.record["latency"]["headline"] = None
    (row,) = chosen(choose.Goal(2.0, None), *entries).rows
    assert (row[2], row[3], row[4], row[6]) == ("100 000", "3", "69.00", "3.00 [2.90, 3.10]")


@pytest.mark.parametrize("told", [{"other_work": 0.4}, {"notes": [f"{OTHER_WORK}: 0.40 per core"]}])
def test_choose_does_not_believe_a_timing_beside_other_work(tmp_path, told):
    """Records from before 2026-11-29 say so in a note alone."""
    busy = entry(tmp_path, "kprune", 78.0, ratio=0.75, speedup=4.2)
    busy.record["prune"] |= told
    answer = chosen(choose.Goal(2.0, None), busy)
    assert [row[-2:] for row in answer.rows] == [["?", "not timed"]]
    assert any("method=kprune" in command for command in answer.to_run)
    assert answer.machine is None


def test_choose_takes_the_machine_with_most_timings_where_this_one_has_none(tmp_path):
    entries = [entry(tmp_path, "kprune", 78.0, speedup=2.2, machine="a"), entry(tmp_path, "kwon", 70.0, speedup=2.1, machine="b")]
    entries.append(entry(tmp_path, "flap", 70.0, speedup=2.1, machine="b"))
    assert chosen(choose.Goal(2.0, None), *entries, machine="elsewhere").machine == "b"
    assert chosen(choose.Goal(2.0, None), *entries, machine="a").machine == "a"


def test_choose_needs_no_timing_for_a_drop(tmp_path):
    untimed = entry(tmp_path, "kprune", 80.0)
    untimed.record["latency"]["headline"] = None
    answer = chosen(choose.Goal(None, 8.0), untimed)
    assert [(row[0], row[6], row[7]) for row in answer.rows] == [("kprune", "?", "surely")]


def test_choose_never_offers_a_collapsed_model_as_a_row_or_to_run(tmp_path):
    entries = [entry(tmp_path, "flap", 50.0, arrays=ONE_ANSWER, ratio=0.6), entry(tmp_path, "kwon", 75.0, ratio=0.75, speedup=3.5)]
    answer = chosen(choose.Goal(3.0, None), *entries)
    assert [row[0] for row in answer.rows] == ["kwon"]
    assert answer.to_run == [], "who collapsed at 0.6 is not asked for 0.7"
    assert [row[0] for row in chosen(choose.Goal(None, 50.0), *entries).rows] == ["kwon"]


def test_choose_marks_what_is_suspect_and_puts_it_last(tmp_path):
    doubtful = entry(tmp_path, "flap", 79.0, speedup=2.2)
    doubtful.record["dense"]["metrics"]["exact_match"] = 1.0
    doubtful.record["software"]["tokenizers"] = "0.23.1"
    answer = chosen(choose.Goal(2.0, None), doubtful, entry(tmp_path, "kwon", 75.0, speedup=2.2))
    assert [(row[0], "suspect" in row[-1]) for row in answer.rows] == [("kwon", False), ("flap", True)]


def test_choose_names_the_runs_that_would_settle_it(tmp_path):
    untimed = entry(tmp_path, "kprune", 78.0, ratio=0.75)
    untimed.record["latency"]["headline"] = None
    answer = chosen(choose.Goal(3.0, None), untimed, entry(tmp_path, "kwon", 70.0, speedup=1.8))
    assert [row[0] for row in answer.rows] == ["kprune"]
    assert answer.to_run == [
        "python -m bench method=kprune task=mrpc model=minilm calibration.tokens=100000 ratio=0.75 latency=quick",
        "python -m bench method=kwon task=mrpc model=minilm calibration.tokens=100000 ratio=0.7 latency=quick",
    ]


def test_choose_refuses_two_goals_and_unknown_names(tmp_path):
    with pytest.raises(UserError, match="one of the two"):
        choose.Goal(2.0, 3.0)
    found = framed(entry(tmp_path), entry(tmp_path, status="failed", model="mpnet-base"))
    goal = choose.Goal(2.0, None)
    for task, model, told in [
        ("sst2", "minilm", "no scored record of task=sst2"),
        ("sst", "minilm", "unknown task 'sst'; did you mean 'sst2'?"),
        ("mrpc", "minilmm", "unknown model 'minilmm'; did you mean 'minilm'?"),
    ]:
        with pytest.raises(UserError) as error:
            choose.choose(found, "test-2c", task, model, goal)
        assert told in str(error.value)
    failed = framed(entry(tmp_path, status="failed"))
    with pytest.raises(UserError, match="no scored record"):
        choose.choose(failed, "test-2c", "mrpc", "minilm", goal)


def test_changes_beyond_noise_are_told(tmp_path):
    a = framed(entry(tmp_path / "a", "kprune", 80.0), entry(tmp_path / "a", "kwon", 70.0), entry(tmp_path / "a", "flap", 60.0))
    slower = entry(tmp_path / "b", "kwon", 70.0, speedup=1.5)
    slower.record["prune"]["passes"] = 3.0
    b = framed(entry(tmp_path / "b", "kprune", 60.0), slower, entry(tmp_path / "b", "kcm", 60.0))
    found = changes.between(a, b)
    assert found.both == 2
    assert [(row[0], row[4]) for row in found.rows] == [("score", "kprune"), ("speedup", "kwon"), ("passes", "kwon")]
    assert found.rows[0][-1].startswith("-20.00 [")
    assert len(found.only_a) == len(found.only_b) == 1
    assert changes.between(a, a).rows == []
