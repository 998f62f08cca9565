"""The hub: whether it answers, and what is fetched from it."""

import os
import threading
import urllib.error
import urllib.request
from functools import cache
from pathlib import Path

from bench.config import HubData
from bench.errors import UserError, first_line

PROBE_SECONDS = 2.0
FILES = ["*.json", "*.txt", "*.model", "*.safetensors"]


@cache
def reachable() -> bool:
    """One probe; where nothing answers, the hub's client, which would retry for long, is told to stay offline.

    Call it before anything imports that client. `HF_HUB_OFFLINE=1` is honoured.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "ON", "YES"):
        return False
    answers: list[bool] = []

    def probe() -> None:
        try:
            urllib.request.urlopen(os.environ.get("HF_ENDPOINT", "https://huggingface.co"), timeout=PROBE_SECONDS).close()
            answers.append(True)
        except urllib.error.HTTPError:
            answers.append(True)  # it refuses, so it is there
        except (OSError, ValueError):
            answers.append(False)

    asker = threading.Thread(target=probe, daemon=True)  # a name server may hang longer than any timeout
    asker.start()
    asker.join(PROBE_SECONDS + 0.3)
    if not any(answers):
        os.environ["HF_HUB_OFFLINE"] = "1"
    return any(answers)


def snapshot(repo: str) -> Path | None:
    """The files of a model repository, from the client's cache or the hub; None where neither has them.

    Raises:
        UserError: the hub answers, but not with this repository.
    """
    online = reachable()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    def get(patterns: list[str]) -> Path:
        return Path(snapshot_download(repo, allow_patterns=patterns, local_files_only=not online))

    try:
        folder = get(FILES)
        if not any(folder.glob("*.safetensors")):  # older repositories hold a pickle; it is read with weights_only
            folder = get([*FILES, "pytorch_model.bin"])
        return folder if (folder / "config.json").exists() else None
    except LocalEntryNotFoundError:
        return None
    except Exception as error:
        raise UserError(f"the hub does not give {repo}: {first_line(error)}") from error


def fetch_split(data: HubData, split: str, target: Path) -> bool:
    """Write one split of a data set as parquet; False where neither the hub nor its client's cache has it.

    Raises:
        UserError: the hub answers, but not with this data set.
    """
    online = reachable()
    if not online and not _datasets_cached(data.path):
        return False
    from datasets import load_dataset

    try:
        load_dataset(data.path, data.name, split=split).to_parquet(target)
    except Exception as error:
        if not online:
            return False
        raise UserError(f"the hub does not give {data.path} {data.name or ''} {split}: {first_line(error)}") from error
    return True


def _datasets_cached(repo: str) -> bool:
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    folder = Path(os.environ.get("HF_DATASETS_CACHE") or home / "datasets")
    return (folder / repo.replace("/", "___")).exists()
