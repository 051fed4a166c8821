//! Source `weights`: second moments propagated through the stored weights, no forward pass.
//!
//! `ρ`, the mean square of each channel of the residual stream, starts as that of the embedding's columns and takes in
//! what each block adds (`docs/method.md` §3):
//!
//! - behind a norm of gain `γ` and shift `β`: `k_j = γ_j² ρ_j / mean(ρ) + β_j²`;
//! - behind a linear layer: `Σ_j W_ij² k_j + b_i²`, a row's energy under `k`;
//! - through attention the values' moments are carried to the output projection, as if one token were attended to;
//! - through a gated MLP `E[act(g)²] · E[u²]`, for independent Gaussian `g` and `u` of these moments.
//!
//! Diagonal moments smear what single large weights do to single channels, so what is used is a mixture with "all
//! channels alike", [`FLAT_SHARE`] of the energy: it costs little where the moments are right and guards where they are
//! wrong. The gain is the [role prior](super::prior) over the output's energy.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::gaussian::second_moment;
use super::prior::Prior;
use super::{Gain, Measured, Origin, Vectors, layers};
use crate::checkpoint::stream::Pass;
use crate::checkpoint::{Matrix, Tensor};
use crate::decoder::{Block, Decoder, Linear, Norm, Vector, decoder, vector};
use crate::error::{Error, Result};
use crate::name::{Name, Role};
use crate::stats::{self, Ask, Energy};

/// Share of a matrix's energy that counts all input channels alike (`docs/method.md`, "Shrinkage").
pub const FLAT_SHARE: f64 = 0.3;

/// Share of a matrix's loss that is the plain squared error's: propagated moments are an estimate, and a plan that
/// takes them for the truth spends its bytes on their mistakes (`docs/method.md`, "Hedging").
pub const DOUBT: f64 = 0.7;

/// Second moments, one per channel.
type Moments = Vec<f64>;

/// Sensitivity of the matrices of one checkpoint, by tensor.
struct Derived<'a> {
    prior: Prior,
    layers: usize,
    measured: BTreeMap<&'a str, Measured>,
}

/// Measures `matrices` (among them all that the structure needs) and derives their sensitivity.
///
/// # Errors
/// Those of [`stats::energies`].
pub fn derive<'a>(pass: Pass<'a>, matrices: &[(&'a Tensor, Matrix)], prior: Prior) -> Result<Vec<Measured>> {
    let mut derived = Derived { prior, layers: layers(matrices), measured: BTreeMap::new() };
    match decoder(pass.checkpoint) {
        Ok(decoder) => Propagation { pass, decoder: &decoder, derived: &mut derived }.run()?,
        Err(reason) => {
            pass.progress.warn(format!("the structure is not recognised ({reason}): all input channels count alike"));
        }
    }
    derived.rest(pass, matrices)
}

impl<'a> Derived<'a> {
    /// Takes in what was measured of `tensor` under the moments `k`.
    fn take(&mut self, tensor: &'a Tensor, k: &[f64], energy: &Energy) {
        let name = Name::parse(&tensor.name);
        let signal = self.prior.of(name.role, name.layer, self.layers);
        self.put(tensor, k, energy, signal, FLAT_SHARE);
    }

    /// Records `tensor` with the moments `k`, of which a share `flat` counts all channels alike. They are scaled so
    /// that under them the matrix has the same energy as plain.
    fn put(&mut self, tensor: &'a Tensor, k: &[f64], energy: &Energy, signal: f64, flat: f64) {
        let plain = energy.plain;
        let (k, origin): (Arc<[f32]>, _) = if energy.weighted > 0.0 {
            let share = (1.0 - flat) * plain / energy.weighted;
            (k.iter().map(|&k| (share * k + flat) as f32).collect(), Origin::Propagated)
        } else {
            (vec![1.0; k.len()].into(), Origin::Flat)
        };
        // A matrix of zeros has no error, whatever becomes of it.
        let signal = if plain > 0.0 { signal } else { 0.0 };
        let gain = if plain > 0.0 { 2.0 * signal / plain } else { 0.0 };
        let vectors = Vectors { k, r: Gain::Same(gain) };
        self.measured.insert(&tensor.name, Measured { vectors, signal, energy: plain, origin });
    }

    /// Measures what the propagation did not reach, and puts all in the order of `matrices`.
    fn rest(mut self, pass: Pass<'a>, matrices: &[(&'a Tensor, Matrix)]) -> Result<Vec<Measured>> {
        let missing: Vec<_> =
            matrices.iter().filter(|(tensor, _)| !self.measured.contains_key(tensor.name.as_str())).collect();
        let ones: Vec<Arc<[f32]>> = missing.iter().map(|(_, matrix)| vec![1.0; matrix.cols as usize].into()).collect();
        let asks: Vec<_> =
            missing.iter().zip(&ones).map(|((tensor, matrix), k)| Ask { tensor, matrix: *matrix, k }).collect();
        let energies = stats::energies(pass, &asks)?;
        for ((tensor, matrix), energy) in missing.iter().zip(&energies) {
            let unknown = Energy { weighted: 0.0, ..energy.clone() };
            self.take(tensor, &vec![1.0; matrix.cols as usize], &unknown);
        }
        matrices
            .iter()
            .map(|(tensor, _)| {
                let found = self.measured.remove(tensor.name.as_str());
                found.ok_or_else(|| Error::Bug(format!("`{}` was not measured", tensor.name)))
            })
            .collect()
    }
}

