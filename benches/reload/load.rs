//! `reload run`: a closed loop of callers, each with one action at a time.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use boxwright::reapi::Digest;
use boxwright::reapi::proto::re;
use bytes::Bytes;
use clap::Args;
use prost::Message;
use serde_json::json;

use crate::client::{Client, Result, Source, digest};
use crate::measure::{Group, Machine, Resident, quantiles, round};
use crate::tree::Spec;
use crate::{check, layout, tree};

/// The phases of an action that its metadata tell of.
pub(crate) const PHASES: [&str; 5] = [
    "queued",
    "input_fetch",
    "execution",
    "output_upload",
    "in_worker",
];

#[derive(Args, Clone)]
pub(crate) struct Options {
    /// URL of a REAPI endpoint
    #[arg(long)]
    endpoint: String,
    #[arg(long, default_value = "main")]
    instance: String,
    /// The static program that runs in the actions
    #[arg(long)]
    helper: PathBuf,
    /// Copied to the output
    #[arg(long, default_value = "")]
    name: String,
    /// Input files of an action
    #[arg(long, default_value_t = 10)]
    files: u64,
    /// Bytes in each of them [default: as source code has]
    #[arg(long)]
    file_size: Option<u64>,
    /// The part of the files that is common to all actions; 1: one tree, 0: every tree is new
    #[arg(long, default_value_t = 1.0)]
    share: f64,
    /// Same seed, same trees
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The part of the input files that the command reads
    #[arg(long, default_value_t = 0.0)]
    read: f64,
    /// Output files of an action
    #[arg(long, default_value_t = 0)]
    pub(crate) outputs: u64,
    /// Bytes in each of them
    #[arg(long, default_value_t = 4096)]
    pub(crate) output_size: u64,
    #[arg(long, default_value_t = 100)]
    actions: u64,
    /// Actions before the clock starts
    #[arg(long, default_value_t = 0)]
    warmup: u64,
    /// Callers
    #[arg(long, default_value_t = 1)]
    concurrency: usize,
    /// No action is started after so many seconds
    #[arg(long, default_value_t = 60.0)]
    max_seconds: f64,
    /// Actions whose inputs and outputs are compared byte by byte after the clock stopped
    #[arg(long, default_value_t = 4)]
    sample: u64,
    /// Folder of the cgroup that the worker runs in
    #[arg(long)]
    cgroup: Option<PathBuf>,
}

impl Options {
    pub(crate) fn read_millionths(&self) -> u64 {
        (self.read * 1e6).round() as u64
    }

    fn command(&self, item: &Item) -> re::Command {
        let numbers = [
            self.files,
            self.read_millionths(),
            self.outputs,
            self.output_size,
            item.output_seed,
        ];
        re::Command {
            arguments: std::iter::once("./helper".to_owned())
                .chain(numbers.iter().map(u64::to_string))
                .collect(),
            output_paths: (0..self.outputs)
                .map(|i| format!("out/{}", layout::output_name(i)))
                .collect(),
            ..Default::default()
        }
    }
}

/// One action to run.
pub(crate) struct Item {
    action: Digest,
    pub(crate) tree: u64,
    pub(crate) output_seed: u64,
}

struct Done {
    item: usize,
    latency_ms: f64,
    phases_ms: [f64; PHASES.len()],
    command_cpu_ms: Option<f64>,
    /// Where its standard output is, if not in the result.
    stdout: Option<re::Digest>,
    sampled: Option<Box<re::ActionResult>>,
}

type Errors = Mutex<BTreeMap<String, u64>>;

fn count_error(errors: &Errors, text: &str) {
    let text = text.chars().take(240).collect();
    *errors.lock().expect("errors").entry(text).or_default() += 1;
}

/// Uploads all trees, commands and actions: (what to run, blobs, bytes).
async fn prepare(
    client: &Client,
    options: &Options,
    spec: &Spec,
) -> Result<(Vec<Item>, usize, u64)> {
    let helper = std::fs::read(&options.helper)
        .map_err(|e| format!("reading the helper {}: {e}", options.helper.display()))?;
    let helper = (digest(&helper), Bytes::from(helper));
    let total = options.warmup + options.actions;
    let trees = if options.share >= 1.0 { 1 } else { total };
    let (mut roots, mut blobs_sent, mut bytes_sent) = (Vec::new(), 0, 0);
    for number in 0..trees {
        let (root, blobs) = tree::build(spec, number, &helper);
        let (sent, bytes) = client.upload(0, blobs).await?;
        roots.push(root);
        blobs_sent += sent;
        bytes_sent += bytes;
    }
    // No action of this run equals one of another run.
    let run = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_err(|e| e.to_string())?
        .as_nanos() as u64;
    let (mut items, mut blobs) = (Vec::new(), Vec::new());
    for id in 0..total {
        let mut item = Item {
            action: digest(b""),
            tree: id % trees,
            output_seed: layout::mix(run ^ id),
        };
        let command = Bytes::from(options.command(&item).encode_to_vec());
        let action = re::Action {
            command_digest: Some(digest(&command).to_proto()),
            input_root_digest: Some(roots[item.tree as usize].to_proto()),
            salt: format!("{run:016x}-{id}").into(),
            ..Default::default()
        };
        let action = Bytes::from(action.encode_to_vec());
        item.action = digest(&action);
        for blob in [command, action] {
            blobs.push((digest(&blob), Source::Bytes(blob)));
        }
        items.push(item);
    }
    client.upload(0, blobs).await?;
    Ok((items, blobs_sent, bytes_sent))
}

