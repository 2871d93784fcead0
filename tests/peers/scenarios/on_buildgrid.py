"""boxwright as a worker of a real BuildGrid, asked by Bazel 4 and by a client that shows each field of an answer."""

import json
import os
import random
import signal
import time

from .lab import (
    HERE,
    KEEPALIVE,
    Bazel,
    expect,
    expect_equal,
    processes_with,
    unique_seconds,
    wait_for,
)

# google.rpc.Code
CANCELLED, INVALID_ARGUMENT, DEADLINE_EXCEEDED, FAILED_PRECONDITION = 1, 3, 4, 9


def bazel_4_repositories():
    """Debian ships what Bazel 4 would download, but for rules_cc, which is too new for it there."""
    repositories = {
        "rules_cc": HERE / "workspaces" / "rules_cc",
        "rules_java": "/usr/share/bazel/rules/java",
        "rules_proto": "/usr/share/bazel/rules/proto",
        "bazel_skylib": "/usr/share/bazel/tools/skylib",
    }
    return [f"--override_repository={name}={path}" for name, path in repositories.items()]


def bazel(lab):
    program = lab.need_program("bazel")
    if "bazel 4" not in lab.shared:
        flags = [*bazel_4_repositories(), "--remote_instance_name=main", "--jobs=8"]
        flags += [f"--remote_default_exec_properties={p}" for p in ("OSFamily=linux", "ISA=x86-64")]
        lab.shared["bazel 4"] = Bazel(lab, "bazel-4", lambda _: [program], flags)
    return lab.shared["bazel 4"]


def gone(argument, seconds):
    wait_for(lambda: not processes_with(argument), seconds, f"death of the processes of the action (argument {argument})")


def here(argument, seconds=60):
    wait_for(lambda: processes_with(argument), seconds, f"start of the action (argument {argument})")


# -- Bazel 4 ---------------------------------------------------------------------------------------


def buildgrid_bazel_genrule(lab):
    remote, client = lab.buildgrid(), bazel(lab)
    client.renew("some text of this run " + unique_seconds(0))
    with lab.worker(jobs=2):
        code, said = client.build(remote, "//:upper", "//:nested")
    expect_equal(code, 0, "exit status of bazel")
    expect_equal(client.processes(said).get("remote"), 2, "remote processes")
    text = (client.workspace / "run.txt").read_text()
    expect_equal(client.output("upper.txt").read_text(), text.upper(), "upper.txt")
    expect_equal(client.output("deep/er/one.txt").read_text(), text, "deep/er/one.txt")
    expect_equal(client.output("deep/er/two.txt").read_text().strip(), str(len(text)), "deep/er/two.txt")


def buildgrid_bazel_cc_binary_then_all_from_cache(lab):
    remote, client = lab.buildgrid(), bazel(lab)
    with lab.worker(jobs=2) as worker:
        code, said = client.build(remote, "//:hello")
        expect_equal(code, 0, "exit status of bazel")
        first = client.processes(said)
        expect(first.get("remote", 0) + first.get("remote cache hit", 0) >= 3, f"three remote processes, not {first}")
        said = lab.run("hello", [client.output("hello")])[1]
        expect_equal(said, "Hello, worker!\n", "output of the program that was built")
        before = worker.log()
        client.clean()
        code, said = client.build(remote, "//:hello")
        expect_equal(code, 0, "exit status of the second build")
        second = client.processes(said)
        expect_equal(second.get("remote"), None, "processes executed by the second build")
        expect(second.get("remote cache hit", 0) >= 3, f"three cache hits in the second build, not {second}")
        expect_equal(worker.log(), before, "the worker's log after a build that is all from cache")


def buildgrid_bazel_failing_genrule_reaches_the_user_and_is_not_cached(lab):
    remote, client = lab.buildgrid(), bazel(lab)
    client.renew()
    stamps = []
    with lab.worker():
        for _ in range(2):
            code, said = client.build(remote, "//:fails")
            expect_equal(code, 1, "exit status of bazel")
            expect("Exit 7" in said or "exit code 7" in said or "status 7" in said, "bazel does not tell of exit status 7")
            stamp = [line for line in said.splitlines() if line.startswith("oops at ")]
            expect_equal(len(stamp), 1, "lines of the action's stderr that bazel shows")
            stamps += stamp
    expect(stamps[0] != stamps[1], "the second run was answered from a cache")


