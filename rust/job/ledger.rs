//! The ledger: the fate of every part of the source.

use super::conversion::{Contribution, Conversion, Fate, OutputTensor};
use super::encode::EncodedOutput;
use super::read_back::Slices;
use super::unit::UnitRecord;
use crate::codec::Scheme;
use crate::container::{Location, StoredTensor};
use crate::math::round2;
use crate::rate_distortion::{Noise, Objective, sqnr_db};
use crate::schema::manifest::{Became, LedgerLine, Quantized, TensorDigest};
use crate::schema::plan::PlannedTensor;
use crate::sensitivity::MatrixSensitivity;

/// An output tensor with its plan, its stored parts and its sensitivities.
pub(crate) struct WrittenTensor<'a> {
    pub output: &'a OutputTensor,
    pub planned: &'a PlannedTensor,
    /// The tensors that store it.
    pub parts: &'a [StoredTensor],
    /// Their locations.
    pub locations: &'a [Location],
    /// One sensitivity per matrix; empty if no scheme is available.
    pub sensitivities: &'a [MatrixSensitivity],
    /// The parts whose size does not depend on the rows: index and SHA-256.
    pub fixed_sha256: Vec<(usize, String)>,
}

pub(crate) struct WrittenOutput<'a> {
    pub conversion: &'a Conversion,
    pub objective: Objective,
    pub tensors: &'a [WrittenTensor<'a>],
    pub encoded: &'a EncodedOutput,
}

impl WrittenTensor<'_> {
    /// Bytes of `part` that store `rows` rows. A part of fixed size counts for the first rows only.
    fn share_bytes(&self, part: &StoredTensor, rows: u64, is_first: bool) -> u64 {
        let fixed = if !part.grows && is_first { part.bytes } else { 0 };
        part.row_bytes(self.output.target.rows()) * rows + fixed
    }

    /// SHA-256 of part `at`, if it is known without reading the output: the part has a fixed size or was written by one
    /// unit.
    fn digest<'a>(&'a self, at: usize, records: &'a [UnitRecord]) -> Option<&'a String> {
        let fixed = self.fixed_sha256.iter().find(|(part, _)| *part == at);
        match (fixed, records) {
            (Some((_, sha256)), _) => Some(sha256),
            (None, [only]) => only.parts_sha256.get(at),
            (None, _) => None,
        }
    }
}

