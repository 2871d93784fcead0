"""boxwright's own client, `run` and `cas`, on its own server and on BuildGrid; and the memory of the daemons behind it."""

import contextlib
import hashlib
import os
import signal

from .lab import Failed, descendants, expect, expect_equal, peak_mib, processes_with, unique_seconds, wait_for

MEMORY_MIB = 150
TIMED_OUT = 124


def client(lab, *arguments, seconds=120, **more):
    return lab.run("boxwright", [lab.boxwright, *arguments], seconds, **more)


def on_linux(remote):
    return ["--remote", remote, "--instance", "main", "--platform", "OSFamily=linux", "--platform", "ISA=x86-64"]


def private_home(lab):
    """An environment without what earlier runs of `boxwright run` kept."""
    return dict(os.environ, XDG_CACHE_HOME=str(lab.fresh_folder("cache")))


def small_input(lab):
    folder = lab.fresh_folder("input")
    (folder / "text").write_text("some text\n")
    (folder / "folder").mkdir()
    (folder / "folder" / "tool").write_text("#!/bin/sh\ntr a-z A-Z\n")
    (folder / "folder" / "tool").chmod(0o755)
    (folder / "link").symlink_to("text")
    return folder


def run_without_a_remote_starts_a_standalone_of_its_own(lab):
    made = lab.fresh_folder("outputs")
    script = "folder/tool < link > made/upper; echo heard; echo seen >&2; exit 3"
    code, out, err = client(
        lab, "run", "--input", small_input(lab), "--output", "made/upper", "--output-dir", made, "--", "sh", "-c", script,
        env=private_home(lab),
    )  # fmt: skip
    expect_equal(code, 3, "exit status")
    expect_equal(out, "heard\n", "stdout")
    expect("seen\n" in err, f"stderr is {err!r}")
    expect_equal((made / "made" / "upper").read_text(), "SOME TEXT\n", "made/upper")
    expect_equal(len(descendants(os.getpid())) - running_of_others(lab), 0, "processes left")


def running_of_others(lab):
    """Processes of the servers that scenarios share."""
    kept = sum(1 + len(descendants(p.pid)) for p in lab.shared_processes())
    return kept + sum(1 for _ in lab.folder.glob("*/root/*/server/server.pid.txt"))


def run_over_a_unix_socket(lab):
    socket = lab.folder / "boxwright.sock"
    with lab.standalone(listen=f"unix:{socket}") as server:
        code, out, _ = client(lab, "run", "--remote", server.url, "--", "echo", "through a socket")
        expect_equal((code, out), (0, "through a socket\n"), "exit status and stdout")


def run_and_cas_on_a_standalone(lab):
    source, copy = small_input(lab), lab.fresh_folder("copy") / "tree"
    with lab.standalone() as server:
        code, digest, _ = client(lab, "cas", "put", "--remote", server.url, source)
        expect_equal(code, 0, "exit status of cas put")
        code, listed, _ = client(lab, "cas", "tree", "--remote", server.url, digest.strip())
        expect_equal(code, 0, "exit status of cas tree")
        for name in ("text", "tool", "link"):
            expect(name in listed, f"cas tree does not list {name}: {listed}")
        code, _, _ = client(lab, "cas", "stat", "--remote", server.url, digest.strip())
        expect_equal(code, 0, "exit status of cas stat")
        code, _, _ = client(lab, "cas", "stat", "--remote", server.url, "0" * 64 + "/7")
        expect_equal(code, 1, "exit status of cas stat for a blob that is not there")
        code, _, _ = client(lab, "cas", "get", "--tree", "--remote", server.url, digest.strip(), copy)
        expect_equal(code, 0, "exit status of cas get")
        expect_equal((copy / "text").read_text(), "some text\n", "text")
        expect_equal(os.readlink(copy / "link"), "text", "link")
        expect(os.access(copy / "folder" / "tool", os.X_OK), "the tool is not executable any more")


def run_with_blake3(lab):
    made = lab.fresh_folder("outputs")
    arguments = ["--digest-function", "blake3", "--input", small_input(lab), "--output", "copy", "--output-dir", made]
    with lab.standalone() as server:
        command = ["run", "--remote", server.url, *arguments, "--", "sh", "-c", "cp -r folder copy; date +%N"]
        first, second = client(lab, *command), client(lab, *command)
        expect_equal((first[0], second[0]), (0, 0), "exit statuses")
        expect_equal(second[1], first[1], "stdout of the second run, which is the first one's from the cache")
        expect(os.access(made / "copy" / "tool", os.X_OK), "the output copy/tool is not there as an executable")


