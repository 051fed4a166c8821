//! Progress and cancellation of a job.
//!
//! Worker threads add to counters, and the observer polls them. No worker calls back into the caller.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::error::{Error, Result};

/// A stage of a job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Reading headers and checking options.
    #[default]
    Open,
    /// Generating the token windows of the probe with the model.
    Write,
    /// The forward pass of the probe.
    Probe,
    /// The backward pass of the probe.
    Gradients,
    /// Reading all weights once: checking that they are finite, and measuring energies.
    Measure,
    /// Encoding sampled rows in every scheme.
    Curves,
    /// Choosing schemes.
    Plan,
    /// Running the model for error feedback, layer by layer, and encoding the matrices of each.
    Feedback,
    /// Checking what an earlier run has written.
    Resume,
    /// Encoding and writing.
    Encode,
    /// Reading back what was written.
    Verify,
    /// Running models to compare them.
    Eval,
}

/// The state of a job at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Snapshot {
    /// The current stage.
    pub stage: Stage,
    /// Bytes of this stage that are done.
    pub done_bytes: u64,
    /// Bytes of this stage in all; 0 if unknown.
    pub total_bytes: u64,
}

/// The counters of a job, shared between its threads and the observer.
#[derive(Debug, Default)]
pub struct Progress {
    stage: Mutex<(Stage, u64)>,
    done_bytes: AtomicU64,
    cancelled: AtomicBool,
    warnings: Mutex<Vec<String>>,
}

impl Progress {
    /// Starts a stage of `total_bytes`.
    pub fn begin(&self, stage: Stage, total_bytes: u64) {
        let mut now = lock(&self.stage);
        self.done_bytes.store(0, Ordering::Relaxed);
        *now = (stage, total_bytes);
    }

    /// Adds `bytes` to the total of the stage.
    pub fn extend(&self, bytes: u64) {
        lock(&self.stage).1 += bytes;
    }

    /// Counts `bytes` of the stage as done.
    pub fn advance(&self, bytes: u64) {
        self.done_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The current state.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let (stage, total_bytes) = *lock(&self.stage);
        Snapshot { stage, done_bytes: self.done_bytes.load(Ordering::Relaxed), total_bytes }
    }

    /// Asks the job to stop soon.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Checks for cancellation.
    ///
    /// # Errors
    /// [`Error::Interrupted`] once [`cancel`](Self::cancel) has been called.
    pub fn check(&self) -> Result<()> {
        if self.cancelled.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
    }

    /// Adds a warning. The job goes on.
    pub fn warn(&self, warning: String) {
        lock(&self.warnings).push(warning);
    }

    /// The warnings so far, in order.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        lock(&self.warnings).clone()
    }
}

/// Locks `mutex`. Ignores poisoning: every update here is a single store, so a panic leaves no partial update.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_starts_from_zero() {
        let progress = Progress::default();
        progress.begin(Stage::Measure, 10);
        progress.advance(7);
        assert_eq!(progress.snapshot(), Snapshot { stage: Stage::Measure, done_bytes: 7, total_bytes: 10 });
        progress.begin(Stage::Encode, 20);
        assert_eq!(progress.snapshot(), Snapshot { stage: Stage::Encode, done_bytes: 0, total_bytes: 20 });
    }

    #[test]
    fn cancelling_stops_the_next_check() {
        let progress = Progress::default();
        assert!(progress.check().is_ok());
        progress.cancel();
        assert!(matches!(progress.check(), Err(Error::Interrupted)));
    }
}
