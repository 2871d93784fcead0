//! Which settings make a daemon's configuration, and which are refused.

use super::super::keys::Program;
use super::super::settings::tests::host;
use super::super::{file, print};
use super::*;

fn worker(text: &str) -> Result<WorkerConfig, ConfigError> {
    let settings = Settings::resolve(Program::Worker, vec![file::parse(text)?], &host())?;
    WorkerConfig::new(&settings)
}

#[test]
fn one_address_is_enough() {
    let config = worker("remote = 'http://h:1'").unwrap();
    assert_eq!(config.bots, config.cas);
    assert_eq!(config.host.slots, 4);
    assert_eq!(config.stop_after, None);
    assert_eq!(config.priority, 0);
    let config = worker("remote = 'http://h:1'\npriority = 2147483647").unwrap();
    assert_eq!(config.priority, i32::MAX);
    assert!(worker("remote = 'http://h:1'\npriority = 2147483648").is_err());
}

#[test]
fn the_whole_is_validated() {
    let mut said = String::new();
    for text in [
        "",
        "bots-remote = 'http://h:1'",
        "remote = 'http://h:1'\ncas-quota-low = '60G'",
        "remote = 'http://h:1'\ncas-quota-high = '10%'\ncas-quota-low = '10%'",
        "remote = 'http://h:1'\ncas-quota-high = 0",
        "remote = 'http://h:1'\ndefault-timeout = '48h'",
        "remote = 'http://h:1'\ndefault-timeout = 'none'",
        "remote = 'http://h:1'\ninline-output = '2M'",
        "remote = 'http://h:1'\nplatform = ['a=b', 'a=b']",
        "remote = 'http://h:1'\nplatform = ['OSFamily=linux', 'OSFamily=Linux']",
        "remote = 'http://h:1'\ninstance = 'a/blobs'",
        "remote = 'http://h:1'\ninstance = '/a'",
        "remote = 'http://h:1'\ninstance = '*'",
        "remote = 'http://h:1'\nname = ''",
        "remote = 'http://h:1'\ntls-cert = '/c'",
        "remote = 'http://h:1'\ntls-key = '/k'",
        "remote = 'http://h:1'\ntls-ca = 'c'",
        "remote = 'http://user:secret@h:1'",
        "remote = 'http://h:1'\nrequire-platform = true",
        "remote = 'http://h:1'\nsandbox = 'process'\nroot = 'input'",
        "remote = 'http://h:1'\nlimit-memory = 0",
        "remote = 'http://h:1'\nsandbox-profile = '../x'",
        "remote = 'http://h:1'\n[[strategy]]\nroot = 'input'\nlevels = 'process'",
        "remote = 'http://h:1'\nroot = 'input'\n[[strategy]]\nlevels = 'process'",
        "remote = 'http://h:1'\n[[strategy]]\nallow-profiles = ['a/b']",
        "remote = 'http://h:1'\n[[strategy]]\ntimeout = '48h'",
        "remote = 'http://h:1'\n[[strategy]]\npids = 9\n[[strategy]]\nmatch = { a = 'b' }",
    ] {
        said += &format!("{text:?}\n  {}\n", worker(text).unwrap_err());
    }
    assert!(
        !said
            .replace("\"remote = 'http://user:secret@h:1'\"", "")
            .contains("secret")
    );
    insta::assert_snapshot!(said);
}

#[test]
fn strategies_inherit_what_they_do_not_say() {
    let config = worker(
        "remote = 'http://h:1'\nnetwork = 'allowed'\nlimit-pids = 77\nallow-profile = ['net']\n\
         [[strategy]]\nmatch = { pool = 'a', ISA = ['x86-64', 'x86-32'] }\nlevels = 'full,process'\ncpus = 1.5\n\
         [[strategy]]\nprofile = 'strict'\nallow-profiles = []\nmemory = '1G'",
    )
    .unwrap()
    .host;
    assert_eq!(config.levels(), Level::ALL);
    assert_eq!(config.profile_names(), ["default", "net", "strict"]);
    let [first, last] = &config.strategies[..] else {
        panic!("{:?}", config.strategies)
    };
    let isa = (
        "ISA".to_owned(),
        vec!["x86-64".to_owned(), "x86-32".to_owned()],
    );
    assert!(first.matches.len() == 2 && first.matches.contains(&isa));
    assert_eq!((first.cpu_milli, first.pids), (Some(1500), 77));
    assert_eq!(
        (last.levels.as_slice(), last.pids),
        (&[Level::Full][..], 77)
    );
    assert_eq!(last.memory, Amount::Bytes(1 << 30));
    assert_eq!(last.network, crate::config::NetworkPolicy::Allowed);
}

#[test]
fn what_is_printed_is_a_configuration() {
    let text = "remote = 'http://h:1'\nconcurrent-jobs = 2\nplatform = ['pool=a']\nmax-timeout = 'none'\n\
                sandbox = 'full,process'\nlimit-cpus = 2\n\
                [[strategy]]\nmatch = { pool = ['a', 'b'] }\nroot = 'input'\ntimeout = '90s'\n\
                [[strategy]]\nnetwork = 'on'\ncpus = 0.5\ndisk = '10%'";
    let layers = vec![file::parse(text).unwrap()];
    let settings = Settings::resolve(Program::Worker, layers, &host()).unwrap();
    let printed = print::render(&settings);
    insta::assert_snapshot!(printed);
    assert_eq!(worker(&printed).unwrap(), worker(text).unwrap());
}
