//! Work cut into pieces, done by a pool of threads, collected in order.
//!
//! Pieces are claimed one by one in their order, so the threads walk through a file together. What comes out is handed
//! on in that order, too: whoever folds it sees the same sequence for any number of threads, and only what is out of
//! turn is held in memory.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};
use crate::option::OptionName;
use crate::progress::Progress;

/// How many pieces per thread may be done, or in work, ahead of the one whose turn it is.
const AHEAD: usize = 4;

/// The most threads there may be: far more than cores only wait for each other.
pub(crate) const MAX_THREADS: usize = 512;

/// A pool of threads of our own.
#[derive(Debug)]
pub struct Workers {
    pool: rayon::ThreadPool,
}

/// A sequence of pieces, and where what comes of them goes, in their order.
pub struct Queue<T, C> {
    /// The pieces.
    pub pieces: Vec<T>,
    /// What takes the results.
    pub consume: C,
}

/// Where a lane is.
struct Place<R, C> {
    /// The next piece to claim.
    next: usize,
    /// The next piece to hand on.
    due: usize,
    /// Results that are not due yet.
    waiting: BTreeMap<usize, R>,
    /// Where they go; not there while a result is handed on.
    consume: Option<C>,
}

/// Where a job is: guarded by one lock.
struct Turn<R, C> {
    lanes: Vec<Place<R, C>>,
    /// The first failure in order: its lane, its piece.
    failed: Option<((usize, usize), Error)>,
}

impl Workers {
    /// A pool of `threads`, or of as many as this process may use (its CPU set and cgroup quota).
    ///
    /// # Errors
    /// [`Error::Option`] for more than [`MAX_THREADS`], [`Error::Io`] if the system gives none.
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

    /// How many threads there are.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }

    /// Hands `f` of each piece to `consume`, in the order of the pieces.
    ///
    /// As [`in_queues`](Self::in_queues) with one lane; a single piece is done by the caller.
    ///
    /// # Errors
    /// That of the first piece, in order, for which `f` or `consume` failed; none after it is handed on.
    pub fn in_order<T: Sync, S, R: Send>(
        &self,
        progress: &Progress,
        pieces: &[T],
        scratch: impl Fn() -> S + Sync,
        f: impl Fn(&mut S, &T) -> Result<R> + Sync,
        mut consume: impl FnMut(&T, R) -> Result<()> + Send,
    ) -> Result<()> {
        let lane = Queue { pieces: pieces.iter().collect(), consume: |piece: &&T, result| consume(piece, result) };
        self.in_queues(progress, vec![lane], scratch, |scratch, piece| f(scratch, piece)).map(|_| ())
    }

    /// Hands `f` of each piece of each lane to the lane's `consume`, in the order of its pieces. Lanes go on side by side:
    /// what one consumes holds up no other.
    ///
    /// Each thread makes one `scratch` and keeps it. `f` should call [`Progress::advance`]; cancellation is looked for
    /// between pieces. `consume` runs on whichever thread finished what was due, one call at a time for each lane.
    ///
    /// # Errors
    /// That of the first piece of the first lane for which `f` or `consume` failed; none after it is handed on.
    pub fn in_queues<T: Sync, S, R: Send, C: FnMut(&T, R) -> Result<()> + Send>(
        &self,
        progress: &Progress,
        lanes: Vec<Queue<T, C>>,
        scratch: impl Fn() -> S + Sync,
        f: impl Fn(&mut S, &T) -> Result<R> + Sync,
    ) -> Result<Vec<C>> {
        let ahead = (AHEAD * self.threads()).div_ceil(lanes.len().max(1));
        let (pieces, consumers): (Vec<Vec<T>>, Vec<C>) =
            lanes.into_iter().map(|lane| (lane.pieces, lane.consume)).unzip();
        let place = |consume| Place { next: 0, due: 0, waiting: BTreeMap::new(), consume: Some(consume) };
        let turn = Mutex::new(Turn { lanes: consumers.into_iter().map(place).collect(), failed: None });
        let moved = Condvar::new();
        let work = |first: usize| {
            let mut scratch = scratch();
            let mut now = lock(&turn);
            loop {
                let (lane, at) = match now.claim(&pieces, first, ahead) {
                    Claim::Piece(lane, at) => (lane, at),
                    Claim::Nothing => break,
                    Claim::Wait => {
                        now = moved.wait(now).unwrap_or_else(PoisonError::into_inner);
                        continue;
                    }
                };
                drop(now);
                let stop = StopOnPanic { turn: &turn, moved: &moved };
                let result = progress.check().and_then(|()| f(&mut scratch, &pieces[lane][at]));
                now = hand_on(&turn, &moved, &pieces[lane], (lane, at), result);
                std::mem::forget(stop);
            }
        };
        // Waking others up costs more than most single pieces.
        if pieces.iter().map(Vec::len).sum::<usize>() > 1 {
            self.pool.broadcast(|context| work(context.index()));
        } else {
            work(0);
        }
        let Turn { lanes, failed } = turn.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, error)) = failed {
            return Err(error);
        }
        let done = lanes.iter().zip(&pieces).all(|(place, pieces)| place.due == pieces.len());
        let consumers: Option<Vec<C>> = lanes.into_iter().map(|place| place.consume).collect();
        consumers.filter(|_| done).ok_or_else(|| Error::Bug("work was left undone, and nothing failed".to_owned()))
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

