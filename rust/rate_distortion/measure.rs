//! Encodes the sampled bands in every scheme.

use super::estimate::{EncodedBand, MatrixSums};
use super::sample::{Sample, spread};
use super::{Member, Noise, StackJob};
use crate::band::{band_bytes, bands, energy};
use crate::checkpoint::stream::Pass;
use crate::codec::{Effort, Encoder, Metric, Scheme, Scratch};
use crate::error::{Error, Result};
use crate::pass::{BandAt, BandJob, BandSelection};
use crate::simd::vector::BAND_ROWS;

/// What to do with a band.
#[derive(Clone, Copy, Debug)]
struct Visit {
    band: u64,
    /// Whether the band joins the rule's sample.
    is_counted: bool,
    /// Whether the rule encodes it.
    is_ruled: bool,
    /// Whether the search encodes it.
    is_searched: bool,
}

/// The bands to visit, in order, for the sample `wanted` after the one of `sums`, of a matrix of `all` bands.
fn visits(all: u64, wanted: Sample, sums: &MatrixSums) -> Vec<Visit> {
    let is_more = wanted.ruled > sums.ruled || wanted.searched > sums.searched;
    if sums.is_whole(all) || !is_more && sums.pending.is_empty() {
        return Vec::new();
    }
    let mut visits = Vec::new();
    // Number of the bands so far that are not heavy.
    let mut ordinary = 0;
    for (at, band) in (0..).zip(spread(all, if wanted.is_whole(all) { all } else { wanted.ruled })) {
        let is_heavy = sums.heavy.contains(&band);
        let is_searched =
            if is_heavy { sums.pending.contains(&band) } else { (sums.searched..wanted.searched).contains(&ordinary) };
        ordinary += u64::from(!is_heavy);
        let is_counted = (sums.ruled..wanted.ruled).contains(&at);
        // The noise of all bands by the search needs no other noise, nor does that of heavy bands.
        let is_compared = is_searched && !is_heavy && !wanted.is_whole(all);
        if is_counted || is_searched {
            visits.push(Visit { band, is_counted, is_ruled: is_counted || is_compared, is_searched });
        }
    }
    visits.sort_unstable_by_key(|visit| visit.band);
    visits
}

/// Bytes that [`encode`] would read.
pub(super) fn added_bytes(stacks: &[&StackJob<'_>], wanted: &[Vec<Sample>], sums: &[Vec<MatrixSums>]) -> u64 {
    let of_stack = |((stack, wanted), sums): ((&&StackJob<'_>, &Vec<Sample>), &Vec<MatrixSums>)| {
        let of = |((member, wanted), sums): ((&Member<'_>, &Sample), &MatrixSums)| {
            visits(bands(member.matrix), *wanted, sums).len() as u64 * band_bytes(member.matrix)
        };
        stack.matrices.iter().zip(wanted).zip(sums).map(of).sum::<u64>()
    };
    stacks.iter().zip(wanted).zip(sums).map(of_stack).sum()
}

/// Encodes the bands of the samples `wanted` that are not among those of `sums` yet, and adds them.
///
/// # Errors
/// The errors of reading.
pub(super) fn encode(
    pass: Pass<'_>,
    encoder: Encoder,
    stacks: &[&StackJob<'_>],
    (wanted, sums): (&[Vec<Sample>], &mut [Vec<MatrixSums>]),
) -> Result<()> {
    let (mut jobs, mut of_job, mut encoded) = (Vec::new(), Vec::new(), Vec::new());
    for (stack, job) in stacks.iter().enumerate() {
        for (at, &Member { view, matrix, .. }) in job.matrices.iter().enumerate() {
            let visits = visits(bands(matrix), wanted[stack][at], &sums[stack][at]);
            if !visits.is_empty() {
                let selection = BandSelection::Sampled(visits.iter().map(|visit| visit.band).collect());
                jobs.push(BandJob { matrix, view: Some(view), selection });
                of_job.push((stack, at, visits));
            }
        }
    }
    pass.fold_bands(
        &jobs,
        || (None, Scratch::default()),
        |(metric, scratch), band| {
            let (stack, at, visits) = &of_job[band.job];
            let member = stacks[*stack].matrices[*at];
            // Reuses the metric of the thread's previous band, which is usually of the same matrix.
            let metric = match metric {
                Some((other, metric)) if *other == band.job => &*metric,
                other => &other.insert((band.job, Metric::diagonal(&member.measured.vectors.importance))).1,
            };
            let found = visits.binary_search_by_key(&(band.rows.start / BAND_ROWS as u64), |visit| visit.band);
            let visit = found.map_err(|_| Error::Bug(format!("a band of `{}`", stacks[*stack].name)))?;
            let needs_signal = wanted[*stack][*at].ruled < bands(member.matrix);
            let visit = (visits[visit], needs_signal);
            Ok(measure((pass, encoder), &stacks[*stack].schemes, (member, metric), (&band, visit), scratch))
        },
        |job, found, is_last| {
            let (stack, at, _) = of_job[job];
            encoded.extend(found);
            if !is_last {
                return Ok(());
            }
            let sums = &mut sums[stack][at];
            sums.add(&encoded);
            encoded.clear();
            let StackJob { name, schemes, .. } = stacks[stack];
            match (0..schemes.len()).find(|&at| !sums.is_finite(at)) {
                Some(at) => Err(Error::Bug(format!("the error of `{name}` at {} is not finite", schemes[at]))),
                None => Ok(()),
            }
        },
    )
}

/// Encodes one band in every scheme.
fn measure(
    (pass, encoder): (Pass<'_>, Encoder),
    schemes: &[Scheme],
    (member, metric): (Member<'_>, &Metric<'_>),
    (BandAt { rows, band, .. }, (visit, needs_signal)): (&BandAt<'_>, (Visit, bool)),
    scratch: &mut Scratch,
) -> EncodedBand {
    let gain = &member.measured.vectors.gain;
    let first = rows.start as usize;
    let mut signal = Noise::default();
    if needs_signal {
        let found = energy(pass.isa, band.columns, metric.importance());
        for (row, found) in found.iter().take(band.rows).enumerate() {
            signal.weighted += 0.5 * gain.of(first + row) * found.weighted;
            signal.plain += found.plain;
        }
    }
    let mut noises = |effort: Effort| -> Vec<Noise> {
        let errors = Encoder { effort, ..encoder }.errors(schemes, (member.matrix.float, scratch), *band, metric);
        errors.iter().map(|errors| Noise::of(&errors[..band.rows], gain, first)).collect()
    };
    let rule = if visit.is_ruled { noises(Effort::Fast) } else { Vec::new() };
    let search = if visit.is_searched { noises(encoder.effort) } else { Vec::new() };
    EncodedBand { band: visit.band, is_counted: visit.is_counted, signal, rule, search }
}
