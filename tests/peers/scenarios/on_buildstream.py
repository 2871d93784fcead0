"""BuildStream through a real BuildGrid on boxwright, each element compared with what BuildStream builds by itself.

BuildStream sends a whole file system as the input root, so that the worker runs with `--root input`. The comparison is of
digests: of an artifact's files, of the directory that it was built in, and of the file system around it.
"""

import json
import os
import re
import time
import shutil
import signal
import subprocess

from .lab import HERE, Failed, Skip, expect, expect_equal, processes_with, unique_seconds, wait_for

INPUT_ROOT = ("--root", "input")


class BuildStream:
    """A BuildStream with a cache and a copy of tests/peers/workspaces/buildstream of its own."""

    def __init__(self, lab, stem, remote=None, buildtrees="always"):
        lab.need("buildstream")
        self.lab, self.stem = lab, stem
        base = lab.fresh_folder(stem)
        self.project, self.cache, self.config = base / "project", base / "cache", base / "buildstream.conf"
        shutil.copytree(HERE / "workspaces" / "buildstream", self.project, symlinks=True)
        make_sysroot(lab, self.project / "sysroot")
        self.renew()
        lines = [
            f"cachedir: {self.cache}",
            f"sourcedir: {base / 'sources'}",
            f"logdir: {base / 'logs'}",
            f"cache: {{cache-buildtrees: {buildtrees}}}",
            "scheduler: {on-error: continue, network-retries: 0}",
        ]
        if remote:
            lines += ["remote-execution:"]
            lines += [f"  {name}-service: {{url: '{remote}', instance-name: main}}" for name in ("execution", "storage", "action-cache")]
        self.config.write_text("\n".join(lines) + "\n")

    def renew(self, seconds=None):
        folder = self.project / "run"
        folder.mkdir(exist_ok=True)
        (folder / "seconds").write_text((seconds or unique_seconds(0)) + "\n")

    def argv(self, *arguments):
        return [HERE / "buildstream", "--no-colors", "--no-interactive", "--config", self.config, *arguments]

    def bst(self, *arguments, seconds=180):
        code, out, err = self.lab.run(self.stem, self.argv(*arguments), seconds, cwd=self.project)
        return code, out + err

    def build(self, *elements):
        code, said = self.bst("build", *(f"{element}.bst" for element in elements))
        expect_equal(code, 0, f"exit status of {self.stem} building {', '.join(elements)}")
        return said

    def build_started(self, element):
        return self.lab.spawn(self.stem, self.argv("build", f"{element}.bst"), cwd=self.project)

    def artifacts(self):
        """Of each element that was built, the last artifact: whether it succeeded, and digests."""
        argv = [HERE / "buildstream", "--python", HERE / "buildstream-artifacts", self.cache]
        code, out, err = self.lab.run(f"{self.stem}-artifacts", argv)
        expect_equal(code, 0, f"exit status of buildstream-artifacts ({err})")
        return json.loads(out)

    def checkout(self, element):
        folder = self.lab.fresh_folder(f"{self.stem}-{element}")
        code, said = self.bst("artifact", "checkout", "--force", "--no-integrate", "--deps", "none", "--directory", folder, f"{element}.bst")
        expect_equal(code, 0, f"exit status of the checkout of {element} ({said[-500:]})")
        return folder


def make_sysroot(lab, folder):
    """A file system with nothing in it but busybox under all its names."""
    busybox = lab.need_program("busybox")
    with open(busybox, "rb") as program:
        if b"ld-linux" in program.read(4096):
            raise Skip("the busybox here is linked to libraries; busybox-static is wanted")
    for name in ("bin", "etc", "run", "usr/bin", "var"):
        (folder / name).mkdir(parents=True)
    shutil.copyfile(busybox, folder / "bin" / "busybox")
    (folder / "bin" / "busybox").chmod(0o755)
    for name in subprocess.check_output([busybox, "--list"], text=True).split():
        if name != "busybox":
            (folder / "bin" / name).symlink_to("busybox")
    (folder / "usr" / "bin" / "env").symlink_to("../../bin/busybox")
    (folder / "etc" / "passwd").write_text("root:x:0:0::/:/bin/sh\n")


ALIKE = ("hello", "sources", "moved", "world", "root", "nobody", "integrated", "composed", "script", "odd")


def local(lab):
    """BuildStream building by itself, with the BuildBox that it ships."""
    if "buildstream local" not in lab.shared:
        lab.need_program("bwrap")
        if not os.access("/dev/fuse", os.R_OK | os.W_OK):
            raise Skip("BuildStream cannot build here by itself: /dev/fuse is not there or not ours")
        client = BuildStream(lab, "buildstream-local")
        client.build(*ALIKE)
        lab.shared["buildstream local"] = client
    return lab.shared["buildstream local"]


