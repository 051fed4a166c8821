//! Work cut into pieces, done by a pool of threads, collected in order.
//!
//! Pieces are claimed one by one in their order, so the threads walk through a file together. What comes out is handed
//! on in that order, too: whoever folds it sees the same sequence for any number of threads, and only what is out of
//! turn is held in memory.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};
use crate::progress::Progress;

/// How many pieces per thread may be done, or in work, ahead of the one whose turn it is.
const AHEAD: usize = 4;

/// The most threads there may be: far more than cores only wait for each other.
pub const MAX_THREADS: usize = 512;

/// A pool of threads of our own.
#[derive(Debug)]
pub struct Workers {
    pool: rayon::ThreadPool,
}

/// Where a job is: guarded by one lock.
struct Turn<R, C> {
    /// The next piece to claim.
    next: usize,
    /// The next piece to hand on.
    due: usize,
    /// Results that are not due yet.
    waiting: BTreeMap<usize, R>,
    /// Where they go.
    consume: C,
    /// The first failure in order, and its piece.
    failed: Option<(usize, Error)>,
}

impl Workers {
    /// A pool of `threads`, or of as many as this process may use (its CPU set and cgroup quota).
    ///
    /// # Errors
    /// [`Error::Option`] for more than [`MAX_THREADS`], [`Error::Io`] if the system gives none.
    pub fn new(threads: Option<NonZeroUsize>) -> Result<Self> {
        if let Some(threads) = threads.filter(|threads| threads.get() > MAX_THREADS) {
            return Err(Error::option("--threads", threads, format!("more than {MAX_THREADS}")));
        }
        let available = std::thread::available_parallelism().ok();
        let threads = threads.or(available).map_or(1, NonZeroUsize::get).min(MAX_THREADS);
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|index| format!("ramrs-{index}"))
            .build()
            .map(|pool| Self { pool })
            .map_err(|fault| Error::Io {
                action: "starting threads for",
                path: "ramrs".into(),
                source: std::io::Error::other(fault),
            })
    }

    /// How many threads there are.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }

    /// Hands `f` of each piece to `consume`, in the order of the pieces.
    ///
    /// Each thread makes one `scratch` and keeps it. `f` should call [`Progress::advance`]; cancellation is looked for
    /// between pieces. `consume` runs on whichever thread finished what was due, one call at a time; a single piece is done
    /// by the caller.
    ///
    /// # Errors
    /// That of the first piece, in order, for which `f` or `consume` failed; none after it is handed on.
    pub fn in_order<T: Sync, S, R: Send>(
        &self,
        progress: &Progress,
        pieces: &[T],
        scratch: impl Fn() -> S + Sync,
        f: impl Fn(&mut S, &T) -> Result<R> + Sync,
        consume: impl FnMut(&T, R) -> Result<()> + Send,
    ) -> Result<()> {
        let ahead = AHEAD * self.threads();
        let turn = Mutex::new(Turn { next: 0, due: 0, waiting: BTreeMap::new(), consume, failed: None });
        let moved = Condvar::new();
        let work = || {
            let mut scratch = scratch();
            loop {
                let mut now = lock(&turn);
                while now.failed.is_none() && now.next < pieces.len() && now.next >= now.due + ahead {
                    now = moved.wait(now).unwrap_or_else(PoisonError::into_inner);
                }
                if now.failed.is_some() || now.next >= pieces.len() {
                    break;
                }
                let at = now.next;
                now.next += 1;
                drop(now);
                let stop = StopOnPanic { turn: &turn, moved: &moved };
                let result = progress.check().and_then(|()| f(&mut scratch, &pieces[at]));
                std::mem::forget(stop);
                lock(&turn).finish(pieces, at, result);
                moved.notify_all();
            }
        };
        // Waking others up costs more than most single pieces.
        if pieces.len() > 1 {
            self.pool.broadcast(|_| work());
        } else {
            work();
        }
        match turn.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Turn { failed: Some((_, error)), .. } => Err(error),
            Turn { due, .. } if due == pieces.len() => Ok(()),
            Turn { .. } => Err(Error::Bug("work was left undone, and nothing failed".to_owned())),
        }
    }

    /// `f` of each piece, in the order of the pieces.
    ///
    /// # Errors
    /// As [`in_order`](Self::in_order).
    pub fn map<T: Sync, S, R: Send>(
        &self,
        progress: &Progress,
        pieces: &[T],
        scratch: impl Fn() -> S + Sync,
        f: impl Fn(&mut S, &T) -> Result<R> + Sync,
    ) -> Result<Vec<R>> {
        let mut results = Vec::with_capacity(pieces.len());
        self.in_order(progress, pieces, scratch, f, |_, result| {
            results.push(result);
            Ok(())
        })?;
        Ok(results)
    }
}

