"""`python -m bench`: Hydra in, one sentence per error out."""

import os
import re
import signal
import sys
import textwrap
import warnings
from contextlib import suppress
from typing import Any, NoReturn

os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach us whole, we say them in a sentence

import hydra
import yaml
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bench import catalogue
from bench.command import any_encoding
from bench.errors import UserError, first_line, nearest
from bench.files import CONF

GROUPS = ("method", "task", "model", "latency")
_outcomes: list[Any] = []  # of a single run: its outcome, or the error that refused it


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def _job(cfg: DictConfig) -> None:
    """One cell; in a multirun an error is noted, and the sweep goes on."""
    from bench import show
    from bench.cell import Outcome
    from bench.records import store, sweep

    job = HydraConfig.get()
    overrides: list[str] = OmegaConf.to_container(job.overrides.task, resolve=False)  # type: ignore[assignment]
    try:
        outcome = _run(cfg, job, overrides)
    except Exception as error:
        if job.mode != RunMode.MULTIRUN:
            _outcomes.append(error)  # raised to Hydra it would be told twice
            return
        outcome = Outcome("refused", None, explain(error, overrides))
    if job.mode == RunMode.MULTIRUN:
        sweep.note(job.sweep.dir, job.job.num, overrides, outcome)
        return
    _outcomes.append(outcome)
    if outcome.folder:
        show.show([store.read(outcome.folder)])
        print(f"record: {outcome.folder / 'record.json'}")


def _run(cfg: DictConfig, job: Any, overrides: list[str]) -> Any:
    from bench.cell import resolve, run_cell
    from bench.records import sweep

    many = job.mode == RunMode.MULTIRUN
    choices = {group: job.runtime.choices.get(group) for group in GROUPS}
    run = resolve(cfg, choices, _method_yaml(job, choices["method"], overrides), overrides)
    if many:
        sweep.announce(job.job.num, overrides)
    return run_cell(run, many)


def _method_yaml(job: Any, name: str | None, overrides: list[str]) -> dict[str, Any]:
    """The method's fields as its YAML has them, without what the command line sets of them: some are the task's."""
    words: list[str] = OmegaConf.to_container(job.overrides.hydra, resolve=False)  # type: ignore[assignment]
    others = [word for word in overrides if not re.match(r"[+~]*method\b", word)]
    node = _compose([*_searched(words), *others, f"method={name}"]).get("method") if name else None
    return OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else {}  # type: ignore[return-value]


def _searched(words: list[str]) -> list[str]:
    """Of overrides those that say where YAMLs lie."""
    return [word for word in words if word.startswith("hydra.searchpath")]


def _compose(overrides: list[str]) -> DictConfig:
    """A configuration composed from some overrides, as for a single run."""
    state = GlobalHydra.instance().hydra
    assert state is not None
    return state.config_loader.load_configuration(config_name="config", overrides=overrides, run_mode=RunMode.RUN)


def _choices() -> str:
    """What there is in every group, own YAMLs on the search path included; for the help."""
    loader: Any = GlobalHydra.instance().config_loader()
    search = _searched(sys.argv[1:])
    options = {group: loader.get_group_options(group, config_name="config", overrides=search) for group in GROUPS}
    lines = [catalogue.methods(options.pop("method"), search)]
    for group, names in options.items():
        text = f"  {group:<8} {', '.join(names)}"
        lines.append(textwrap.fill(text, catalogue.WIDTH, subsequent_indent=" " * 11, break_on_hyphens=False))
    return "\n".join(lines)


