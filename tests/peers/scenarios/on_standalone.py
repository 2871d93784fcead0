"""Real clients on `boxwright standalone`: Bazel 4 of this machine; Bazel 7, recc, trexe and the CAS tools of a Debian sid root.

The sid clients bring their own compiler along as host tools, so that the standalone runs inside the same root as they do.
"""

import functools

from .lab import Bazel, expect, expect_equal
from .on_buildgrid import bazel_4_repositories

# The series of the sid root's packages that are promised; another one is not taken for it.
SERIES = {"bazel-bootstrap": "7", "buildbox": "1.4"}


def of_sid(package):
    """A scenario of this package in the sid root: fails if it is of another series, and says which version it ran."""

    def around(scenario):
        @functools.wraps(scenario)
        def checked(lab):
            version = lab.sid_version(package, SERIES[package])
            scenario(lab)
            return version

        return checked

    return around


def bazel_4(lab):
    program = lab.need_program("bazel")
    if "bazel 4 alone" not in lab.shared:
        lab.shared["bazel 4 alone"] = Bazel(lab, "bazel-4-alone", lambda _: [program], [*bazel_4_repositories(), "--jobs=8"])
    return lab.shared["bazel 4 alone"]


def bazel_7(lab):
    lab.need("sid")
    if "bazel 7" not in lab.shared:
        shipped = "/usr/share/bazel"
        repositories = {
            "rules_cc": f"{shipped}/rules/cc",
            "rules_java": f"{shipped}/rules/java",
            "rules_license": f"{shipped}/rules/license",
            "rules_proto": f"{shipped}/rules/proto",
            "rules_python": f"{shipped}/rules/python",
            "bazel_features": f"{shipped}/tools/features",
            "bazel_skylib": f"{shipped}/tools/skylib",
            "platforms": f"{shipped}/tools/platforms",
        }
        flags = [f"--override_repository={name}={path}" for name, path in repositories.items()]
        # Debian's Bazel does not look where Debian's zstd library is.
        zstd = lab.run("find-zstd", [*lab.sid(), "sh", "-c", "echo /usr/lib/*/libzstd-jni.so"])[1].strip()
        startup = ["bazel", f"--host_jvm_args=-DZstdNativePath={zstd}"]
        flags += ["--noenable_bzlmod", "--jobs=8"]
        lab.shared["bazel 7"] = Bazel(lab, "bazel-7", lambda folder: [*lab.sid(folder), *startup], flags)
    return lab.shared["bazel 7"]


def built(client, said, code):
    expect_equal(code, 0, "exit status of bazel")
    return client.processes(said)


def standalone_bazel_4_builds(lab):
    client = bazel_4(lab)
    client.renew()
    with lab.standalone() as server:
        code, said = client.build(server.url, "//:upper", "//:hello")
        found = built(client, said, code)
        expect(found.get("remote", 0) >= 4, f"four remote processes, not {found}")
    said = lab.run("hello", [client.output("hello")])[1]
    expect_equal(said, "Hello, worker!\n", "output of the program that was built")


@of_sid("bazel-bootstrap")
def standalone_bazel_7_genrule(lab):
    client = bazel_7(lab)
    client.renew("some text")
    with lab.standalone(within=lab.sid()) as server:
        code, said = client.build(server.url, "//:upper", "//:nested")
        expect_equal(built(client, said, code).get("remote"), 2, "remote processes")
    expect_equal(client.output("upper.txt").read_text(), "SOME TEXT\n", "upper.txt")
    expect_equal(client.output("deep/er/one.txt").read_text(), "some text\n", "deep/er/one.txt")


@of_sid("bazel-bootstrap")
def standalone_bazel_7_cc_binary_then_all_from_cache(lab):
    client = bazel_7(lab)
    with lab.standalone(within=lab.sid()) as server:
        code, said = client.build(server.url, "//:hello")
        found = built(client, said, code)
        expect(found.get("remote", 0) >= 3, f"three remote processes, not {found}")
        said = lab.run("hello", [*lab.sid(), client.output("hello")])[1]
        expect_equal(said, "Hello, worker!\n", "output of the program that was built")
        client.clean()
        code, said = client.build(server.url, "//:hello")
        found = built(client, said, code)
        expect_equal(found.get("remote"), None, "processes executed by the second build")
        expect(found.get("remote cache hit", 0) >= 3, f"three cache hits in the second build, not {found}")


@of_sid("bazel-bootstrap")
def standalone_bazel_7_failing_genrule_is_not_cached(lab):
    client = bazel_7(lab)
    client.renew()
    stamps = []
    with lab.standalone(within=lab.sid()) as server:
        for _ in range(2):
            code, said = client.build(server.url, "//:fails")
            expect_equal(code, 1, "exit status of bazel")
            expect("Exit 7" in said, "bazel does not tell of exit status 7")
            stamp = [line for line in said.splitlines() if line.startswith("oops at ")]
            expect_equal(len(stamp), 1, "lines of the action's stderr that bazel shows")
            stamps += stamp
    expect(stamps[0] != stamps[1], "the second run was answered from a cache")


