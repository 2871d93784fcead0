//! What a command sees: of the host, of itself, of its input root.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};

use boxwright::sandbox::linux::profile::Profiles;
use boxwright::sandbox::linux::{FullConfig, FullSandbox};
use boxwright::sandbox::{End, Identity, Launchers, Level, RootShape, View};

use super::bed::{Bed, is_root, launcher_executable, text, unused_id};

/// A static shell, for input roots that are roots.
const BUSYBOX: &str = "/bin/busybox";

/// A bed whose input root is a root with a shell in it; `None`, and says so, if there is no static shell here.
fn rooted() -> Option<Bed> {
    let bed = Bed::new();
    let Ok(shell) = fs::read(BUSYBOX) else {
        crate::skipped::program("busybox (package busybox-static)");
        return None;
    };
    bed.mkdir("bin");
    bed.binary("bin/busybox", &shell);
    for applet in [
        "sh", "cat", "id", "ls", "touch", "hostname", "env", "mkdir", "rm", "ln", "mv", "stat",
        "chmod",
    ] {
        symlink("busybox", bed.root().join("bin").join(applet)).unwrap();
    }
    Some(bed)
}

fn as_root(view: View) -> View {
    View {
        root: RootShape::Input,
        ..view
    }
}

#[tokio::test]
async fn of_the_host_it_sees_tools_and_nothing_else() {
    let bed = Bed::new();
    let seen = bed
        .says(bed.shell("echo /*; echo /dev/*; cd /etc; echo passwd group shadow ssh"))
        .await;
    let lines: Vec<&str> = seen.lines().collect();
    for there in [
        "/bin", "/build", "/dev", "/etc", "/lib", "/proc", "/tmp", "/usr", "/var",
    ] {
        assert!(
            lines[0].split(' ').any(|name| name == there),
            "{there}: {seen}"
        );
    }
    for hidden in ["/root", "/home", "/sys", "/boot", "/srv", "/run", "/mnt"] {
        assert!(
            !lines[0].split(' ').any(|name| name == hidden),
            "{hidden}: {seen}"
        );
    }
    let outcome = bed
        .run(bed.shell("cat /etc/shadow; ls /etc/ssh; ls /var/lib/dpkg"))
        .await;
    assert_eq!(
        text(&outcome.stderr).matches("No such file").count(),
        3,
        "{}",
        text(&outcome.stderr)
    );
}

#[tokio::test]
async fn it_cannot_write_but_where_it_should() {
    let bed = Bed::new();
    let script = "for d in / /usr /usr/bin /etc /dev /proc /var /build /tmp /var/tmp /dev/shm; do
        if touch $d/x 2>/dev/null; then echo $d; fi; done";
    assert_eq!(
        bed.says(bed.shell(script)).await,
        "/build\n/tmp\n/var/tmp\n/dev/shm\n"
    );
    assert!(bed.root().join("x").exists());
}

#[tokio::test]
async fn it_may_write_to_what_is_its_own_in_proc() {
    let bed = Bed::new();
    let script = "printf renamed > /proc/self/comm && echo 900 > /proc/self/oom_score_adj && read -r name < /proc/$$/comm && echo $name";
    assert_eq!(bed.says(bed.shell(script)).await, "renamed\n");
    let Some(bed) = rooted() else { return };
    let mut spec = bed.spec([
        "/bin/sh",
        "-c",
        "printf renamed > /proc/$$/comm && read -r name < /proc/$$/comm && echo $name",
    ]);
    spec.view = as_root(View::default());
    assert_eq!(bed.says(spec).await, "renamed\n");
}

#[tokio::test]
async fn the_next_command_finds_nothing_of_the_last() {
    let bed = Bed::new();
    let plant = "for d in /tmp /var/tmp /dev/shm; do echo x > $d/planted; done; exit 0";
    for _ in 0..3 {
        assert_eq!(
            bed.says(bed.shell("ls -A /tmp /var/tmp /dev/shm")).await,
            "/dev/shm:\n\n/tmp:\n\n/var/tmp:\n"
        );
        bed.says(bed.shell(plant)).await;
    }
}

#[tokio::test]
async fn it_believes_to_be_whom_it_was_promised() {
    let bed = Bed::new();
    for (uid, gid) in [(1000, 1000), (0, 0), (1000, 1001), (65534, 7), (0, 5)] {
        let mut spec = bed.shell("id -u; id -g; id -G; touch made; stat -c '%u %g' made .; rm made; cat /proc/self/uid_map | wc -l");
        spec.view.user = Identity { uid, gid };
        let seen = bed.says(spec).await;
        let maps = seen.lines().last().unwrap().to_owned();
        assert!(
            seen.starts_with(&format!("{uid}\n{gid}\n{gid}\n{uid} {gid}\n{uid} {gid}\n")),
            "{seen}"
        );
        assert!(maps == "2" || maps == "1", "{seen}");
    }
    let outside = fs::metadata(bed.root()).unwrap().uid();
    if is_root() {
        assert_ne!(outside, 0);
    }
}

