"""What `python -m bench.show` prints of faked records."""

import json
import subprocess
import sys

import numpy as np
import pytest

from bench import show
from bench.records.reading import OTHER_WORK
from tests.test_tables import entry

HALF = np.tril(np.ones((2, 4)))


def disturb(one):
    """Other work ran beside it; the stored record says so too."""
    one.record["prune"]["notes"] = [f"{OTHER_WORK}: 0.50 per core"]
    rewrite(one)


def rewrite(one):
    (one.folder / "record.json").write_text(json.dumps(one.record), encoding="utf-8")


def shown(capsys, *words):
    code = show.main([str(word) for word in words])
    out, err = capsys.readouterr()
    assert code == (0 if out else 1)
    return out, err


def lines_with(text, word):
    return [line for line in text.splitlines() if line.startswith(f" {word}")]


def test_passes_seconds_and_speedup_are_marked_where_other_work_ran(tmp_path, capsys):
    quiet, disturbed = entry(tmp_path, "quiet"), entry(tmp_path, "loud")
    show.show([quiet])
    assert "?" not in capsys.readouterr().out
    disturb(disturbed)
    show.show([quiet, disturbed])
    out = capsys.readouterr().out
    (line,) = lines_with(out, "loud")
    assert all(f"{cell} ?" in line for cell in ("8.0 s", "2.00"))
    assert line.count("?") == 3
    assert "? the machine had other work too" in out


@pytest.mark.parametrize("columns", [60, 80, 100, 200])
def test_marks_dense_and_points_lost_survive_a_narrow_terminal(tmp_path, capsys, monkeypatch, columns):
    disturb(entry(tmp_path, "kprune"))
    monkeypatch.setenv("COLUMNS", str(columns))
    out, _ = shown(capsys, tmp_path)
    assert max(map(len, out.splitlines())) <= columns
    (line,) = lines_with(out, "kprune")
    for cell in ("80.00", "70.00", "10.00", "2.00 ?"):
        assert cell in line
    assert ("left out" in out) == (columns < 100)


def test_seeds_are_averaged_and_runs_shows_each(tmp_path, capsys):
    for seed, score in enumerate((70.0, 72.0, 77.0)):
        entry(tmp_path, "kprune", score, seed=seed)
    (line,) = lines_with(shown(capsys, tmp_path)[0], "kprune")
    assert line.split()[3:8] == ["0.5", "3", "80.00", "73.00", "7.00"]
    assert len(lines_with(shown(capsys, "--runs", tmp_path)[0], "kprune")) == 3
    assert len(lines_with(shown(capsys, "--pruning", tmp_path)[0], "kprune")) == 1


def test_a_deterministic_method_has_one_run(tmp_path, capsys):
    for seed in range(3):
        entry(tmp_path, "magnitude", seed=seed)
        entry(tmp_path, "kprune", seed=seed, masks=HALF if seed else None)
    out, _ = shown(capsys, tmp_path)
    assert [lines_with(out, method)[0].split()[4] for method in ("magnitude", "kprune")] == ["1", "3"]


def test_a_mean_of_timings_is_over_the_quiet_runs(tmp_path, capsys):
    entry(tmp_path, "kprune", seed=0, speedup=2.0)
    disturb(entry(tmp_path, "kprune", seed=1, speedup=1.0))
    (line,) = lines_with(shown(capsys, tmp_path)[0], "kprune")
    assert "[1.90, 2.10]" in line
    assert "?" not in line


def test_what_was_set_tells_rows_apart(tmp_path, capsys):
    entry(tmp_path, "kprune")
    entry(tmp_path, "kprune", seed=1, precision="bf16")
    entry(tmp_path, "kprune", seed=2, tokens=2_010, command="python -m bench calibration.tokens=2000 method=kprune")
    entry(tmp_path, "kprune", seed=3, round_to=64, command="python -m bench method=kprune method.mu=0.1")
    lines = lines_with(shown(capsys, tmp_path)[0], "kprune")
    assert [line.split(" mrpc")[0].strip() for line in lines] == [
        "kprune",
        "kprune bf16",
        "kprune mu=0.1 round_to=64",
        "kprune tokens=2000",
    ]


def test_other_data_and_other_checkpoints_are_never_averaged(tmp_path, capsys):
    other = entry(tmp_path, "kprune", seed=1)
    entry(tmp_path, "kprune", seed=0)
    other.record["data"]["validation"] = "f" * 64
    rewrite(other)
    assert len(lines_with(shown(capsys, tmp_path)[0], "kprune")) == 2


