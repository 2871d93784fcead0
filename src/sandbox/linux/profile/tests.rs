//! Profiles are read as their author meant them, or refused with the file, the line and a hint.

use std::path::Path;

use rustix::process::Resource;

use super::seccomp::Action;
use super::*;

/// An operator's directory with these files.
fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = directory.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    directory
}

fn load(files: &[(&str, &str)]) -> Result<Profiles, ProfileError> {
    Profiles::load(Some(directory(files).path()))
}

/// The message about these files, without the directory's name.
fn mistake(files: &[(&str, &str)]) -> String {
    let directory = directory(files);
    let error = Profiles::load(Some(directory.path())).expect_err("a mistake");
    error
        .to_string()
        .replace(&format!("{}/", directory.path().display()), "")
}

fn verdict(profile: &Profile, call: &str, arguments: &[u64; 6]) -> Action {
    let machine = Arch::this().unwrap();
    let number = machine.number(call).unwrap();
    profile
        .policy
        .verdict(machine, machine.audit(), number, arguments)
}

#[test]
fn the_built_in_profiles_are_whole_and_compiled() {
    let profiles = Profiles::load(None).unwrap();
    let names: Vec<&str> = profiles.names().collect();
    assert_eq!(names, ["compat32", "debug", "default", "network", "strict"]);
    for name in names {
        let profile = profiles.get(name).unwrap();
        assert_eq!(&*profile.name, name);
        assert!(profile.landlock && profile.pts && profile.scope_abstract_sockets);
        assert!(profile.filter.len() > 100 && profile.filter.len().is_multiple_of(8));
        assert_eq!(profile.hash.len(), 64);
        assert_eq!(profile.tmpfs.tmp.size, 4 << 30);
        assert_eq!(profile.tmpfs.dev_shm.inodes, 100_000);
        let limit = |which: Resource| profile.rlimits.iter().find(|(r, _)| *r == which).unwrap().1;
        assert_eq!(limit(Resource::Core).maximum, Some(0));
        assert_eq!(limit(Resource::Nofile).current, Some(1024));
        assert_eq!(limit(Resource::Stack).current, Some(8 << 20));
        assert_eq!(limit(Resource::Stack).maximum, None);
        let shown: Vec<&str> = profile.host_paths.iter().map(HostPath::as_str).collect();
        assert!(shown.contains(&"/usr"));
        assert_eq!(shown.contains(&"/etc/resolv.conf"), name == "network");
        assert_eq!(shown.contains(&"/etc/hosts"), name == "network");
    }
    assert!(profiles.get("nonesuch").is_none());
}

#[test]
fn no_built_in_profile_shows_secrets_of_the_host() {
    let secret = [
        "etc/shadow",
        "etc/shadow-",
        "etc/gshadow",
        "etc/passwd",
        "etc/group",
        "etc/sudoers",
        "etc/ssh/ssh_host_rsa_key",
        "etc/ssl/private/key.pem",
        "etc/pki/tls/private/key.pem",
        "etc/krb5.keytab",
        "etc/machine-id",
        "etc/fstab",
        "etc/environment",
        "etc/npmrc",
        "etc/pip.conf",
        "etc/gitconfig",
        "etc/netrc",
        "etc/wireguard/wg0.conf",
        "etc/docker/key.json",
        "etc/kubernetes/admin.conf",
        "root/.ssh/id_rsa",
        "home/user/.netrc",
        "var/log/syslog",
        "var/run/docker.sock",
        "run/docker.sock",
        "var/lib/private/key",
        "boot/vmlinuz",
        "srv/data",
        "mnt/disk/x",
    ];
    let root = tempfile::tempdir().unwrap();
    for path in secret {
        let path = root.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "secret").unwrap();
    }
    let profiles = Profiles::load(None).unwrap();
    for name in profiles.names() {
        for pattern in &profiles.get(name).unwrap().host_paths {
            let shown = pattern.expand(root.path());
            let leads = |shown: &&std::path::PathBuf| {
                secret
                    .iter()
                    .any(|secret| Path::new("/").join(secret).starts_with(shown))
            };
            assert_eq!(shown.iter().find(leads), None, "{name}: {pattern}");
        }
    }
}

