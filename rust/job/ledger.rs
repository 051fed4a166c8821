//! The ledger: every part of the source, and what became of it.

use super::conversion::{Conversion, Fate, OutputTensor, Share};
use super::encode::EncodedOutput;
use super::unit::UnitRecord;
use crate::codec::Scheme;
use crate::container::{Location, StoredTensor};
use crate::math::round2;
use crate::rate_distortion::{Noise, sqnr_db};
use crate::schema::manifest::{Became, LedgerLine, Quantized, TensorDigest};
use crate::schema::plan::PlannedTensor;
use crate::sensitivity::MatrixSensitivity;

/// A tensor of the output, and all that was planned and done with it.
pub(crate) struct WrittenTensor<'a> {
    /// What it is made of.
    pub output: &'a OutputTensor,
    /// What was planned for it.
    pub planned: &'a PlannedTensor,
    /// The tensors it is stored in.
    pub parts: &'a [StoredTensor],
    /// Where they are.
    pub locations: &'a [Location],
    /// The sensitivity of each of its matrices; none where no scheme exists.
    pub sensitivities: &'a [MatrixSensitivity],
    /// The parts of it that do not grow with rows, and their SHA-256.
    pub fixed_sha256: Vec<(usize, String)>,
}

/// An output that was written.
pub(crate) struct WrittenOutput<'a> {
    /// The source, and what became of it.
    pub conversion: &'a Conversion,
    /// What is minimised.
    pub objective: crate::rate_distortion::Objective,
    /// The tensors of the output.
    pub tensors: &'a [WrittenTensor<'a>],
    /// What was found and written.
    pub encoded: &'a EncodedOutput,
}

/// Length and digest of each slice that a stored tensor was written in.
pub(crate) type SliceDigests = Vec<(u64, String)>;

impl WrittenTensor<'_> {
    /// Bytes of part `part` that store rows `rows` of it; a part that does not grow with rows is stored with the first.
    fn share_bytes(&self, part: &StoredTensor, rows: u64, is_first: bool) -> u64 {
        let fixed = if !part.grows && is_first { part.bytes } else { 0 };
        part.row_bytes(self.output.target.rows()) * rows + fixed
    }

    /// SHA-256 of part `at`, if it is known without reading: it does not grow with rows, or was written in one go.
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
    /// A line for each part of the source.
    #[must_use]
    pub(crate) fn ledger(&self) -> Vec<LedgerLine> {
        let checkpoint = &self.conversion.checkpoint;
        let line = |(at, sha256): (usize, &String)| {
            let part = &checkpoint.parts[at];
            let mut line = LedgerLine {
                tensor: part.name.clone(),
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
                    (line.became, line.into) = (Became::Consumed, self.into(&self.conversion.shares[tensor]));
                    line.why = format!("read with {}", checkpoint.tensors[tensor].name);
                }
                Fate::Written(tensor) => self.written(&mut line, tensor),
            }
            line
        };
        self.encoded.parts_sha256.iter().enumerate().map(line).collect()
    }

    /// The names of what is stored for `shares`.
    fn into(&self, shares: &[Share]) -> Vec<String> {
        shares.iter().flat_map(|share| self.tensors[share.target].parts).map(|part| part.name.clone()).collect()
    }

    /// What became of tensor `tensor`.
    fn written(&self, line: &mut LedgerLine, tensor: usize) {
        let shares = &self.conversion.shares[tensor];
        line.into = self.into(shares);
        let mut why: Vec<&str> = Vec::new();
        for share in shares {
            let written @ WrittenTensor { output, planned, parts, .. } = &self.tensors[share.target];
            let rows: u64 = share.views.iter().map(|&view| output.target.views[view].rows).sum();
            let is_first = share.views.first() == Some(&0);
            line.bytes += parts.iter().map(|part| written.share_bytes(part, rows, is_first)).sum::<u64>();
            if !why.contains(&planned.why.as_str()) {
                why.push(&planned.why);
            }
            if !planned.scheme.is_kept() {
                line.quantized.push(self.quantized(share, planned.scheme));
            }
        }
        line.why = why.join("; ");
        line.became = match shares.as_slice() {
            _ if !line.quantized.is_empty() => Became::Quantized,
            [share] if self.conversion.is_as_it_is(tensor, self.tensors[share.target].output) => Became::Kept,
            _ => Became::Converted,
        };
    }

    fn quantized(&self, share: &Share, scheme: Scheme) -> Quantized {
        let (records, written) = (&self.encoded.records[share.target], &self.tensors[share.target]);
        let matrices = || share.views.iter().map(|&view| (records[view].noise, &written.sensitivities[view]));
        let mut noise = Noise::default();
        matrices().for_each(|(of_view, _)| noise.add(of_view));
        let energy: f64 = matrices().map(|(_, measured)| measured.energy).sum();
        Quantized {
            into: written.output.target.name.clone(),
            scheme,
            origin: written.sensitivities[share.views[0]].origin,
            loss: matrices().map(|(noise, measured)| self.objective.loss(noise, measured)).sum(),
            sqnr_db: round2(sqnr_db(matrices())),
            squared_error: noise.plain,
            nrmse: if energy > 0.0 { (noise.plain / energy).sqrt() } else { 0.0 },
        }
    }

    /// What is stored, and its SHA-256 as far as that is known: of what was written in slices it is not, before it is
    /// read back. `file` names a file of the output.
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

    /// What was written in more than one go, by the name of the stored tensor.
    #[must_use]
    pub(crate) fn slices(&self) -> std::collections::BTreeMap<String, SliceDigests> {
        let mut slices = std::collections::BTreeMap::new();
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
