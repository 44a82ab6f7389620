from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest


@pytest.mark.system
@pytest.mark.timeout_s(30)
def test_a_listener_whose_reader_is_gone_still_stops() -> None:
    """Whoever started it died without stopping it: its standard streams are broken pipes."""
    command = [sys.executable, "-m", "wcfrelay", "expose", "http://127.0.0.1:9", "--relay", "orders"]
    secret = "Endpoint=http://127.0.0.1:9/;SharedAccessKeyName=k;SharedAccessKey=eA=="
    process = subprocess.Popen(
        [*command, "--connection-string", secret], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline().startswith("Connecting: ")
        process.stdout.close()
        process.stderr.close()
        time.sleep(1.5)  # some lines go nowhere
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) is not None
    finally:
        process.kill()
        process.wait()
