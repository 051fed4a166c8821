//! Source `weights`: second moments propagated through the stored weights, no forward pass.
//!
//! `ρ` is the mean square of each channel of the residual stream. It starts as the mean square of the embedding's columns,
//! and each layer adds to it (`docs/method.md`, "Propagated moments"):
//!
//! - after a norm of gain `γ` and shift `β`: `k_j = γ_j² ρ_j / mean(ρ) + β_j²`;
//! - after a linear layer: `Σ_j W_ij² k_j + b_i²`, a row's energy under `k`;
//! - attention carries the values' moments to the output projection, as if one token were attended to;
//! - a gated MLP yields `E[act(g)²] · E[u²]`, for independent Gaussian `g` and `u` with these moments.
//!
//! Diagonal moments do not represent the effect of single large weights on single channels. They are therefore mixed with
//! equal importance of all channels, [`FLAT_SHARE`] of the energy. The mixture costs little where the moments are right, and
//! bounds the damage where they are wrong. The gain is the [role prior](super::prior) divided by the energy of the output.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::gaussian::second_moment;
use super::prior::Prior;
use super::{Candidate, Gain, MatrixSensitivity, Origin, Vectors, layers, share};
use crate::arch::{
    FoundExperts, FoundLayer, FoundMlp, HeadShape, Linear, Model, Norm, ParameterVector, model, read_vector,
};
use crate::checkpoint::View;
use crate::checkpoint::stream::Pass;
use crate::error::{Error, Result};
use crate::name::{Name, Role};
use crate::pass::energy::{self, Energy, EnergyJob};

/// Share of a matrix's energy for which all input channels count alike (`docs/method.md`, "Shrinkage").
pub(crate) const FLAT_SHARE: f64 = 0.3;

/// Share of a matrix's loss that is the plain squared error. Propagated moments are an estimate, and a plan that trusts
/// them fully spends bytes on their errors (`docs/method.md`, "Hedging").
pub(crate) const HEDGE: f64 = 0.7;

/// Second moment of each channel.
type SecondMoments = Vec<f64>;

/// The sensitivity of the candidates of one checkpoint, as far as it was propagated.
struct Propagated<'a> {
    prior: Prior,
    layers: usize,
    candidates: &'a [Candidate<'a>],
    /// Candidates by the tensor that holds them.
    held: BTreeMap<usize, Vec<usize>>,
    /// One for each candidate.
    measured: Vec<Option<MatrixSensitivity>>,
}

/// Measures `candidates` and derives their sensitivity.
///
/// # Errors
/// Those of [`energy::energies`].
pub(crate) fn derive(pass: Pass<'_>, candidates: &[Candidate<'_>], prior: Prior) -> Result<Vec<MatrixSensitivity>> {
    let mut held: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (at, candidate) in candidates.iter().enumerate() {
        held.entry(candidate.view.tensor).or_default().push(at);
    }
    let measured = vec![None; candidates.len()];
    let mut found = Propagated { prior, layers: layers(candidates), candidates, held, measured };
    match model(pass.checkpoint) {
        Ok(model) => Propagation { pass, model: &model, found: &mut found }.run()?,
        Err(reason) => {
            pass.progress.warn(format!("the structure is not recognised ({reason}): all input channels count alike"));
        }
    }
    found.rest(pass)
}

impl Propagated<'_> {
    /// Records candidate `at`, measured under the moments `k`, with the gain of its role.
    fn record_with_prior(&mut self, at: usize, k: &[f64], energy: &Energy) {
        let Name { role, layer, .. } = *self.candidates[at].name;
        let signal = self.prior.of(role, layer, self.layers);
        self.record(at, k, energy, signal, FLAT_SHARE);
    }

    /// Records candidate `at` with the moments `k`, mixed with a share `flat` of equal importance. The mixture is scaled so
    /// that the matrix has the same energy under it as unweighted.
    fn record(&mut self, at: usize, k: &[f64], energy: &Energy, signal: f64, flat: f64) {
        let Energy { plain, dead, .. } = *energy;
        let (k, origin): (Arc<[f32]>, _) = if energy.weighted > 0.0 {
            let share = (1.0 - flat) * plain / energy.weighted;
            (k.iter().map(|&k| (share * k + flat) as f32).collect(), Origin::Propagated)
        } else {
            (vec![1.0; k.len()].into(), Origin::Flat)
        };
        // A matrix of zeros has no error in any scheme.
        let signal = if plain > 0.0 { signal } else { 0.0 };
        let gain = if plain > 0.0 { 2.0 * signal / plain } else { 0.0 };
        let vectors = Vectors { importance: k, gain: Gain::Same(gain) };
        self.measured[at] = Some(MatrixSensitivity { vectors, signal, energy: plain, dead, origin });
    }

    /// Measures the candidates that the propagation did not reach.
    fn rest(mut self, pass: Pass<'_>) -> Result<Vec<MatrixSensitivity>> {
        let missing: Vec<usize> = (0..self.candidates.len()).filter(|&at| self.measured[at].is_none()).collect();
        let ones: Vec<Arc<[f32]>> =
            missing.iter().map(|&at| vec![1.0; self.candidates[at].matrix.cols as usize].into()).collect();
        let those = missing.iter().map(|&at| self.candidates[at]).zip(&ones);
        let asks: Vec<_> = those.map(|(Candidate { view, matrix, .. }, k)| EnergyJob { view, matrix, k }).collect();
        for (&at, energy) in missing.iter().zip(&energy::energies(pass, &asks)?) {
            let unknown = Energy { weighted: 0.0, ..energy.clone() };
            self.record_with_prior(at, &vec![1.0; self.candidates[at].matrix.cols as usize], &unknown);
        }
        let measured = self.measured.into_iter().collect::<Option<Vec<_>>>();
        let mut measured = measured.ok_or_else(|| Error::Bug("a matrix was not measured".to_owned()))?;
        share(self.candidates, &mut measured);
        Ok(measured)
    }
}