def buildgrid_failing_action_is_not_in_the_action_cache(lab):
    remote = lab.buildgrid()
    request = lab.execute(remote, ["/bin/sh", "-c", "echo out; echo err >&2; exit 7"])
    good = lab.execute(remote, ["/bin/sh", "-c", "echo fine"])
    with lab.worker():
        done, fine = lab.ask(request), lab.ask(good)
    expect_equal(done["code"], 0, "status of an action that exits with 7")
    expect_equal(done["result"]["exit_code"], 7, "exit status")
    expect_equal((done["result"]["stdout"], done["result"]["stderr"]), ("out\n", "err\n"), "stdout and stderr")
    look = {"op": "action_result", "remote": remote, "instance": "main"}
    expect_equal(lab.ask({**look, "digest": done["action"]})["found"], False, "failed action in the action cache")
    expect_equal(lab.ask({**look, "digest": fine["action"]})["found"], True, "successful action in the action cache")


def buildgrid_finds_what_an_action_used(lab):
    remote = lab.buildgrid()
    request = lab.execute(remote, ["/bin/sh", "-c", "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done"])
    with lab.worker():
        done = lab.ask(request)
    expect_equal(done["code"], 0, f"status ({done['message']})")
    found = lab.ask({"op": "usage", "remote": remote, "instance": "main", "digest": done["action"]})
    usage = found.get("usage")
    expect(usage, f"BuildGrid finds no usage: {found}")
    seconds = float(usage.get("utime", "0s").rstrip("s"))
    expect(seconds > 0.01 and int(usage["maxrss"]) > 0, f"usage is {usage}")


# -- the Command's fields --------------------------------------------------------------------------


def buildgrid_outputs_of_every_kind(lab):
    script = """
    test -d made/for/me && echo "parents are there"
    echo plain > made/for/me/file; printf '#!/bin/sh\\necho ran\\n' > tool; chmod 755 tool
    mkdir -p tree/sub tree/empty; echo leaf > tree/sub/leaf; ln -s leaf tree/sub/link; ln -s nowhere dangling
    """
    request = lab.execute(
        lab.buildgrid(),
        ["/bin/sh", "-ec", script],
        output_paths=["made/for/me/file", "tool", "tree", "dangling", "absent"],
        output_directory_format="TREE_AND_DIRECTORY",
    )
    with lab.worker():
        done = lab.ask(request)
    expect_equal(done["code"], 0, f"status ({done['message']})")
    result = done["result"]
    expect_equal(result["stdout"], "parents are there\n", "stdout")
    files = {path: (file["text"], file["executable"]) for path, file in result["files"].items()}
    expect_equal(
        files,
        {"made/for/me/file": ("plain\n", False), "tool": ("#!/bin/sh\necho ran\n", True)},
        "output files",
    )
    expect_equal(result["symlinks"], {"dangling": "nowhere"}, "output symlinks")
    tree = result["directories"]["tree"]
    for form in ("tree", "root"):
        kinds = {path: what.get("symlink") or what.get("directory") or "file" for path, what in tree[form].items()}
        expect_equal(
            kinds, {"sub": True, "empty": True, "sub/leaf": "file", "sub/link": "leaf"}, f"output directory as {form}"
        )
    stamps = result["metadata"]
    for phase in ("queued", "worker_start", "input_fetch_start", "input_fetch_completed", "execution_start",
                  "execution_completed", "output_upload_start", "output_upload_completed", "worker_completed"):  # fmt: skip
        expect(f"{phase}_timestamp" in stamps, f"no {phase}_timestamp in the metadata")
    expect(stamps.get("worker"), "no worker's name in the metadata")


def buildgrid_deprecated_output_fields(lab):
    script = "echo a > out/a; mkdir -p dir/sub; echo b > dir/sub/b; ln -s a out/link"
    request = lab.execute(
        lab.buildgrid(),
        ["/bin/sh", "-ec", script],
        output_files=["out/a", "out/link"],
        output_directories=["dir"],
    )
    with lab.worker():
        done = lab.ask(request)
    expect_equal(done["code"], 0, f"status ({done['message']})")
    result = done["result"]
    expect_equal(result["files"]["out/a"]["text"], "a\n", "out/a")
    expect_equal(sorted(result["directories"]["dir"]["tree"]), ["sub", "sub/b"], "dir")
    expect_equal(result["file_symlinks"], {"out/link": "a"}, "output_file_symlinks")


