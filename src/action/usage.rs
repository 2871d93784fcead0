//! What a command used, as part of its result: in BuildBox's form, and in a message of our own for what that has no field
//! for. BuildGrid reads BuildBox's form for its metering, but only by way of a blob in the CAS; who has no such blob to follow
//! reads the message that is in the result itself.

use bytes::Bytes;
use prost::Message;
use prost_types::Any;

use crate::reapi::any::pack;
use crate::reapi::proto::boxwright::CommandUsage;
use crate::reapi::proto::buildbox::ExecutionStatistics;
use crate::reapi::proto::buildbox::execution_statistics::ProcessResourceUsage;
use crate::reapi::{Digest, DigestFunction, time};
use crate::sandbox::Usage;

/// The messages for `ExecutedActionMetadata.auxiliary_metadata`.
pub(super) fn messages(usage: &Usage) -> [Any; 2] {
    [pack(&statistics(usage)), pack(&own(usage))]
}

/// The same as a blob, as BuildGrid wants it: an `Any` of the statistics, named by an `Any` of its Digest among the messages.
pub(super) fn blob(usage: &Usage, function: DigestFunction) -> (Digest, Bytes, Any) {
    let content = Bytes::from(pack(&statistics(usage)).encode_to_vec());
    let digest = function.digest(&content);
    (digest, content, pack(&digest.to_proto()))
}

/// BuildBox's form is that of `getrusage`. CPU time is the most complete that is known, memory is that of one process, in KiB.
fn statistics(usage: &Usage) -> ExecutionStatistics {
    let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    ExecutionStatistics {
        command_rusage: Some(ProcessResourceUsage {
            utime: Some(time::duration(usage.user)),
            stime: Some(time::duration(usage.system)),
            maxrss: signed(usage.max_rss / 1024),
            minflt: signed(usage.minor_faults),
            majflt: signed(usage.major_faults),
            inblock: signed(usage.blocks_in),
            oublock: signed(usage.blocks_out),
            nvcsw: signed(usage.voluntary_switches),
            nivcsw: signed(usage.involuntary_switches),
        }),
    }
}

fn own(usage: &Usage) -> CommandUsage {
    CommandUsage {
        source: usage.source.name().into(),
        user_time: Some(time::duration(usage.user)),
        system_time: Some(time::duration(usage.system)),
        peak_memory_bytes: usage.peak_memory,
        largest_process_bytes: usage.max_rss,
        read_bytes: usage.io.map(|io| io.read),
        written_bytes: usage.io.map(|io| io.written),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reapi::any::unpack;
    use crate::sandbox::{Io, UsageSource};
    use std::time::Duration;

    #[test]
    fn every_figure_is_in_one_of_the_messages() {
        let usage = Usage {
            user: Duration::from_millis(1500),
            system: Duration::from_millis(250),
            max_rss: 10 << 20,
            minor_faults: 1,
            major_faults: 2,
            blocks_in: 3,
            blocks_out: 4,
            voluntary_switches: 5,
            involuntary_switches: 6,
            peak_memory: Some(20 << 20),
            io: Some(Io {
                read: 7,
                written: 8,
            }),
            source: UsageSource::CgroupV2,
        };
        let [statistics, own] = messages(&usage);
        assert!(
            statistics
                .type_url
                .ends_with("/build.buildbox.ExecutionStatistics")
        );
        let statistics: ExecutionStatistics = unpack(&statistics).unwrap().unwrap();
        insta::assert_debug_snapshot!(statistics);
        assert!(own.type_url.ends_with("/boxwright.CommandUsage"));
        let own: CommandUsage = unpack(&own).unwrap().unwrap();
        insta::assert_debug_snapshot!(own);
    }

    #[test]
    fn what_is_not_known_is_not_zero() {
        let own = own(&Usage::default());
        assert_eq!(own.source, "wait4");
        assert_eq!(own.peak_memory_bytes, None);
        assert_eq!((own.read_bytes, own.written_bytes), (None, None));
    }
}
