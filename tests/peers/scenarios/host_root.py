"""What an action sees of its host when its root is the host's tools and its inputs lie below: every compiler and
interpreter works, and nothing else of the host is there."""

import contextlib
import os
import random
import shutil
import tempfile
from pathlib import Path

from .lab import expect, expect_equal

# Each tool needs a part of the root that is forgotten easily: what is in /etc, in /dev, or made for the action alone.
TOOLS = {
    "cc": "cc -x c - -o program <<< 'int main(void) { return 0; }' && ./program",
    "c++": "c++ -x c++ - -o program <<< 'int main() {}' && ./program",
    "awk": "awk 'BEGIN { exit 0 }'",
    "id": "id -un && id -gn",
    "getent": "getent hosts localhost && getent hosts $(hostname) && getent passwd root",
    "perl": "perl -e 'getpwuid($<) or die'",
    "git": "git init -q made && git -C made -c user.name=a -c user.email=b commit -q --allow-empty -m made",
    "mktemp": "for f in /tmp /var/tmp /dev/shm; do rm $(mktemp -p $f); done",
    "bash": "cat <(echo process substitution) /dev/stdin < /dev/null > /dev/null && [ -d /proc/self/fd ]",
    "python3": "python3 -c 'import getpass, multiprocessing, os, ssl; multiprocessing.Lock(); os.openpty(); getpass.getuser()'",
    "socket": "python3 -c 'import socket; s = socket.socket(); s.bind((\"127.0.0.1\", 0)); s.listen(); "
    "socket.create_connection(s.getsockname())'",
    "sort": "seq 100000 | sort -R -S 1M | wc -l",
    "javac": "echo 'class A { public static void main(String[] a) throws Exception { "
    "new java.security.SecureRandom().nextInt(); java.net.InetAddress.getLocalHost(); "
    'java.io.File.createTempFile("some", "thing"); } }\' > A.java && javac -d . A.java && java -cp . A',
}
NEEDS = {"socket": "python3"}


def run(lab, server, script):
    command = [lab.boxwright, "run", "--remote", server.url, "--no-cache", "--env", "PATH=/usr/bin:/bin", "--", "/bin/bash", "-c", script]
    return lab.run("action", command)


def host_root_has_the_tools_of_the_host(lab):
    there = [name for name in TOOLS if shutil.which(NEEDS.get(name, name), path="/usr/bin:/bin")]
    with lab.standalone() as server:
        failed = {}
        for name in there:
            code, out, err = run(lab, server, f"set -e; {TOOLS[name]}")
            if code != 0:
                failed[name] = f"exit status {code}: {(out + err)[-400:]}"
    expect_equal(failed, {}, "tools that do not work in an action")
    return f"{len(there)} of {len(TOOLS)} tools"


def host_root_hides_what_is_private(lab):
    with contextlib.ExitStack() as stack:
        marks = []
        for folder in ("/tmp", "/var/tmp", "/dev/shm", "/root", "/home", "/srv", "/run", "/mnt"):
            with contextlib.suppress(OSError):
                name = tempfile.mkdtemp(prefix="boxwright-mark.", dir=folder)
                os.chmod(name, 0o755)
                marks.append(name)
                stack.callback(shutil.rmtree, name, ignore_errors=True)
        expect(len(marks) >= 2, f"hardly any marks could be made: {marks}")
        with lab.standalone() as server:
            code, out, err = run(lab, server, f"ls -d {' '.join(marks)} 2>/dev/null; true")
            expect_equal((code, out), (0, ""), f"exit status and the host's folders that an action sees ({err})")
            code, out, _ = run(lab, server, "cat /etc/shadow /etc/gshadow /etc/ssh/ssh_host_* 2>/dev/null; true")
            expect_equal((code, out), (0, ""), "exit status and secrets of the host that an action reads")
            code, out, _ = run(lab, server, f"ls {lab.folder} /proc/{os.getpid()} /sys/kernel 2>/dev/null; true")
            expect_equal((code, out), (0, ""), "exit status, and what an action sees of the laboratory, its processes and /sys")
            code, out, _ = run(lab, server, "tail -n +3 /proc/net/dev | sed 's/:.*//; s/ //g'")
            expect_equal((code, out), (0, "lo\n"), "exit status and network interfaces")
            changes = "for f in /usr /usr/bin /etc /bin /; do (: > $f/made) 2>/dev/null && echo $f; done; true"
            code, out, _ = run(lab, server, changes)
            expect_equal((code, out), (0, ""), "exit status, and folders of the root that an action may write to")


def host_root_keeps_nothing_from_one_action_to_the_next(lab):
    mark = f"boxwright-left.{random.getrandbits(48):x}"
    places = ("/tmp", "/var/tmp", "/dev/shm", ".")
    paths = " ".join(f"{place}/{mark}" for place in places)
    try:
        with lab.standalone() as server:
            code, _, err = run(lab, server, f"set -e; for path in {paths}; do echo left > $path; done; ipcmk -M 4096 >/dev/null")
            expect_equal(code, 0, f"exit status of an action that leaves files and shared memory behind ({err})")
            code, out, _ = run(lab, server, f"ls {paths} 2>/dev/null; ipcs -m | grep 0x; true")
            expect_equal((code, out), (0, ""), "exit status, and what the next action finds")
        expect_equal([p for p in places if Path(p, mark).exists()], [], "folders of the host that hold an action's file")
    finally:
        for place in places:
            Path(place, mark).unlink(missing_ok=True)


SCENARIOS = [
    host_root_has_the_tools_of_the_host,
    host_root_hides_what_is_private,
    host_root_keeps_nothing_from_one_action_to_the_next,
]