/// Rows of a linear layer (those of a candidate, or all rows), and the outputs that they correspond to.
struct RowSlice {
    candidate: Option<usize>,
    view: View,
    first: u64,
    step: u64,
}

struct Propagation<'p, 'a, 'c> {
    pass: Pass<'a>,
    model: &'p Model<'a>,
    found: &'p mut Propagated<'c>,
}

impl<'a> Propagation<'_, 'a, '_> {
    fn run(mut self) -> Result<()> {
        let model = self.model;
        let embedding = model.embedding;
        let scale = model.conventions.embedding_scale * model.conventions.embedding_scale;
        let view = embedding.view(self.pass.checkpoint).ok_or_else(|| Error::Bug("no embedding".to_owned()))?;
        let means = energy::column_means(self.pass, view, embedding.matrix)?;
        let mut stream: SecondMoments = means.iter().map(|mean| mean * scale).collect();
        for layer in &model.layers {
            self.attention(layer, &mut stream)?;
            match &layer.experts {
                None => self.mlp(layer, &mut stream)?,
                Some(experts) => self.mixture(layer, experts, &mut stream)?,
            }
        }
        self.ends(&stream)
    }

    /// Propagates through the attention of `layer`.
    fn attention(&mut self, layer: &FoundLayer<'a>, stream: &mut SecondMoments) -> Result<()> {
        let k = self.normed(layer.attention_in, stream)?;
        let attention = &layer.attention;
        let fed = [attention.query, attention.key, attention.value, attention.query_key_value];
        let moments = self.through(&fed, &k)?;
        let (Some(output), Some(heads)) = (attention.output, self.heads(&moments)) else { return Ok(()) };
        if heads.len() as u64 != output.matrix.cols {
            return Ok(());
        }
        let added = self.through(&[Some(output)], &heads)?.swap_remove(0);
        self.add(layer.attention_out, added, stream)
    }

    /// Moments at the input of the output projection, from those of `[query, key, value, fused]`.
    fn heads(&self, moments: &[Option<SecondMoments>]) -> Option<SecondMoments> {
        let HeadShape { queries, keys, size } = self.model.heads;
        let width = keys * size;
        let values = match (&moments[2], &moments[3]) {
            (Some(values), None) => values.as_slice(),
            (None, Some(fused)) if fused.len() == queries * size + 2 * width => &fused[fused.len() - width..],
            _ => return None,
        };
        if values.len() != width || keys == 0 || !queries.is_multiple_of(keys) {
            return None;
        }
        let repeated = |head: &[f64]| head.repeat(queries / keys);
        Some(values.chunks_exact(size).flat_map(repeated).collect())
    }

    /// Propagates through the dense MLP of `layer`.
    fn mlp(&mut self, layer: &FoundLayer<'a>, stream: &mut SecondMoments) -> Result<()> {
        let k = self.normed(layer.mlp_in, stream)?;
        let added = self.networks(&[layer.mlp], &k)?.swap_remove(0);
        self.add(layer.mlp_out, added, stream)
    }

