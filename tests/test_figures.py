"""Figures and tables rebuilt from committed records, byte by byte; and figures of little."""

import itertools
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest

from analysis import dots, figures, frame, layout, published, rebuild, style, tables
from bench.errors import UserError
from tests.test_tables import entry, framed

ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / "golden"
RECORDS = [  # real ones of results/epyc-2c-avx512
    "kprune-mrpc-minilm-flops0.75-s0-f234c602cb8db590-1",
    "kprune-mrpc-minilm-flops0.75-s1-63d9c8b493cdca61-1",
    "kwon-mrpc-minilm-flops0.75-s0-74f1d523ae44c8e4-1",
    "flap-mrpc-minilm-flops0.75-s0-76e77b2dc02aef49-1",
    "taylor-mrpc-minilm-flops0.75-s0-023df652e93e5d9f-1",
    "random-mrpc-minilm-flops0.75-s0-cc466bf0e567f4e8-1",
    "kprune-mrpc-mpnet-base-flops0.5-s0-91705545c96125ed-1",
    "kwon-mrpc-mpnet-base-flops0.5-s0-c9bb6d23776cd4b4-1",
    "magnitude-mrpc-mpnet-base-flops0.5-s0-16200866c8d888e2-1",
    "magnitude-docstrings-minilm-flops0.5-s0-550698f23e26a7d2-1",
    "magnitude-mrpc-minilm-flops0.75-s0-baa5ed9d44b97e50-1",
    "fisher-mrpc-minilm-flops0.75-s0-cad1adaacd77466a-1",
    "smp-mrpc-minilm-weights0.9-s0-0c43e8dbc2fc48ef-1",
    "weight-magnitude-mrpc-minilm-weights0.9-s0-7b7276c4fb33382d-1",
    "weight-magnitude-mrpc-minilm-weights0.5-s0-a019627457573e56-1",
]
MATPLOTLIB = "3.11.2"  # of the golden files: another version draws other bytes


@pytest.fixture(scope="module")
def real():
    folders = [ROOT / "results" / "epyc-2c-avx512" / name for name in RECORDS]
    if not all(folder.is_dir() for folder in folders):
        pytest.skip("the committed records are not here")
    return frame.load(folders)


def drawn(found, machine="epyc-2c-avx512"):
    return {one.name: one for one in figures.all_figures(found, machine)}


def test_tables_are_rebuilt_byte_by_byte(real, tmp_path):
    for name, table in tables.all_tables(real, "epyc-2c-avx512"):
        if table.empty:
            continue
        layout.write(table, tmp_path, name)
        for kind in ("csv", "md", "tex"):
            assert (tmp_path / f"{name}.{kind}").read_text() == (GOLDEN / f"{name}.{kind}").read_text(), f"{name}.{kind}"


@pytest.mark.skipif(matplotlib.__version__ != MATPLOTLIB, reason=f"the golden figures are of matplotlib {MATPLOTLIB}")
def test_figures_are_rebuilt_byte_by_byte(real, tmp_path):
    found = drawn(real)
    assert set(found) == {path.stem for path in GOLDEN.glob("*.svg")}
    for name, one in found.items():
        style.save(one.figure, tmp_path, name)
        assert (tmp_path / f"{name}.svg").read_bytes() == (GOLDEN / f"{name}.svg").read_bytes(), name


def test_a_figure_is_the_same_bytes_twice(real, tmp_path):
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        style.save(drawn(real)["kept-units"].figure, folder, "x")
    for kind in ("svg", "png"):
        assert (tmp_path / "a" / f"x.{kind}").read_bytes() == (tmp_path / "b" / f"x.{kind}").read_bytes()


def test_captions_name_the_source_of_what_is_published(real):
    for name in ("accuracy-against-time", "points-lost"):
        assert "ICLR 2024" in drawn(real)[name].caption


def test_published_curves_are_those_of_the_file():
    points = published.curves("mrpc", "kprune")
    assert float(points[np.isclose(points.ratio_removed.astype(float), 0.75)].score.iloc[0]) == 85.7


def test_one_record_of_one_method_is_drawn_as_far_as_it_goes(tmp_path):
    found = drawn(framed(entry(tmp_path)), "test-2c")
    assert "kept-units" in found
    assert not {"accuracy-against-ratio", "points-lost", "ablations"} & set(found), "one point is no curve, and no comparison"


def test_a_curve_has_three_ratios_and_a_line_three_points(tmp_path):
    three = [entry(tmp_path, "kprune", 80.0 - 20 * ratio, ratio=ratio) for ratio in (0.25, 0.5, 0.75)]
    two = [entry(tmp_path, "kwon", 70.0 - 20 * ratio, ratio=ratio) for ratio in (0.5, 0.75)]
    assert "accuracy-against-ratio" not in drawn(framed(*three[1:], *two), "test-2c")
    (axes,) = drawn(framed(*three, *two), "test-2c")["accuracy-against-ratio"].figure.axes
    lines = {line[0].get_xdata().size: line[0].get_linestyle() for line in axes.containers}
    assert lines == {3: "-", 2: "None"}


def cells(**lost):
    """An accuracy table of one task and model at half with these points lost; what lost 20 or more has collapsed."""
    rows = [
        {"task": "mrpc", "model": "minilm", "sample": 100, "ratio": 0.5, "method": method, "dense": 80.0, "trivial": 60.0}
        | {"lost": points, "lost_low": points - 1, "lost_high": points + 1, "collapsed": points >= 20, "suspect": None}
        for method, points in lost.items()
    ]
    return pd.DataFrame(rows)


