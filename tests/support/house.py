"""What the tests of the house share: where things are, and how sources are read."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "python" / "userfault"
CRATES = ROOT / "crates"


def tracked_files() -> list[Path]:
    """The files that git knows or would add, without those it ignores; all files where there is no git."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        listed = subprocess.run(command, capture_output=True, check=True).stdout.decode().split("\0")
    except (OSError, subprocess.CalledProcessError):
        return [path for path in ROOT.rglob("*") if path.is_file() and not {"target", ".venv", ".git"} & set(path.parts)]
    return [ROOT / name for name in listed if name and (ROOT / name).is_file()]


def without_tests(rust: str) -> str:
    """Rust source without its inline test module, comments and strings' contents."""
    rust = re.split(r"^\s*#\[cfg\(test\)\]\s*\n\s*mod \w+ \{", rust, maxsplit=1, flags=re.MULTILINE)[0]
    return re.sub(r"//[^\n]*", "", rust)
