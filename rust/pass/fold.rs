//! The loop over bands: cuts matrices into chunks of bands, maps them on all threads, and folds the results in order.
//!
//! The result of a band does not depend on its chunk, and the fold is sequential. A sum therefore has the same bits for
//! any number of threads and any size of chunks.

use std::ops::Range;

use crate::band::{Matrix, bands, chunk_bands, cut, rows_of};
use crate::checkpoint::View;
use crate::checkpoint::stream::{Pass, Reader};
use crate::codec::Band;
use crate::error::Result;

/// A matrix whose bands are visited.
#[derive(Clone, Debug)]
pub struct BandJob {
    pub matrix: Matrix,
    /// The source; `None` to visit ranges of rows without reading them.
    pub view: Option<View>,
    pub selection: BandSelection,
}

/// The bands of a matrix that are visited.
#[derive(Clone, Debug)]
pub enum BandSelection {
    /// All bands, in order.
    All,
    /// The bands of these numbers, each read on its own.
    Sampled(Vec<u64>),
}

/// A band during a visit.
#[derive(Clone, Debug)]
pub struct BandAt<'a> {
    /// Index of the job.
    pub job: usize,
    pub rows: Range<u64>,
    /// The weights; empty for a job without a view.
    pub band: Band<'a>,
}

/// The bands that a thread visits at a time, all of one job.
struct Chunk {
    job: usize,
    bands: Vec<Range<u64>>,
    is_last: bool,
}

fn chunks(jobs: &[BandJob], chunk_bytes: u64) -> Vec<Chunk> {
    let mut chunks: Vec<Chunk> = Vec::new();
    for (job, BandJob { matrix, selection, .. }) in jobs.iter().enumerate() {
        let step = chunk_bands(*matrix, chunk_bytes);
        let before = chunks.len();
        match selection {
            BandSelection::All => {
                let chunk = |bands| Chunk { job, bands: vec![bands], is_last: false };
                chunks.extend(cut(bands(*matrix), step).map(chunk));
            }
            BandSelection::Sampled(sampled) => {
                let one = |&at: &u64| at..at + 1;
                let chunk = |some: &[u64]| Chunk { job, bands: some.iter().map(one).collect(), is_last: false };
                chunks.extend(sampled.chunks(usize::try_from(step).unwrap_or(usize::MAX)).map(chunk));
            }
        }
        if let Some(last) = chunks[before..].last_mut() {
            last.is_last = true;
        }
    }
    chunks
}

impl Pass<'_> {
    /// Calls `each` for every band of `jobs`, in parallel, and `fold` for the results of every chunk of bands, in the order
    /// of jobs and bands. The arguments of `fold` are the index of the job, the results, and whether the chunk is the last
    /// one of the job. `scratch` makes the state that a thread keeps between bands. Progress advances by the bytes of the
    /// visited rows.
    ///
    /// # Errors
    /// Those of reading, of `each` and of `fold`.
    pub fn fold_bands<S, R: Send>(
        self,
        jobs: &[BandJob],
        scratch: impl Fn() -> S + Sync,
        each: impl Fn(&mut S, BandAt<'_>) -> Result<R> + Sync,
        mut fold: impl FnMut(usize, Vec<R>, bool) -> Result<()> + Send,
    ) -> Result<()> {
        self.workers.in_order(
            self.progress,
            &chunks(jobs, self.chunk_bytes),
            || (Reader::default(), scratch()),
            |(reader, scratch), chunk| {
                let job = &jobs[chunk.job];
                let mut found = Vec::new();
                let mut visit = |rows: Range<u64>, columns: &[_], stored: &[u8]| {
                    let band = Band { rows: (rows.end - rows.start) as usize, stored, columns };
                    found.push(each(scratch, BandAt { job: chunk.job, rows, band })?);
                    Ok(())
                };
                for range in &chunk.bands {
                    match job.view {
                        Some(view) => reader.bands((self.checkpoint, self.isa), view, range, &mut visit)?,
                        None => range.clone().try_for_each(|at| visit(rows_of(job.matrix, &(at..at + 1)), &[], &[]))?,
                    }
                    let rows = rows_of(job.matrix, range);
                    self.progress.advance(job.matrix.row_bytes() * (rows.end - rows.start));
                }
                Ok(found)
            },
            |chunk, found| fold(chunk.job, found, chunk.is_last),
        )
    }
}
