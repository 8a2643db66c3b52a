"""Two hosts on one machine: network namespaces with names, joined by a cable. Needs Linux, but no rights."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

ADDRESSES = {"hosta": "10.9.0.1", "hostb": "10.9.0.2"}
NAMES = "127.0.0.1 localhost\n" + "".join(f"{address} {name}\n" for name, address in ADDRESSES.items())
HOLD = "hostname {name} && ip link set lo up && echo ready && exec sleep 900"


def why_none() -> str | None:
    """Why there can be no hosts here."""
    missing = [name for name in ("unshare", "nsenter", "ip", "hostname") if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} is not installed"
    tried = subprocess.run(
        ["unshare", "-rnum", "ip", "link", "add", "name", "probe", "type", "veth"], capture_output=True, text=True
    )
    return tried.stderr.strip() or None


class TwoHosts:
    """A context in which there are "hosta" and "hostb"; at its end all that runs there is killed.

    Args:
        folder: gets their /etc/hosts.
    """

    def __init__(self, folder: Path) -> None:
        self._names = folder / "hosts"
        self._names.write_text(NAMES)

    def __enter__(self) -> TwoHosts:
        self._holders: dict[str, subprocess.Popen[str]] = {}
        self._hold("hosta", ["unshare", "-rnum"], f"mount --bind {shlex.quote(str(self._names))} /etc/hosts && ")
        self._hold("hostb", [*self._enter("hosta"), "unshare", "-nu"])
        other = str(self._holders["hostb"].pid)
        self._ip("hosta", "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", other)
        for name, address in ADDRESSES.items():
            self._ip(name, "addr", "add", f"{address}/24", "dev", "cable")
            self._ip(name, "link", "set", "cable", "up")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name, holder in self._holders.items():
            self.kill(name)
            holder.kill()
            holder.wait()

    def start(
        self, name: str, command: Sequence[str], output: Path, environment: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        """Runs a command on a host; stdout and stderr go to the file ``output``."""
        with open(output, "wb") as file:
            return subprocess.Popen(
                [*self._enter(name), *command],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=os.environ | environment,
            )

    def kill(self, name: str) -> None:
        """kill -9 of all that runs on a host, which stays."""
        holder = self._holders[name]
        network = os.readlink(f"/proc/{holder.pid}/ns/net")
        for process in Path("/proc").iterdir():
            if process.name.isdigit() and int(process.name) != holder.pid:
                try:
                    if os.readlink(process / "ns/net") == network:
                        os.kill(int(process.name), signal.SIGKILL)
                except OSError:  # another user's, or it has ended
                    continue

    def cut(self) -> None:
        """Pulls the cable: neither host hears of the other again."""
        self._ip("hosta", "link", "set", "cable", "down")

    def _hold(self, name: str, command: list[str], before: str = "") -> None:
        script = before + HOLD.format(name=name)
        holder = subprocess.Popen([*command, "sh", "-c", script], stdout=subprocess.PIPE, text=True)
        self._holders[name] = holder
        assert holder.stdout is not None and holder.stdout.readline() == "ready\n"

    def _enter(self, name: str) -> list[str]:
        return ["nsenter", "-t", str(self._holders[name].pid), "-U", "--preserve-credentials", "-n", "-u", "-m"]

    def _ip(self, name: str, *arguments: str) -> None:
        subprocess.run([*self._enter(name), "ip", *arguments], check=True)
