//! What a hostile action tries, tried: every attempt of the probe program (`probe/`), at every sandbox level, with what
//! must come of it (`expected`).
//!
//! An attempt that fails proves nothing if it fails everywhere. So each is made outside of any sandbox first, where it
//! must succeed, and in bubblewrap as another worker starts it, to see what difference we make. Attempts on the daemon's
//! own work with files and messages are not here but in `outputs_hostile`, `tree_limits`, `staged_inputs` and
//! `serve_execution`; docs/THREATS.md names the test of each threat.

// The bench of the runner's own tests.
#[path = "../common/action.rs"]
mod action;
mod attempt;
mod expected;
mod inputs;
mod leaks;
mod outputs;
mod place;
mod row;
#[path = "../common/skipped.rs"]
mod skipped;
mod starting;
mod staying;
mod taking;
mod unconfined;
mod world;

use place::Place;
use world::{User, World, enter};

/// Makes every attempt in one place, and says all that came out otherwise.
async fn everything(place: Place) {
    let world = World::here();
    let Some(sandbox) = place::sandbox(place, &world) else {
        place::tell_absent(place);
        return;
    };
    let lab = attempt::Lab::new(place, sandbox, world);
    let mut surprises = row::all(&lab).await;
    surprises.extend(staying::all(&lab).await);
    surprises.extend(leaks::all(&lab).await);
    surprises.extend(starting::all(&lab).await);
    surprises.extend(taking::all(&lab).await);
    surprises.extend(inputs::all(&lab).await);
    surprises.extend(outputs::all(&lab).await);
    let count = surprises.len();
    assert!(
        surprises.is_empty(),
        "{place:?}: {count} surprises\n{}",
        surprises.join("\n")
    );
}

/// Says where it is to who carries it elsewhere (`tests/vm`).
#[test]
fn the_probe_compiles() {
    println!("probe: {}", world::compiled().display());
}

#[test]
fn outside_every_attempt_succeeds() {
    enter("outside_every_attempt_succeeds", User::Same, async || {
        everything(Place::OutsideUser).await;
        everything(Place::OutsideRoot).await;
    });
}

#[test]
fn level_process() {
    enter("level_process", User::Same, async || {
        everything(Place::Process).await
    });
}

#[test]
fn level_full_as_root() {
    enter("level_full_as_root", User::Same, async || {
        everything(Place::FullRoot).await
    });
}

#[test]
fn level_full_without_root() {
    enter("level_full_without_root", User::Ordinary, async || {
        everything(Place::FullRootless).await;
    });
}

#[test]
fn bubblewrap() {
    enter("bubblewrap", User::Same, async || {
        everything(Place::Bubblewrap).await
    });
}
