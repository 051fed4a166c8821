//! One layer, forward and back.

use std::borrow::Cow;

use super::activations::Activations;
use super::attention::{AttentionHeads, HeadKeyValues, KeyValueCache, Rotation, Span};
use super::ffn::{self, MlpTrace};
use super::moe::{self, MoeTrace};
use super::norm::NormLayer;
use super::stored::{Direction, Operand, product};
use super::visitor::LayerInput;
use super::{LinearOutput, Session};
use crate::arch::rope::RopeTable;
use crate::arch::{Attention, Ffn, Layer, Linear, Mixer, Norm, ParameterVector, Projection};
use crate::error::Result;

/// The activations of a layer's forward pass that the backward pass needs.
pub(super) struct LayerTrace<'a> {
    attention: AttentionTrace,
    /// The residual stream between attention and MLP.
    middle: Activations,
    ffn: FfnTrace<'a>,
}

/// Queries, keys and values before norms and RoPE, and the output.
struct AttentionTrace {
    projected: [Activations; 3],
    out: Activations,
}

enum FfnTrace<'a> {
    Dense(MlpTrace<'a>),
    Mixture(MoeTrace<'a>),
}

impl FfnTrace<'_> {
    fn numbers(&self) -> usize {
        match self {
            Self::Dense(mlp) => mlp.numbers(),
            Self::Mixture(moe) => moe.numbers(),
        }
    }

    fn out(&self) -> &Activations {
        match self {
            Self::Dense(mlp) => &mlp.out,
            Self::Mixture(moe) => &moe.out,
        }
    }
}

impl LayerTrace<'_> {
    /// Approximate size in memory, in bytes.
    pub(super) fn bytes(&self) -> usize {
        let attention = self.attention.projected.iter().chain([&self.attention.out, &self.middle]);
        let numbers: usize = attention.map(|rows| rows.values.len()).sum();
        4 * (numbers + self.ffn.numbers())
    }

    /// Tokens of each expert, if there are any.
    pub(super) fn loads(&self) -> Option<Vec<u64>> {
        match &self.ffn {
            FfnTrace::Dense(_) => None,
            FfnTrace::Mixture(moe) => Some(moe.loads()),
        }
    }
}

/// A layer whose vectors are in memory. Its matrices are read when they are used.
pub(super) struct LoadedLayer<'s, 'a> {
    session: &'s Session<'a>,
    layer: &'a Layer<'a>,
    attention: &'a Attention<'a>,
    heads: AttentionHeads,
    rope: Option<RopeTable>,
    query_norm: Option<NormLayer>,
    key_norm: Option<NormLayer>,
    mixer_in: Option<NormLayer>,
    mixer_out: Option<NormLayer>,
    ffn_in: Option<NormLayer>,
    ffn_out: Option<NormLayer>,
}

impl<'s, 'a> LoadedLayer<'s, 'a> {
    /// Reads the vectors of `layer`, for windows of at most `positions` tokens.
    pub(super) fn new(session: &'s Session<'a>, layer: &'a Layer<'a>, positions: usize) -> Result<Self> {
        let conventions = &session.model.conventions;
        let Mixer::Attention(attention) = &layer.mixer;
        let shape = attention.heads;
        let window = |(window, sliding): &(usize, Vec<bool>)| {
            sliding.get(layer.index).copied().unwrap_or(false).then_some(*window)
        };
        let scale = conventions.attention_scale.unwrap_or(1.0 / (shape.size as f64).sqrt());
        let sinks = attention.sinks.map(|tensor| session.elements(ParameterVector { tensor, at: 0 }, shape.queries));
        let heads = AttentionHeads {
            queries: shape.queries,
            keys: shape.keys,
            size: shape.size,
            scale: scale as f32,
            cap: conventions.attention_cap.map(|cap| cap as f32),
            window: conventions.window.as_ref().and_then(window),
            sinks: sinks.transpose()?.unwrap_or_default(),
        };
        let norm = |norm: Option<Norm<'_>>, width| norm.map(|norm| NormLayer::new(session, norm, width)).transpose();
        let of_stream = |found| norm(found, session.model.width());
        Ok(Self {
            session,
            layer,
            attention,
            rope: attention.rope.as_ref().map(|rope| rope.table(positions)),
            query_norm: norm(attention.query_norm, shape.queries * shape.size)?,
            key_norm: norm(attention.key_norm, shape.keys * shape.size)?,
            mixer_in: of_stream(layer.mixer_in)?,
            mixer_out: of_stream(layer.mixer_out)?,
            ffn_in: of_stream(layer.ffn_in)?,
            ffn_out: of_stream(layer.ffn_out)?,
            heads,
        })
    }

