//! How far a job is, and how to stop it.
//!
//! The threads that work add to counters; whoever watches reads them when it likes. Nothing calls back into the
//! caller from a worker.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::error::{Error, Result};

/// What a job is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Reading headers and checking options.
    #[default]
    Open,
    /// Letting the model write the windows of the probe.
    Write,
    /// Running the model on tokens of its own vocabulary.
    Probe,
    /// And back, with gradients.
    Gradients,
    /// Reading all weights once: are they finite, how much energy, what does each channel carry.
    Measure,
    /// Encoding sampled rows in every scheme.
    Curves,
    /// Choosing schemes.
    Plan,
    /// Encoding and writing.
    Encode,
    /// Reading back what was written.
    Verify,
}

/// A moment of a job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Snapshot {
    /// What it is doing.
    pub stage: Stage,
    /// Bytes of this stage that are done.
    pub done_bytes: u64,
    /// Bytes this stage has, 0 if that is not known.
    pub total_bytes: u64,
}

/// A job's counters, shared between its threads and whoever watches.
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

    /// Counts `bytes` of the stage as done.
    pub fn advance(&self, bytes: u64) {
        self.done_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Where the job is.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let (stage, total_bytes) = *lock(&self.stage);
        Snapshot { stage, done_bytes: self.done_bytes.load(Ordering::Relaxed), total_bytes }
    }

    /// Asks the job to stop soon.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Whether to go on.
    ///
    /// # Errors
    /// [`Error::Interrupted`] once [`cancel`](Self::cancel) was called.
    pub fn check(&self) -> Result<()> {
        if self.cancelled.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
    }

    /// Tells whoever watches something that does not stop the job.
    pub fn warn(&self, warning: String) {
        lock(&self.warnings).push(warning);
    }

    /// The warnings so far, in order.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        lock(&self.warnings).clone()
    }
}

/// The value, whether or not a thread panicked while it held the lock: every update here is a single store.
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
