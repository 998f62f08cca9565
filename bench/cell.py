"""One cell: the stored record that answers it, or a run and the record it leaves, whatever happens."""

import shlex
import shutil
import time
import traceback
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from bench import checks, config, machine
from bench.config import Keys, Model, Run, Task
from bench.dense import finding
from bench.dense.finding import Checkpoint
from bench.errors import UserError, first_line
from bench.files import cache_folder
from bench.method import Skip
from bench.records import record, store
from bench.records.schema import Record
from bench.run import PROTOCOL, Done, Known, execute
from bench.speed import latency_table
from bench.stages import say
from bench.tasks import KINDS, data
from bench.train import processes

NO_PATHS = ("results", "save", "model.path", "rerun", "hydra.")  # overrides that a record does not repeat


@dataclass(frozen=True)
class Outcome:
    """How a cell ended: `status` is ok, skipped, failed or refused; a refused one leaves no record."""

    status: str
    folder: Path | None
    reason: str | None = None


def resolve(cfg: DictConfig, choices: dict[str, str | None], reference: dict[str, Any], overrides: list[str]) -> Run:
    """A composed configuration as a checked run. `reference`: the method's YAML as it is without overrides.

    Raises:
        UserError: whatever the user got wrong in it.
    """
    plain: dict[str, Any] = _tidied(OmegaConf.to_container(cfg, resolve=True))
    fields, task_fields, model_fields = (_group(plain, group) for group in ("method", "task", "model"))
    names = {group: str(choices[group]).rsplit("/", 1)[-1] for group in ("method", "task", "model")}
    keys = config.typed(Keys, plain, "")
    task = config.typed(Task, task_fields, "task")
    model = config.typed(Model, model_fields, "model")
    device = machine.resolve_device(keys.device)
    checks.check_keys(keys, device)
    checks.check_task(names["task"], task)
    checks.check_model(names["model"], model)
    checks.check_pair(names["task"], task, names["model"], model)
    fields = checks.checked_fields(names["method"], fields, _tidied(reference))
    keys.unit = checks.unit_of(names["method"], keys, task.unit, fields.pop("_unit_", None))
    keys.round_to = None if keys.round_to == 1 else keys.round_to  # every number is a multiple of 1
    told = [word.removeprefix("++") for word in overrides if not word.lstrip("+~").startswith(NO_PATHS)]
    told = [word for word in map(partial(_as_told, fields=fields, reference=reference), told) if word]
    target = fields.pop("_target_")
    return Run(
        method=names["method"],
        method_target=target,
        trains=checks.declares(target, "training"),
        pretrained=checks.declares(target, "pretrained"),
        method_fields=fields,
        task_name=names["task"],
        task=task,
        model_name=names["model"],
        model=model,
        keys=keys,
        device=device,
        threads=keys.threads or max(1, machine.usable_cores() // processes.world()),
        command=shlex.join(["python", "-m", "bench", *told]),
    )


def _tidied(value: Any) -> Any:
    """Plain configuration without what carries no meaning: digits of rounding noise (0.1 + 0.2), the sign of a zero."""
    if isinstance(value, dict):
        return {key: _tidied(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_tidied(entry) for entry in value]
    return float(f"{value:.12g}") + 0.0 if isinstance(value, float) else value


def _as_told(word: str, fields: dict[str, Any], reference: dict[str, Any]) -> str | None:
    """An override as a record tells it: numbers of the method in one spelling, what the YAML says anyway left out."""
    key = word.partition("=")[0].lstrip("+").removeprefix("method.")
    if not word.lstrip("+").startswith("method.") or key not in fields:
        return word
    if fields[key] == reference.get(key):
        return None
    return f"method.{key}={fields[key]:.12g}" if isinstance(fields[key], float) else word


def _group(plain: dict[str, Any], group: str) -> dict[str, Any]:
    given = plain.pop(group, None)
    if not isinstance(given, dict) or not all(isinstance(key, str) for key in given):
        raise UserError(f"{group}: no set of named fields; {group}=NAME chooses one, python -m bench --help shows them")
    return given


def run_cell(run: Run, many: bool = False) -> Outcome:
    """Answer from the store, or run and leave a record. `many`: the cell is one of a multirun.

    Raises:
        UserError: something the user can mend; nothing is written.
    """
    cache_folder()  # a wrong one is told before anything slow
    checks.check_processes(run)
    here = machine.named(run.device, run.threads)
    results = checks.check_results(run.keys.results, here["name"])
    saves = None if run.keys.save is None else checks.check_save(run.keys.save, results, many)
    task_data = _data(run)
    checkpoint = finding.find(run, task_data)
    if saves and checkpoint:
        checks.check_source(str(run.keys.save), saves, checkpoint.folder, many)
    _check_base(run, task_data, checkpoint)
    known = _known(run, checkpoint)
    fresh = record.blank(run, task_data, PROTOCOL, known.id) | {"machine": here}
    fresh["dense"]["base"] = known.base
    if known.id and not run.keys.rerun and not saves and (stored := _answer(run, results, fresh)):
        return stored
    outcome, done = _run_and_store(run, task_data, known, fresh, results)
    if saves and done and outcome.folder:
        _save(run, done, outcome.folder, saves / outcome.folder.name if many else saves)
    elif saves:
        say(f"no model is saved: the run is {outcome.status}")
    return outcome


def _data(run: Run) -> data.TaskData:
    """The task's data, which an evaluation can be made on."""
    if run.task.build and run.scored:  # takes long: what is missing is told before
        finding.prefetch_base(run)
    found = data.load(run.task_name, run.task)
    if run.scored:
        data.check_evaluation(run.task_name, found.validation)
    return found


def _check_base(run: Run, task_data: data.TaskData, checkpoint: Checkpoint | None) -> None:
    """What a run needs of the base encoder is there; told now, not after the slow imports."""
    if run.scored and (checkpoint is None or run.pretrained):
        finding.fetch_base(run)
    if checkpoint is None and run.scored and KINDS[run.task.kind].fine_tuned and not task_data.train.labelled:
        raise UserError(f"no dense checkpoint of {run.model_name} for {run.task_name}, and train has no labels to fine-tune one on")


def _known(run: Run, checkpoint: Checkpoint | None) -> Known:
    base = finding.base_identity(run) if run.pretrained else None
    table = latency_table.kept(run, checkpoint) if checkpoint else None
    if checkpoint is None or (table is None and run.keys.unit == "latency"):
        return Known(checkpoint, table, base, None)
    return Known(checkpoint, table, base, record.run_id(run, checkpoint.sha256, PROTOCOL, table, base))


def _answer(run: Run, results: Path, fresh: Record) -> Outcome | None:
    """The stored record that answers the run, if there is one."""
    stored, reason = store.answer(results, fresh, run.threads, run.keys.latency)
    if stored:
        say("this run is stored already; rerun=true repeats it")
        return Outcome(stored.record["status"], stored.folder, stored.record["reason"])
    if reason:
        say(f"a stored record of this run does not answer it, {reason}: running it again")
    return None


def _save(run: Run, done: Done, record: Path, target: Path) -> None:
    from bench.saved import checkpoint, writing

    facts = checkpoint.Facts.of(run, done.id)
    files = [record / checks.RECORD_FILE, *writing.tokenizer_files(done.checkpoint.folder)]
    try:
        writing.save(target, done.small, done.masks, facts, files, done.weights)
    except UserError as error:
        raise UserError(f"{error}; the run's record is {record}") from error
    say(f"saved: {target}")


def _run_and_store(run: Run, task_data: data.TaskData, known: Known, fresh: Record, results: Path) -> tuple[Outcome, Done | None]:
    arrays: dict[str, Any] = {"gold": task_data.validation.labels}
    done = None
    start = time.perf_counter()
    try:
        done = execute(run, task_data, known, fresh)
        arrays = done.arrays
        fresh["status"] = "ok"
    except (UserError, KeyboardInterrupt):
        raise
    except processes.Follower:
        return Outcome("ok", None), None
    except Skip as skipped:
        fresh |= {"status": "skipped", "reason": str(skipped)}
    except BaseException as error:  # a run survives its method, whatever that raises
        text = "".join(traceback.format_exception(error)).replace(str(Path.cwd()), ".").replace(str(Path.home()), "~")
        fresh["reason"] = text
        say(f"the run failed: {type(error).__name__}: {first_line(error)}; the record has the traceback")
    fresh["seconds"]["total"] = time.perf_counter() - start
    if processes.rank():
        return Outcome(fresh["status"], None, fresh["reason"]), None
    folder = store.write(results, fresh, arrays)
    if done and done.training:
        shutil.rmtree(done.training, ignore_errors=True)
    return Outcome(fresh["status"], folder, fresh["reason"]), done