def remote(lab):
    """BuildStream building on BuildGrid."""
    if "buildstream remote" not in lab.shared:
        lab.shared["buildstream remote"] = BuildStream(lab, "buildstream-remote", lab.buildgrid())
    return lab.shared["buildstream remote"]


def expect_as_local(lab, client, *elements):
    by_itself = local(lab)
    wanted, found = by_itself.artifacts(), client.artifacts()
    for element in elements:
        expect("files" in wanted[element], f"BuildStream's own build of {element} has no files")
        parts = [part for part in wanted[element] if found[element].get(part) != wanted[element][part]]
        if parts:
            folders = by_itself.checkout(element), client.checkout(element)
            said = lab.run("diff", ["diff", "-r", "--no-dereference", *folders])[1]
            raise Failed(f"{element}: other {', '.join(parts)} than in BuildStream's own build\n{said[:3000]}")


def build_as_local(lab, *elements):
    local(lab)
    client = remote(lab)
    with lab.worker(jobs=2, flags=INPUT_ROOT):
        client.build(*elements)
    expect_as_local(lab, client, *elements)
    return client


def buildstream_artifact_is_that_of_a_local_build(lab):
    made = build_as_local(lab, "hello").checkout("hello") / "usr"
    expect_equal((made / "share" / "lab" / "upper").read_text(), "SOME TEXT\n", "upper")
    expect_equal(os.readlink(made / "bin" / "alias"), "tool", "target of alias")
    expect_equal(lab.run("tool", [made / "bin" / "alias"])[1], "a tool\n", "output of the tool")


def buildstream_inputs_look_as_in_a_local_build(lab):
    made = build_as_local(lab, "sources").checkout("sources")
    seen = (made / "seen").read_text()
    expect("text regular file 644 1321009871\n" in seen, f"mode and time of an input file: {seen}")
    expect_equal((made / "sources" / "text").read_text(), "some text\nappended\n", "source that was appended to")


def buildstream_command_removes_its_own_working_directory(lab):
    """As BuildStream has it by default: unless the build fails nobody wants the tree that it was built in."""
    wanted = local(lab).artifacts()["hello"]
    client = BuildStream(lab, "buildstream-default", lab.buildgrid(), buildtrees="auto")
    with lab.worker(flags=INPUT_ROOT):
        client.build("hello")
    expect_equal(client.artifacts()["hello"], {"success": True, "files": wanted["files"]}, "artifact of hello")


def buildstream_files_are_moved_and_linked_from_build_to_install(lab):
    made = build_as_local(lab, "moved").checkout("moved")
    expect_equal((made / "links").read_text(), "2\n", "links to a file that was linked into the installation")
    expect_equal((made / "folder" / "inner" / "leaf").read_text(), "inner\n", "file in a directory that was moved")


def buildstream_world_of_a_command(lab):
    report = build_as_local(lab, "world").checkout("world") / "report"
    text = {path.name: path.read_text() for path in report.iterdir()}
    expect_equal(text["interfaces"], "lo\n", "network interfaces")
    expect_equal(text["root"].split(), "bin buildstream buildstream-install dev etc proc run tmp usr var".split(), "the root")
    expect_equal(text["devices"].split(), "null zero full random urandom tty".split(), "devices")
    expect_equal((text["zero"], text["urandom"], text["stdin"], text["full"]), ("4\n", "4\n", "kept\n", "no space\n"), "their use")
    expect_equal(text["executable"], "ran from /tmp\n", "program that was copied to /tmp")
    writable = ["/tmp", "/dev/shm", "/buildstream/lab/world.bst", "/buildstream-install"]
    expect_equal(text["writable"].split(), writable, "what may be written")
    expect_equal(re.findall("allowed: .*", text["changes"]), [], "changes of the read-only root that went through")


def buildstream_builds_as_the_user_it_asks_for(lab):
    client = build_as_local(lab, "root", "nobody")
    for element, uid, gid in (("root", 0, 0), ("nobody", 1000, 1001)):
        made = client.checkout(element)
        found = re.search(r"uid=(\d+)\S* gid=(\d+)", (made / "id").read_text()).groups()
        expect_equal(found, (str(uid), str(gid)), f"user and group of {element}")
        expect_equal(set((made / "owners").read_text().splitlines()), {f"{uid} {gid}"}, f"owners that {element} sees")


def buildstream_writable_root_is_an_output(lab):
    made = build_as_local(lab, "integrated", "composed", "script").checkout("composed")
    expect_equal((made / "etc" / "link").read_text(), "integrated\n", "file made by an integration command")
    expect(not (made / "bin" / "false").is_symlink(), "a file that an integration command removed is there")
    expect((made / "var" / "tmp" / "left").exists(), "a file in /var/tmp, which is the input root's own, is lost")
    for folder in ("dev", "proc", "tmp"):
        expect_equal(os.listdir(made / folder), [], f"what /{folder} holds in the artifact")


