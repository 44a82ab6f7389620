"""The services of the SOAP pairs: ext/soap/tests of PHP's source, as the distribution ships it, kept between runs.

apt's own settings stay as they are: the source entries are derived from the binary ones it has, and lists and archives
are in a folder of ours.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest

_MEMBERS = re.compile(r"[^/]+/ext/soap/tests/(.+)")
_FETCH = 180.0


def soap_tests(version: str) -> Path:
    """The folder with PHP's own SOAP tests of ``version`` (such as 8.2.32), or of another release of that series.

    Skips the test where there is none and apt cannot fetch it.
    """
    series = ".".join(version.split(".")[:2])
    home = os.environ.get("XDG_CACHE_HOME", "")
    cache = (Path(home) if home.startswith("/") else Path.home() / ".cache") / "wcfrelay-tests"
    kept = cache / f"php{series}-soap-tests"
    if not kept.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        # Made beside its place and moved there whole, so that a run that was stopped leaves no half of it.
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            unpacked = Path(folder) / "tests"
            try:
                archive = _fetch(Path(folder), f"php{series}", version)
            except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
                pytest.skip(f"the SOAP pairs need the source package of php{series}: {error} {error.stderr!r}")
            _unpack(archive, unpacked)
            if not kept.is_dir():
                unpacked.rename(kept)
    return kept


def _fetch(folder: Path, package: str, version: str) -> Path:
    """The source archive of a package, in that version where it is to be had."""
    if shutil.which("apt-get") is None:
        pytest.skip(f"the SOAP pairs need the source package of {package}, and there is no apt to fetch it")
    for name in ("lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True)
    form = "deb-src $(SITE) $(RELEASE) $(COMPONENT)"
    entries = _apt(folder, "apt-get", "indextargets", "--format", form, "Created-By: Packages", private=False)
    (folder / "sources.list").write_text(entries)
    _apt(folder, "apt-get", "update", "-q")
    known = re.findall(r"(?m)^Version: (.+)$", _apt(folder, "apt-cache", "showsrc", package))
    problem = "no source of it is known"
    for candidate in sorted(known, key=lambda each: each.startswith(f"{version}-"), reverse=True):
        try:
            _apt(folder, "apt-get", "source", "-q", "--download-only", "--tar-only", f"{package}={candidate}")
        except subprocess.CalledProcessError as error:  # the mirror may no longer, or not yet, have this one
            problem = error.stderr.strip()
            continue
        return next(folder.glob("*.orig.tar.*"))
    pytest.skip(f"the SOAP pairs need the source package of {package}: {problem}")


def _apt(folder: Path, *command: str, private: bool = True) -> str:
    options = {
        "Dir::Etc::SourceList": folder / "sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State::Lists": folder / "lists",
        "Dir::Cache": folder / "cache",
        "APT::Sandbox::User": "",
        "Acquire::Retries": "1",
        "Acquire::http::Timeout": "20",
    }
    given = [part for name, value in options.items() for part in ("-o", f"{name}={value}")] if private else []
    done = subprocess.run(
        [command[0], *given, *command[1:]], cwd=folder, capture_output=True, text=True, timeout=_FETCH, check=True
    )
    return done.stdout


def _unpack(archive: Path, target: Path) -> None:
    with tarfile.open(archive) as members:
        for member in members:
            match = _MEMBERS.fullmatch(member.name)
            if match is not None and member.isfile() and ".." not in match[1]:
                content = members.extractfile(member)
                assert content is not None
                file = target / match[1]
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content.read())
