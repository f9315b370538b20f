"""Runs Git in the repositories of tests, without the settings of the user."""

import subprocess
from pathlib import Path


def git(folder: Path, *arguments: str) -> str:
    """Run Git in a folder, and return its output. Raise CalledProcessError if Git fails."""
    user = ["-c", "user.name=test", "-c", "user.email=test@example.com", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", *user, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout
