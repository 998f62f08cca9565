"""What a record says, in the words of the tables: the method as it is named and typed, and what of it can be trusted."""

import shlex

from bench.records.schema import Record

QUIET = 0.1  # other work per core from which on seconds say little, and the record says so
OTHER_WORK = "other work on the machine while pruning"


def method_label(record: Record) -> str:
    """A run's method for people: its name, the fields that were set for the run, and how what it left was retrained."""
    recover = record["recover"]
    name = " ".join([record["method"]["name"], *(word.removeprefix("method.") for word in set_fields(record))])
    if not recover:
        return name
    rounds = f" in {recover['rounds']} rounds" * (recover["rounds"] > 1)
    return f"{name} + {recover['epochs']:g} epochs{' distilled' * recover['distil']}{rounds}"


def method_words(record: Record) -> str:
    """The same as it is typed."""
    recover = record["recover"]
    name = shlex.join([record["method"]["name"], *set_fields(record)])
    if not recover:
        return f"method={name}"
    rounds = f" recover.rounds={recover['rounds']}" * (recover["rounds"] > 1)
    return f"method={name} recover.epochs={recover['epochs']:g}{' recover.distil=true' * recover['distil']}{rounds}"


def set_fields(record: Record) -> list[str]:
    """The method's fields that the command line set, as typed: with them it is another method. A replay's record is none."""
    try:
        words = [word.lstrip("+") for word in shlex.split(record.get("command") or "")]
    except ValueError:  # an open quotation: nobody could type it
        return []
    return sorted(word for word in words if word.startswith("method.") and not word.startswith("method.record="))


def has_random_weights(record: Record) -> bool:
    """Whether only its costs say something: model.weights=random was never trained and is not scored."""
    return str((record["dense"]["checkpoint"] or {}).get("source")).startswith("random:")


def is_quiet(record: Record) -> bool:
    """Whether the machine was this run's alone while it pruned, and on a CPU all of its cores were in use, so that its seconds say
    something."""
    machine = record["machine"]
    load = machine.get("load")  # not there where a run failed before it looked
    used = machine["threads"] * machine.get("processes", 1)
    if record["device"] == "cpu" and used != machine.get("cores", used):
        return False
    return load is not None and load <= QUIET and not _was_disturbed(record)


def passes(record: Record) -> float | None:
    """What pruning cost in passes, where the ratio can be trusted: nothing else ran then, on a GPU not before either (a card that is
    shared says nothing of it)."""
    trusted = not _was_disturbed(record) if record["device"] == "cpu" else is_quiet(record)
    return record["prune"]["passes"] if trusted else None


def _was_disturbed(record: Record) -> bool:
    """Whether other work ran on the machine while the run pruned."""
    work = record["prune"].get("other_work")
    return _notes_begin(record["prune"], OTHER_WORK) if work is None else work > QUIET


def was_capped(record: Record, length: int) -> bool:
    """Whether the headline was timed at the model's last position, since it has fewer than this length."""
    positions = record["latency"].get("positions")
    return _notes_begin(record["latency"], "the model has") if positions is None else positions < length


def _notes_begin(section: Record, words: str) -> bool:
    """Records from before 2026-11-29 say some things in a note alone: this is the one place that reads their words."""
    return any(note.startswith(words) for note in section["notes"])


def last_line(reason: str | None) -> str:
    """Of a traceback the first line of the error itself, of a sentence the sentence."""
    lines = (reason or "").strip().splitlines()
    frames = [i for i, line in enumerate(lines) if line.startswith("  ")]
    return next(iter(lines[frames[-1] + 1 :] if frames else lines), "")