struct Propagation<'p, 'a> {
    pass: Pass<'a>,
    decoder: &'p Decoder<'a>,
    derived: &'p mut Derived<'a>,
}

impl<'a> Propagation<'_, 'a> {
    fn run(mut self) -> Result<()> {
        let decoder = self.decoder;
        let embedding = decoder.embedding;
        let scale = decoder.conventions.embedding_scale * decoder.conventions.embedding_scale;
        let means = stats::column_means(self.pass, embedding.weight, embedding.matrix)?;
        let mut stream: Moments = means.iter().map(|mean| mean * scale).collect();
        for block in &decoder.blocks {
            self.attention(block, &mut stream)?;
            self.mlp(block, &mut stream)?;
        }
        self.ends(&stream)
    }

    /// Attention of `block`, and what it adds to the `stream`.
    fn attention(&mut self, block: &Block<'a>, stream: &mut Moments) -> Result<()> {
        let k = self.behind(block.attention_in, stream)?;
        let attention = &block.attention;
        let fed = [attention.query, attention.key, attention.value, attention.query_key_value];
        let moments = self.through(&fed, &k)?;
        let (Some(output), Some(heads)) = (attention.output, self.heads(&moments)) else { return Ok(()) };
        if heads.len() as u64 != output.matrix.cols {
            return Ok(());
        }
        let added = self.through(&[Some(output)], &heads)?.swap_remove(0);
        self.add(block.attention_out, added, stream)
    }

    /// Moments at the input of the output projection, from those of `[query, key, value, fused]`.
    fn heads(&self, moments: &[Option<Moments>]) -> Option<Moments> {
        let Decoder { head_size, heads, kv_heads, .. } = *self.decoder;
        let width = kv_heads * head_size;
        let values = match (&moments[2], &moments[3]) {
            (Some(values), None) => values.as_slice(),
            (None, Some(fused)) if fused.len() == heads * head_size + 2 * width => &fused[fused.len() - width..],
            _ => return None,
        };
        if values.len() != width || kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
            return None;
        }
        let repeated = |head: &[f64]| head.repeat(heads / kv_heads);
        Some(values.chunks_exact(head_size).flat_map(repeated).collect())
    }

    /// The MLP of `block`, and what it adds to the `stream`.
    fn mlp(&mut self, block: &Block<'a>, stream: &mut Moments) -> Result<()> {
        let k = self.behind(block.mlp_in, stream)?;
        let mlp = &block.mlp;
        let moments = self.through(&[mlp.gate, mlp.up, mlp.gate_up], &k)?;
        let Some(down) = mlp.down else { return Ok(()) };
        let act = |variance: &f64| second_moment(self.decoder.conventions.activation, *variance);
        let gated = |gate: &[f64], up: &[f64]| gate.iter().zip(up).map(|(gate, up)| act(gate) * up).collect();
        let inner: Moments = match (&moments[0], &moments[1], &moments[2]) {
            (Some(gate), Some(up), None) => gated(gate, up),
            (None, None, Some(both)) => gated(&both[..both.len() / 2], &both[both.len() / 2..]),
            (None, Some(up), None) => up.iter().map(act).collect(),
            _ => return Ok(()),
        };
        if inner.len() as u64 != down.matrix.cols {
            return Ok(());
        }
        let added = self.through(&[Some(down)], &inner)?.swap_remove(0);
        self.add(block.mlp_out, added, stream)
    }

    /// Embedding and head. Tied, they are one matrix with both uses: looked up, where all channels count alike, and
    /// multiplied with the last hidden state.
    fn ends(&mut self, stream: &Moments) -> Result<()> {
        let decoder = self.decoder;
        let embedding = decoder.embedding;
        let last = self.behind(decoder.final_norm, stream)?;
        if let Some(head) = decoder.head {
            self.through(&[Some(head)], &last)?;
            return Ok(());
        }
        let k: Vec<f32> = last.iter().map(|&k| k as f32).collect();
        let ask = Ask { tensor: embedding.weight, matrix: embedding.matrix, k: &k };
        let energy = stats::energies(self.pass, &[ask])?.swap_remove(0);
        let looked_up = self.derived.prior.of(Role::Embedding, None, 0);
        let as_head = self.derived.prior.of(Role::Head, None, 0);
        let signal = looked_up + as_head;
        self.derived.put(embedding.weight, &last, &energy, signal, (looked_up + as_head * FLAT_SHARE) / signal);
        Ok(())
    }

    /// Moments behind `norm`, for a stream of moments `stream`.
    fn behind(&self, norm: Option<Norm<'a>>, stream: &Moments) -> Result<Moments> {
        let mean = stream.iter().sum::<f64>() / stream.len() as f64;
        let normed = stream.iter().map(|channel| if mean > 0.0 { channel / mean } else { 1.0 });
        let Some(Norm { weight, bias }) = norm else { return Ok(normed.collect()) };
        let Some(gain) = self.vector(Vector { tensor: weight, at: 0 }, stream.len())? else {
            return Ok(normed.collect());
        };
        let shift = bias.map(|tensor| self.vector(Vector { tensor, at: 0 }, stream.len())).transpose()?.flatten();
        let one = if self.decoder.conventions.norm_adds_one { 1.0 } else { 0.0 };
        let scaled = normed.zip(&gain).map(|(channel, gain)| channel * (gain + one) * (gain + one));
        Ok(match shift {
            None => scaled.collect(),
            Some(shift) => scaled.zip(&shift).map(|(channel, shift)| channel + shift * shift).collect(),
        })
    }

    fn vector(&self, of: Vector<'a>, length: usize) -> Result<Option<Moments>> {
        Ok(vector(self.pass, of, length)?.map(|values| values.into_iter().map(f64::from).collect()))
    }

    /// Measures `linears` behind moments `k`; the moments of the outputs of those that are there and take that many.
    fn through(&mut self, linears: &[Option<Linear<'a>>], k: &Moments) -> Result<Vec<Option<Moments>>> {
        let narrow: Vec<f32> = k.iter().map(|&k| k as f32).collect();
        let usable = |linear: &Linear<'_>| linear.matrix.cols == k.len() as u64 && !linear.transposed;
        let there: Vec<Linear<'a>> = linears.iter().copied().flatten().filter(usable).collect();
        let asks: Vec<_> =
            there.iter().map(|linear| Ask { tensor: linear.weight, matrix: linear.matrix, k: &narrow }).collect();
        let mut energies = stats::energies(self.pass, &asks)?.into_iter();
        let mut moments = Vec::with_capacity(linears.len());
        for linear in linears {
            let Some(linear) = linear.filter(usable) else {
                moments.push(None);
                continue;
            };
            let energy = energies.next().ok_or_else(|| Error::Bug("a measurement is missing".to_owned()))?;
            self.derived.take(linear.weight, k, &energy);
            let mut rows = energy.rows;
            let bias = linear.bias.map(|bias| self.vector(bias, rows.len())).transpose()?.flatten();
            for (row, bias) in rows.iter_mut().zip(bias.unwrap_or_default()) {
                *row += bias * bias;
            }
            moments.push(Some(rows));
        }
        Ok(moments)
    }

    /// Adds what a block gives to the stream, behind its own norm if it has one.
    fn add(&self, norm: Option<Norm<'a>>, added: Option<Moments>, stream: &mut Moments) -> Result<()> {
        let Some(mut added) = added.filter(|added| added.len() == stream.len()) else { return Ok(()) };
        if norm.is_some() {
            added = self.behind(norm, &added)?;
        }
        let scale = self.decoder.conventions.residual_scale * self.decoder.conventions.residual_scale;
        for (channel, added) in stream.iter_mut().zip(added) {
            *channel += scale * added;
        }
        Ok(())
    }
}
