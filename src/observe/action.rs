//! The one line that every action gets.

use std::time::{Duration, SystemTime};

use crate::action::Ending;
use crate::reapi::Digest;
use crate::sandbox::{Level, Usage};
use crate::scheduler::Lease;

/// What is known of an action that has ended. Phases that it did not reach took no time.
#[derive(Clone, Debug)]
pub struct ActionRecord {
    /// The Action's digest.
    pub digest: Option<Digest>,
    /// The lease's name.
    pub lease: String,
    /// The slot it ran in.
    pub slot: usize,
    /// The kind of action as the client calls it, such as `CppCompile`.
    pub mnemonic: String,
    /// What it belongs to, such as `//main:hello`.
    pub target: String,
    /// What stood between it and the host; `None` if it did not come that far.
    pub sandbox: Option<Level>,
    /// How it ended.
    pub ending: Ending,
    /// What its user is told beside that; empty if nothing.
    pub beside: String,
    /// From the client's request to the lease, as far as the scheduler told.
    pub queue: Option<Duration>,
    /// Reading and checking messages.
    pub resolve: Duration,
    /// Fetching inputs and showing them.
    pub stage: Duration,
    /// From the command's start to the death of its last process.
    pub execute: Duration,
    /// How much of that the command waited for inputs that were not local; `None` if they all were.
    pub stalled: Option<Duration>,
    /// Collecting and uploading outputs.
    pub publish: Duration,
    /// From lease to result.
    pub total: Duration,
    /// Files, directories and links in the input tree.
    pub input_files: u64,
    /// Bytes in the input tree.
    pub input_bytes: u64,
    /// Blobs of the result.
    pub output_blobs: u64,
    /// Their bytes.
    pub output_bytes: u64,
    /// What the command used.
    pub usage: Usage,
}

impl ActionRecord {
    /// The record of an action that was just leased.
    pub fn of(lease: &Lease, slot: usize) -> Self {
        let origin = lease.origin.as_ref();
        let queued = lease.metadata.queued_timestamp.as_ref();
        ActionRecord {
            digest: lease.action_digest,
            lease: lease.id.clone(),
            slot,
            mnemonic: origin.map_or_else(String::new, |origin| shorten(&origin.action_mnemonic)),
            target: origin.map_or_else(String::new, |origin| shorten(&origin.target_id)),
            sandbox: None,
            ending: Ending::Cancelled,
            beside: String::new(),
            queue: queued.and_then(since),
            resolve: Duration::ZERO,
            stage: Duration::ZERO,
            execute: Duration::ZERO,
            stalled: None,
            publish: Duration::ZERO,
            total: Duration::ZERO,
            input_files: 0,
            input_bytes: 0,
            output_blobs: 0,
            output_bytes: 0,
            usage: Usage::default(),
        }
    }
}

/// How long ago that was; `None` if it is no time, or the clocks disagree.
fn since(time: &prost_types::Timestamp) -> Option<Duration> {
    let then = SystemTime::try_from(*time).ok()?;
    SystemTime::now().duration_since(then).ok()
}

/// Names from clients may be of any length.
fn shorten(text: &str) -> String {
    text.chars().take(200).collect()
}

/// Logs the line: at info, or at warn if the failure is ours.
pub fn action_line(record: &ActionRecord) {
    let digest = match record.digest {
        Some(digest) => digest.to_string(),
        None => format!("of lease {}", shorten(&record.lease)),
    };
    let (exit, why) = match &record.ending {
        Ending::Exited(code) => (Some(*code), None),
        Ending::Signalled(signal) => (None, Some(format!("signal {signal}"))),
        Ending::TimedOut { after, .. } => (None, Some(format!("after {after:?}"))),
        Ending::LimitExceeded(why)
        | Ending::BadOutput(why)
        | Ending::Refused(why)
        | Ending::BadRequest(why)
        | Ending::Unsupported(why)
        | Ending::Infrastructure(why) => (None, Some(why.chars().take(1000).collect())),
        Ending::MissingInputs(missing) => {
            let first = missing.first().map_or_else(String::new, |blob| {
                format!(", the first is {} ({})", shorten(&blob.what), blob.digest)
            });
            (None, Some(format!("{} blobs{first}", missing.len())))
        }
        Ending::OutOfMemory { .. } | Ending::Cancelled | Ending::Preempted => (None, None),
    };
    let beside: String = record.beside.chars().take(1000).collect();
    let ms = |length: Duration| length.as_millis() as u64;
    let ran = record.usage != Usage::default();
    macro_rules! line {
        ($level:ident) => {
            tracing::$level!(
                mnemonic = some(&record.mnemonic),
                target_id = some(&record.target),
                class = record.ending.class(),
                exit,
                why,
                beside = some(&beside),
                slot = record.slot,
                sandbox = record.sandbox.map(Level::name),
                queue_ms = record.queue.map(ms),
                fetch_ms = ms(record.resolve + record.stage),
                exec_ms = ms(record.execute),
                stall_ms = record.stalled.map(ms),
                upload_ms = ms(record.publish),
                total_ms = ms(record.total),
                cpu_ms = ms(record.usage.user + record.usage.system),
                peak_kib = record.usage.peak_memory.map(|bytes| bytes / 1024),
                rss_kib = ran.then_some(record.usage.max_rss / 1024),
                read_bytes = record.usage.io.map(|io| io.read),
                written_bytes = record.usage.io.map(|io| io.written),
                usage_of = ran.then_some(record.usage.source.name()),
                files_in = record.input_files,
                bytes_in = record.input_bytes,
                blobs_out = record.output_blobs,
                bytes_out = record.output_bytes,
                "action {digest}"
            )
        };
    }
    match record.ending {
        Ending::Infrastructure(_) => line!(warn),
        _ => line!(info),
    }
}

