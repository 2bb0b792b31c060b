"""Training killed with SIGKILL goes on as if nothing had happened; the whole of it: kill_and_resume.py --kills 20."""

import subprocess
import sys
from pathlib import Path


def test_killed_runs_consume_what_an_uninterrupted_one_does():
    script = Path(__file__).with_name("kill_and_resume.py")
    result = subprocess.run([sys.executable, script, "--kills", "3"], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("every epoch exact") == 3
