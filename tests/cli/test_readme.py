"""What README.md says: every block in it is run, in its order, and its tables are compared with the code."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.system.processes import Running, running
from wcfrelay import config, errors
from wcfrelay.cli import run

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

_OUTPUT = {
    "wcfrelay call orders ": "Place(item: xsd:string, count: xsd:int) -> total: xsd:decimal\n4.20\n",
    "wcfrelay call calculator Add": "3.75\n",
    "relay_client": "3.75\n",
    "call_zeep.py": "20 calls of 0.2 s each",
    "samples/call.php": "12 bolts: 4.20\n1 gear: There is no gear here.\n",
    "orders?wsdl": 'location="https://localhost:{https}/orders"',
    "SOAPAction": "<total>12.00</total>",
    "--print-config": "",
}
"""What the output of a block has in it, by a piece of the block."""
_NEEDED = {"php": "samples/call.php", "curl": "curl "}


class _Machine:
    """A new user's machine: an empty home, and the ports that are free on it in place of those in the text."""

    def __init__(self, home: Path, stack: ExitStack) -> None:
        self._stack = stack
        self._home = home
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("WCFRELAY_")}
        self._environment |= {
            "HOME": str(home),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "NO_PROXY": "localhost,127.0.0.1",
            "no_proxy": "localhost,127.0.0.1",
        }
        self._environment.pop("XDG_STATE_HOME", None)
        self._ports: dict[str, str] = {}

    def start(self, command: str) -> None:
        """Run a command until the end of the test; return when it is ready."""
        if command == "wcfrelay serve":
            gateway = self._start(f"{command} --http-port 0 --https-port 0 --admin-port 0 --bind 127.0.0.1", "ready")
            for line in gateway.output:
                if match := re.match(r"listening: (https?)://[^:]+:(\d+)/", line):
                    self._ports[{"http": "8080", "https": "8443"}[match[1]]] = match[2]
        elif command.endswith(" 8000"):
            service = self._start(command.removesuffix("8000") + "0", "http://")
            self._ports["8000"] = re.findall(r":(\d+)/", service.output[0])[0]
        else:
            self._start(command, "Online:")

    def _start(self, command: str, ready: str) -> Running:
        line = ["sh", "-c", f"exec env {self._with_ports(command)}"]
        process = self._stack.enter_context(running(line, cwd=ROOT, env=self._environment))
        process.wait_for(ready)
        return process

    def run(self, block: str) -> str:
        """The output of a block; what it exports is there for later ones."""
        script = f"set -e\n{self._with_ports(block)}\nenv -0 > '{self._home}/environment'"
        done = subprocess.run(
            ["sh", "-c", script],
            cwd=ROOT,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            timeout=60,
        )
        assert done.returncode == 0, f"{block}\n{done.stdout}{done.stderr}"
        pairs = (self._home / "environment").read_text("utf-8").rstrip("\0").split("\0")
        self._environment = dict(pair.split("=", 1) for pair in pairs)
        return done.stdout

    def run_python(self, block: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", block],
            env=self._environment,
            capture_output=True,
            encoding="utf-8",
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def wanted(self, text: str) -> str:
        return text.replace("{https}", self._ports.get("8443", ""))

    def _with_ports(self, text: str) -> str:
        for documented, port in self._ports.items():
            text = text.replace(f":{documented}/", f":{port}/")
        return text


@pytest.mark.system
def test_every_block_runs(tmp_path: Path) -> None:
    missing = [name for name in _NEEDED if not _installed(name)]
    seen: set[str] = set()
    with ExitStack() as stack:
        machine = _Machine(tmp_path, stack)
        for language, block in _BLOCK.findall(README):
            command = "\n".join(line for line in block.splitlines() if not line.startswith("#"))
            if any(_NEEDED[name] in block for name in missing):
                seen.update(piece for piece in _OUTPUT if piece in block)
                continue
            if language == "toml":
                _loads(block, tmp_path)
            elif language == "python":
                _check(block, machine.run_python(block), machine, seen)
            elif "leave it running" in block:
                machine.start(command)
            elif command.startswith("make "):
                for line in command.splitlines():
                    assert f"\n{line.split()[1]}:" in (ROOT / "Makefile").read_text("utf-8")
            else:
                block = block.replace(". .venv/", f". {sys.prefix}/").replace("> gateway", f"> {tmp_path}/gateway")
                if f". {sys.prefix}/" not in block or (Path(sys.prefix) / "bin" / "activate").exists():
                    _check(block, machine.run(block), machine, seen)
    assert seen == _OUTPUT.keys()
    config.load(tmp_path / "gateway.toml")
    if missing:
        pytest.skip(f"all blocks work, but those that need {' and '.join(missing)} were left out")


def _installed(name: str) -> bool:
    if shutil.which(name) is None:
        return False
    return name != "php" or not subprocess.run(["php", "-r", 'exit((int) !extension_loaded("soap"));']).returncode


def _check(block: str, output: str, machine: _Machine, seen: set[str]) -> None:
    for piece, wanted in _OUTPUT.items():
        if piece in block:
            seen.add(piece)
            assert machine.wanted(wanted) in output, block


def _loads(block: str, folder: Path) -> None:
    file = folder / "example.toml"
    file.write_text(block, "utf-8")
    loaded = config.load(file)
    assert loaded.relays and loaded.rules


def test_the_exit_codes_are_complete() -> None:
    listed = [int(code) for code in re.findall(r"^\| (\d|\d\d|1\d\d) \|", README, re.MULTILINE)]
    assert listed == [0, run.UNEXPECTED, run.USAGE, run.REFUSED, run.UNREACHABLE, run.FAULT, 130]


def test_the_table_of_errors_is_complete() -> None:
    listed = {(int(status), code) for status, code in re.findall(r"^\| (\d{3}) \| (\w+) \|", README, re.MULTILINE)}
    kinds = [getattr(errors, name) for name in errors.__all__]
    assert listed == {
        (kind.status, kind.code) for kind in kinds if isinstance(kind, type) and issubclass(kind, errors.RelayError)
    }


def test_files_named_in_the_readme_exist() -> None:
    for name in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / name).exists(), name


def test_every_module_is_in_the_architecture() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
    modules = {file.stem for file in (ROOT / "wcfrelay").rglob("*.py") if file.parent.name != "demo"}
    assert sorted(name for name in modules - {"__init__", "__main__"} if not re.search(rf"\b{name}\b", text)) == []