def run_on_buildgrid(lab):
    made = lab.fresh_folder("outputs")
    remote = lab.buildgrid()
    script = "cat text; cp -r folder copy; exit 5"
    with lab.worker():
        code, out, _ = client(
            lab, "run", *on_linux(remote), "--input", small_input(lab), "--output", "copy", "--output-dir", made,
            "--", "sh", "-c", script,
        )  # fmt: skip
    expect_equal((code, out), (5, "some text\n"), "exit status and stdout")
    expect(os.access(made / "copy" / "tool", os.X_OK), "the output copy/tool is not there as an executable")


def run_that_is_interrupted_cancels(lab):
    seconds = unique_seconds(600)
    with lab.worker():
        process = lab.spawn("boxwright", [lab.boxwright, "run", *on_linux(lab.buildgrid()), "--", "sleep", seconds])
        # The client has the number on its command line too.
        wait_for(lambda: len(processes_with(seconds)) > 1, 60, "start of the action")
        process.signal(signal.SIGINT)
        wait_for(lambda: not processes_with(seconds), 8, "death of the action after an interruption")
        expect_equal(process.wait(10), 130, "exit status")


def run_with_a_timeout(lab):
    with lab.standalone() as server:
        code, out, err = client(lab, "run", "--remote", server.url, "--timeout", "1s", "--", "sh", "-c", "echo so far; sleep 600")
    expect_equal((code, out), (TIMED_OUT, "so far\n"), "exit status and stdout")
    expect("timeout" in err, f"stderr does not speak of the timeout: {err}")


def run_names_what_it_cannot_reach(lab):
    code, _, err = client(lab, "run", "--remote", "http://127.0.0.1:1", "--", "true")
    expect_equal(code, 69, "exit status")
    expect("127.0.0.1:1" in err, f"stderr does not name the remote: {err}")


# -- memory ----------------------------------------------------------------------------------------


def big_file(path, mib):
    """Bytes that cannot be compressed away, and their hash."""
    hashed = hashlib.sha256()
    with open(path, "wb") as file:
        for _ in range(mib):
            piece = os.urandom(1 << 20)
            hashed.update(piece)
            file.write(piece)
    return hashed.hexdigest()


def many_files(folder, files, per_folder=500):
    for i in range(files):
        if i % per_folder == 0:
            inner = folder / f"d{i // per_folder:04d}"
            inner.mkdir(parents=True)
        (inner / f"f{i:06d}").write_text(f"file number {i} of {folder}\n")


def hash_of_many_files(folder, files):
    hashed = hashlib.sha256()
    for i in range(files):
        hashed.update(f"file number {i} of {folder}\n".encode())
    return hashed.hexdigest()


def expect_frugal(process, what):
    """The largest peak of a daemon's processes, which is as promised."""
    peaks = []
    for pid in [process.pid, *descendants(process.pid)]:
        with contextlib.suppress(OSError, Failed):
            peaks.append(peak_mib(pid))
    expect(peaks and max(peaks) <= MEMORY_MIB, f"{what} held {max(peaks, default=0):.0f} MiB, and {MEMORY_MIB} MiB were promised")
    return f"peak {max(peaks):.0f} MiB"


def a_512_mib_blob_passes_a_standalone_in_150_mib(lab):
    with lab.room() as room:
        (room / "input").mkdir()
        (room / "back").mkdir()
        hashed = big_file(room / "input" / "big", 512)
        with lab.standalone(state=room / "state") as server:
            code, digest, _ = client(lab, "cas", "put", "--remote", server.url, room / "input" / "big")
            expect_equal((code, digest.strip()), (0, f"{hashed}/{512 << 20}"), "exit status and digest of cas put")
            code, _, _ = client(lab, "cas", "get", "--remote", server.url, digest.strip(), room / "back" / "big")
            expect_equal(code, 0, "exit status of cas get")
            expect_equal(hashed_file(room / "back" / "big"), hashed, "hash of what came back")
            action_with_a_big_file(lab, ["--remote", server.url], room, hashed)
            return expect_frugal(server, "standalone")