impl WrittenOutput<'_> {
    /// Returns one line for each part of the source.
    #[must_use]
    pub(crate) fn ledger(&self) -> Vec<LedgerLine> {
        let checkpoint = &self.conversion.checkpoint;
        let line = |(at, sha256): (usize, &String)| {
            let part = &checkpoint.parts[at];
            let mut line = LedgerLine {
                tensor: part.stored_name().to_owned(),
                dtype: part.dtype.name().to_owned(),
                shape: part.shape.clone(),
                file: checkpoint.shards[part.shard].name.clone(),
                sha256: sha256.clone(),
                role: self.conversion.role(at),
                became: Became::Dropped,
                why: String::new(),
                bytes: 0,
                into: Vec::new(),
                quantized: Vec::new(),
            };
            match self.conversion.fate(at) {
                Fate::Unused(why) => (line.became, line.why) = (Became::Consumed, why.to_owned()),
                Fate::Tied(to) => (line.became, line.why) = (Became::Tied, format!("the same as {to}")),
                Fate::Dropped(why) => why.clone_into(&mut line.why),
                Fate::Companion(tensor) => {
                    (line.became, line.into) = (Became::Consumed, self.into(&self.conversion.contributions[tensor]));
                    line.why = format!("read with {}", checkpoint.tensors[tensor].name);
                }
                Fate::Written(tensor) => self.written(&mut line, tensor),
            }
            line
        };
        self.encoded.parts_sha256.iter().enumerate().map(line).collect()
    }

    /// The names of the stored tensors that `contributions` lead to.
    fn into(&self, contributions: &[Contribution]) -> Vec<String> {
        contributions
            .iter()
            .flat_map(|contribution| self.tensors[contribution.target].parts)
            .map(|part| part.name.clone())
            .collect()
    }

    /// Fills in the line of tensor `tensor`, which is written.
    fn written(&self, line: &mut LedgerLine, tensor: usize) {
        let contributions = &self.conversion.contributions[tensor];
        line.into = self.into(contributions);
        let mut why: Vec<&str> = Vec::new();
        for contribution in contributions {
            let written @ WrittenTensor { output, planned, parts, .. } = &self.tensors[contribution.target];
            let rows: u64 = contribution.views.iter().map(|&view| output.target.views[view].rows).sum();
            let is_first = contribution.views.first() == Some(&0);
            line.bytes += parts.iter().map(|part| written.share_bytes(part, rows, is_first)).sum::<u64>();
            if !why.contains(&planned.why.as_str()) {
                why.push(&planned.why);
            }
            if !planned.scheme.is_kept() {
                line.quantized.push(self.quantized(contribution, planned.scheme));
            }
        }
        line.why = why.join("; ");
        line.became = match contributions.as_slice() {
            _ if !line.quantized.is_empty() => Became::Quantized,
            [contribution] if self.conversion.is_unchanged(tensor, self.tensors[contribution.target].output) => {
                Became::Kept
            }
            _ => Became::Converted,
        };
    }

    fn quantized(&self, contribution: &Contribution, scheme: Scheme) -> Quantized {
        let (records, written) = (&self.encoded.records[contribution.target], &self.tensors[contribution.target]);
        let matrices = || contribution.views.iter().map(|&view| (records[view].noise, &written.sensitivities[view]));
        let mut noise = Noise::default();
        matrices().for_each(|(of_view, _)| noise.add(of_view));
        let energy: f64 = matrices().map(|(_, measured)| measured.energy).sum();
        Quantized {
            into: written.output.target.name.clone(),
            scheme,
            origin: written.sensitivities[contribution.views[0]].origin,
            feedback: contribution.views.iter().filter(|&&view| records[view].has_feedback).count(),
            loss: matrices().map(|(noise, measured)| self.objective.loss(noise, measured)).sum(),
            sqnr_db: round2(sqnr_db(matrices())),
            squared_error: noise.plain,
            nrmse: if energy > 0.0 { (noise.plain / energy).sqrt() } else { 0.0 },
        }
    }

    /// The stored tensors with their SHA-256; empty for a tensor written in slices, whose digest is known after it is
    /// read back. `file` returns the name of an output file.
    #[must_use]
    pub(crate) fn digests(&self, file: impl Fn(usize) -> String) -> Vec<TensorDigest> {
        let mut digests = Vec::new();
        for (written, records) in self.tensors.iter().zip(&self.encoded.records) {
            for (at, (part, location)) in written.parts.iter().zip(written.locations).enumerate() {
                digests.push(TensorDigest {
                    name: part.name.clone(),
                    dtype: part.dtype.name().to_owned(),
                    shape: part.shape.clone(),
                    file: file(location.file),
                    sha256: written.digest(at, records).cloned().unwrap_or_default(),
                });
            }
        }
        digests
    }

    /// The slices of each stored tensor that more than one unit wrote, by its name.
    #[must_use]
    pub(crate) fn slices(&self) -> Slices {
        let mut slices = Slices::new();
        for (written, records) in self.tensors.iter().zip(&self.encoded.records) {
            for (at, part) in written.parts.iter().enumerate() {
                if written.digest(at, records).is_none() {
                    let rows = written.output.target.rows();
                    let views = written.output.target.views.iter().zip(records);
                    let of_view =
                        views.map(|(view, record)| (view.rows * part.row_bytes(rows), record.parts_sha256[at].clone()));
                    slices.insert(part.name.clone(), of_view.collect());
                }
            }
        }
        slices
    }
}