impl<R, C> Turn<R, C> {
    /// Takes in the result of piece `at`, and hands on whatever is due.
    fn finish<T>(&mut self, pieces: &[T], at: usize, result: Result<R>)
    where
        C: FnMut(&T, R) -> Result<()>,
    {
        match result {
            Ok(result) => {
                self.waiting.insert(at, result);
            }
            Err(error) => self.fail(at, error),
        }
        while self.failed.as_ref().is_none_or(|(first, _)| self.due < *first) {
            let Some(result) = self.waiting.remove(&self.due) else { break };
            match (self.consume)(&pieces[self.due], result) {
                Ok(()) => self.due += 1,
                Err(error) => self.fail(self.due, error),
            }
        }
    }

    /// Records a failure. Every earlier piece is claimed already, so the first in order is always found.
    fn fail(&mut self, at: usize, error: Error) {
        if self.failed.as_ref().is_none_or(|(first, _)| at < *first) {
            self.failed = Some((at, error));
        }
    }
}

/// Lets the other threads go if the one that holds this panics; rayon then passes the panic on.
struct StopOnPanic<'a, R, C> {
    turn: &'a Mutex<Turn<R, C>>,
    moved: &'a Condvar,
}

impl<R, C> Drop for StopOnPanic<'_, R, C> {
    fn drop(&mut self) {
        lock(self.turn).fail(0, Error::Bug("a worker panicked".to_owned()));
        self.moved.notify_all();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn workers(threads: usize) -> Workers {
        Workers::new(NonZeroUsize::new(threads)).unwrap()
    }

    #[test]
    fn thousands_of_threads_are_refused() {
        let fault = Workers::new(NonZeroUsize::new(MAX_THREADS + 1)).unwrap_err();
        assert_eq!(fault.to_string(), "--threads `513`: more than 512");
    }

    #[test]
    fn results_come_in_order_for_any_number_of_threads() {
        let pieces: Vec<u64> = (0..1_000).collect();
        for threads in [1, 2, 5] {
            let workers = workers(threads);
            assert_eq!(workers.threads(), threads);
            let squares = workers.map(&Progress::default(), &pieces, || (), |(), n| Ok(n * n)).unwrap();
            assert!(squares.iter().enumerate().all(|(at, &square)| square == (at * at) as u64));
        }
    }

    #[test]
    fn the_first_failure_in_order_is_reported_and_nothing_after_it_is_handed_on() {
        let pieces: Vec<usize> = (0..1_000).collect();
        for threads in [1, 2, 5] {
            let mut handed_on = Vec::new();
            let outcome = workers(threads).in_order(
                &Progress::default(),
                &pieces,
                || (),
                |(), &n| if n >= 400 { Err(Error::Bug(n.to_string())) } else { Ok(n) },
                |_, n| {
                    handed_on.push(n);
                    Ok(())
                },
            );
            assert_eq!(outcome.unwrap_err().to_string(), "internal error: 400");
            assert!(handed_on.iter().copied().eq(0..handed_on.len()) && handed_on.len() <= 400);
        }
    }

    #[test]
    fn a_failure_to_consume_stops_the_work() {
        let pieces: Vec<usize> = (0..1_000).collect();
        let refuse = |&n: &usize, ()| if n == 3 { Err(Error::Bug("full".to_owned())) } else { Ok(()) };
        let outcome = workers(2).in_order(&Progress::default(), &pieces, || (), |(), _| Ok(()), refuse);
        assert_eq!(outcome.unwrap_err().to_string(), "internal error: full");
    }

    #[test]
    fn no_thread_runs_far_ahead_of_the_piece_that_is_due() {
        let begun = AtomicUsize::new(0);
        let pieces: Vec<usize> = (0..200).collect();
        let slow_first = |(): &mut (), &n: &usize| {
            begun.fetch_add(1, Ordering::SeqCst);
            while n == 0 && begun.load(Ordering::SeqCst) < AHEAD * 2 {
                std::thread::yield_now();
            }
            Ok(if n == 0 { begun.load(Ordering::SeqCst) } else { 0 })
        };
        let results = workers(2).map(&Progress::default(), &pieces, || (), slow_first).unwrap();
        assert!(results[0] <= AHEAD * 2, "{} pieces were begun while the first was at work", results[0]);
    }

    #[test]
    fn cancelling_stops_the_work() {
        let progress = Progress::default();
        let pieces: Vec<usize> = (0..1_000).collect();
        let outcome = workers(2).map(
            &progress,
            &pieces,
            || (),
            |(), &n| {
                if n == 10 {
                    progress.cancel();
                }
                Ok(())
            },
        );
        assert!(matches!(outcome, Err(Error::Interrupted)));
    }

    #[test]
    fn a_panic_is_passed_on_and_leaves_no_thread_waiting() {
        let pieces: Vec<usize> = (0..100).collect();
        let workers = workers(2);
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            workers.map(
                &Progress::default(),
                &pieces,
                || (),
                |(), &n| {
                    assert!(n != 5, "on purpose");
                    Ok(())
                },
            )
        }));
        assert!(outcome.is_err());
    }

    #[test]
    fn a_scratch_is_made_once_per_thread() {
        let made = AtomicUsize::new(0);
        let pieces = [0; 100];
        let scratch = || made.fetch_add(1, Ordering::Relaxed);
        workers(3).map(&Progress::default(), &pieces, scratch, |_, _| Ok(())).unwrap();
        assert!(made.into_inner() <= 3);
    }
}