#[test]
fn every_built_in_file_is_compiled_in_and_every_group_is_used() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("sandbox-profiles/linux");
    let names = |folder: &Path| {
        let files = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path());
        let tomls = files.filter(|path| path.extension().is_some_and(|e| e == "toml"));
        let mut names: Vec<String> = tomls
            .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
            .collect();
        names.sort();
        names
    };
    let sources = Sources::built_in();
    assert_eq!(
        names(&folder),
        sources.profiles.keys().cloned().collect::<Vec<_>>()
    );
    assert_eq!(
        names(&folder.join("seccomp")),
        sources.groups.keys().cloned().collect::<Vec<_>>()
    );
    for group in sources.groups.keys() {
        let quoted = format!("\"{group}\"");
        let used = |source: &sources::Source| source.text.contains(&quoted);
        assert!(sources.profiles.values().any(used), "{group}");
    }
}

#[test]
fn an_operators_profile_extends_ours_or_takes_its_place() {
    let profiles = load(&[
        (
            "tests.toml",
            "description = 'x'\nextends = 'default'\npts = false\nhost-paths-add = ['/srv/tools*']\n\
             [tmpfs]\ntmp = { size = '1MiB', inodes = 7 }\n[rlimits]\ncore = 'unlimited'\n\
             [[seccomp.rule]]\ncalls = ['bpf']\naction = 'allow'\nreason = 'tests of ours need it'\n",
        ),
        ("debug.toml", "description = 'no tracing here'\nextends = 'default'\n"),
        ("README.md", "not a profile"),
    ])
    .unwrap();
    let (ours, tests) = (
        profiles.get("default").unwrap(),
        profiles.get("tests").unwrap(),
    );
    assert!(!tests.pts && tests.landlock);
    assert_eq!(
        tests.tmpfs.tmp,
        TmpfsLimits {
            size: 1 << 20,
            inodes: 7
        }
    );
    assert_eq!(tests.tmpfs.var_tmp, ours.tmpfs.var_tmp);
    assert_eq!(tests.host_paths.len(), ours.host_paths.len() + 1);
    let core = tests
        .rlimits
        .iter()
        .find(|(which, _)| *which == Resource::Core)
        .unwrap();
    assert_eq!(core.1.maximum, None);
    assert_eq!(tests.rlimits.len(), ours.rlimits.len());
    assert_eq!(verdict(tests, "bpf", &[0; 6]), Action::Allow);
    assert_eq!(verdict(ours, "bpf", &[0; 6]), Action::Errno(1));
    assert_ne!(tests.filter, ours.filter);
    let debug = profiles.get("debug").unwrap();
    assert_eq!(debug.description, "no tracing here");
    assert_eq!(verdict(debug, "ptrace", &[0; 6]), Action::Errno(1));
}

#[test]
fn an_operators_group_is_used_by_the_built_in_profiles() {
    let group =
        "description = 'x'\n[[rule]]\ncalls = ['keyctl']\naction = 'ENOSYS'\nreason = 'x'\n";
    let profiles = load(&[("seccomp/keyring.toml", group)]).unwrap();
    let default = profiles.get("default").unwrap();
    assert_eq!(verdict(default, "keyctl", &[0; 6]), Action::Errno(38));
    assert_eq!(verdict(default, "add_key", &[0; 6]), Action::Allow);
}

