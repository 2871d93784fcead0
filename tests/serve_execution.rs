//! The server executes: every Execute gets its one truthful end, whatever the worker, the client or another client does
//! meanwhile. The worker is played by the tests through the `Scheduler` door.

mod serve_support;

use std::time::Duration;

use boxwright::action::{Ending, Finished};
use boxwright::reapi::any::unpack;
use boxwright::reapi::proto::longrunning::operation::Result as Outcome;
use boxwright::reapi::proto::longrunning::{
    CancelOperationRequest, DeleteOperationRequest, GetOperationRequest, ListOperationsRequest,
    Operation, WaitOperationRequest,
};
use boxwright::reapi::proto::re::execution_stage::Value as Stage;
use boxwright::reapi::proto::{re, rpc};
use boxwright::reapi::status::{MissingBlob, from_call_status};
use boxwright::reapi::{Digest, time};
use boxwright::scheduler::{Drain, Event, Lease, Scheduler};
use prost::Message;
use serve_support::*;
use tonic::{Code, Request, Status, Streaming};

fn request(action: Digest) -> re::ExecuteRequest {
    re::ExecuteRequest {
        action_digest: Some(action.to_proto()),
        ..Default::default()
    }
}

async fn execute(
    server: &Standalone,
    request: re::ExecuteRequest,
) -> Result<Streaming<Operation>, Status> {
    Ok(server.execution().execute(request).await?.into_inner())
}

async fn next(stream: &mut Streaming<Operation>) -> Operation {
    tokio::time::timeout(PATIENCE, stream.message())
        .await
        .expect("the server is silent")
        .unwrap()
        .expect("the stream ended early")
}

fn metadata(operation: &Operation) -> re::ExecuteOperationMetadata {
    unpack(operation.metadata.as_ref().unwrap())
        .unwrap()
        .unwrap()
}

async fn until(stream: &mut Streaming<Operation>, stage: Stage) -> Operation {
    loop {
        let operation = next(stream).await;
        if metadata(&operation).stage == stage as i32 {
            return operation;
        }
        assert!(!operation.done, "{operation:?}");
    }
}

async fn end(stream: &mut Streaming<Operation>) -> re::ExecuteResponse {
    let operation = until(stream, Stage::Completed).await;
    assert!(stream.message().await.unwrap().is_none());
    response(operation)
}

fn response(operation: Operation) -> re::ExecuteResponse {
    assert!(operation.done);
    match operation.result {
        Some(Outcome::Response(any)) => unpack(&any).unwrap().unwrap(),
        other => panic!("{other:?}"),
    }
}

async fn event(server: &Standalone) -> Event {
    tokio::time::timeout(PATIENCE, server.scheduler.next())
        .await
        .expect("the scheduler is silent")
}

async fn lease(server: &Standalone) -> Lease {
    match event(server).await {
        Event::Lease(lease) => *lease,
        other => panic!("{other:?}"),
    }
}

/// There is no event now. What is known to have happened before has been taken into account by then.
fn nothing(server: &Standalone) {
    let next = server.scheduler.next();
    assert!(futures::FutureExt::now_or_never(next).is_none());
}

fn finished(ending: Ending) -> Finished {
    Finished {
        cacheable: ending == Ending::Exited(0),
        result: match ending {
            Ending::Exited(exit_code) => Some(re::ActionResult {
                exit_code,
                ..Default::default()
            }),
            _ => None,
        },
        ending,
        message: String::new(),
        details: Vec::new(),
        logs: Vec::new(),
        inputs: None,
    }
}

fn code(response: &re::ExecuteResponse) -> Code {
    Code::from_i32(response.status.as_ref().map_or(0, |status| status.code))
}