def a_512_mib_blob_passes_a_worker_in_150_mib(lab):
    with lab.room() as room:
        (room / "input").mkdir()
        (room / "back").mkdir()
        hashed = big_file(room / "input" / "big", 512)
        with lab.worker(state=room / "state") as worker:
            action_with_a_big_file(lab, on_linux(lab.buildgrid()), room, hashed)
            return expect_frugal(worker, "worker")


def action_with_a_big_file(lab, server, room, hashed):
    """An action that reads it and leaves one that is larger still."""
    script = "sha256sum < big; tail -c 1000000 big > turned; cat big >> turned"
    code, out, _ = client(
        lab, "run", *server, "--input", room / "input", "--output", "turned", "--output-dir", room / "back",
        "--", "sh", "-c", script, seconds=200,
    )  # fmt: skip
    expect_equal((code, out.split()[:1]), (0, [hashed]), "exit status of run and the hash that the action saw")
    expect_equal((room / "back" / "turned").stat().st_size, (512 << 20) + 1000000, "size of the output")


def a_tree_of_100_000_files_passes_a_standalone_in_150_mib(lab):
    with lab.room() as room:
        source, back = room / "source", room / "back"
        many_files(source / "tree", 100_000)
        back.mkdir()
        with lab.standalone(state=room / "state") as server:
            code, digest, _ = client(lab, "cas", "put", "--remote", server.url, source, seconds=200)
            expect_equal(code, 0, "exit status of cas put")
            arguments = ["cas", "get", "--tree", "--remote", server.url, digest.strip(), back / "all"]
            code, _, _ = client(lab, *arguments, seconds=200)
            expect_equal(code, 0, "exit status of cas get")
            expect_equal(sum(len(files) for _, _, files in os.walk(back)), 100_000, "files that came back")
            script = "find tree -type f | sort | xargs cat | sha256sum; find tree -type f > list"
            code, out, _ = client(
                lab, "run", "--remote", server.url, "--input", source, "--output", "list", "--output-dir", back,
                "--", "sh", "-c", script, seconds=200,
            )  # fmt: skip
            expect_equal(code, 0, "exit status of run")
            expect_equal(len((back / "list").read_text().splitlines()), 100_000, "files that the action saw")
            expect_equal(out.split()[0], hash_of_many_files(source / "tree", 100_000), "hash of all that the action read")
            return expect_frugal(server, "standalone")


def a_tree_of_100_000_files_passes_a_worker_in_150_mib(lab):
    with lab.room() as room:
        tree, back = room / "source" / "tree", room / "back"
        many_files(tree, 100_000)
        back.mkdir()
        # It reads every file, and leaves a list of them all and a directory of new ones.
        script = (
            "find tree -type f | sort > list; xargs cat < list | sha256sum; "
            "mkdir made; head -n 1000 list | while read -r path; do echo $path > made/${path##*/}; done"
        )
        with lab.worker(state=room / "state") as worker:
            code, out, _ = client(
                lab, "run", *on_linux(lab.buildgrid()), "--input", room / "source",
                "--output", "list", "--output", "made", "--output-dir", back, "--", "sh", "-c", script, seconds=230,
            )  # fmt: skip
            expect_equal(code, 0, "exit status of run")
            expect_equal(out.split()[0], hash_of_many_files(tree, 100_000), "hash of all that the action read")
            expect_equal(len((back / "list").read_text().splitlines()), 100_000, "files that the action saw")
            expect_equal(len(os.listdir(back / "made")), 1000, "files that the action made")
            return expect_frugal(worker, "worker")


def hashed_file(path):
    hashed = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            hashed.update(piece)
    return hashed.hexdigest()


SCENARIOS = [
    run_without_a_remote_starts_a_standalone_of_its_own,
    run_over_a_unix_socket,
    run_and_cas_on_a_standalone,
    run_with_blake3,
    run_on_buildgrid,
    run_that_is_interrupted_cancels,
    run_with_a_timeout,
    run_names_what_it_cannot_reach,
    a_512_mib_blob_passes_a_standalone_in_150_mib,
    a_512_mib_blob_passes_a_worker_in_150_mib,
    a_tree_of_100_000_files_passes_a_standalone_in_150_mib,
    a_tree_of_100_000_files_passes_a_worker_in_150_mib,
]