def buildgrid_output_paths_with_dotdot_as_buildstream_sends_them(lab):
    request = lab.execute(
        lab.buildgrid(),
        ["sh", "-c", "pwd; mkdir -p ../../../install/bin; echo tool > ../../../install/bin/tool; echo log > log"],
        inputs={"buildstream/lab/element/source": {"text": "source"}, "install": {"directory": True}},
        working_directory="buildstream/lab/element",
        output_paths=[".", "../../../install"],
        output_directory_format="DIRECTORY_ONLY",
    )
    with lab.worker():
        done = lab.ask(request)
    expect_equal(done["code"], 0, f"status ({done['message']})")
    result = done["result"]
    expect(result["stdout"].rstrip().endswith("/buildstream/lab/element"), f"working directory is {result['stdout']!r}")
    expect_equal(result["files"], {}, "output files")
    expect_equal(sorted(result["directories"]), [".", "../../../install"], "output directories")
    expect_equal(sorted(result["directories"]["."]["root"]), ["log", "source"], "output directory .")
    expect_equal(sorted(result["directories"]["../../../install"]["root"]), ["bin", "bin/tool"], "output directory install")


def buildgrid_output_path_that_leaves_the_root_is_refused(lab):
    request = lab.execute(lab.buildgrid(), ["/bin/true"], output_paths=["../escape"])
    with lab.worker():
        done = lab.ask(request)
    expect_equal(done.get("code"), INVALID_ARGUMENT, f"status ({done})")
    expect("../escape" in done["message"], f"the message names no path: {done['message']}")


def buildgrid_environment_is_exactly_the_commands(lab):
    environment = {"PATH": "/usr/bin:/bin", "LANG": "C", "EMPTY": "", "WITH_SPACE": "a b=c"}
    request = lab.execute(lab.buildgrid(), ["/usr/bin/env", "-0"], environment=environment)
    with lab.worker():
        done = lab.ask(request)
    found = dict(entry.split("=", 1) for entry in done["result"]["stdout"].split("\0") if entry)
    expect_equal(found, environment, "environment of the command")


def buildgrid_command_is_looked_up_in_the_actions_path(lab):
    tool = {"text": "#!/bin/sh\necho the tool of the tree\n", "executable": True}
    # Found by its bare name: the PATH is the action's own, from its own working directory.
    request = lab.execute(
        lab.buildgrid(),
        ["boxwright-tool"],
        inputs={"bin/boxwright-tool": tool, "work/here": {"text": ""}},
        working_directory="work",
        environment={"PATH": "/nowhere:../bin:/usr/bin:/bin"},
    )
    with lab.worker():
        done = lab.ask(request)
    expect_equal(done["result"]["stdout"], "the tool of the tree\n", "stdout")


def buildgrid_every_missing_input_is_named(lab):
    inputs = {path: {"text": f"{path} {random.random()}"} for path in ("there", "lost/one", "lost/two", "three")}
    omit = ["lost/one", "lost/two", "three"]
    # Shown lazily, it is known when one is read, whatever the command makes of it; copied, before the command starts.
    for strategy, command in (("fuse", ["/bin/sh", "-c", "cat lost/one; true"]), ("staged", ["/bin/true"])):
        request = lab.execute(lab.buildgrid(), command, inputs=inputs, omit=omit)
        with lab.worker(flags=("--inputs", strategy)):
            done = lab.ask(request)
        all_are_named(done, omit)


def all_are_named(done, omit):
    expect_equal(done["code"], FAILED_PRECONDITION, f"status ({done['message']})")
    expect_equal({v["type"] for v in done["violations"]}, {"MISSING"}, "types of the violations")
    subjects = sorted(v["subject"] for v in done["violations"])
    expect_equal(subjects, sorted(f"blobs/{digest}" for digest in done["omitted"]), "subjects of the violations")
    described = " ".join(v["description"] for v in done["violations"])
    for path in omit:
        expect(path in described, f"no violation names the path {path}: {described}")


# -- ends of actions -------------------------------------------------------------------------------


