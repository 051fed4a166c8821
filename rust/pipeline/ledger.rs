//! The ledger: every tensor of the source, and what became of it.

use super::analyze::hundredths;
use super::encode::{Done, Outcome};
use super::source::{Share, Source};
use crate::checkpoint::prequantized::Use;
use crate::format::Treatment;
use crate::rate_distortion::{Noise, Objective, sqnr_db};
use crate::schema::manifest::{Became, Line, Quantized};
use crate::schema::plan::Plan;
use crate::scheme::Scheme;
use crate::sensitivity::MatrixSensitivity;
use crate::writer::layout::Stored;

/// All that was done, by target.
pub(super) struct Written<'a> {
    pub source: &'a Source,
    pub plan: &'a Plan,
    /// What each target is stored in.
    pub stored: &'a [Vec<Stored>],
    /// The sensitivity of each target's matrices; none where no scheme exists.
    pub measured: &'a [&'a [MatrixSensitivity]],
    pub outcome: &'a Outcome,
}

impl Written<'_> {
    /// A line for each part of the source.
    pub(super) fn ledger(&self) -> Vec<Line> {
        let checkpoint = &self.source.checkpoint;
        let shares = self.source.shares();
        let parts = checkpoint.parts.iter().zip(&checkpoint.uses).zip(&self.outcome.parts_sha256).enumerate();
        parts
            .map(|(at, ((part, usage), sha256))| {
                let mut line = Line {
                    tensor: part.name.clone(),
                    dtype: part.dtype.name().to_owned(),
                    shape: part.shape.clone(),
                    file: checkpoint.shards[part.shard].name.clone(),
                    sha256: sha256.clone(),
                    role: self.source.role(at),
                    became: Became::Dropped,
                    why: String::new(),
                    bytes: 0,
                    into: Vec::new(),
                    quantized: Vec::new(),
                };
                match *usage {
                    Use::None(why) => (line.became, line.why) = (Became::Consumed, why.to_owned()),
                    Use::Elements(tensor) | Use::Beside(tensor) => match &self.source.treatments[tensor] {
                        Treatment::Tied(to) => (line.became, line.why) = (Became::Tied, format!("the same as {to}")),
                        Treatment::Drop(why) => (*why).clone_into(&mut line.why),
                        Treatment::Write if usage == &Use::Beside(tensor) => {
                            (line.became, line.into) = (Became::Consumed, self.into(&shares[tensor]));
                            line.why = format!("read with {}", checkpoint.tensors[tensor].name);
                        }
                        Treatment::Write => self.write(&mut line, tensor, &shares[tensor]),
                    },
                }
                line
            })
            .collect()
    }

    /// The names of what is stored for `shares`.
    fn into(&self, shares: &[Share]) -> Vec<String> {
        shares.iter().flat_map(|share| &self.stored[share.target]).map(|part| part.name.clone()).collect()
    }

    /// What became of tensor `tensor`, which gave `shares`.
    fn write(&self, line: &mut Line, tensor: usize, shares: &[Share]) {
        line.into = self.into(shares);
        let mut why: Vec<&str> = Vec::new();
        for share in shares {
            let (entry, planned) = (&self.source.entries[share.target], &self.plan.tensors[share.target]);
            let target = &entry.target;
            let rows = |views: &[usize]| views.iter().map(|&view| target.views[view].rows).sum::<u64>();
            let all: u64 = target.views.iter().map(|view| view.rows).sum();
            for part in &self.stored[share.target] {
                line.bytes += part.bytes.checked_div(all).unwrap_or(0) * rows(&share.views);
            }
            if !why.contains(&planned.why.as_str()) {
                why.push(&planned.why);
            }
            if planned.scheme != Scheme::Kept {
                line.quantized.push(self.quantized(share, planned.scheme));
            }
        }
        line.why = why.join("; ");
        let as_it_is = |share: &Share| {
            let target = &self.source.entries[share.target].target;
            target.copies(&self.source.checkpoint) == Some(tensor)
                && target.name == line.tensor
                && target.shape == line.shape
        };
        line.became = match shares {
            _ if !line.quantized.is_empty() => Became::Quantized,
            [share] if as_it_is(share) => Became::Kept,
            _ => Became::Converted,
        };
    }

    fn quantized(&self, share: &Share, scheme: Scheme) -> Quantized {
        let (done, measured) = (&self.outcome.targets[share.target], self.measured[share.target]);
        let objective = self.plan.settings.objective;
        let mut noise = Noise::default();
        share.views.iter().for_each(|&view| noise.add(done[view].noise));
        let matrices = || share.views.iter().map(|&view| (done[view].noise, &measured[view]));
        let energy: f64 = matrices().map(|(_, measured)| measured.energy).sum();
        Quantized {
            into: self.source.entries[share.target].target.name.clone(),
            scheme,
            origin: measured[share.views[0]].origin,
            loss: loss(objective, &mut matrices()),
            sqnr_db: hundredths(sqnr_db(matrices())),
            squared_error: noise.plain,
            nrmse: if energy > 0.0 { (noise.plain / energy).sqrt() } else { 0.0 },
        }
    }
}

fn loss(objective: Objective, matrices: &mut dyn Iterator<Item = (Noise, &MatrixSensitivity)>) -> f64 {
    matrices.map(|(noise, measured)| objective.loss(noise, measured)).sum()
}

/// Digests of what a target is stored in, where that is known of all of it.
pub(super) fn digests(done: &[Done]) -> Option<&[String]> {
    match done {
        [only] => Some(&only.parts_sha256),
        _ => None,
    }
}
