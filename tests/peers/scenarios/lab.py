"""The laboratory of the real-peer scenarios: starts servers, workers and clients, and leaves nothing of them behind.

Everything that is started here, and everything that those programs start, becomes a child of this process when its own
parent dies (PR_SET_CHILD_SUBREAPER), so that at the end, and after a Ctrl-C, all of it can be found and killed.
"""

import contextlib
import ctypes
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
PROJECT = HERE.parent.parent
# A bot that says nothing for so many seconds has lost its session: how long a dead worker holds its actions.
KEEPALIVE = 10


class Skip(Exception):
    """This machine cannot run the scenario; the text says why."""


class Failed(Exception):
    """The scenario showed something else than it should."""


def expect(condition, why):
    if not condition:
        raise Failed(why)


def expect_equal(found, wanted, what):
    if found != wanted:
        raise Failed(f"{what}: {found!r} instead of {wanted!r}")


def wait_for(condition, seconds, what):
    """Returns what condition() gives once that is true."""
    end = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > end:
            raise Failed(f"{what}: not within {seconds} s")
        time.sleep(0.05)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def reachable(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def process_table():
    """Every process of the machine: (pid, parent, state)."""
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                stat = Path(f"/proc/{entry}/stat").read_text()
                state, parent = stat[stat.rindex(")") + 2 :].split()[:2]
                yield int(entry), int(parent), state


def descendants(of):
    """The living processes that a process started, and those that they started."""
    tree = {}
    for pid, parent, state in process_table():
        if state != "Z":
            tree.setdefault(parent, []).append(pid)
    found, ahead = [], [of]
    while ahead:
        ahead = [child for parent in ahead for child in tree.get(parent, [])]
        found += ahead
    return found


def processes_with(argument):
    """The processes that have this very argument on their command line."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                if argument.encode() in Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0"):
                    found.append(int(entry))
    return found


def unique_seconds(seconds):
    """So many seconds, with a fraction that no other process on this machine sleeps for."""
    return f"{seconds}.{random.randrange(10**8, 10**9):09d}"


def peak_mib(pid):
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise Failed(f"process {pid} shows no VmHWM")


class Process:
    """A started program, its output in a file."""

    def __init__(self, lab, name, argv, **more):
        self.name = name
        self.log_path = lab.folder / f"{name}.log"
        lab.logs.append(self.log_path)
        with open(self.log_path, "ab") as log:
            log.write(f"$ {' '.join(map(str, argv))}\n".encode())
            log.flush()
            more.setdefault("stdin", subprocess.DEVNULL)
            more.setdefault("stdout", log)
            self.popen = lab.start(argv, stderr=log, **more)
        self.pid = self.popen.pid

    def log(self):
        return self.log_path.read_text(errors="replace")

    def running(self):
        return self.popen.poll() is None

    def signal(self, number):
        self.popen.send_signal(number)

    def wait(self, seconds):
        try:
            return self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            raise Failed(f"{self.name} still runs after {seconds} s") from None

    def stop(self, seconds=20):
        if self.running():
            self.signal(signal.SIGTERM)
            try:
                self.popen.wait(seconds)
            except subprocess.TimeoutExpired:
                self.popen.kill()
                self.popen.wait()
        return self.popen.returncode


class Request(Process):
    """A reapi-client at work; its lines are read as they come."""

    def __init__(self, lab, name, argv, request):
        super().__init__(lab, name, argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.popen.stdin.write(json.dumps(request).encode())
        self.popen.stdin.close()
        self.events, self.news = [], threading.Condition()
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self):
        for line in self.popen.stdout:
            with open(self.log_path, "ab") as log:
                log.write(line)
            with self.news:
                self.events.append(json.loads(line))
                self.news.notify_all()
        with self.news:
            self.events.append(None)
            self.news.notify_all()

    def event(self, matches, seconds, what):
        def found():
            return next((e for e in self.events if e is None or matches(e)), False)

        with self.news:
            self.news.wait_for(lambda: found() is not False, seconds)
            event = found()
        expect(event, f"{what}: {'the client ended without it' if event is None else f'not within {seconds} s'}")
        return event

    def operation(self, stage, seconds=60):
        event = self.event(lambda e: e.get("stage") == stage, seconds, f"operation in stage {stage}")
        return event["name"]

    def done(self, seconds=90):
        return self.event(lambda e: e["event"] == "done", seconds, "end of the operation")


class Lab:
    def __init__(self, boxwright):
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
        self.folder = Path(tempfile.mkdtemp(prefix="boxwright-peers."))
        self.folder.chmod(0o755)
        self.boxwright = boxwright
        self.logs = []
        self.elsewhere = []
        self.count = self.daemons = 0
        self.shared = {}
        self.preparations, self.preparing = {}, set()
        self.own, self.starting = set(), threading.Lock()
        threading.Thread(target=self.reap_for_ever, daemon=True).start()

    # -- what the machine has --------------------------------------------------------------------

    def prepare(self, what, argv):
        """Runs a script that fetches a peer, beside the scenarios; `need` waits for it."""
        log_path = self.folder / f"prepare-{what}.log"

        def run():
            with open(log_path, "ab") as log:
                script = self.start(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            self.preparing.add(script.pid)
            code = script.wait()
            self.preparing.discard(script.pid)
            said = log_path.read_text(errors="replace").strip().splitlines()
            self.preparations[what][1] = (code, said[-1] if said else f"exit status {code}")

        thread = threading.Thread(target=run, daemon=True)
        self.preparations[what] = [thread, None]
        thread.start()

    def await_preparation(self, what):
        """Exit status and last word of a preparing script. The wait is not the scenario's."""
        left = signal.alarm(0)
        self.preparations[what][0].join()
        signal.alarm(left)
        return self.preparations[what][1]

    def need(self, what):
        code, said = self.await_preparation(what)
        if code != 0:
            raise Skip(said)

    def need_program(self, name):
        path = shutil.which(name)
        if path is None:
            raise Skip(f"there is no {name} here; {self.await_preparation('packages')[1]}")
        return path

    # -- processes -------------------------------------------------------------------------------

    def name(self, stem):
        self.count += 1
        return f"{self.count:03d}-{stem}"

    def fresh_folder(self, stem):
        folder = self.folder / self.name(stem)
        folder.mkdir()
        return folder

    def roomy_folder(self):
        """A folder for many or large files: in memory if some GiB are free there, for disks that discard each freed block
        take minutes to empty one. It is removed at the end."""
        memory = Path("/dev/shm")
        roomy = memory.is_dir() and shutil.disk_usage(memory).free > 6 << 30
        folder = Path(tempfile.mkdtemp(prefix="boxwright-peers.", dir=memory if roomy else self.folder))
        folder.chmod(0o755)
        self.elsewhere.append(folder)
        return folder

    @contextlib.contextmanager
    def room(self):
        """A roomy folder that is removed before the next scenario."""
        folder = self.roomy_folder()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def start(self, argv, **more):
        """A child of ours, in a session of its own."""
        with self.starting:
            popen = subprocess.Popen([str(a) for a in argv], start_new_session=True, **more)
            self.own.add(popen.pid)
            return popen

    def spawn(self, stem, argv, **more):
        return Process(self, self.name(stem), argv, **more)

    def run(self, stem, argv, seconds=120, **more):
        """Runs a program to its end: exit status, stdout and stderr."""
        name = self.name(stem)
        log_path = self.folder / f"{name}.log"
        self.logs.append(log_path)
        out, err = self.folder / f"{name}.out", self.folder / f"{name}.err"
        with open(out, "wb") as o, open(err, "wb") as e:
            popen = self.start(argv, stdin=subprocess.DEVNULL, stdout=o, stderr=e, **more)
            try:
                code = popen.wait(seconds)
            except subprocess.TimeoutExpired:
                os.killpg(popen.pid, signal.SIGKILL)
                popen.wait()
                code = None
        stdout, stderr = out.read_text(errors="replace"), err.read_text(errors="replace")
        log_path.write_text(f"$ {' '.join(map(str, argv))}\n{stdout}{stderr}[exit status {code}]\n")
        out.unlink()
        err.unlink()
        expect(code is not None, f"{stem} did not end within {seconds} s")
        return code, stdout, stderr

    def sweep(self, everything=False):
        """Kills what a scenario started and did not end; servers that scenarios share, and what is still being prepared,
        are left unless it is `everything`."""
        for _ in range(100):
            left = set(descendants(os.getpid()))
            # Looked up afterwards: what a server has just forked must not be taken for a scenario's.
            left -= set() if everything else self.kept()
            if not left:
                break
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)

    def kept(self):
        """What outlives a scenario."""
        kept = set()
        for pid in [*self.preparing, *(process.pid for process in self.shared_processes())]:
            kept.update([pid, *descendants(pid)])
        for path in self.folder.glob("*/root/*/server/server.pid.txt"):
            kept.add(int(path.read_text()))
        return kept

    def reap_for_ever(self):
        """Collects orphans that ended, so that whoever waits for their death sees it; our own are left to their Popen."""
        while True:
            with self.starting:
                for pid, parent, state in process_table():
                    if state == "Z" and parent == os.getpid() and pid not in self.own:
                        with contextlib.suppress(ChildProcessError):
                            os.waitpid(pid, os.WNOHANG)
            time.sleep(0.1)

    def shared_processes(self):
        return [thing for thing in self.shared.values() if isinstance(thing, Process)]

    def close(self):
        for process in reversed(self.shared_processes()):
            if process.running():
                process.signal(signal.SIGTERM)
        for process in self.shared_processes():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.popen.wait(10)
        self.sweep(everything=True)
        for folder in self.elsewhere:
            shutil.rmtree(folder, ignore_errors=True)

    def own_uids(self):
        """Where a root daemon's slots get their uids from: apart from those of all other daemons, also of other runs."""
        self.daemons += 1
        return ["--first-uid", 0x71000000 + (os.getpid() & 0x3FFF) * 0x400 + self.daemons * 0x8]

    # -- the Debian sid root -------------------------------------------------------------------------

    def sid(self, folder="/"):
        """What to put before a command that is to run in the sid root, in `folder`. All such commands share one mount
        namespace: Bazel takes a server for a stale one when it is in another. Its root is a real one and no chroot, where
        no sandbox could make user namespaces."""
        self.need("sid")
        if "sid" not in self.shared:
            environment = dict(os.environ, SID_PIVOT="1")
            holder = self.spawn("sid", [HERE / "sid-run", "sh", "-c", "echo READY; exec sleep infinity"], env=environment)
            wait_for(lambda: "READY\n" in holder.log() or not holder.running(), 30, "the sid root")
            expect(holder.running(), f"the sid root cannot be entered: {holder.log()}")
            self.shared["sid"] = holder
        return ["nsenter", "--target", self.shared["sid"].pid, "--mount", "--root", "env", "-C", folder]

    def sid_version(self, package, series):
        """The version of a Debian package in the sid root, which must be of `series`. sid moves on by itself: what is
        promised of that series would silently be tested no longer."""
        self.need("sid")
        asked = [*self.sid(), "dpkg-query", "--show", "--showformat=${Version}", package]
        code, version, err = self.run("version", asked)
        expect_equal(code, 0, f"exit status of dpkg-query ({err})")
        # Without Debian's epoch.
        found = version.strip().split(":")[-1]
        expect(
            found.startswith(f"{series}."),
            f"sid has {package} {found} and no longer {series}: when these scenarios hold with it, write the new series to SERIES in "
            "tests/peers/scenarios/on_standalone.py, and to docs/SPECIFICATION.md, README.md and CHANGELOG.md where they name the "
            f"old one; for {series} itself, have tests/peers/debian-sid take it from a snapshot of Debian",
        )
        return f"{package} {found}"

    # -- BuildGrid -------------------------------------------------------------------------------

    def buildgrid(self):
        """The one BuildGrid that all scenarios share: its URL."""
        if "buildgrid" not in self.shared:
            self.need("buildgrid")
            port = free_port()
            self.buildgrid_state = self.roomy_folder()
            environment = dict(os.environ, BGD_KEEPALIVE=str(KEEPALIVE), BGD_REAP="1")
            process = self.spawn("buildgrid", [HERE / "buildgrid-up", port, self.buildgrid_state], env=environment)
            self.shared["buildgrid"] = process
            self.shared["buildgrid port"] = port
            wait_for(lambda: "READY" in process.log() or not process.running(), 180, "BuildGrid")
        if not self.shared["buildgrid"].running():
            said = self.shared["buildgrid"].log().strip().splitlines()[-1]
            if self.shared["buildgrid"].popen.returncode == 3:
                raise Skip(said)
            raise Failed(f"BuildGrid does not run: {said}")
        return f"http://127.0.0.1:{self.shared['buildgrid port']}"

    def buildgrid_server_pid(self):
        return int((self.buildgrid_state / "bgd.pid").read_text())

    @contextlib.contextmanager
    def worker(self, jobs=1, state=None, flags=()):
        """A worker on BuildGrid, drained at the end."""
        process = self.start_worker(jobs, state, flags)
        try:
            yield process
        finally:
            if process.running():
                # The second gives back what runs. A third would leave the session open, and BuildGrid gives it jobs of the next scenario.
                process.signal(signal.SIGTERM)
                try:
                    wait_for(lambda: "how=" in process.log() or not process.running(), 20, "the begin of a drain")
                finally:
                    process.stop()

    def start_worker(self, jobs=1, state=None, flags=()):
        return self.spawn(
            "worker",
            [self.boxwright, "worker", "--remote", self.buildgrid(), "--instance", "main",
             "--concurrent-jobs", jobs, "--state-dir", state or self.fresh_folder("worker-state"), "--log-level", "info", *flags, *self.own_uids()],
        )  # fmt: skip

    # -- standalone ------------------------------------------------------------------------------

    @contextlib.contextmanager
    def standalone(self, within=(), listen=None, state=None):
        """A standalone server; `within` is what it is run by, such as `sid()`."""
        port = free_port()
        process = self.spawn(
            "standalone",
            [*within, self.boxwright, "standalone", "--listen", listen or f"127.0.0.1:{port}",
             "--state-dir", state or self.fresh_folder("standalone-state"), *self.own_uids()],
        )  # fmt: skip
        process.url = listen or f"http://127.0.0.1:{port}"
        process.address = f"127.0.0.1:{port}"
        try:
            path = listen.removeprefix("unix:") if listen else None
            up = (lambda: os.path.exists(path)) if path else (lambda: reachable(port))
            wait_for(lambda: up() or not process.running(), 30, "standalone answering")
            expect(process.running(), f"standalone ended with {process.popen.returncode}")
            yield process
        finally:
            process.stop()

    # -- clients ---------------------------------------------------------------------------------

    def request(self, request):
        """Starts a reapi-client."""
        self.need("buildgrid")
        return Request(self, self.name("client"), [HERE / "buildgrid-python", HERE / "reapi-client"], request)

    def ask(self, request, seconds=90):
        """Runs a reapi-client to its end and returns its last line."""
        client = self.request(request)
        done = client.done(seconds)
        client.wait(10)
        return done

    def execute(self, remote, arguments, inputs=None, **more):
        """An execute request for instance main, on Linux workers."""
        action = {k: more.pop(k) for k in ("timeout", "do_not_cache", "skip_cache_lookup", "omit") if k in more}
        command = {
            "arguments": arguments,
            "environment": more.pop("environment", {"PATH": "/usr/bin:/bin"}),
            "platform": more.pop("platform", {"OSFamily": "linux", "ISA": "x86-64"}),
            **more,
        }
        salt = f"{random.getrandbits(64):x}"
        return {"op": "execute", "remote": remote, "instance": "main", "inputs": inputs or {}, "command": command,
                "salt": salt, **action}  # fmt: skip


