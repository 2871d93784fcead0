//! The line that an action gets in the log. One test alone: what is logged is decided for the whole process, and other tests' threads
//! would have a say in it.

#[path = "common/action.rs"]
mod common;
#[path = "common/log.rs"]
mod log;
#[path = "common/skipped.rs"]
mod skipped;

use boxwright::action::Ending;
use boxwright::reapi::proto::re;
use common::{Bench, sh};
use log::Log;

#[tokio::test]
async fn what_is_told_beside_an_end_is_in_the_action_s_line_of_the_log() {
    let bench = Bench::new(|_| {});
    let log = Log::default();
    let logged = tracing::subscriber::set_default(log.clone().subscriber());
    let command = re::Command {
        output_paths: vec!["d".into()],
        ..sh("mkdir d; mkfifo d/pipe")
    };
    let finished = bench.run(command, bench.root(&[])).await;
    assert_eq!(finished.ending, Ending::Exited(0), "{finished:?}");
    drop(logged);
    let text = log.text();
    let beside = format!("beside={:?}", finished.message);
    assert!(
        text.contains(&beside) && beside.contains("d/pipe"),
        "{text}"
    );
}