def explain(error: Exception, words: list[str]) -> str:
    """One sentence for what went wrong before a run began; Hydra and OmegaConf say it in many lines."""
    text = str(error)
    if isinstance(error, UserError):
        return text
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return f"{error.problem_mark.name}, line {error.problem_mark.line + 1}: {error.problem}"
    if options := getattr(error, "options", None):
        group, _, name = (getattr(error, "missing_cfg_file", None) or "").rpartition("/")
        return f"unknown {group} {name!r}{nearest(name, options)}"
    if found := re.search(r"Could not override '([^']+)'|Key '([^']+)' is not in struct", text):
        key = found.group(1) or found.group(2)
        return f"unknown key '{key}'{nearest(*_neighbours(key, words))}"
    if found := re.search(r"Ambiguous value for argument '([^']+)'", text):
        return f"several values in '{found.group(1)}' need -m, which runs one cell for each"
    if found := re.search(r"hydra.searchpath in \S+, path=(\S+) is not available", text):
        return f"hydra.searchpath: {found.group(1)} is not there"
    if isinstance(error, OverrideParseException) and "=" not in error.override:
        return f"cannot read {error.override!r}: write key=value; python -m bench --help shows the keys"
    if isinstance(error, OverrideParseException):
        return f"cannot read {error.override!r}: quote a value with special characters, as in 'key=\"value\"'"
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        return first_line(error)
    return f"{type(error).__name__}: {first_line(error)}; hydra.verbose=true shows where"


def _neighbours(key: str, words: list[str]) -> tuple[str, list[str]]:
    """The key's last part, and the keys that its place really has."""
    groups = [word for word in words if re.match(rf"\+?(hydra\.searchpath|{'|'.join(GROUPS)})=", word) and "," not in word]
    if not GlobalHydra.instance().is_initialized():
        from hydra import initialize_config_dir

        initialize_config_dir(version_base="1.3", config_dir=str(CONF))
    try:
        node: Any = _compose(groups)
    except Exception:  # what is wrong with these is told when they are used
        node = _compose([])
    place, _, last = key.rpartition(".")
    for part in filter(None, place.split(".")):
        if not isinstance(node, DictConfig) or part not in node:
            return key, [str(name) for name in _compose([])]
        node = node[part]
    return last, [name for name in map(str, node) if not name.startswith("_")] if isinstance(node, DictConfig) else []


def _with_fields_of_all(words: list[str]) -> list[str]:
    """A multirun's words, so that `method=a,b method.field=1` works: Hydra composes it once with the default method, which need not
    have the field, before it composes the cells, where it is checked."""
    swept = [group for group in GROUPS if any(re.match(rf"{group}=.*[,(]", word) for word in words)]
    return [f"++{word}" if word.startswith(tuple(f"{group}." for group in swept)) else word for word in words]


def _refuse(message: str) -> NoReturn:
    raise UserError(f"{message}; python -m bench --help shows what there is")


def _hang_up(number: int, _: Any) -> NoReturn:
    """The terminal is closed: ends like Ctrl-C. Kernel and shell may both tell it, so once is enough."""
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def main() -> int:
    """Run the command line. 0: all cells ok or skipped; 1: an error, told in a sentence; 130: interrupted."""
    any_encoding()
    if hasattr(signal, "SIGTERM"):
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C: nothing half written
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup ignores it
        signal.signal(signal.SIGHUP, _hang_up)
    OmegaConf.register_new_resolver("choices", _choices, replace=True)
    for told in ("provider=hydra.searchpath", "Callback Sweep"):  # Hydra only warns, and goes on without
        warnings.filterwarnings("error", message=told)
    verbose = any(word.startswith("hydra.verbose=") for word in sys.argv)
    try:
        parser = get_args_parser()
        parser.error = _refuse  # type: ignore[method-assign]
        flags = [word for word in sys.argv[1:] if word in ("-m", "--multirun")]
        words = [word for word in sys.argv[1:] if word not in flags]
        sys.argv[1:] = flags + (_with_fields_of_all(words) if flags else words)  # argparse wants them first
        parser.parse_args()
        _job()
        if _outcomes and isinstance(_outcomes[0], Exception):
            raise _outcomes.pop()
        code = 0
    except KeyboardInterrupt:
        code = 130
        with suppress(OSError):  # the terminal is gone
            print("interrupted; the same command goes on where it stopped", file=sys.stderr)
    except Exception as error:
        if verbose:
            raise
        print(explain(error, sys.argv[1:]), file=sys.stderr)
        code = 1
    from bench.records import sweep

    try:
        complete = sweep.finish(interrupted=bool(code))
        sys.stdout.flush()
    except OSError:  # nobody reads any more
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the flush at exit
        return code or 1
    failed = any(outcome.status == "failed" for outcome in _outcomes)
    return code or int(failed or not complete)


if __name__ == "__main__":
    sys.exit(main())