#[tokio::test]
async fn it_is_alone_with_its_loopback() {
    let bed = Bed::new();
    let seen = bed.says(bed.shell("tail -n +3 /proc/net/dev | cut -d: -f1; hostname; echo /proc/[0-9]*; cat /proc/sys/kernel/domainname")).await;
    assert_eq!(seen, "    lo\nlocalhost\n/proc/1 /proc/2\n(none)\n");
}

#[tokio::test]
async fn settings_of_the_network_do_not_outlive_a_command() {
    let bed = Bed::new();
    for uid in [0, 1000] {
        let user = Identity { uid, gid: uid };
        let script = "echo 7 > /proc/sys/net/ipv4/ip_default_ttl; :";
        let before = bed
            .says(bed.shell("cat /proc/sys/net/ipv4/ip_default_ttl"))
            .await;
        for _ in 0..2 {
            let mut spec = bed.shell(script);
            spec.view.user = user;
            assert_eq!(bed.run(spec).await.end, End::Exited(0));
            let mut look = bed.shell("cat /proc/sys/net/ipv4/ip_default_ttl");
            look.view.user = user;
            assert_eq!(bed.says(look).await, before, "{uid}");
        }
    }
}

#[tokio::test]
async fn the_hosts_network_is_there_if_it_is_given() {
    let bed = Bed::new();
    let mut spec = bed.shell("readlink /proc/self/ns/net");
    spec.view.network = true;
    let own = fs::read_link("/proc/self/ns/net").unwrap();
    assert_eq!(bed.says(spec).await.trim(), own.to_str().unwrap());
    let without = bed.says(bed.shell("readlink /proc/self/ns/net")).await;
    assert_ne!(without.trim(), own.to_str().unwrap());
}

#[tokio::test]
async fn an_input_root_can_be_the_root() {
    let Some(bed) = rooted() else { return };
    let script = "echo /*; id -u; cat /proc/self/mountinfo | wc -l; touch /made /tmp/made /dev/shm/made; echo hello >/dev/null; hostname; ls /proc/1/exe >/dev/null 2>&1 || echo opaque";
    let mut spec = bed.spec(["/bin/sh", "-c", script]);
    spec.view = as_root(View::default());
    let seen = bed.says(spec).await;
    let lines: Vec<&str> = seen.lines().collect();
    assert_eq!(lines[0], "/bin /dev /proc /tmp", "{seen}");
    assert_eq!(lines[1], "1000");
    assert_eq!(lines[3..], ["localhost", "opaque"], "{seen}");
    // What was made for the mounts is gone, what the command made is there.
    let mut left: Vec<_> = fs::read_dir(bed.root())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    left.sort();
    assert_eq!(left, ["bin", "made"]);
}

#[tokio::test]
async fn an_input_root_that_leads_elsewhere_is_refused() {
    let Some(bed) = rooted() else { return };
    for (place, target) in [("tmp", "/etc"), ("dev", "bin"), ("proc", "../../..")] {
        symlink(target, bed.root().join(place)).unwrap();
        let mut spec = bed.spec(["/bin/sh", "-c", "exit 0"]);
        spec.view = as_root(View::default());
        match bed.run(spec).await.end {
            End::NotStarted { code: 126, message } => {
                assert!(message.contains(&format!("/{place}")), "{message}");
            }
            other => panic!("{place}: {other:?}"),
        }
        fs::remove_file(bed.root().join(place)).unwrap();
    }
    let mut spec = bed.spec(["/bin/sh", "-c", "exit 3"]);
    spec.view = as_root(View::default());
    assert_eq!(bed.run(spec).await.end, End::Exited(3));
}

#[tokio::test]
async fn read_only_directories_stay_as_they_are() {
    let Some(bed) = rooted() else { return };
    bed.mkdir("lib");
    bed.mkdir("lib/sub");
    bed.file("lib/file", "as it was", 0o644);
    for root in [RootShape::Input, RootShape::Host] {
        let prefix = if root == RootShape::Input {
            ""
        } else {
            "/build"
        };
        let script = format!(
            "cd {prefix}/lib; cat file; touch new sub/new; echo x > file; rm file; touch {prefix}/made; exit 0"
        );
        let mut spec = bed.spec(["/bin/sh", "-c", &script]);
        spec.view.root = root;
        spec.view.read_only = vec!["lib".into()];
        assert_eq!(bed.says(spec).await, "as it was");
        assert_eq!(fs::read(bed.root().join("lib/file")).unwrap(), b"as it was");
        assert!(!bed.root().join("lib/new").exists() && !bed.root().join("lib/sub/new").exists());
        fs::remove_file(bed.root().join("made")).unwrap();
    }
}