@of_sid("bazel-bootstrap")
def standalone_bazel_7_without_the_bytes(lab):
    client = bazel_7(lab)
    client.clean()
    client.renew()
    with lab.standalone(within=lab.sid()) as server:
        code, said = client.build(server.url, "//:hello", "//:upper", "--remote_download_minimal")
        expect(built(client, said, code).get("remote", 0) >= 4, "four remote processes")
        expect(not client.output("upper.txt").exists(), "an output was downloaded in spite of --remote_download_minimal")
        code, said = client.build(server.url, "//:upper", "--remote_download_outputs=toplevel")
        expect_equal(code, 0, "exit status of the build that wants the outputs")
        expect(client.output("upper.txt").exists(), "the output is not there after --remote_download_outputs=toplevel")


@of_sid("bazel-bootstrap")
def standalone_bazel_7_with_compression(lab):
    client = bazel_7(lab)
    client.clean()
    client.renew("compress me " * 100_000)
    compressed = ["--remote_cache_compression", "--experimental_remote_cache_compression_threshold=100"]
    with lab.standalone(within=lab.sid()) as server:
        code, said = client.build(server.url, "//:upper", "//:hello", *compressed)
        expect(built(client, said, code).get("remote", 0) >= 4, "four remote processes")
        expect_equal(client.output("upper.txt").read_text(), "COMPRESS ME " * 100_000 + "\n", "upper.txt")
        client.clean()
        code, said = client.build(server.url, "//:upper", "//:hello", *compressed)
        expect(built(client, said, code).get("remote cache hit", 0) >= 4, "four cache hits")
        expect_equal(client.output("upper.txt").read_text(), "COMPRESS ME " * 100_000 + "\n", "upper.txt from the cache")


@of_sid("buildbox")
def standalone_recc_compiles_then_hits_the_cache(lab):
    project = lab.fresh_folder("recc")
    (project / "unit.c").write_text('#include "unit.h"\nint answer(void) { return ANSWER; }\n')
    (project / "unit.h").write_text("#define ANSWER 42\n")
    with lab.standalone(within=lab.sid()) as server:
        settings = [f"RECC_SERVER={server.url}", "RECC_LOG_LEVEL=debug"]
        outcomes = []
        for number in range(2):
            command = [*lab.sid(project), *settings, "recc", "/usr/bin/gcc", "-c", "unit.c", "-o", "unit.o"]
            code, out, err = lab.run("recc", command)
            expect_equal(code, 0, f"exit status of recc, run {number + 1}")
            expect_equal((project / "unit.o").read_bytes()[:4], b"\x7fELF", "first bytes of unit.o")
            (project / "unit.o").unlink()
            outcomes.append(out + err)
        hit = "Action Cache hit"
        expect("Executing action remotely" in outcomes[0], f"recc did not execute remotely: {outcomes[0][-1000:]}")
        expect(hit not in outcomes[0], "the first compilation was answered from the cache")
        expect(hit in outcomes[1], f"recc speaks of no cache hit in its second run: {outcomes[1][-1000:]}")


@of_sid("buildbox")
def standalone_trexe_and_the_cas_tools(lab):
    folder, back, ours = lab.fresh_folder("tools"), lab.fresh_folder("back"), lab.fresh_folder("ours")
    (folder / "sub").mkdir()
    (folder / "sub" / "text").write_text("uploaded by casupload\n")
    with lab.standalone(within=lab.sid()) as server:
        digest = folder / "digest"
        code, _, err = lab.run("casupload", [*lab.sid(), "casupload", f"--remote={server.url}", f"--output-digest-file={digest}", folder / "sub"])
        expect_equal(code, 0, f"exit status of casupload ({err})")
        root = digest.read_text().strip()
        code, _, err = lab.run("casdownload", [*lab.sid(), "casdownload", f"--remote={server.url}", f"--destination-dir={back}", f"--root-digest={root}"])
        expect_equal(code, 0, f"exit status of casdownload ({err})")
        expect_equal((back / "text").read_text(), "uploaded by casupload\n", "text as casdownload brought it")
        code, _, _ = lab.run("boxwright", [lab.boxwright, "cas", "get", "--tree", "--remote", server.url, root, ours / "sub"])
        expect_equal(code, 0, "exit status of boxwright cas get")
        expect_equal((ours / "sub" / "text").read_text(), "uploaded by casupload\n", "text as boxwright brought it")
        code, out, err = lab.run("trexe", [*lab.sid(), "trexe", f"--remote={server.url}", f"--input-path={folder / 'sub'}", "/bin/cat", "text"])
        expect_equal(code, 0, f"exit status of trexe ({err})")
        expect("uploaded by casupload" in out + err, f"trexe does not show the action's output: {out}{err}")


SCENARIOS = [
    standalone_bazel_4_builds,
    standalone_bazel_7_genrule,
    standalone_bazel_7_cc_binary_then_all_from_cache,
    standalone_bazel_7_failing_genrule_is_not_cached,
    standalone_bazel_7_without_the_bytes,
    standalone_bazel_7_with_compression,
    standalone_recc_compiles_then_hits_the_cache,
    standalone_trexe_and_the_cas_tools,
]
