"""Run ansible-test sanity on a copy of the collection, leaving nothing outside build/.

ansible-test insists on a real ansible_collections/<namespace>/<name> path, keeps its virtual environments
below HOME, and downloads get-pip from a host that many networks do not reach. So it gets a copy, a HOME of its
own, and a stand-in for get-pip that starts from the pip bundled with Python. Arguments go to ansible-test.
"""

from __future__ import annotations

import ast
import configparser
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

from ansible_test._internal.python_requirements import get_venv_packages

ROOT = Path(__file__).resolve().parents[2]
COPY = ROOT / "build/sanity/ansible_collections/lbops/xdp"
HOME = ROOT / "build/cache/sanity-home"
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"

GET_PIP = """\
import subprocess
import sys

options = [word for word in sys.argv[1:] if word not in ("--no-setuptools", "--no-wheel")]
subprocess.run([sys.executable, "-m", "ensurepip"], check=True, stdout=subprocess.DEVNULL)
sys.exit(subprocess.call([sys.executable, "-m", "pip", "install", *options]))
"""


def copy_collection() -> None:
    """Copy what git would commit."""
    COPY.mkdir(parents=True, exist_ok=True)
    filters = ["--exclude=/.git", "--filter=:- .gitignore"]
    subprocess.run(["rsync", "-rlpt", "--delete", *filters, f"{ROOT}/", f"{COPY}/"], check=True)
    # Otherwise ansible-test asks the checkout's git, which ignores build/: "All targets skipped", and success.
    subprocess.run(["git", "init", "--quiet", str(COPY)], check=True, env={**os.environ, "HOME": str(HOME)})


def write_get_pip() -> None:
    """Put the stand-in where ansible-test looks for a cached get-pip of the version it wants."""
    version = get_venv_packages(SimpleNamespace(version=PYTHON))["pip"]
    path = HOME / f".ansible/test/cache/get_pip_{version.replace('.', '_')}.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(GET_PIP)


def write_pip_config() -> None:
    """Carry the caller's pip settings over: ansible-test passes no PIP_* variables on, and HOME differs."""

    def pip(*words: str) -> str:
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *words]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout

    config = configparser.RawConfigParser()
    for line in pip("config", "list").splitlines():
        name, value = line.split("=", 1)
        section, option = name.split(".", 1)
        section = "global" if section == ":env:" else section
        if not config.has_section(section):
            config.add_section(section)
        config.set(section, option.lstrip("."), ast.literal_eval(value))
    if not config.has_section("global"):
        config.add_section("global")
    config.set("global", "cache-dir", pip("cache", "dir").strip())
    config.set("global", "quiet", "1")
    path = HOME / ".config/pip/pip.conf"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as stream:
        config.write(stream)


def main() -> int:
    HOME.mkdir(parents=True, exist_ok=True)
    copy_collection()
    write_get_pip()
    write_pip_config()
    scripts = Path(sys.executable).parent
    environment = {**os.environ, "HOME": str(HOME), "PATH": f"{scripts}:/usr/sbin:/usr/bin:/sbin:/bin"}
    command = [str(scripts / "ansible-test"), "sanity", "--python", PYTHON, "--color", "no", *sys.argv[1:]]
    return subprocess.call(command, cwd=COPY, env=environment, stdin=subprocess.DEVNULL)


if __name__ == "__main__":
    sys.exit(main())