    /// Propagates through the mixture of `layer`: the mean of the experts, with the share that a chosen one has, and the
    /// shared expert.
    fn mixture(
        &mut self,
        layer: &FoundLayer<'a>,
        mixture: &FoundExperts<'a>,
        stream: &mut SecondMoments,
    ) -> Result<()> {
        let k = self.normed(layer.mlp_in, stream)?;
        self.through(&[mixture.router, mixture.shared_gate], &k)?;
        let mut experts = self.networks(&mixture.experts, &k)?;
        let shared = self.networks(mixture.shared.as_slice(), &k)?.pop().flatten();
        experts.retain(Option::is_some);
        let chosen = self.model.conventions.routing.map_or(1, |routing| routing.chosen.max(1));
        let part = 1.0 / (chosen as f64 * experts.len().max(1) as f64);
        let mut added = vec![0.0; stream.len()];
        for (moments, part) in
            experts.into_iter().flatten().map(|found| (found, part)).chain(shared.map(|found| (found, 1.0)))
        {
            if moments.len() == added.len() {
                added.iter_mut().zip(moments).for_each(|(sum, moment)| *sum += part * moment);
            }
        }
        self.add(layer.mlp_out, Some(added), stream)
    }

    /// Moments at the outputs of `networks`, all of which have inputs of moments `k`.
    fn networks(&mut self, networks: &[FoundMlp<'a>], k: &SecondMoments) -> Result<Vec<Option<SecondMoments>>> {
        let first: Vec<_> = networks.iter().flat_map(|mlp| [mlp.gate, mlp.up, mlp.gate_up]).collect();
        let moments = self.through(&first, k)?;
        let inner: Vec<Option<SecondMoments>> = moments.chunks_exact(3).map(|found| self.inner(found)).collect();
        let last = networks.iter().zip(&inner).map(|(mlp, inner)| {
            let down = mlp.down.filter(|down| inner.as_ref().is_some_and(|inner| inner.len() == down.inputs()));
            (down, inner.as_deref().unwrap_or_default())
        });
        self.through_each(&last.collect::<Vec<_>>())
    }

    /// Moments at the input of the last matrix of a network, from those at the outputs of `[gate, up, both]`.
    fn inner(&self, moments: &[Option<SecondMoments>]) -> Option<SecondMoments> {
        let conventions = &self.model.conventions;
        let act = |variance: &f64| second_moment(conventions.activation, *variance);
        let gated = |gate: &[f64], up: &[f64]| gate.iter().zip(up).map(|(gate, up)| act(gate) * up).collect();
        match moments {
            [Some(gate), Some(up), None] => Some(gated(gate, up)),
            [None, None, Some(both)] if conventions.interleaved => {
                Some(both.chunks_exact(2).map(|pair| act(&pair[0]) * pair[1]).collect())
            }
            [None, None, Some(both)] => Some(gated(&both[..both.len() / 2], &both[both.len() / 2..])),
            [None, Some(up), None] => Some(up.iter().map(act).collect()),
            _ => None,
        }
    }

    /// Measures embedding and head. If they are tied, the one matrix has both uses: as a table, where all channels count
    /// alike, and as the head, multiplied with the last hidden state.
    fn ends(&mut self, stream: &SecondMoments) -> Result<()> {
        let model = self.model;
        let embedding = model.embedding;
        let last = self.normed(model.final_norm, stream)?;
        if let Some(head) = model.head {
            self.through(&[Some(head)], &last)?;
            return Ok(());
        }
        let view = embedding.view(self.pass.checkpoint);
        let Some(at) = self.found.candidates.iter().position(|candidate| Some(candidate.view) == view) else {
            return Ok(());
        };
        let k: Vec<f32> = last.iter().map(|&k| k as f32).collect();
        let Candidate { view, matrix, .. } = self.found.candidates[at];
        let energy = energy::energies(self.pass, &[EnergyJob { view, matrix, k: &k }])?.swap_remove(0);
        let looked_up = self.found.prior.of(Role::Embedding, None, 0);
        let as_head = self.found.prior.of(Role::Head, None, 0);
        let signal = looked_up + as_head;
        self.found.record(at, &last, &energy, signal, (looked_up + as_head * FLAT_SHARE) / signal);
        Ok(())
    }

    /// Moments at the output of `norm`, for inputs of moments `stream`.
    fn normed(&self, norm: Option<Norm<'a>>, stream: &SecondMoments) -> Result<SecondMoments> {
        let mean = stream.iter().sum::<f64>() / stream.len() as f64;
        let normed = stream.iter().map(|channel| if mean > 0.0 { channel / mean } else { 1.0 });
        let Some(Norm { weight, bias, minus_one }) = norm else { return Ok(normed.collect()) };
        let Some(gain) = self.vector(ParameterVector { tensor: weight, at: 0 }, stream.len())? else {
            return Ok(normed.collect());
        };
        let shift =
            bias.map(|tensor| self.vector(ParameterVector { tensor, at: 0 }, stream.len())).transpose()?.flatten();
        let one = if minus_one { 1.0 } else { 0.0 };
        let scaled = normed.zip(&gain).map(|(channel, gain)| channel * (gain + one) * (gain + one));
        Ok(match shift {
            None => scaled.collect(),
            Some(shift) => scaled.zip(&shift).map(|(channel, shift)| channel + shift * shift).collect(),
        })
    }

    fn vector(&self, of: ParameterVector<'a>, length: usize) -> Result<Option<SecondMoments>> {
        Ok(read_vector(self.pass, of, length)?.map(|values| values.into_iter().map(f64::from).collect()))
    }

    /// Measures `linears` with inputs of moments `k`. Returns the moments at their outputs; `None` for a layer that is missing
    /// or has another number of inputs.
    fn through(&mut self, linears: &[Option<Linear<'a>>], k: &SecondMoments) -> Result<Vec<Option<SecondMoments>>> {
        self.through_each(&linears.iter().map(|linear| (*linear, k.as_slice())).collect::<Vec<_>>())
    }

    /// As [`through`](Self::through), with moments for each layer.
    fn through_each(&mut self, linears: &[(Option<Linear<'a>>, &[f64])]) -> Result<Vec<Option<SecondMoments>>> {
        let checkpoint = self.pass.checkpoint;
        let mut narrow: Vec<Vec<f32>> = Vec::new();
        let mut slices: Vec<(usize, RowSlice)> = Vec::new();
        let mut moments: Vec<Option<SecondMoments>> = vec![None; linears.len()];
        for (at, (linear, k)) in linears.iter().enumerate() {
            narrow.push(k.iter().map(|&k| k as f32).collect());
            if let Some(linear) = linear.filter(|linear| linear.inputs() == k.len()) {
                moments[at] = Some(vec![0.0; linear.outputs()]);
                slices.extend(self.slices(&linear).into_iter().map(|slice| (at, slice)));
            }
        }
        let mut asks = Vec::with_capacity(slices.len());
        for (at, RowSlice { view, .. }) in &slices {
            let matrix = view.matrix(checkpoint).ok_or_else(|| Error::Bug("a layer is no matrix".to_owned()))?;
            asks.push(EnergyJob { view: *view, matrix, k: &narrow[*at] });
        }
        for ((at, slice), energy) in slices.iter().zip(energy::energies(self.pass, &asks)?) {
            if let Some(candidate) = slice.candidate {
                self.found.record_with_prior(candidate, linears[*at].1, &energy);
            }
            let Some(outputs) = &mut moments[*at] else { continue };
            for (row, energy) in energy.rows.into_iter().enumerate() {
                outputs[(slice.first + slice.step * slice.view.stored_row(row as u64)) as usize] = energy;
            }
        }
        for ((linear, _), moments) in linears.iter().zip(&mut moments) {
            if let (Some(Linear { bias: Some(bias), .. }), Some(moments)) = (linear, moments) {
                let bias = self.vector(*bias, moments.len())?.unwrap_or_default();
                moments.iter_mut().zip(bias).for_each(|(moment, bias)| *moment += bias * bias);
            }
        }
        Ok(moments)
    }

    /// The candidates that `linear` is made of; all of its rows if they do not cover it.
    fn slices(&self, linear: &Linear<'a>) -> Vec<RowSlice> {
        let Some(whole) = linear.view(self.pass.checkpoint) else { return Vec::new() };
        let held = self.found.held.get(&whole.tensor).map(Vec::as_slice).unwrap_or_default();
        let of = |&at: &usize| {
            let view = self.found.candidates[at].view;
            let within = view.offset.checked_sub(whole.offset)?;
            let is_in = view.cols == whole.cols
                && view.col_stride == whole.col_stride
                && within / whole.row_stride < whole.rows;
            let (first, step) = (within / whole.row_stride, view.row_stride / whole.row_stride);
            is_in.then_some(RowSlice { candidate: Some(at), view, first, step: step.max(1) })
        };
        let found: Vec<RowSlice> = held.iter().filter_map(of).collect();
        if found.iter().map(|slice| slice.view.rows).sum::<u64>() == whole.rows {
            return found;
        }
        vec![RowSlice { candidate: None, view: whole, first: 0, step: 1 }]
    }

    /// Adds the output of half a layer to the stream, after its own norm if it has one.
    fn add(&self, norm: Option<Norm<'a>>, added: Option<SecondMoments>, stream: &mut SecondMoments) -> Result<()> {
        let Some(mut added) = added.filter(|added| added.len() == stream.len()) else { return Ok(()) };
        if norm.is_some() {
            added = self.normed(norm, &added)?;
        }
        let scale = self.model.conventions.residual_scale * self.model.conventions.residual_scale;
        for (channel, added) in stream.iter_mut().zip(added) {
            *channel += scale * added;
        }
        Ok(())
    }
}