#[tokio::test]
async fn an_action_goes_through_its_stages_and_its_result_is_cached() {
    let server = standalone().await;
    let action = server.action("a", false);
    let mut asked = Request::new(request(action));
    let origin = re::RequestMetadata {
        target_id: "//:gen".into(),
        ..Default::default()
    };
    asked.metadata_mut().insert_bin(
        "build.bazel.remote.execution.v2.requestmetadata-bin",
        tonic::metadata::MetadataValue::from_bytes(&origin.encode_to_vec()),
    );
    let mut stream = server
        .execution()
        .execute(asked)
        .await
        .unwrap()
        .into_inner();
    until(&mut stream, Stage::Queued).await;
    let leased = lease(&server).await;
    assert_eq!(leased.action_digest, Some(action));
    let sent = re::Action::decode(leased.action.unwrap()).unwrap();
    assert_eq!(&sent.salt[..], b"a");
    assert_eq!(leased.origin.unwrap().target_id, "//:gen");
    assert!(leased.metadata.queued_timestamp.is_some());
    let told = metadata(&until(&mut stream, Stage::Executing).await);
    assert_eq!(told.stdout_stream_name, leased.stdout_stream);
    assert_eq!(told.stderr_stream_name, leased.stderr_stream);
    assert_eq!(told.action_digest, Some(action.to_proto()));
    assert_eq!(told.digest_function, 1);
    let fetched = time::now();
    let progress = re::ExecutedActionMetadata {
        worker: "w".into(),
        input_fetch_start_timestamp: Some(fetched),
        ..Default::default()
    };
    server.scheduler.progress(&leased.id, progress);
    let told = metadata(&next(&mut stream).await)
        .partial_execution_metadata
        .unwrap();
    assert_eq!(told.input_fetch_start_timestamp, Some(fetched));
    assert!(told.queued_timestamp.is_some());

    let mut done = finished(Ending::Exited(0));
    done.message = "see the log".into();
    server.scheduler.complete(&leased.id, done);
    let first = end(&mut stream).await;
    assert_eq!(code(&first), Code::Ok);
    assert!(!first.cached_result);
    assert_eq!(first.message, "see the log");
    let result = first.result.unwrap();
    let stamps = result.execution_metadata.clone().unwrap();
    assert!(stamps.queued_timestamp.is_some());
    assert!(stamps.worker_start_timestamp.is_some());
    assert!(stamps.worker_completed_timestamp.is_some());

    let mut again = execute(&server, request(action)).await.unwrap();
    let cached = end(&mut again).await;
    assert!(cached.cached_result);
    assert_eq!(cached.result.unwrap(), result);
    // Unless the client wants it run.
    let mut skipping = request(action);
    skipping.skip_cache_lookup = true;
    let mut stream = execute(&server, skipping).await.unwrap();
    let leased = lease(&server).await;
    server
        .scheduler
        .complete(&leased.id, finished(Ending::Exited(0)));
    assert!(!end(&mut stream).await.cached_result);
}

#[tokio::test]
async fn nothing_but_a_clean_exit_is_cached() {
    let server = standalone().await;
    let cacheable = server.action("cacheable", false);
    let not = server.action("not", true);
    for (action, ending) in [
        (cacheable, Ending::Exited(7)),
        (cacheable, Ending::Infrastructure("disk".into())),
        (
            cacheable,
            Ending::TimedOut {
                after: Duration::from_secs(1),
                bound_of: "its action",
            },
        ),
        (not, Ending::Exited(0)),
    ] {
        let mut stream = execute(&server, request(action)).await.unwrap();
        let mut done = finished(ending.clone());
        done.cacheable = true;
        loop {
            tokio::select! {
                event = server.scheduler.next() => match event {
                    Event::Lease(lease) => server.scheduler.complete(&lease.id, done.clone()),
                    other => panic!("{other:?}"),
                },
                told = end(&mut stream) => {
                    assert_eq!(told.result.is_some(), matches!(ending, Ending::Exited(_)));
                    break;
                }
            }
        }
        assert!(server.cache.is_empty(), "{ending:?}");
    }
}

