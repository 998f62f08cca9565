"""Figures and tables rebuilt from committed records, byte by byte; and figures of little."""

import itertools
from pathlib import Path

import matplotlib
import numpy as np
import pytest

from analysis import figures, frame, layout, published, rebuild, style, tables
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
    assert len(found) == len(figures.FIGURES)
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
    for name in ("accuracy-against-time", "accuracy-against-ratio"):
        assert "ICLR 2024" in drawn(real)[name].caption


def test_published_curves_are_those_of_the_file():
    points = published.curves("mrpc", "kprune")
    assert float(points[np.isclose(points.ratio_removed.astype(float), 0.75)].score.iloc[0]) == 85.7


def test_one_record_of_one_method_is_drawn_as_far_as_it_goes(tmp_path):
    found = drawn(framed(entry(tmp_path)), "test-2c")
    assert "kept-units" in found
    assert "accuracy-against-ratio" not in found, "one point is no curve"


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