def buildgrid_timeout_kills_and_keeps_the_partial_result(lab):
    seconds = unique_seconds(600)
    script = f"echo partial; echo why >&2; (sleep {seconds}) & sleep {seconds}"
    request = lab.execute(lab.buildgrid(), ["/bin/sh", "-c", script], timeout=2)
    with lab.worker():
        done = lab.ask(request)
        expect_equal(done["code"], DEADLINE_EXCEEDED, f"status ({done['message']})")
        result = done["result"]
        expect_equal(result["stdout"], "partial\n", "stdout")
        expect(result["stderr"].startswith("why\n") and "timeout" in result["stderr"], f"stderr is {result['stderr']!r}")
        gone(seconds, 2)


def buildgrid_cancelled_operation_is_dead_within_six_seconds(lab):
    seconds = unique_seconds(600)
    script = f"(setsid sleep {seconds}) & trap '' TERM; sleep {seconds}; sleep {seconds}"
    with lab.worker(jobs=2):
        client = lab.request(lab.execute(lab.buildgrid(), ["/bin/sh", "-c", script]))
        operation = client.operation("EXECUTING")
        wait_for(lambda: len(processes_with(seconds)) >= 2, 30, "both processes of the action")
        lab.ask({"op": "cancel", "remote": lab.buildgrid(), "operation": operation})
        gone(seconds, 6)
        expect_equal(client.done()["code"], CANCELLED, "status that the client is told")
        fine = lab.ask(lab.execute(lab.buildgrid(), ["/bin/echo", "next"]))
        expect_equal(fine["result"]["stdout"], "next\n", "stdout of the next action")


def buildgrid_leftover_processes_of_an_action_are_killed(lab):
    seconds = unique_seconds(600)
    script = f"setsid sh -c 'setsid sleep {seconds} & sleep {seconds}' >/dev/null 2>&1 & echo started"
    with lab.worker():
        done = lab.ask(lab.execute(lab.buildgrid(), ["/bin/sh", "-c", script]))
        expect_equal(done["result"]["stdout"], "started\n", "stdout")
        gone(seconds, 2)


# -- ends of workers -------------------------------------------------------------------------------


def buildgrid_sigterm_drains(lab):
    seconds = unique_seconds(5)
    remote = lab.buildgrid()
    with lab.worker(jobs=1) as worker:
        running = lab.request(lab.execute(remote, ["/bin/sh", "-c", f"sleep {seconds}; echo finished"]))
        here(seconds)
        worker.signal(signal.SIGTERM)
        waiting = lab.request(lab.execute(remote, ["/bin/echo", "by the next worker"]))
        done = running.done()
        expect_equal(done["result"]["stdout"], "finished\n", "stdout of the action that ran at SIGTERM")
        expect_equal(worker.wait(10), 0, "exit status of the drained worker")
        expect(not any(e and e["event"] == "done" for e in waiting.events), "the draining worker took a new lease")
        with lab.worker(jobs=1):
            done = waiting.done()
            expect_equal(done["result"]["stdout"], "by the next worker\n", "stdout of the action that waited")


def buildgrid_second_sigterm_gives_the_lease_back(lab):
    seconds = unique_seconds(7)
    with lab.worker() as worker:
        client = lab.request(lab.execute(lab.buildgrid(), ["/bin/sh", "-c", f"sleep {seconds}; echo at last"]))
        here(seconds)
        with lab.worker():
            worker.signal(signal.SIGTERM)
            time.sleep(1)  # two signals at the same moment are one
            expect(processes_with(seconds), "the first SIGTERM killed the action")
            first = set(processes_with(seconds))
            worker.signal(signal.SIGTERM)
            # Sooner than BuildGrid would miss a worker that had just died.
            wait_for(lambda: set(processes_with(seconds)) - first, KEEPALIVE - 4, "start of the action on the second worker")
            expect(not first & set(processes_with(seconds)), "the action goes on on the first worker")
            expect_equal(worker.wait(10), 0, "exit status of a worker that gave back what ran")
            done = client.done()
        expect_equal((done["code"], done["result"]["stdout"]), (0, "at last\n"), "status and stdout from the second worker")