#[tokio::test]
async fn a_read_only_root_is_writable_in_parts_and_files_move_between_them() {
    let Some(bed) = rooted() else { return };
    for path in [
        "lib",
        "work",
        "work/here",
        "work/beside",
        "made",
        "made/kept",
    ] {
        bed.mkdir(path);
    }
    for path in ["file", "lib/file", "made/kept/file"] {
        bed.file(path, "as it was", 0o644);
    }
    let script = "cd /work/here; echo text > new; ln new /made/linked; mv new /made/moved; stat -c %h /made/moved; \
                  touch /new /lib/new /work/new /work/beside/new /made/kept/new; chmod 600 /file /lib/file; \
                  echo x >> /file; rm /lib/file /made/kept/file; mv /lib /bil; mkdir /work/made; \
                  touch /tmp/new /dev/shm/new && echo memory";
    let mut spec = bed.spec(["/bin/sh", "-c", script]);
    spec.view = as_root(View::default());
    spec.view.read_only = vec!["".into(), "made/kept".into()];
    spec.view.writable = vec!["work/here".into(), "made".into()];
    assert_eq!(bed.says(spec).await, "2\nmemory\n");
    let at = |path: &str| bed.root().join(path);
    assert!(at("made/linked").exists() && at("made/moved").exists());
    for path in ["file", "lib/file", "made/kept/file"] {
        assert_eq!(fs::read(at(path)).unwrap(), b"as it was", "{path}");
        let mode = fs::metadata(at(path)).unwrap().mode();
        assert_eq!(mode & 0o777, 0o644, "{path}");
    }
    for path in [
        "new",
        "lib/new",
        "work/new",
        "work/beside/new",
        "made/kept/new",
        "bil",
        "work/made",
    ] {
        assert!(!at(path).exists(), "{path}");
    }
}

#[tokio::test]
async fn pid_one_is_out_of_its_reach() {
    let bed = Bed::new();
    let script = "kill -9 1; kill -TERM 1; kill -STOP 1; cat /proc/1/environ; ls -l /proc/1/fd; cat /proc/1/maps; exit 4";
    for uid in [1000, 0] {
        let mut spec = bed.shell(script);
        spec.view.user = Identity { uid, gid: uid };
        let outcome = bed.run(spec).await;
        // The signal that is heeded comes back to its sender, who may have been quicker.
        assert!(
            matches!(outcome.end, End::Exited(4) | End::Signalled(15)),
            "{uid}: {:?}",
            outcome.end
        );
        assert_eq!(
            text(&outcome.stdout).trim_start_matches("total 0\n"),
            "",
            "{uid}"
        );
    }
}

#[tokio::test]
async fn mounts_of_earlier_commands_are_out_of_sight() {
    let bed = Bed::new();
    let look = "cat /proc/self/mountinfo";
    let first = bed.says(bed.shell(look)).await;
    println!("{first}");
    for _ in 0..100 {
        // At once, before the launcher has had the time to unmount what the last one had.
        assert_eq!(
            bed.says(bed.shell(look)).await.lines().count(),
            first.lines().count()
        );
    }
}

#[tokio::test]
async fn pseudo_terminals_are_as_new_for_each_command() {
    let bed = Bed::new();
    for id in [1000, 0] {
        let run = async |script: &str| {
            let mut spec = bed.shell(script);
            spec.view.user = Identity { uid: id, gid: id };
            bed.says(spec).await
        };
        let look = "stat -c '%a %u' /dev/pts /dev/pts/ptmx";
        let before = run(look).await;
        run("chmod 700 /dev/pts; chmod 000 /dev/pts/ptmx; true").await;
        assert_eq!(run(look).await, before, "user {id}");
    }
}

#[tokio::test]
async fn its_output_can_be_opened_by_name() {
    let bed = Bed::new();
    let script = "echo out > /dev/stdout; echo more > /dev/fd/1; echo err > /dev/stderr";
    let outcome = bed.run(bed.shell(script)).await;
    assert_eq!(outcome.end, End::Exited(0));
    assert_eq!(bed.says(bed.shell(script)).await, "out\nmore\n");
}

#[tokio::test]
async fn what_the_daemon_keeps_is_never_below_what_commands_are_shown() {
    let launchers = Launchers::start_from(launcher_executable(), Level::Full, 1).unwrap();
    let config = FullConfig {
        profiles: Profiles::load(None).unwrap(),
        first_uid: unused_id(),
        roots: "/usr/share".into(),
        namespace: None,
    };
    let sandbox = FullSandbox::new(launchers, config).unwrap();
    let refused = sandbox.prepare().await.unwrap_err().to_string();
    assert!(
        refused.contains("commands are shown /usr of the host, and /usr/share lies below it"),
        "{refused}"
    );
}

#[tokio::test]
async fn message_queues_work_and_are_its_own() {
    // As files, which is what mq_open makes of them too.
    let script = "cd /dev/mqueue; ls -A; : > one; touch two; rm two; cat one > /dev/null && ls -A";
    let bed = Bed::new();
    assert_eq!(bed.says(bed.shell(script)).await, "one\n");
    let launcher = bed.sandbox.launcher(0);
    for _ in 0..3 {
        assert_eq!(bed.says(bed.shell(script)).await, "one\n");
    }
    assert_eq!(bed.sandbox.launcher(0), launcher, "the slot was cleaned");
    let Some(bed) = rooted() else { return };
    for _ in 0..3 {
        let mut spec = bed.spec(["/bin/sh", "-c", script]);
        spec.view = as_root(View::default());
        assert_eq!(bed.says(spec).await, "one\n");
    }
}
