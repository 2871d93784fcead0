//! Slots, dispatch and drain.
