//! The line that an action gets in the log. One test alone: what is logged is decided for the whole process, and other tests' threads
//! would have a say in it.

#[path = "common/action.rs"]
mod common;
#[path = "common/skipped.rs"]
mod skipped;

use boxwright::action::Ending;
use boxwright::reapi::proto::re;
use common::{Bench, sh};

#[tokio::test]
async fn what_is_told_beside_an_end_is_in_the_action_s_line_of_the_log() {
    let bench = Bench::new(|_| {});
    let (log, lines) = std::sync::mpsc::channel();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || Line(log.clone()))
        .finish();
    let logged = tracing::subscriber::set_default(subscriber);
    let command = re::Command {
        output_paths: vec!["d".into()],
        ..sh("mkdir d; mkfifo d/pipe")
    };
    let finished = bench.run(command, bench.root(&[])).await;
    assert_eq!(finished.ending, Ending::Exited(0), "{finished:?}");
    drop(logged);
    let text: String = lines.into_iter().collect();
    let beside = format!("beside={:?}", finished.message);
    assert!(
        text.contains(&beside) && beside.contains("d/pipe"),
        "{text}"
    );
}

/// A line of a log.
struct Line(std::sync::mpsc::Sender<String>);

impl std::io::Write for Line {
    fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
        let _ = self.0.send(String::from_utf8_lossy(text).into_owned());
        Ok(text.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