/// What a thread may do next.
enum Claim {
    /// This piece of this lane.
    Piece(usize, usize),
    /// Wait until others got further.
    Wait,
    /// Go home.
    Nothing,
}

impl<R, C> Turn<R, C> {
    /// Claims a piece of lane `first`, counted around, or of the next that has one to claim.
    fn claim<T>(&mut self, pieces: &[Vec<T>], first: usize, ahead: usize) -> Claim {
        // What comes before a failure is still to be done: it may fail, too.
        let last = self.failed.as_ref().map_or(usize::MAX, |((lane, _), _)| *lane);
        let mut some_left = false;
        for step in 0..pieces.len() {
            let lane = (first + step) % pieces.len();
            let place = &mut self.lanes[lane];
            if place.next >= pieces[lane].len() || lane >= last {
                continue;
            }
            some_left = true;
            if place.next < place.due + ahead {
                place.next += 1;
                return Claim::Piece(lane, place.next - 1);
            }
        }
        if some_left { Claim::Wait } else { Claim::Nothing }
    }

    /// Records a failure. Every earlier piece of its lane is claimed already, so the first in order is always found.
    fn fail(&mut self, at: (usize, usize), error: Error) {
        if self.failed.as_ref().is_none_or(|(first, _)| at < *first) {
            self.failed = Some((at, error));
        }
    }

    /// The result that is due in `lane`, unless something before it failed or another thread hands one on; and what takes it.
    fn due(&mut self, lane: usize) -> Option<(usize, R, C)> {
        let place = &mut self.lanes[lane];
        let before_failure = self.failed.as_ref().is_none_or(|(first, _)| (lane, place.due) < *first);
        let consume = place.consume.take_if(|_| before_failure && place.waiting.contains_key(&place.due))?;
        let result = place.waiting.remove(&place.due)?;
        Some((place.due, result, consume))
    }
}

/// Takes in the result of piece `at` of a lane, and hands on whatever is due there, without holding others up.
fn hand_on<'t, T, R, C: FnMut(&T, R) -> Result<()>>(
    turn: &'t Mutex<Turn<R, C>>,
    moved: &Condvar,
    pieces: &[T],
    (lane, at): (usize, usize),
    result: Result<R>,
) -> MutexGuard<'t, Turn<R, C>> {
    let mut now = lock(turn);
    match result {
        Ok(result) => {
            now.lanes[lane].waiting.insert(at, result);
        }
        Err(error) => now.fail((lane, at), error),
    }
    while let Some((due, result, mut consume)) = now.due(lane) {
        drop(now);
        let outcome = consume(&pieces[due], result);
        now = lock(turn);
        now.lanes[lane].consume = Some(consume);
        match outcome {
            Ok(()) => now.lanes[lane].due += 1,
            Err(error) => now.fail((lane, due), error),
        }
        moved.notify_all();
    }
    moved.notify_all();
    now
}

/// Lets the other threads go if the one that holds this panics; rayon then passes the panic on.
struct StopOnPanic<'a, R, C> {
    turn: &'a Mutex<Turn<R, C>>,
    moved: &'a Condvar,
}

impl<R, C> Drop for StopOnPanic<'_, R, C> {
    fn drop(&mut self) {
        lock(self.turn).fail((0, 0), Error::Bug("a worker panicked".to_owned()));
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
    fn lanes_are_handed_on_each_in_its_order() {
        for threads in [1, 2, 5] {
            let lane = |from: usize| {
                let mut next = from;
                let consume = move |&piece: &usize, square: usize| {
                    assert_eq!((piece, square), (next, next * next));
                    next += 1;
                    if piece == 2_345 { Err(Error::Bug(piece.to_string())) } else { Ok(()) }
                };
                Queue { pieces: (from..from + 500).collect(), consume }
            };
            let square = |(): &mut (), &n: &usize| Ok(n * n);
            let sound = vec![lane(0), lane(1_000), lane(3_000)];
            assert_eq!(workers(threads).in_queues(&Progress::default(), sound, || (), square).unwrap().len(), 3);
            // The first lane that fails is the one that is heard of.
            let spoilt = vec![lane(0), lane(2_000), lane(1_900)];
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
