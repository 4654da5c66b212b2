"""Imports `streamproc` from the checkout that this file lies in, installed or not.

In an installed package `streamproc.kernels` is the folder `kernels` at the top, by setuptools' mapping. Here the
package's search path gets the top folder too. `sys.path` does not: there `kernels` would shadow the package of that
name on PyPI, which transformers probes for.
"""

import importlib.util
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def use() -> None:
    """Before anything of streamproc is imported; harmless when repeated."""
    if "streamproc" in sys.modules:
        return
    folder = ROOT / "streamproc"
    spec = importlib.util.spec_from_file_location("streamproc", folder / "__init__.py",
                                                  submodule_search_locations=[str(folder), str(ROOT)])
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules["streamproc"] = package
    spec.loader.exec_module(package)


def commit() -> str:
    """Of the checkout, with a + where files differ from it; empty where it is no repository."""
    try:
        found = subprocess.run(["git", "describe", "--always", "--dirty=+", "--exclude=*"], cwd=ROOT, check=True,
                               capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    return found.stdout.strip()
