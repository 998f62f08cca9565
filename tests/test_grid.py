"""Grids of cells: their order, how long the rest takes, and that they go on."""

import subprocess

import pytest

from bench import grid
from bench.errors import UserError
from bench.records import grids


def test_a_block_is_the_product_of_its_lists_in_its_order():
    block = {"model": "m", "task": ["a", "b"], "method": ["x", "y"]}
    found = [(cell["task"], cell["method"]) for cell in grids._product(block)]
    assert found == [("a", "x"), ("a", "y"), ("b", "x"), ("b", "y")]


@pytest.mark.parametrize("name", ["small", "base"])
def test_the_committed_grids_name_what_there_is(name):
    todo = grid.cells(name)
    assert len({tuple(sorted(cell.items())) for cell in todo}) == len(todo), "no cell twice"
    for cell in todo:
        for group in ("method", "task", "model"):
            assert (grids.CONF / group / f"{cell[group]}.yaml").exists(), cell


def test_the_seconds_left_come_from_the_cells_most_like():
    a, b = {"method": "x", "task": "t", "model": "m"}, {"method": "y", "task": "t", "model": "m"}
    other = {"method": "x", "task": "u", "model": "m"}
    assert grid.seconds_left([a], []) is None
    assert grid.seconds_left([a, b], [(a, 10.0), (a, 20.0), (b, 1.0)]) == 16.0
    assert grid.seconds_left([other], [(a, 10.0), (b, 1.0)]) == 10.0
    assert grid.seconds_left([{"method": "z", "task": "t", "model": "m"}], [(a, 10.0), (b, 20.0)]) == 15.0


def test_a_grid_goes_on_after_a_failed_cell_and_ends_when_interrupted(monkeypatch, capsys):
    codes = iter([0, 1, 0, 130])
    ran = []

    def run(command, check):
        ran.append(command[3:])
        return subprocess.CompletedProcess(command, next(codes, 0))

    monkeypatch.setattr(grid, "cells", lambda _: [{"seed": seed} for seed in range(6)])
    monkeypatch.setattr(grid.subprocess, "run", run)
    assert grid.run("any", ["threads=1"]) == 130
    assert ran == [[f"seed={seed}", "threads=1"] for seed in range(4)]
    assert "cell 2 of 6" in capsys.readouterr().out


def test_an_unknown_grid_is_told():
    with pytest.raises(UserError, match="unknown grid 'smal'; did you mean 'small'"):
        grid.cells("smal")