def buildstream_special_files_are_left_out(lab):
    made = build_as_local(lab, "odd").checkout("odd")
    expect_equal(sorted(os.listdir(made)), ["closed", "folder", "text"], "what is in the artifact")
    expect_equal(os.listdir(made / "folder"), [], "what is where a FIFO was")


def buildstream_failing_element_shows_its_stderr_and_is_not_cached(lab):
    client = remote(lab)
    reasons = []
    with lab.worker(flags=INPUT_ROOT):
        for _ in range(2):
            code, said = client.bst("build", "--retry-failed", "fails.bst")
            expect(code not in (0, None), f"exit status {code} of a build that fails")
            expect("this is out of it" in said, "BuildStream does not show the command's stdout")
            expect("failed with exitcode 7" in said, "BuildStream does not tell of exit status 7")
            expect("Action result found in action cache" not in said, "a failure was answered from the action cache")
            reasons.append(set(re.findall(r"^\s*this is why: (.*)$", said, re.M)))
            expect_equal(len(reasons[-1]), 1, "reasons that BuildStream shows")
            artifact = client.artifacts()["fails"]
            expect(not artifact["success"] and artifact.get("buildtree"), f"no tree of the failed build in {artifact}")
    expect(reasons[0] != reasons[1], "the second run was answered from a cache")


def buildstream_without_its_cache_gets_all_from_the_action_cache(lab):
    elements = ("hello", "integrated")
    with lab.worker(flags=INPUT_ROOT) as worker:
        first = remote(lab)
        first.build(*elements)
        before = worker.log()
        second = BuildStream(lab, "buildstream-again", lab.buildgrid())
        said = second.build(*elements)
        expect_equal(worker.log(), before, "the worker's log after a build that is all from the action cache")
    expect_equal(said.count("Action result found in action cache"), 3, "actions that were found in the cache")
    expect_equal({e: second.artifacts()[e] for e in elements}, {e: first.artifacts()[e] for e in elements}, "artifacts")


def buildstream_workspace_is_built_incrementally(lab):
    client = BuildStream(lab, "buildstream-workspace", lab.buildgrid())
    folder = client.project / "open"
    code, said = client.bst("workspace", "open", "incremental.bst", "--directory", folder)
    expect_equal(code, 0, f"exit status of workspace open ({said[-500:]})")
    did = []
    with lab.worker(flags=INPUT_ROOT):
        for file, text in ((None, None), ("text", "other text\n"), ("unrelated", "unrelated\n")):
            if file:
                # The shell of the workspace compares whole seconds.
                time.sleep(1.1)
                (folder / file).write_text(text)
                time.sleep(1.1)
            did.append(set(re.findall(r"^\s*(making upper|upper is up to date)$", build_log(client, client.build("incremental")), re.M)))
    expect_equal(did, [{"making upper"}, {"making upper"}, {"upper is up to date"}], "what the three builds did")
    expect_equal((client.checkout("incremental") / "upper").read_text(), "OTHER TEXT\n", "upper")


def build_log(client, said):
    """The log of the build job that BuildStream's output names."""
    logs = re.findall(r"SUCCESS (lab/incremental/\S+-build\.\S+\.log)", said)
    expect(logs, "BuildStream names no log of the build")
    return (client.cache.parent / "logs" / logs[-1]).read_text()


def buildstream_interrupted_build_is_dead_within_six_seconds(lab):
    client, seconds = remote(lab), unique_seconds(600)
    client.renew(seconds)
    with lab.worker(flags=INPUT_ROOT):
        build = client.build_started("slow")
        wait_for(lambda: processes_with(seconds), 60, "start of the action")
        build.signal(signal.SIGTERM)
        wait_for(lambda: not processes_with(seconds), 6, "death of the action")
        build.wait(30)


SCENARIOS = [
    buildstream_artifact_is_that_of_a_local_build,
    buildstream_inputs_look_as_in_a_local_build,
    buildstream_command_removes_its_own_working_directory,
    buildstream_files_are_moved_and_linked_from_build_to_install,
    buildstream_world_of_a_command,
    buildstream_builds_as_the_user_it_asks_for,
    buildstream_writable_root_is_an_output,
    buildstream_special_files_are_left_out,
    buildstream_failing_element_shows_its_stderr_and_is_not_cached,
    buildstream_without_its_cache_gets_all_from_the_action_cache,
    buildstream_workspace_is_built_incrementally,
    buildstream_interrupted_build_is_dead_within_six_seconds,
]