fn some(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::super::format::{Style, tests::lines};
    use super::*;
    use crate::reapi::DigestFunction;
    use crate::reapi::proto::re;
    use crate::reapi::status::MissingBlob;
    use crate::sandbox::{Io, UsageSource};

    fn lease() -> Lease {
        Lease {
            id: "main/3e9f".into(),
            action: None,
            action_digest: Some(DigestFunction::Sha256.digest(b"action")),
            function: DigestFunction::Sha256,
            stdout_stream: String::new(),
            stderr_stream: String::new(),
            origin: Some(re::RequestMetadata {
                action_mnemonic: "CppCompile".into(),
                target_id: "//main:hello world".into(),
                ..Default::default()
            }),
            metadata: Default::default(),
        }
    }

    #[test]
    fn every_ending_has_one_line() {
        let blob = MissingBlob {
            digest: DigestFunction::Sha256.digest(b"x"),
            what: "input file src/a.c".into(),
        };
        let endings = [
            Ending::Exited(0),
            Ending::Exited(7),
            Ending::Signalled(11),
            Ending::TimedOut {
                after: Duration::from_secs(60),
                bound_of: "its action",
            },
            Ending::OutOfMemory {
                limit: Some(64 << 20),
            },
            Ending::LimitExceeded("more than 5 outputs".into()),
            Ending::BadOutput("output \"x\" is a directory".into()),
            Ending::Refused("no room".into()),
            Ending::BadRequest("output path \"../x\" leaves the input root".into()),
            Ending::Unsupported("network=off".into()),
            Ending::MissingInputs(vec![blob]),
            Ending::Infrastructure("disk on fire\n<0>".into()),
            Ending::Cancelled,
            Ending::Preempted,
        ];
        let used = Usage {
            user: Duration::from_millis(90),
            system: Duration::from_millis(20),
            max_rss: 10 << 20,
            peak_memory: Some(12 << 20),
            io: Some(Io {
                read: 0,
                written: 4_096,
            }),
            source: UsageSource::CgroupV2,
            ..Usage::default()
        };
        let text = lines(Style::Journal, || {
            for ending in endings {
                let ran = matches!(ending, Ending::Exited(_));
                action_line(&ActionRecord {
                    ending,
                    sandbox: ran.then_some(Level::Full),
                    beside: match ran {
                        true => "1 left out: \"d/a\nb\" (a named pipe)".into(),
                        false => String::new(),
                    },
                    queue: ran.then_some(Duration::from_millis(12)),
                    stage: Duration::from_millis(3),
                    execute: Duration::from_millis(if ran { 120 } else { 0 }),
                    stalled: ran.then_some(Duration::from_millis(45)),
                    publish: Duration::from_micros(4_900),
                    input_files: 20,
                    input_bytes: 81_920,
                    output_blobs: 1,
                    output_bytes: 4_096,
                    usage: if ran { used } else { Usage::default() },
                    ..ActionRecord::of(&lease(), 2)
                });
            }
            let nameless = Lease {
                action_digest: None,
                origin: None,
                ..lease()
            };
            action_line(&ActionRecord::of(&nameless, 0));
        });
        assert_eq!(text.lines().count(), 15);
        insta::assert_snapshot!(text);
    }
}