#[test]
fn the_hash_changes_with_every_text_that_made_the_profile_and_with_no_other() {
    let built_in = Profiles::load(None).unwrap();
    let group = include_str!("../../../../sandbox-profiles/linux/seccomp/i386.toml");
    let changed = load(&[("seccomp/i386.toml", &format!("{group}# x\n"))]).unwrap();
    for name in built_in.names() {
        let (before, after) = (built_in.get(name).unwrap(), changed.get(name).unwrap());
        assert_eq!(before.hash != after.hash, name == "compat32", "{name}");
    }
    let default = include_str!("../../../../sandbox-profiles/linux/default.toml");
    let same = load(&[("default.toml", default)]).unwrap();
    let changed = load(&[("default.toml", &format!("{default}# x\n"))]).unwrap();
    for name in built_in.names() {
        let hash = |profiles: &Profiles| profiles.get(name).unwrap().hash.clone();
        assert_eq!(hash(&built_in), hash(&same), "{name}");
        assert_ne!(hash(&built_in), hash(&changed), "{name}");
    }
    let hashes: std::collections::BTreeSet<&str> = built_in
        .names()
        .map(|name| built_in.get(name).unwrap().hash.as_str())
        .collect();
    assert_eq!(hashes.len(), 5);
}

#[test]
fn mistakes_are_named_with_file_line_and_hint() {
    let profile = |rest: &str| {
        mistake(&[(
            "p.toml",
            &format!("description = 'x'\nextends = 'default'\n{rest}"),
        )])
    };
    let rule = |rest: &str| profile(&format!("[[seccomp.rule]]\nreason = 'x'\n{rest}"));
    let when = |test: &str| {
        rule(&format!(
            "calls = ['socket']\naction = 'EPERM'\nwhen = [{{ {test} }}]"
        ))
    };
    let messages = [
        mistake(&[("p.toml", "extends = 'default'\n")]),
        mistake(&[("p.toml", "description = 'x'\n")]),
        mistake(&[("p.toml", "description = 'x'\nextends = 'defualt'\n")]),
        mistake(&[
            ("a.toml", "description = 'x'\nextends = 'b'\n"),
            ("b.toml", "description = 'x'\nextends = 'a'\n"),
        ]),
        mistake(&[("Q x.toml", "")]),
        mistake(&[("p.toml", "description = ")]),
        profile("landlok = true"),
        profile("landlock = 1"),
        profile("[tmpfs]\ntmp = { size = '1G', inode = 1 }"),
        profile("[tmpfs]\ntmp = { size = '0', inodes = 1 }"),
        profile("[tmpfs]\ntmp = { size = '1 parsec', inodes = 1 }"),
        profile("[rlimits]\nnofiles = 1"),
        profile("[rlimits]\nnofile = -1"),
        profile("[rlimits]\nnofile = { soft = 2, hard = 1 }"),
        profile("host-paths = ['/']"),
        profile("host-paths-add = [\n  '/srv',\n  '/proc/sys',\n]"),
        profile("[seccomp]\ngroups = ['mounts']"),
        profile("[seccomp]\ndefault = 'deny'"),
        profile("[seccomp]\ncompat = 'arm'"),
        rule("calls = ['ptrac']\naction = 'EPERM'"),
        rule("calls = []\naction = 'EPERM'"),
        rule("calls = ['ptrace']\naction = 'EPREM'"),
        profile("[[seccomp.rule]]\ncalls = ['ptrace']\naction = 'EPERM'"),
        profile("[[seccomp.rule]]\ncalls = ['ptrace']\naction = 'EPERM'\nreason = ' '"),
        when("in = [1]"),
        when("int = 0, long = 0, in = [1]"),
        when("int = 6, in = [1]"),
        when("int = 0"),
        when("int = 0, in = [1], any-bit = [1]"),
        when("int = 0, in = []"),
        when("int = 0, in = ['AF_VSOCKET']"),
        when("int = 0, in = [0x1_0000_0000]"),
        when("int = 0, in = [-1]"),
        when("int = 0, mask = [1], in = [2]"),
        when("int = 0, any-bit = [0]"),
        when("int = 0, any_bit = [1]"),
        mistake(&[(
            "seccomp/g.toml",
            "description = 'x'\n[[rule]]\ncalls = ['nothing_like_it']\naction = 'kill'\nreason = 'x'\n",
        )]),
    ];
    insta::assert_snapshot!(messages.join("\n"));
}

#[test]
fn a_directory_that_is_not_there_is_an_error() {
    let error = Profiles::load(Some(Path::new("/nonexistent/profiles"))).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("cannot read /nonexistent/profiles"),
        "{error}"
    );
}