class Bazel:
    """A Bazel with its own server, on a copy of tests/peers/workspaces/bazel."""

    def __init__(self, lab, stem, command, flags):
        self.lab, self.stem, self.flags = lab, stem, flags
        base = lab.fresh_folder(stem)
        self.workspace = base / "workspace"
        shutil.copytree(HERE / "workspaces" / "bazel", self.workspace)
        self.command = [*command(self.workspace), "--nohome_rc", f"--output_user_root={base / 'root'}", "--max_idle_secs=600"]
        self.renew()

    def renew(self, text=None):
        """Gives the actions an input that no action had before."""
        (self.workspace / "run.txt").write_text((text or unique_seconds(0)) + "\n")

    def argv(self, verb, *arguments):
        # The workspace has no .bazelrc: each flag is given here, for both kinds of Bazel in the same way.
        flags = self.flags if verb == "build" else []
        return [*self.command, verb, "--color=no", "--curses=no", "--noshow_progress", *flags, *arguments]

    def build(self, remote, *arguments, seconds=180):
        found = re.search(r"127\.0\.0\.1:\d+", remote).group()
        argv = self.argv("build", f"--remote_executor=grpc://{found}", "--spawn_strategy=remote", "--genrule_strategy=remote", *arguments)
        code, out, err = self.lab.run(self.stem, argv, seconds, cwd=self.workspace)
        return code, out + err

    def build_started(self, remote, *arguments):
        found = re.search(r"127\.0\.0\.1:\d+", remote).group()
        argv = self.argv("build", f"--remote_executor=grpc://{found}", "--spawn_strategy=remote", "--genrule_strategy=remote", *arguments)
        return self.lab.spawn(self.stem, argv, cwd=self.workspace)

    def clean(self):
        code, out, err = self.lab.run(f"{self.stem}-clean", self.argv("clean"), cwd=self.workspace)
        expect_equal(code, 0, "exit status of bazel clean")

    def output(self, path):
        return self.workspace / "bazel-bin" / path

    @staticmethod
    def processes(said):
        """What Bazel's summary says of how the actions came by their results: {"remote": 2, ...}."""
        line = re.search(r"INFO: (\d+ process(?:es)?: .*)\.$", said, re.M)
        expect(line, "Bazel printed no summary of its processes")
        return {how: int(n) for n, how in re.findall(r"(\d+) ([a-z][a-z -]*)", line.group(1).split(": ", 1)[1])}
