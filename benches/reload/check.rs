//! Whether the results are right: a fast wrong worker wins nothing.

use boxwright::reapi::proto::re;
use boxwright::reapi::{Digest, DigestFunction};

use crate::client::{Client, Result, key_digest};
use crate::layout;
use crate::load::{Item, Options, PHASES};
use crate::tree::Spec;

fn span(from: &Option<prost_types::Timestamp>, to: &Option<prost_types::Timestamp>) -> f64 {
    let milliseconds = |t: &prost_types::Timestamp| t.seconds as f64 * 1e3 + t.nanos as f64 / 1e6;
    match (from, to) {
        (Some(from), Some(to)) => milliseconds(to) - milliseconds(from),
        _ => f64::NAN,
    }
}

/// What is checked of every result; gives the result and how long its phases took.
pub(crate) fn every(
    options: &Options,
    response: re::ExecuteResponse,
) -> Result<(re::ActionResult, [f64; PHASES.len()])> {
    let result = response.result.ok_or("no ActionResult")?;
    if result.exit_code != 0 {
        let stderr = String::from_utf8_lossy(&result.stderr_raw).into_owned();
        return Err(format!("exit code {}: {stderr}", result.exit_code));
    }
    if response.cached_result {
        return Err("a cached result in spite of skip_cache_lookup".to_owned());
    }
    if result.output_files.len() as u64 != options.outputs {
        return Err(format!(
            "{} output files instead of {}",
            result.output_files.len(),
            options.outputs
        ));
    }
    let metadata = result.execution_metadata.clone().unwrap_or_default();
    let phases = [
        span(&metadata.queued_timestamp, &metadata.worker_start_timestamp),
        span(
            &metadata.input_fetch_start_timestamp,
            &metadata.input_fetch_completed_timestamp,
        ),
        span(
            &metadata.execution_start_timestamp,
            &metadata.execution_completed_timestamp,
        ),
        span(
            &metadata.output_upload_start_timestamp,
            &metadata.output_upload_completed_timestamp,
        ),
        span(
            &metadata.worker_start_timestamp,
            &metadata.worker_completed_timestamp,
        ),
    ];
    Ok((result, phases))
}

/// What the command says on standard output that it used of a processor itself, in milliseconds.
pub(crate) fn command_cpu_ms(stdout: &[u8]) -> Option<f64> {
    let stdout = std::str::from_utf8(stdout).ok()?;
    let (_, microseconds) = stdout.trim_end().rsplit_once("cpu_us=")?;
    microseconds.parse::<f64>().ok().map(|us| us / 1e3)
}

pub(crate) fn known(digest: &Option<re::Digest>) -> Result<Digest> {
    Digest::from_proto(DigestFunction::Sha256, digest.as_ref()).map_err(|e| e.to_string())
}

/// What is checked of a sample: that the helper saw the right inputs, and that the outputs are in the CAS.
pub(crate) async fn fully(
    client: &Client,
    options: &Options,
    spec: &Spec,
    item: &Item,
    result: &re::ActionResult,
) -> Result<()> {
    let stdout = match &result.stdout_digest {
        Some(_) if result.stdout_raw.is_empty() => {
            client.read(known(&result.stdout_digest)?).await?
        }
        _ => result.stdout_raw.to_vec(),
    };
    let count = layout::read_count(spec.files, options.read_millionths());
    let (mut sum, mut bytes) = (0u64, 0u64);
    for i in 0..count {
        let j = layout::read_file(i, spec.files, count);
        let mut contents = vec![0; spec.size(j) as usize];
        layout::fill(spec.key(item.tree, j), 0, &mut contents);
        sum = sum.wrapping_add(layout::sum(&contents));
        bytes += contents.len() as u64;
    }
    let wanted = format!("sum={sum:016x} files={count} bytes={bytes} cpu_us=");
    let found = String::from_utf8_lossy(&stdout);
    if !found.starts_with(&wanted) {
        return Err(format!("stdout {found:?} instead of {wanted:?}"));
    }
    let mut files: Vec<_> = result.output_files.iter().collect();
    files.sort_by(|a, b| a.path.cmp(&b.path));
    for (i, file) in files.into_iter().enumerate() {
        let path = format!("out/{}", layout::output_name(i as u64));
        let key = layout::output_key(item.output_seed, i as u64);
        if file.path != path || known(&file.digest)? != key_digest(key, options.output_size) {
            return Err(format!("output {} is not what {path} should be", file.path));
        }
        // Twenty of an action's outputs are downloaded; the digests of all are compared.
        if (i as u64).is_multiple_of(options.outputs.div_ceil(20)) {
            client.read(known(&file.digest)?).await?;
        }
    }
    Ok(())
}