#[tokio::test]
async fn an_evicted_output_makes_a_cached_result_a_miss() {
    let server = standalone().await;
    let action = server.action("a", false);
    let output = server.keep(b"an output");
    let mut done = finished(Ending::Exited(0));
    done.result = Some(re::ActionResult {
        output_files: vec![re::OutputFile {
            path: "out".into(),
            digest: Some(output.to_proto()),
            ..Default::default()
        }],
        ..Default::default()
    });
    for turn in 0..2 {
        let mut stream = execute(&server, request(action)).await.unwrap();
        let leased = lease(&server).await;
        server.keep(b"an output");
        server.scheduler.complete(&leased.id, done.clone());
        assert!(!end(&mut stream).await.cached_result, "{turn}");
        let mut cached = execute(&server, request(action)).await.unwrap();
        assert!(end(&mut cached).await.cached_result, "{turn}");
        server.lose(output);
    }
}

#[tokio::test]
async fn what_is_missing_is_told_with_violations() {
    let server = standalone().await;
    let absent = sha(b"absent");
    let error = execute(&server, request(absent)).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    let details = from_call_status(&error).details;
    let failure: rpc::PreconditionFailure = unpack(&details[0]).unwrap().unwrap();
    assert_eq!(failure.violations[0].r#type, "MISSING");
    assert_eq!(failure.violations[0].subject, format!("blobs/{absent}"));

    let mut stream = execute(&server, request(server.action("a", false)))
        .await
        .unwrap();
    let leased = lease(&server).await;
    let missing = (0..3u8)
        .map(|i| MissingBlob {
            digest: sha(&[i]),
            what: format!("input file {i}"),
        })
        .collect();
    server
        .scheduler
        .complete(&leased.id, finished(Ending::MissingInputs(missing)));
    let told = end(&mut stream).await;
    assert_eq!(code(&told), Code::FailedPrecondition);
    let failure: rpc::PreconditionFailure =
        unpack(&told.status.unwrap().details[0]).unwrap().unwrap();
    assert_eq!(failure.violations.len(), 3);
    assert!(told.result.is_none());
}

#[tokio::test]
async fn a_bad_request_names_the_field() {
    let server = standalone().await;
    let garbage = server.keep(b"\xff\xff\xff");
    let empty = server.keep(
        &re::Action {
            salt: "x".into(),
            ..Default::default()
        }
        .encode_to_vec(),
    );
    let mut function = request(garbage);
    function.digest_function = 3;
    let mut instance = request(garbage);
    instance.instance_name = "a/operations".into();
    for (request, field) in [
        (re::ExecuteRequest::default(), "action_digest"),
        (request(garbage), "action_digest"),
        (request(empty), "action_digest"),
        (function, "digest_function"),
        (instance, "instance_name"),
    ] {
        let error = execute(&server, request).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        assert!(error.message().starts_with(field), "{error}");
    }
    nothing(&server);
}

#[tokio::test]
async fn equal_actions_in_flight_run_once_unless_they_may_not_be_cached() {
    let server = standalone().await;
    let shared = server.action("shared", false);
    let mut first = execute(&server, request(shared)).await.unwrap();
    let leased = lease(&server).await;
    let mut second = execute(&server, request(shared)).await.unwrap();
    let one = until(&mut first, Stage::Executing).await;
    let two = until(&mut second, Stage::Executing).await;
    assert_ne!(one.name, two.name);
    nothing(&server);
    server
        .scheduler
        .complete(&leased.id, finished(Ending::Exited(3)));
    for stream in [&mut first, &mut second] {
        assert_eq!(end(stream).await.result.unwrap().exit_code, 3);
    }

    let alone = server.action("alone", true);
    let _first = execute(&server, request(alone)).await.unwrap();
    let _second = execute(&server, request(alone)).await.unwrap();
    let leases = [lease(&server).await, lease(&server).await];
    assert_eq!(leases.map(|lease| lease.action_digest), [Some(alone); 2]);
}

#[tokio::test]
async fn no_more_is_leased_than_there_are_slots_and_lower_priorities_first() {
    let server = standalone_with(|_| {}, |config| config.slots = 1).await;
    let mut streams = Vec::new();
    let mut busy = execute(&server, request(server.action("busy", true)))
        .await
        .unwrap();
    let first = lease(&server).await;
    for (name, priority) in [("a", 0), ("b", 5), ("c", -1), ("d", 0)] {
        let mut request = request(server.action(name, true));
        request.execution_policy = Some(re::ExecutionPolicy { priority });
        let mut stream = execute(&server, request).await.unwrap();
        until(&mut stream, Stage::Queued).await;
        streams.push(stream);
    }
    nothing(&server);
    server
        .scheduler
        .complete(&first.id, finished(Ending::Exited(0)));
    end(&mut busy).await;
    for name in ["c", "a", "d", "b"] {
        let leased = lease(&server).await;
        assert_eq!(leased.action_digest, Some(server.action(name, true)));
        nothing(&server);
        server
            .scheduler
            .complete(&leased.id, finished(Ending::Exited(0)));
    }
}

#[tokio::test]
async fn an_unwell_worker_gets_nothing() {
    let server = standalone().await;
    server.scheduler.health(Some("the disk is full".into()));
    let mut stream = execute(&server, request(server.action("a", false)))
        .await
        .unwrap();
    until(&mut stream, Stage::Queued).await;
    nothing(&server);
    server.scheduler.health(None);
    lease(&server).await;
}

#[tokio::test]
async fn a_failure_of_the_worker_is_tried_again_a_few_times() {
    let server = standalone().await;
    let mut stream = execute(&server, request(server.action("a", false)))
        .await
        .unwrap();
    let mut names = std::collections::HashSet::new();
    for _ in 0..3 {
        let leased = lease(&server).await;
        assert!(names.insert(leased.stdout_stream));
        assert!(names.insert(leased.id.clone()));
        let failed = finished(Ending::Infrastructure("no disk".into()));
        server.scheduler.complete(&leased.id, failed);
    }
    let told = end(&mut stream).await;
    assert_eq!(code(&told), Code::Unavailable);
    assert!(told.status.unwrap().message.contains("no disk"));
    nothing(&server);
}

#[tokio::test]
async fn cancelling_the_last_operation_kills_the_action() {
    let server = standalone().await;
    let action = server.action("a", false);
    let mut first = execute(&server, request(action)).await.unwrap();
    let mut second = execute(&server, request(action)).await.unwrap();
    let leased = lease(&server).await;
    let mut operations = server.operations();
    let cancel = |operation: &Operation| CancelOperationRequest {
        name: operation.name.clone(),
    };
    let one = until(&mut first, Stage::Executing).await;
    let two = until(&mut second, Stage::Executing).await;
    operations.cancel_operation(cancel(&one)).await.unwrap();
    let ended = until(&mut first, Stage::Completed).await;
    assert!(matches!(ended.result, Some(Outcome::Error(status)) if status.code == 1));
    // The other client still wants it.
    nothing(&server);
    let mut third = server
        .execution()
        .wait_execution(re::WaitExecutionRequest {
            name: two.name.clone(),
        })
        .await
        .unwrap()
        .into_inner();
    operations.cancel_operation(cancel(&two)).await.unwrap();
    assert!(matches!(event(&server).await, Event::Revoked(id) if id == leased.id));
    for stream in [&mut second, &mut third] {
        let ended = until(stream, Stage::Completed).await;
        assert!(matches!(ended.result, Some(Outcome::Error(status)) if status.code == 1));
    }
    // A late report is ignored, and the next one starts anew.
    server
        .scheduler
        .complete(&leased.id, finished(Ending::Exited(0)));
    assert!(server.cache.is_empty());
    let _again = execute(&server, request(action)).await.unwrap();
    assert_ne!(lease(&server).await.id, leased.id);

    let unknown = CancelOperationRequest {
        name: "operations/x".into(),
    };
    let error = operations.cancel_operation(unknown).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
}

#[tokio::test]
async fn a_cancelled_action_that_was_queued_never_runs() {
    let server = standalone_with(|_| {}, |config| config.slots = 1).await;
    let _busy = execute(&server, request(server.action("busy", false)))
        .await
        .unwrap();
    let running = lease(&server).await;
    let mut stream = execute(&server, request(server.action("a", false)))
        .await
        .unwrap();
    let name = until(&mut stream, Stage::Queued).await.name;
    server
        .operations()
        .cancel_operation(CancelOperationRequest { name })
        .await
        .unwrap();
    assert!(matches!(
        until(&mut stream, Stage::Completed).await.result,
        Some(Outcome::Error(_))
    ));
    server
        .scheduler
        .complete(&running.id, finished(Ending::Exited(0)));
    nothing(&server);
}

#[tokio::test]
async fn a_client_that_went_away_finds_its_operation_again() {
    let server = standalone().await;
    let mut stream = execute(&server, request(server.action("a", false)))
        .await
        .unwrap();
    let leased = lease(&server).await;
    let name = until(&mut stream, Stage::Executing).await.name;
    drop(stream);
    let wait = |name: &str| re::WaitExecutionRequest {
        name: name.to_owned(),
    };
    let mut back = server
        .execution()
        .wait_execution(wait(&name))
        .await
        .unwrap()
        .into_inner();
    until(&mut back, Stage::Executing).await;
    server
        .scheduler
        .complete(&leased.id, finished(Ending::Exited(5)));
    assert_eq!(end(&mut back).await.result.unwrap().exit_code, 5);
    // Finished operations are kept, under an instance name as well.
    let name = format!("main/{name}");
    let mut late = server
        .execution()
        .wait_execution(wait(&name))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(end(&mut late).await.result.unwrap().exit_code, 5);
    let error = server
        .execution()
        .wait_execution(wait("nothing"))
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
}

#[tokio::test]
async fn a_queued_action_that_nobody_waits_for_is_given_up() {
    let server = standalone_with(
        |_| {},
        |config| {
            config.slots = 1;
            config.abandoned_after = Duration::ZERO;
        },
    )
    .await;
    let mut busy = execute(&server, request(server.action("busy", false)))
        .await
        .unwrap();
    let running = lease(&server).await;
    let mut left = execute(&server, request(server.action("left", false)))
        .await
        .unwrap();
    let name = until(&mut left, Stage::Queued).await.name;
    let mut kept = execute(&server, request(server.action("kept", false)))
        .await
        .unwrap();
    until(&mut kept, Stage::Queued).await;
    drop(left);
    tokio::time::timeout(PATIENCE, async {
        while server.scheduler.watchers(&name) != Some(0) {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    server
        .scheduler
        .complete(&running.id, finished(Ending::Exited(0)));
    end(&mut busy).await;
    let leased = lease(&server).await;
    assert_eq!(leased.action_digest, Some(server.action("kept", false)));
    let gone = server
        .operations()
        .get_operation(GetOperationRequest { name })
        .await
        .unwrap();
    assert!(matches!(gone.into_inner().result, Some(Outcome::Error(status)) if status.code == 1));
}

#[tokio::test]
async fn a_full_queue_refuses() {
    let server = standalone_with(|_| {}, |config| config.max_open = 2).await;
    let _one = execute(&server, request(server.action("1", false)))
        .await
        .unwrap();
    let mut two = execute(&server, request(server.action("2", false)))
        .await
        .unwrap();
    let name = next(&mut two).await.name;
    for action in ["2", "3"] {
        let error = execute(&server, request(server.action(action, false)))
            .await
            .unwrap_err();
        assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
    }
    server
        .operations()
        .cancel_operation(CancelOperationRequest { name })
        .await
        .unwrap();
    execute(&server, request(server.action("3", false)))
        .await
        .unwrap();
}

#[tokio::test]
async fn silence_is_broken_so_that_no_proxy_cuts_the_stream() {
    let server = standalone_with(
        |config| config.keep_alive = Duration::from_millis(10),
        |_| {},
    )
    .await;
    let mut stream = execute(&server, request(server.action("a", false)))
        .await
        .unwrap();
    let first = until(&mut stream, Stage::Queued).await;
    for _ in 0..3 {
        assert_eq!(next(&mut stream).await, first);
    }
}

#[tokio::test]
async fn live_output_is_followed_while_the_action_runs() {
    let server = standalone().await;
    let mut stream = execute(&server, request(server.action("a", false)))
        .await
        .unwrap();
    let leased = lease(&server).await;
    let name = metadata(&until(&mut stream, Stage::Executing).await).stdout_stream_name;
    let sink = server.scheduler.stream_sink(&leased.stdout_stream).unwrap();
    sink.write(b"hello ");
    let mut reader = server
        .bytes()
        .read(boxwright::reapi::proto::bytestream::ReadRequest {
            resource_name: name.clone(),
            ..Default::default()
        })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        &reader.message().await.unwrap().unwrap().data[..],
        b"hello "
    );
    sink.write(b"world");
    assert_eq!(&reader.message().await.unwrap().unwrap().data[..], b"world");
    let part = server.read(&format!("main/{name}"), 6, 3).await.unwrap();
    assert_eq!(part, b"wor");
    server
        .scheduler
        .complete(&leased.id, finished(Ending::Exited(0)));
    assert!(reader.message().await.unwrap().is_none());
    assert_eq!(server.read(&name, 6, 0).await.unwrap(), b"world");
    let error = server.read(&name, 100, 0).await.unwrap_err();
    assert_eq!(error.code(), Code::OutOfRange);
    let error = server.read("logStreams/x/stdout", 0, 0).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
}

#[tokio::test]
async fn output_is_inlined_into_the_response_when_asked_for() {
    let server = standalone().await;
    let mut asked = request(server.action("a", false));
    asked.inline_stdout = true;
    let mut stream = execute(&server, asked).await.unwrap();
    let leased = lease(&server).await;
    let mut done = finished(Ending::Exited(0));
    done.result = Some(re::ActionResult {
        stdout_digest: Some(server.keep(b"to stdout").to_proto()),
        stderr_digest: Some(server.keep(b"to stderr").to_proto()),
        ..Default::default()
    });
    server.scheduler.complete(&leased.id, done);
    let result = end(&mut stream).await.result.unwrap();
    assert_eq!(&result.stdout_raw[..], b"to stdout");
    assert!(result.stderr_raw.is_empty());
}

#[tokio::test]
async fn operations_are_listed_waited_for_and_deleted() {
    let server = standalone().await;
    let mut names = Vec::new();
    let mut streams = Vec::new();
    for i in 0..5 {
        let action = server.action(&i.to_string(), false);
        let mut stream = execute(&server, request(action)).await.unwrap();
        names.push(next(&mut stream).await.name);
        streams.push(stream);
    }
    names.sort();
    let mut operations = server.operations();
    let (mut listed, mut page_token) = (Vec::new(), String::new());
    loop {
        let page = operations
            .list_operations(ListOperationsRequest {
                page_size: 2,
                page_token,
                ..Default::default()
            })
            .await
            .unwrap()
            .into_inner();
        listed.extend(page.operations.into_iter().map(|operation| operation.name));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(listed, names);

    let leased = lease(&server).await;
    let name = match leased.action_digest {
        Some(digest) => {
            let all = operations
                .list_operations(ListOperationsRequest::default())
                .await
                .unwrap();
            let all = all.into_inner().operations;
            let held = all
                .iter()
                .find(|o| metadata(o).action_digest == Some(digest.to_proto()));
            held.unwrap().name.clone()
        }
        None => panic!("a lease without its action"),
    };
    let wait = |timeout| WaitOperationRequest {
        name: name.clone(),
        timeout,
    };
    let short = Some(time::duration(Duration::from_millis(5)));
    assert!(
        !operations
            .wait_operation(wait(short))
            .await
            .unwrap()
            .into_inner()
            .done
    );
    let delete = DeleteOperationRequest { name: name.clone() };
    let error = operations
        .delete_operation(delete.clone())
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    let mut other = server.operations();
    let (done, ()) = tokio::join!(other.wait_operation(wait(None)), async {
        server
            .scheduler
            .complete(&leased.id, finished(Ending::Exited(4)));
    });
    let done = response(done.unwrap().into_inner());
    assert_eq!(done.result.unwrap().exit_code, 4);
    operations.delete_operation(delete).await.unwrap();
    let error = operations
        .get_operation(GetOperationRequest { name })
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
}

#[tokio::test]
async fn finished_operations_are_kept_in_bounded_number() {
    let server = standalone_with(|_| {}, |config| config.kept = 3).await;
    let mut names = Vec::new();
    for i in 0..5 {
        let action = server.action(&i.to_string(), true);
        let mut stream = execute(&server, request(action)).await.unwrap();
        let leased = lease(&server).await;
        server
            .scheduler
            .complete(&leased.id, finished(Ending::Exited(0)));
        let ended = until(&mut stream, Stage::Completed).await;
        names.push(ended.name);
    }
    let known = names
        .iter()
        .map(|name| server.scheduler.watch(name).is_some());
    assert_eq!(known.collect::<Vec<_>>(), [false, false, true, true, true]);
}

#[tokio::test]
async fn a_drain_finishes_what_runs_and_refuses_the_rest() {
    let server = standalone_with(|_| {}, |config| config.slots = 1).await;
    let mut running = execute(&server, request(server.action("running", false)))
        .await
        .unwrap();
    let leased = lease(&server).await;
    let mut queued = execute(&server, request(server.action("queued", false)))
        .await
        .unwrap();
    until(&mut queued, Stage::Queued).await;
    server.scheduler.drain(Drain::Finish);
    assert_eq!(code(&end(&mut queued).await), Code::Unavailable);
    let error = execute(&server, request(server.action("new", false)))
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    nothing(&server);
    server
        .scheduler
        .complete(&leased.id, finished(Ending::Exited(0)));
    assert!(matches!(event(&server).await, Event::Drained));
    assert_eq!(code(&end(&mut running).await), Code::Ok);
    assert_eq!(server.cache.len(), 1);

    let server = standalone().await;
    let mut running = execute(&server, request(server.action("running", false)))
        .await
        .unwrap();
    let leased = lease(&server).await;
    server.scheduler.drain(Drain::GiveBack);
    server
        .scheduler
        .complete(&leased.id, finished(Ending::Preempted));
    assert!(matches!(event(&server).await, Event::Drained));
    assert_eq!(code(&end(&mut running).await), Code::Unavailable);
}

#[tokio::test]
async fn many_clients_at_once_all_get_their_end() {
    let server = standalone_with(|_| {}, |config| config.slots = 8).await;
    let scheduler = server.scheduler.clone();
    let worker = tokio::spawn(async move {
        while let Event::Lease(lease) = scheduler.next().await {
            let scheduler = scheduler.clone();
            tokio::spawn(async move {
                tokio::task::yield_now().await;
                scheduler.complete(&lease.id, finished(Ending::Exited(0)));
            });
        }
    });
    let clients = (0..300).map(|i| {
        let server = &server;
        // Every third action is asked for three times.
        let action = server.action(&(i / 3).to_string(), i % 2 == 0);
        async move {
            let mut stream = execute(server, request(action)).await.unwrap();
            end(&mut stream).await
        }
    });
    for told in futures::future::join_all(clients).await {
        assert_eq!(code(&told), Code::Ok);
    }
    assert_eq!(server.scheduler.open(), 0);
    worker.abort();
}

#[tokio::test]
async fn a_result_that_no_message_holds_is_told_in_words_and_not_cached() {
    let server = standalone().await;
    let action = server.action("vast", false);
    let mut stream = execute(&server, request(action)).await.unwrap();
    let id = lease(&server).await.id;
    let mut vast = finished(Ending::Exited(0));
    let file = re::OutputFile {
        path: "out/with/a/name/that/is/as/long/as/names/of/outputs/are/now/and/then".into(),
        digest: Some(Digest::empty(boxwright::reapi::DigestFunction::Sha256).to_proto()),
        ..Default::default()
    };
    vast.result.as_mut().unwrap().output_files = vec![file; 80_000];
    server.scheduler.complete(&id, vast);
    let response = end(&mut stream).await;
    assert_eq!(code(&response), Code::FailedPrecondition);
    let said = response.status.unwrap().message;
    assert!(said.contains("declare fewer outputs"), "{said}");
    // The next one who asks has it executed again.
    let mut stream = execute(&server, request(action)).await.unwrap();
    let id = lease(&server).await.id;
    server.scheduler.complete(&id, finished(Ending::Exited(0)));
    assert_eq!(code(&end(&mut stream).await), Code::Ok);
}