@pytest.fixture
def lost(monkeypatch):
    def draw(table):
        monkeypatch.setattr(tables, "accuracy", lambda _: table)
        return dots.points_lost(None, "")

    return draw


def words(axes):
    return [text.get_text() for text in axes.texts]


def test_points_lost_says_what_collapsed_what_is_beyond_and_where_chance_is(lost):
    figure = lost(
        cells(kprune=1.0, kcm=18.0, kwon=20.0, flap=70.0, magnitude=30.0).assign(suspect=[None, "a fault", None, None, None])
    ).figure
    assert {"chance", "collapsed", "?", "→ 70 collapsed", "→ 30 collapsed"} <= set(words(figure.axes[0]))
    assert "K-prune loses at most 3 points in 1 of 1 cases at 50 %" in figure.get_suptitle()


def test_a_suspect_record_is_not_counted_as_near_the_dense_model(lost):
    title = lost(cells(kprune=1.0, kwon=9.0).assign(suspect=["a fault", None])).figure.get_suptitle()
    assert title == "Without retraining, every method loses more than 3 points"


def test_what_collapsed_has_neither_interval_nor_colour(lost):
    axes = lost(cells(kprune=1.0, kwon=20.0)).figure.axes[0]
    own, others = style.colour("kprune"), style.colour("kwon")
    assert [line.get_color() for line in axes.lines].count(own) == 2, "a dot and its interval"
    assert [line.get_color() for line in axes.lines].count(dots.COLLAPSED) == 1, "a dot"
    assert others not in [line.get_color() for line in axes.lines]


def test_published_points_stand_beside_models_of_their_shape_alone(real):
    cells = tables.accuracy(real)
    told = {row.model: dots._published(row) for row in cells[cells.method == "kprune"].itertuples()}
    assert told["minilm"] is None
    assert told["mpnet-base"] == pytest.approx(-1.1)


def test_ablations_stand_apart_from_the_curves(tmp_path):
    methods = ("kprune", "kprune-one-shot", "kprune-no-tuning", "flap", "fisher")
    found = drawn(framed(*(entry(tmp_path, method, 70.0 + i) for i, method in enumerate(methods))), "test-2c")
    labels = [text.get_text() for text in found["ablations"].figure.axes[0].get_yticklabels()]
    assert labels == ["K-prune", "· no-tuning", "· one-shot"]
    shown = [label for axes in found["accuracy-against-time"].figure.axes for label in axes.get_legend_handles_labels()[1]]
    assert {"K-prune", "FLAP", "fisher"} <= set(shown)
    assert not any("one-shot" in label for label in shown)


def test_a_short_logarithmic_axis_has_plain_numbers():
    figure, (axes,) = style.panels(1)
    axes.plot([250, 390], [1, 2])
    axes.set_xscale("log")
    style.plain_log(axes.xaxis)
    figure.canvas.draw()
    ticks = [text.get_text() for text in axes.get_xticklabels(which="both")]
    assert len([tick for tick in ticks if tick]) >= 2
    assert not any("10^" in tick for tick in ticks)


def test_another_machines_timings_are_not_drawn(tmp_path):
    found = framed(entry(tmp_path, "kprune", machine="other"), entry(tmp_path, "kwon", machine="other"))
    assert not {"accuracy-against-time", "speedup-against-accuracy", "stages"} & set(drawn(found, "test-2c"))


def test_the_pareto_front_is_what_nothing_beats():
    random = np.random.default_rng(0)
    for _ in range(50):
        speedup, score = random.integers(0, 6, 12).astype(float), random.integers(0, 6, 12).astype(float)
        front = figures.pareto(speedup, score)
        points = list(zip(speedup, score, strict=True))
        best = {p for p in points if not any(q != p and q[0] >= p[0] and q[1] >= p[1] for q in points)}
        assert {points[i] for i in front} == best
        assert all(speedup[a] < speedup[b] for a, b in itertools.pairwise(front))


def test_a_method_and_its_variants_share_a_colour_not_a_marker():
    assert style.colour("kprune-one-shot") == style.colour("kprune") != style.colour("kwon")
    assert style.colour("tp-lamp") == style.colour("tp-random")
    shipped = [path.stem for path in (ROOT / "conf" / "method").glob("*.yaml") if path.stem not in ("dense", "replay")]
    assert len({(style.colour(method), style.marker(method)) for method in shipped}) == len(shipped)
    assert style.colour("somebody-elses") == style.OTHER


def test_everything_is_written_and_no_records_is_one_sentence(real, tmp_path):
    entry(tmp_path / "r", "kprune", 80.0)
    entry(tmp_path / "r", "kwon", 60.0)
    (tmp_path / "r" / "half").mkdir()
    (tmp_path / "r" / "half" / "record.json").write_text("{")
    lines = list(rebuild.rebuild([tmp_path / "r"], tmp_path / "out"))
    assert any("not a whole record" in line for line in lines)
    assert (tmp_path / "out" / "tables" / "accuracy.md").exists()
    assert (tmp_path / "out" / "figures" / "README.md").read_text().count("![") >= 2
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no record; python -m bench"):
        list(rebuild.rebuild([tmp_path / "empty"], tmp_path / "out"))