def test_random_weights_come_last(tmp_path, capsys):
    first = entry(tmp_path, "a")
    entry(tmp_path, "z")
    first.record["dense"] |= {"checkpoint": {"source": "random:bert", "sha256": "0" * 64}, "score": None, "metrics": None}
    first.record["pruned"] |= {"score": None, "metrics": None}
    rewrite(first)
    out, _ = shown(capsys, tmp_path)
    assert out.index(" z ") < out.index(" a ")
    assert "!" not in out, "what was not scored has not collapsed"


def test_a_collapsed_model_is_marked_and_explained(tmp_path, capsys):
    entry(tmp_path, "whole", 79.0)
    for seed, score in enumerate((50.0, 50.5, 79.0)):
        entry(tmp_path, "broken", score, seed=seed)
    out, _ = shown(capsys, tmp_path)
    assert "59.83 !" in lines_with(out, "broken")[0]
    assert "!" not in lines_with(out, "whole")[0]
    assert "! collapsed: no better than" in out
    each = lines_with(shown(capsys, "--runs", tmp_path)[0], "broken")
    assert ["!" in line for line in each] == [True, True, False]


def test_a_suspect_record_is_marked_and_explained(tmp_path, capsys):
    one = entry(tmp_path, "flap")
    one.record["dense"]["metrics"] |= {"exact_match": 70.0}
    one.record["software"]["tokenizers"] = "0.23.2"
    rewrite(one)
    out, _ = shown(capsys, tmp_path)
    assert "70.00 *" in out
    assert "* suspect, to be measured again: tokenizers 0.23.2" in out


def test_filters_choose_rows(tmp_path, capsys):
    for method, ratio in (("kprune", 0.5), ("kprune", 0.75), ("kwon", 0.5), ("kprune-no-tuning", 0.5)):
        entry(tmp_path, method, ratio=ratio)
    out, _ = shown(capsys, "method=kprune", "ratio=.50", "task=mrpc", "model=minilm", "machine=test-2c", tmp_path)
    assert len(lines_with(out, "k")) == 1
    assert len(lines_with(shown(capsys, "method=kprune,kwon", tmp_path)[0], "k")) == 3


WRONG = [
    (["methd=kprune"], "unknown key 'methd'; did you mean 'method'?"),
    (["method=kprun"], "no record of method=kprun; did you mean 'kprune'?"),
    (["ratio=0.5", "method=kwon"], "no record of ratio=0.5 method=kwon; choose from kprune"),
    (["machine=moon"], "no record of machine=moon; choose from test-2c"),
    (["--run"], "unknown option --run; did you mean '--runs'?"),
]


@pytest.mark.parametrize(("words", "sentence"), WRONG)
def test_a_wrong_word_is_told_in_a_sentence(tmp_path, capsys, words, sentence):
    entry(tmp_path, "kprune")
    entry(tmp_path, "kwon", ratio=0.75)
    assert shown(capsys, *words, tmp_path) == ("", f"{sentence}\n")


def test_records_of_another_schema_are_told_in_one_sentence(tmp_path, capsys):
    old = [entry(tmp_path, "kprune", seed=seed) for seed in range(3)]
    for one in old:
        one.record["schema"] = 99
        rewrite(one)
    out, err = shown(capsys, tmp_path)
    assert out == ""
    assert err.splitlines()[-1] == "no record of this schema here"
    entry(tmp_path, "kwon")
    out, err = shown(capsys, tmp_path)
    assert "kwon" in out
    assert len(err.splitlines()) == 1
    assert "passed over, not whole records of this schema: 3, such as " in err


def test_failed_records_alone_are_a_table_that_says_so(tmp_path, capsys):
    entry(tmp_path, "kprune", status="failed", reason="ValueError: boom")
    out, _ = shown(capsys, tmp_path)
    assert "failed" in lines_with(out, "kprune")[0]
    assert "kprune: ValueError: boom" in out


def test_every_table_can_be_printed_in_ascii(bench, tmp_path):
    entry(tmp_path / "results", "kprune")
    for option in ([], ["--runs"], ["--pruning"], ["--speed"]):
        done = bench(*option, "results", module="bench.show", env={"PYTHONIOENCODING": "ascii", "COLUMNS": "80"})
        assert done.returncode == 0, done.stderr
        assert done.stdout.isascii()
        assert "kprune" in done.stdout


def test_show_imports_nothing_heavy():
    code = "import sys; from bench import show; print({'torch', 'scipy', 'sklearn', 'pandas', 'analysis'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "set()"
