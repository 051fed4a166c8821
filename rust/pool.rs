//! A thread pool that maps pieces of work in parallel and hands on the results in order.
//!
//! Threads claim pieces in order, so together they read a file sequentially. Results are handed on in the same order, so
//! the consumer sees the same sequence for any number of threads. Only results that are not due yet are held in memory.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};
use crate::option::OptionName;
use crate::progress::Progress;

/// Pieces per thread that may be started before the piece that is due is done. Bounds the results held in memory.
const PIECES_AHEAD: usize = 4;

/// The largest number of threads. More threads than cores only wait for each other.
pub(crate) const MAX_THREADS: usize = 512;

/// A thread pool.
#[derive(Debug)]
pub struct Workers {
    pool: rayon::ThreadPool,
}

/// A sequence of pieces, and the consumer of their results.
pub struct Queue<T, C> {
    pub pieces: Vec<T>,
    /// Called with each piece and its result, in the order of the pieces.
    pub consume: C,
}

/// The progress of a queue.
struct QueueState<R, C> {
    /// The next piece to claim.
    next: usize,
    /// The next piece whose result is handed on.
    due: usize,
    /// Results that are not due yet, by piece.
    waiting: BTreeMap<usize, R>,
    /// The consumer; `None` while a thread runs it.
    consume: Option<C>,
}

/// The progress of all queues, guarded by one lock.
struct State<R, C> {
    queues: Vec<QueueState<R, C>>,
    /// The first failure, in order of (queue, piece).
    failed: Option<((usize, usize), Error)>,
}

impl Workers {
    /// Makes a pool of `threads` threads, by default as many as the process may use (CPU set and cgroup quota).
    ///
    /// # Errors
    /// [`Error::Option`] for more than [`MAX_THREADS`], [`Error::Io`] if the system cannot start them.
    pub fn new(threads: Option<NonZeroUsize>) -> Result<Self> {
        if let Some(threads) = threads.filter(|threads| threads.get() > MAX_THREADS) {
            return Err(Error::option(OptionName::Threads, threads, format!("more than {MAX_THREADS}")));
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

    /// The number of threads.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }

    /// Computes `f` of each piece in parallel, and calls `consume` with the results in the order of the pieces.
    ///
    /// It is [`in_queues`](Self::in_queues) with one queue.
    ///
    /// # Errors
    /// That of the first piece, in order, for which `f` or `consume` fails. After a failure no later result is handed on.
    pub fn in_order<T: Sync, S, R: Send>(
        &self,
        progress: &Progress,
        pieces: &[T],
        scratch: impl Fn() -> S + Sync,
        f: impl Fn(&mut S, &T) -> Result<R> + Sync,
        mut consume: impl FnMut(&T, R) -> Result<()> + Send,
    ) -> Result<()> {
        let queue = Queue { pieces: pieces.iter().collect(), consume: |piece: &&T, result| consume(piece, result) };
        self.in_queues(progress, vec![queue], scratch, |scratch, piece| f(scratch, piece)).map(|_| ())
    }

    /// Computes `f` of each piece of each queue in parallel, and calls the queue's `consume` with the results in the order
    /// of its pieces. Queues are independent: a slow consumer does not delay other queues.
    ///
    /// Each thread makes one `scratch` and keeps it. `f` should call [`Progress::advance`]. Cancellation is checked between
    /// pieces. `consume` runs on the thread that finished the piece that was due, one call at a time per queue. A single
    /// piece runs on the calling thread.
    ///
    /// # Errors
    /// That of the first piece, in order of queues and pieces, for which `f` or `consume` fails. After a failure no later result
    /// is handed on.
    pub fn in_queues<T: Sync, S, R: Send, C: FnMut(&T, R) -> Result<()> + Send>(
        &self,
        progress: &Progress,
        queues: Vec<Queue<T, C>>,
        scratch: impl Fn() -> S + Sync,
        f: impl Fn(&mut S, &T) -> Result<R> + Sync,
    ) -> Result<Vec<C>> {
        let ahead = (PIECES_AHEAD * self.threads()).div_ceil(queues.len().max(1));
        let (pieces, consumers): (Vec<Vec<T>>, Vec<C>) =
            queues.into_iter().map(|queue| (queue.pieces, queue.consume)).unzip();
        let status = |consume| QueueState { next: 0, due: 0, waiting: BTreeMap::new(), consume: Some(consume) };
        let state = Mutex::new(State { queues: consumers.into_iter().map(status).collect(), failed: None });
        let moved = Condvar::new();
        let work = |first: usize| {
            let mut scratch = scratch();
            let mut now = lock(&state);
            loop {
                let (queue, at) = match now.claim(&pieces, first, ahead) {
                    Claim::Piece(queue, at) => (queue, at),
                    Claim::Nothing => break,
                    Claim::Wait => {
                        now = moved.wait(now).unwrap_or_else(PoisonError::into_inner);
                        continue;
                    }
                };
                drop(now);
                let stop = StopOnPanic { state: &state, moved: &moved };
                let result = progress.check().and_then(|()| f(&mut scratch, &pieces[queue][at]));
                now = hand_on(&state, &moved, &pieces[queue], (queue, at), result);
                std::mem::forget(stop);
            }
        };
        // Waking other threads costs more than most single pieces.
        if pieces.iter().map(Vec::len).sum::<usize>() > 1 {
            self.pool.broadcast(|context| work(context.index()));
        } else {
            work(0);
        }
        let State { queues, failed } = state.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, error)) = failed {
            return Err(error);
        }
        let done = queues.iter().zip(&pieces).all(|(status, pieces)| status.due == pieces.len());
        let consumers: Option<Vec<C>> = queues.into_iter().map(|status| status.consume).collect();
        consumers
            .filter(|_| done)
            .ok_or_else(|| Error::Bug("some pieces were not done, although none failed".to_owned()))
    }