/// Runs `items[range]` with the wanted number of callers.
async fn execute(
    client: &Client,
    options: &Options,
    items: &Arc<Vec<Item>>,
    range: std::ops::Range<u64>,
    errors: &Arc<Errors>,
) -> Vec<Done> {
    let next = Arc::new(AtomicU64::new(range.start));
    let start = Instant::now();
    let every = (range.end - range.start)
        .div_ceil(options.sample.max(1))
        .max(1);
    let mut callers = Vec::new();
    for lane in 0..options.concurrency {
        let (client, options, items, next, errors, range) = (
            client.clone(),
            options.clone(),
            items.clone(),
            next.clone(),
            errors.clone(),
            range.clone(),
        );
        callers.push(tokio::spawn(async move {
            let mut done = Vec::new();
            while start.elapsed().as_secs_f64() < options.max_seconds {
                let i = next.fetch_add(1, Ordering::Relaxed);
                if i >= range.end {
                    break;
                }
                let began = Instant::now();
                let response = client.execute(lane, items[i as usize].action).await;
                let latency_ms = began.elapsed().as_secs_f64() * 1e3;
                match response.and_then(|response| check::every(&options, response)) {
                    Ok((result, phases_ms)) => done.push(Done {
                        item: i as usize,
                        latency_ms,
                        phases_ms,
                        command_cpu_ms: check::command_cpu_ms(&result.stdout_raw),
                        stdout: result.stdout_digest.clone(),
                        sampled: ((i - range.start) % every == 0).then(|| Box::new(result)),
                    }),
                    Err(error) => count_error(&errors, &error),
                }
            }
            done
        }));
    }
    let mut all = Vec::new();
    for caller in callers {
        match caller.await {
            Ok(done) => all.extend(done),
            Err(error) => count_error(errors, &error.to_string()),
        }
    }
    all
}

/// Runs it all and prints the figures; false if anything was wrong with any action.
pub(crate) async fn run(options: Options) -> Result<bool> {
    let client = Client::connect(&options.endpoint, &options.instance).await?;
    let spec = Spec {
        files: options.files,
        file_size: options.file_size,
        share: options.share,
        seed: options.seed,
    };
    let (items, blobs, bytes) = prepare(&client, &options, &spec).await?;
    let items = Arc::new(items);
    let errors: Arc<Errors> = Arc::default();
    execute(&client, &options, &items, 0..options.warmup, &errors).await;

    let group = options.cgroup.clone().map(Group);
    // What the worker does after its last reply belongs to the actions before it.
    let settle = || tokio::time::sleep(Duration::from_millis(500));
    settle().await;
    let cpu_before = group.as_ref().map(Group::cpu);
    let machine_before = Machine::now();
    let peak = Arc::new(Mutex::new(Resident::default()));
    let over = Arc::new(AtomicBool::new(false));
    let watch = {
        let (group, peak, over) = (group.clone(), peak.clone(), over.clone());
        tokio::spawn(async move {
            while let Some(group) = &group
                && !over.load(Ordering::Relaxed)
            {
                let now = group.resident();
                peak.lock().expect("peak").peak(now);
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        })
    };
    let start = Instant::now();
    let range = options.warmup..options.warmup + options.actions;
    let mut done = execute(&client, &options, &items, range, &errors).await;
    let wall = start.elapsed().as_secs_f64();
    let machine = Machine::now().busy_since(&machine_before);
    over.store(true, Ordering::Relaxed);
    watch.await.map_err(|e| e.to_string())?;
    settle().await;
    let cpu = group
        .as_ref()
        .zip(cpu_before)
        .map(|(group, before)| group.cpu() - before);

    // Some workers send all output to the CAS, however short it is.
    for one in &mut done {
        if one.command_cpu_ms.is_none() && one.stdout.is_some() {
            let text = client.read(check::known(&one.stdout)?).await?;
            one.command_cpu_ms = check::command_cpu_ms(&text);
        }
    }
    let mut verified = 0;
    for one in &done {
        if let Some(result) = &one.sampled {
            match check::fully(&client, &options, &spec, &items[one.item], result).await {
                Ok(()) => verified += 1,
                Err(error) => count_error(&errors, &format!("verifying: {error}")),
            }
        }
    }
    let errors = errors.lock().expect("errors").clone();
    let phases: BTreeMap<_, _> = PHASES
        .iter()
        .enumerate()
        .map(|(i, name)| (*name, quantiles(done.iter().map(|one| one.phases_ms[i]))))
        .collect();
    let told: Vec<f64> = done.iter().filter_map(|one| one.command_cpu_ms).collect();
    let command_cpu = told.iter().sum::<f64>() / told.len() as f64;
    let peak = peak.lock().expect("peak").to_json();
    println!(
        "{}",
        json!({
            "name": options.name, "actions": done.len(), "concurrency": options.concurrency,
            "wall_s": round(wall), "actions_per_s": round(done.len() as f64 / wall),
            "latency_ms": quantiles(done.iter().map(|one| one.latency_ms)), "phases_ms": phases,
            "uploaded": {"blobs": blobs, "bytes": bytes},
            "cpu_ms_per_action": cpu.map(|s| round(s * 1e3 / done.len().max(1) as f64)),
            "command_cpu_ms": (told.len() == done.len()).then(|| round(command_cpu)),
            "resident_peak": peak, "machine_busy": machine,
            "verified": verified, "errors": errors,
        })
    );
    Ok(errors.is_empty() && !done.is_empty())
}