    /// An empty cache for `windows` windows of `positions` tokens.
    pub(super) fn cache(&self, windows: usize, positions: usize) -> KeyValueCache {
        self.heads.cache(windows, positions)
    }

    /// The output of a norm for `x`; `x` itself if there is none.
    fn normed<'x>(&self, norm: Option<&NormLayer>, x: &'x Activations) -> Result<Cow<'x, Activations>> {
        Ok(match norm {
            Some(norm) => Cow::Owned(norm.forward(self.session, x)?),
            None => Cow::Borrowed(x),
        })
    }

    /// Gradients at the input `x` of a norm; `gradients` themselves if there is none.
    fn norm_back<'g>(
        &self,
        norm: Option<&NormLayer>,
        x: &Activations,
        gradients: Cow<'g, Activations>,
    ) -> Result<Cow<'g, Activations>> {
        Ok(match norm {
            Some(norm) => Cow::Owned(norm.back(self.session, x, &gradients)?),
            None => gradients,
        })
    }

    /// Gradients at the output of one half of the layer, from those at the residual stream.
    fn scaled<'g>(&self, gradients: &'g Activations) -> Cow<'g, Activations> {
        let scale = self.session.model.conventions.residual_scale as f32;
        if scale == 1.0 {
            return Cow::Borrowed(gradients);
        }
        let values = gradients.values.iter().map(|value| scale * value).collect();
        Cow::Owned(Activations { width: gradients.width, values })
    }

    /// Computes the residual stream after the layer, and the trace for the backward pass.
    pub(super) fn forward(
        &self,
        x: &Activations,
        span: Span,
        cache: Option<&mut KeyValueCache>,
    ) -> Result<(Activations, LayerTrace<'a>)> {
        let conventions = &self.session.model.conventions;
        let scale = conventions.residual_scale as f32;
        let normed = self.normed(self.mixer_in.as_ref(), x)?;
        let attention = self.attention(&normed, span, cache)?;
        let mut middle = x.clone();
        middle.add(self.normed(self.mixer_out.as_ref(), &attention.out)?.as_ref(), scale);
        let ffn_input = if conventions.parallel {
            if self.ffn_in.is_some() { self.normed(self.ffn_in.as_ref(), x)? } else { normed }
        } else {
            self.normed(self.ffn_in.as_ref(), &middle)?
        };
        let ffn = match &self.layer.ffn {
            Ffn::Dense(mlp) => FfnTrace::Dense(ffn::forward_one(self.session, *mlp, &ffn_input)?),
            Ffn::Mixture(experts) => FfnTrace::Mixture(moe::forward(self.session, experts, &ffn_input)?),
        };
        let mut out = middle.clone();
        out.add(self.normed(self.ffn_out.as_ref(), ffn.out())?.as_ref(), scale);
        Ok((out, LayerTrace { attention, middle, ffn }))
    }

    /// Gradients at the residual stream before the layer, from those after it. Shows its matrices to the visitor.
    pub(super) fn back(
        &self,
        x: &Activations,
        span: Span,
        trace: &LayerTrace<'a>,
        gradients: &Activations,
    ) -> Result<Activations> {
        let conventions = &self.session.model.conventions;
        let before_ffn = if conventions.parallel { x } else { &trace.middle };
        let of_ffn = self.norm_back(self.ffn_out.as_ref(), trace.ffn.out(), self.scaled(gradients))?;
        // In a parallel layer without a norm of its own the MLP reads the input of attention.
        let shares_norm = conventions.parallel && self.ffn_in.is_none();
        let normed = self.normed(self.mixer_in.as_ref(), x)?;
        let ffn_input = if shares_norm { normed.clone() } else { self.normed(self.ffn_in.as_ref(), before_ffn)? };
        let of_ffn_input = match &trace.ffn {
            FfnTrace::Dense(mlp) => ffn::back_one(self.session, mlp, &ffn_input, &of_ffn)?,
            FfnTrace::Mixture(moe) => moe::back(self.session, moe, &ffn_input, &of_ffn)?,
        };
        let mut stream = gradients.clone();
        let mut of_normed = None;
        if shares_norm {
            of_normed = Some(of_ffn_input);
        } else {
            stream.add(self.norm_back(self.ffn_in.as_ref(), before_ffn, Cow::Owned(of_ffn_input))?.as_ref(), 1.0);
        }
        let into_attention = self.scaled(if conventions.parallel { gradients } else { &stream });
        let of_attention = self.norm_back(self.mixer_out.as_ref(), &trace.attention.out, into_attention)?;
        let mut of_input = self.attention_back(&normed, span, &trace.attention, &of_attention)?;
        if let Some(of_ffn_input) = of_normed {
            of_input.add(&of_ffn_input, 1.0);
        }
        stream.add(self.norm_back(self.mixer_in.as_ref(), x, Cow::Owned(of_input))?.as_ref(), 1.0);
        Ok(stream)
    }

    /// For queries, keys and values the first column of each head in a row of the fused projection.
    fn fused_columns(&self) -> [Vec<usize>; 3] {
        let AttentionHeads { queries, keys, size, .. } = self.heads;
        let counts = [queries, keys, keys];
        if self.session.model.conventions.fused_by_head {
            return [0, 1, 2].map(|which| (0..queries).map(|head| (3 * head + which) * size).collect());
        }
        let mut first = 0;
        counts.map(|count| {
            let columns = (0..count).map(|head| first + head * size).collect();
            first += count * size;
            columns
        })
    }

    fn split(&self, fused: &Activations) -> [Activations; 3] {
        let size = self.heads.size;
        self.fused_columns().map(|columns| {
            let mut values = Vec::with_capacity(fused.count() * columns.len() * size);
            for row in 0..fused.count() {
                for &from in &columns {
                    values.extend_from_slice(&fused.row(row)[from..from + size]);
                }
            }
            Activations { width: columns.len() * size, values }
        })
    }

    /// The inverse of [`split`](Self::split).
    fn fuse(&self, parts: &[Activations; 3]) -> Activations {
        let (size, count) = (self.heads.size, parts[0].count());
        let mut fused = Activations::zeros(count, parts.iter().map(|part| part.width).sum());
        for (part, columns) in parts.iter().zip(self.fused_columns()) {
            for row in 0..count {
                for (head, &from) in columns.iter().enumerate() {
                    let head = &part.row(row)[head * size..(head + 1) * size];
                    fused.row_mut(row)[from..from + size].copy_from_slice(head);
                }
            }
        }
        fused
    }

    /// Queries, keys and values before norms and RoPE.
    fn project(&self, x: &Activations) -> Result<[Activations; 3]> {
        match self.attention.projection {
            Projection::Fused(linear) => {
                self.session.see_inputs(LayerInput::all(x), &[linear])?;
                Ok(self.split(&self.session.forward_one(linear, x)?))
            }
            Projection::Split { query, key, value } => {
                self.session.see_inputs(LayerInput::all(x), &[query, key, value])?;
                let mut outputs = [query, key, value].map(|linear| LinearOutput::zeros(linear, x.count()));
                self.session.forward(outputs.iter_mut().map(|output| (x, output)).collect())?;
                Ok(outputs.map(|output| output.rows))
            }
        }
    }

    fn attention(&self, x: &Activations, span: Span, cache: Option<&mut KeyValueCache>) -> Result<AttentionTrace> {
        let projected = self.project(x)?;
        let [query, key] = self.placed(&projected, span)?;
        let mixed = match cache {
            None => self.heads.forward(self.session, &query, HeadKeyValues::Rows(&key, &projected[2]), span)?,
            Some(cache) => {
                self.heads.grow(cache, &key, &projected[2], span);
                self.heads.forward(self.session, &query, HeadKeyValues::Cached(cache), span)?
            }
        };
        self.session.see_inputs(LayerInput::all(&mixed), &[self.attention.output])?;
        let out = self.session.forward_one(self.attention.output, &mixed)?;
        Ok(AttentionTrace { projected, out })
    }

    /// Queries and keys after their norms and RoPE.
    fn placed<'p>(&self, projected: &'p [Activations; 3], span: Span) -> Result<[Cow<'p, Activations>; 2]> {
        let placed = |x: &'p Activations, norm: &Option<NormLayer>| -> Result<Cow<'p, Activations>> {
            let normed = self.normed(norm.as_ref(), x)?;
            Ok(match &self.rope {
                Some(rope) => {
                    Cow::Owned(self.heads.apply_rope(self.session.pass, &normed, rope, span, Rotation::Forward)?)
                }
                None => normed,
            })
        };
        Ok([placed(&projected[0], &self.query_norm)?, placed(&projected[1], &self.key_norm)?])
    }

    /// Gradients at queries or keys `x` from those after their norm and RoPE.
    fn placed_back(
        &self,
        gradients: Activations,
        x: &Activations,
        norm: Option<&NormLayer>,
        span: Span,
    ) -> Result<Activations> {
        let session = self.session;
        let gradients = match &self.rope {
            Some(rope) => self.heads.apply_rope(session.pass, &gradients, rope, span, Rotation::Back)?,
            None => gradients,
        };
        match norm {
            Some(norm) => norm.back(session, x, &gradients),
            None => Ok(gradients),
        }
    }

    /// Gradients at the input `x` of attention, from those at its output. Shows its matrices to the visitor.
    fn attention_back(
        &self,
        x: &Activations,
        span: Span,
        trace: &AttentionTrace,
        gradients: &Activations,
    ) -> Result<Activations> {
        let session = self.session;
        let [query, key] = self.placed(&trace.projected, span)?;
        let value = &trace.projected[2];
        let mixed = self.heads.forward(session, &query, HeadKeyValues::Rows(&key, value), span)?;
        let of_mixed = session.back_one(self.attention.output, &mixed, gradients)?;
        drop(mixed);
        let of = self.heads.back(session, [&query, &key, value], &of_mixed, span)?;
        let of_query = self.placed_back(of.query, &trace.projected[0], self.query_norm.as_ref(), span)?;
        let of_key = self.placed_back(of.key, &trace.projected[1], self.key_norm.as_ref(), span)?;
        let parts = [of_query, of_key, of.value];
        match self.attention.projection {
            Projection::Fused(linear) => self.project_back(x, &[(linear, &self.fuse(&parts))]),
            Projection::Split { query, key, value } => {
                let [of_query, of_key, of_value] = &parts;
                self.project_back(x, &[(query, of_query), (key, of_key), (value, of_value)])
            }
        }
    }

    /// Gradients at the input `x` of projections, from those at their outputs. Shows them to the visitor.
    fn project_back(&self, x: &Activations, outputs: &[(Linear<'a>, &Activations)]) -> Result<Activations> {
        self.session.see_gradients(LayerInput::all(x), outputs)?;
        let operands: Vec<_> = outputs.iter().map(|&(linear, gradients)| Operand::new(linear, gradients)).collect();
        let count = outputs.first().map_or(0, |(_, gradients)| gradients.count());
        product(self.session, Direction::Back, count, operands)
    }
}