    /// Computes `f` of each piece in parallel, and returns the results in the order of the pieces.
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

/// What a thread does next.
enum Claim {
    /// Works on this queue's piece of this number.
    Piece(usize, usize),
    /// Waits until a result is handed on: every queue is too far ahead.
    Wait,
    /// Exits: no piece is left.
    Nothing,
}

impl<R, C> State<R, C> {
    /// Claims a piece of queue `first` (modulo their number), or of the next queue that has one.
    fn claim<T>(&mut self, pieces: &[Vec<T>], first: usize, ahead: usize) -> Claim {
        // Earlier queues go on after a failure: if one of them fails, too, its error is the one to report.
        let last = self.failed.as_ref().map_or(usize::MAX, |((queue, _), _)| *queue);
        let mut some_left = false;
        for step in 0..pieces.len() {
            let queue = (first + step) % pieces.len();
            let status = &mut self.queues[queue];
            if status.next >= pieces[queue].len() || queue >= last {
                continue;
            }
            some_left = true;
            if status.next < status.due + ahead {
                status.next += 1;
                return Claim::Piece(queue, status.next - 1);
            }
        }
        if some_left { Claim::Wait } else { Claim::Nothing }
    }

    /// Records a failure. All earlier pieces of its queue are claimed already, so the first failure in order is always found.
    fn fail(&mut self, at: (usize, usize), error: Error) {
        if self.failed.as_ref().is_none_or(|(first, _)| at < *first) {
            self.failed = Some((at, error));
        }
    }

    /// Takes the result that is due in `queue`, and the consumer. `None` if there is no such result, if an earlier piece
    /// failed, or if another thread runs the consumer.
    fn due(&mut self, queue: usize) -> Option<(usize, R, C)> {
        let status = &mut self.queues[queue];
        let before_failure = self.failed.as_ref().is_none_or(|(first, _)| (queue, status.due) < *first);
        let consume = status.consume.take_if(|_| before_failure && status.waiting.contains_key(&status.due))?;
        let result = status.waiting.remove(&status.due)?;
        Some((status.due, result, consume))
    }
}

/// Stores the result of piece `at` of a queue, and hands on all results that are due there. The lock is released while the
/// consumer runs.
fn hand_on<'t, T, R, C: FnMut(&T, R) -> Result<()>>(
    state: &'t Mutex<State<R, C>>,
    moved: &Condvar,
    pieces: &[T],
    (queue, at): (usize, usize),
    result: Result<R>,
) -> MutexGuard<'t, State<R, C>> {
    let mut now = lock(state);
    match result {
        Ok(result) => {
            now.queues[queue].waiting.insert(at, result);
        }
        Err(error) => now.fail((queue, at), error),
    }
    while let Some((due, result, mut consume)) = now.due(queue) {
        drop(now);
        let outcome = consume(&pieces[due], result);
        now = lock(state);
        now.queues[queue].consume = Some(consume);
        match outcome {
            Ok(()) => now.queues[queue].due += 1,
            Err(error) => now.fail((queue, due), error),
        }
        moved.notify_all();
    }
    moved.notify_all();
    now
}

/// Stops the other threads if the thread that holds this panics. rayon then propagates the panic.
struct StopOnPanic<'a, R, C> {
    state: &'a Mutex<State<R, C>>,
    moved: &'a Condvar,
}

impl<R, C> Drop for StopOnPanic<'_, R, C> {
    fn drop(&mut self) {
        lock(self.state).fail((0, 0), Error::Bug("a worker panicked".to_owned()));
        self.moved.notify_all();
    }
}

/// Locks `mutex`, poisoned or not: a worker's panic is passed on by the pool.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
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
        assert_eq!(fault.to_string(), "⟨threads⟩ `513`: more than 512");
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
    fn queues_are_handed_on_each_in_its_order() {
        for threads in [1, 2, 5] {
            let queue = |from: usize| {
                let mut next = from;
                let consume = move |&piece: &usize, square: usize| {
                    assert_eq!((piece, square), (next, next * next));
                    next += 1;
                    if piece == 2_345 { Err(Error::Bug(piece.to_string())) } else { Ok(()) }
                };
                Queue { pieces: (from..from + 500).collect(), consume }
            };
            let square = |(): &mut (), &n: &usize| Ok(n * n);
            let sound = vec![queue(0), queue(1_000), queue(3_000)];
            assert_eq!(workers(threads).in_queues(&Progress::default(), sound, || (), square).unwrap().len(), 3);
            // The failure of the first queue is the one that is reported.
            let spoilt = vec![queue(0), queue(2_000), queue(1_900)];
            let fault =
                workers(threads).in_queues(&Progress::default(), spoilt, || (), square).map(|_| ()).unwrap_err();
            assert_eq!(fault.to_string(), "internal error: 2345");
        }
    }

    #[test]
    fn no_thread_runs_far_ahead_of_the_piece_that_is_due() {
        let begun = AtomicUsize::new(0);
        let pieces: Vec<usize> = (0..200).collect();
        let slow_first = |(): &mut (), &n: &usize| {
            begun.fetch_add(1, Ordering::SeqCst);
            while n == 0 && begun.load(Ordering::SeqCst) < PIECES_AHEAD * 2 {
                std::thread::yield_now();
            }
            Ok(if n == 0 { begun.load(Ordering::SeqCst) } else { 0 })
        };
        let results = workers(2).map(&Progress::default(), &pieces, || (), slow_first).unwrap();
        assert!(results[0] <= PIECES_AHEAD * 2, "{} pieces were begun while the first was at work", results[0]);
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