def buildgrid_stop_after_takes_so_many_leases_and_costs_no_job_an_attempt(lab):
    remote = lab.buildgrid()

    def jobs(count, seconds):
        script = f"sleep {seconds}; echo finished"
        return [lab.request(lab.execute(remote, ["/bin/sh", "-c", script])) for _ in range(count)]

    def worker(name, flags=()):
        return lab.worker(jobs=2, flags=("--name", name, *flags))

    # Nothing waits when the first two end, or something always does: BuildGrid refills slots then with the answer that frees them.
    for early, late in ((2, 4), (7, 0)):
        stem = unique_seconds(0)
        with worker(f"first-{stem}", ("--stop-after", 3)) as first:
            asked = jobs(early, 1)
            if late:
                for client in asked:
                    client.done()
                asked += jobs(late, 1)
            expect_equal(first.wait(60), 0, "exit status of a worker that took as many leases as it should")
        said = first.log()
        # The session with which two may be had ends before the last one is asked for.
        expect(not late or "capacity=1" in said, "the last lease was taken in a session for two")
        with worker(f"second-{stem}"):
            done = [client.done() for client in asked]
        by = [answer["result"]["metadata"]["worker"] for answer in done]
        expect_equal([answer["code"] for answer in done], [0] * len(done), "status codes")
        expect_equal(by.count(f"first-{stem}"), 3, f"actions of the worker that stops after three ({by})")
        expect_equal(by.count(f"second-{stem}"), len(done) - 3, f"actions of the worker that takes the rest ({by})")
        for answer in done:
            look = {"op": "history", "remote": remote, "instance": "main", "operation": answer["operation"]}
            events = lab.ask(look)["events"]
            expect_equal((events.count("ASSIGNMENT"), events.count("RETRY")), (1, 0), f"assignments and retries ({events})")


def buildgrid_killed_worker_leaves_nothing_and_another_takes_over(lab):
    remote, client = lab.buildgrid(), bazel(lab)
    seconds = unique_seconds(4)
    client.renew(seconds)
    first = lab.start_worker(jobs=2)
    build = client.build_started(remote, "//:slow")
    here(seconds, 90)
    first.signal(signal.SIGKILL)
    gone(seconds, 5)
    first.wait(5)
    with lab.worker(jobs=2):
        here(seconds, KEEPALIVE + 20)
        expect_equal(build.wait(60), 0, "exit status of bazel")
    expect_equal(client.output("slow.txt").read_text(), "slept\n", "slow.txt")


def buildgrid_restarted_under_load(lab):
    remote, client = lab.buildgrid(), bazel(lab)
    fraction = str(random.randrange(10**6, 10**7))
    client.renew(fraction)
    queued = [f"1.{fraction}{i}" for i in range(12)]
    with lab.worker(jobs=2) as worker:
        build = client.build_started(remote, "//:queued", "--remote_retries=0")
        wait_for(lambda: any(processes_with(s) for s in queued), 90, "start of a queued action")
        starts = lab.shared["buildgrid"].log().count("READY")
        os.kill(lab.buildgrid_server_pid(), signal.SIGKILL)
        wait_for(lambda: lab.shared["buildgrid"].log().count("READY") > starts, 90, "BuildGrid up again")
        build.wait(120)
        expect(worker.running(), "the worker ended when BuildGrid did")
        client.renew(fraction + "1")
        code, _ = client.build(remote, "//:upper", "//:queued")
        expect_equal(code, 0, "exit status of the build after the restart")
        for seconds in queued:
            gone(seconds, 10)


SCENARIOS = [
    buildgrid_bazel_genrule,
    buildgrid_bazel_cc_binary_then_all_from_cache,
    buildgrid_bazel_failing_genrule_reaches_the_user_and_is_not_cached,
    buildgrid_failing_action_is_not_in_the_action_cache,
    buildgrid_finds_what_an_action_used,
    buildgrid_outputs_of_every_kind,
    buildgrid_deprecated_output_fields,
    buildgrid_output_paths_with_dotdot_as_buildstream_sends_them,
    buildgrid_output_path_that_leaves_the_root_is_refused,
    buildgrid_environment_is_exactly_the_commands,
    buildgrid_command_is_looked_up_in_the_actions_path,
    buildgrid_every_missing_input_is_named,
    buildgrid_timeout_kills_and_keeps_the_partial_result,
    buildgrid_cancelled_operation_is_dead_within_six_seconds,
    buildgrid_leftover_processes_of_an_action_are_killed,
    buildgrid_sigterm_drains,
    buildgrid_second_sigterm_gives_the_lease_back,
    buildgrid_stop_after_takes_so_many_leases_and_costs_no_job_an_attempt,
    buildgrid_killed_worker_leaves_nothing_and_another_takes_over,
    buildgrid_restarted_under_load,
]
