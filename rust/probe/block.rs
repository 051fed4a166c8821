//! One layer, forward and back.

use std::borrow::Cow;

use super::Session;
use super::attention::{Heads, Span, turned};
use super::experts::{Mixed, Passed, dense_back, dense_forward, loads, mixture_back, mixture_forward};
use super::matmul::stored::{Direction, Input, Job, Part, products};
use super::norm::Loaded;
use super::rows::Rows;
use super::tokens::WINDOW;
use crate::arch::rope::Turns;
use crate::arch::{Block, Linear, Norm, Vector};
use crate::error::{Error, Result};

/// Keys and values of the positions before, for windows that grow token by token: `[window][position]`.
#[derive(Default)]
pub(super) struct Past {
    key: Rows,
    value: Rows,
}

/// What a layer remembers of its way forward.
pub(super) struct Trace {
    attention: AttentionTrace,
    /// The stream between attention and MLP.
    middle: Rows,
    feed: Feed,
}

/// Queries, keys and values before norms and turns, and what came out.
struct AttentionTrace {
    projected: [Rows; 3],
    out: Rows,
}

/// What was remembered of the second half.
enum Feed {
    Dense(Passed),
    /// And what came out.
    Mixed(Mixed, Rows),
}

impl Feed {
    fn numbers(&self) -> usize {
        match self {
            Self::Dense(passed) => passed.numbers(),
            Self::Mixed(mixed, out) => mixed.numbers() + out.values.len(),
        }
    }

    fn out(&self) -> &Rows {
        match self {
            Self::Dense(passed) => &passed.out,
            Self::Mixed(_, out) => out,
        }
    }
}

impl Trace {
    /// How much it holds, about.
    pub(super) fn bytes(&self) -> usize {
        let attention = self.attention.projected.iter().chain([&self.attention.out, &self.middle]);
        let numbers: usize = attention.map(|rows| rows.values.len()).sum();
        4 * (numbers + self.feed.numbers())
    }

    /// Tokens of each expert, if there are any.
    pub(super) fn loads(&self) -> Option<Vec<u64>> {
        match &self.feed {
            Feed::Dense(_) => None,
            Feed::Mixed(mixed, _) => Some(loads(mixed)),
        }
    }
}

/// A layer, with what of it is small enough to be held.
pub(super) struct Layer<'s, 'a> {
    session: &'s Session<'a>,
    block: &'s Block<'a>,
    heads: Heads,
    turns: Option<Turns>,
    query_norm: Option<Loaded>,
    key_norm: Option<Loaded>,
    attention_in: Option<Loaded>,
    attention_out: Option<Loaded>,
    mlp_in: Option<Loaded>,
    mlp_out: Option<Loaded>,
}

impl<'s, 'a> Layer<'s, 'a> {
    pub(super) fn new(session: &'s Session<'a>, block: &'s Block<'a>) -> Result<Self> {
        let decoder = session.decoder;
        let conventions = &decoder.conventions;
        let looks_back = |(window, sliding): &(usize, Vec<bool>)| {
            sliding.get(block.index).copied().unwrap_or(false).then_some(*window)
        };
        let scale = conventions.attention_scale.unwrap_or(1.0 / (decoder.head_size as f64).sqrt());
        let sinks = block.attention.sinks.map(|tensor| session.elements(Vector { tensor, at: 0 }, decoder.heads));
        let heads = Heads {
            queries: decoder.heads,
            keys: decoder.kv_heads,
            size: decoder.head_size,
            scale: scale as f32,
            cap: conventions.attention_cap.map(|cap| cap as f32),
            window: conventions.window.as_ref().and_then(looks_back),
            sinks: sinks.transpose()?.unwrap_or_default(),
        };
        let turns = if decoder.positions.is_some() {
            None
        } else {
            let turns = conventions.rotary.turns(block.index, decoder.head_size, WINDOW);
            turns.map_err(|reason| Error::Unrunnable { model_type: session.family(), reason })?
        };
        let norm =
            |norm: Option<Norm<'_>>, width: usize| norm.map(|norm| Loaded::new(session, norm, width)).transpose();
        let of_stream = |found| norm(found, decoder.width());
        Ok(Self {
            session,
            block,
            turns,
            query_norm: norm(block.attention.query_norm, decoder.heads * decoder.head_size)?,
            key_norm: norm(block.attention.key_norm, decoder.kv_heads * decoder.head_size)?,
            attention_in: of_stream(block.attention_in)?,
            attention_out: of_stream(block.attention_out)?,
            mlp_in: of_stream(block.mlp_in)?,
            mlp_out: of_stream(block.mlp_out)?,
            heads,
        })
    }

    /// `x` behind a norm, if there is one.
    fn behind<'x>(&self, norm: Option<&Loaded>, x: &'x Rows) -> Result<Cow<'x, Rows>> {
        Ok(match norm {
            Some(norm) => Cow::Owned(norm.forward(self.session, x)?),
            None => Cow::Borrowed(x),
        })
    }

    /// Gradients in front of a norm, if there is one.
    fn before<'g>(&self, norm: Option<&Loaded>, x: &Rows, gradients: Cow<'g, Rows>) -> Result<Cow<'g, Rows>> {
        Ok(match norm {
            Some(norm) => Cow::Owned(norm.back(self.session, x, &gradients)?),
            None => gradients,
        })
    }

    /// What a half of the layer is to give back, from what the stream gives it.
    fn scaled<'g>(&self, gradients: &'g Rows) -> Cow<'g, Rows> {
        let scale = self.session.decoder.conventions.residual_scale as f32;
        if scale == 1.0 {
            return Cow::Borrowed(gradients);
        }
        let values = gradients.values.iter().map(|value| scale * value).collect();
        Cow::Owned(Rows { width: gradients.width, values })
    }

    /// The stream behind the layer, and what is remembered.
    pub(super) fn forward(&self, x: &Rows, span: Span, past: Option<&mut Past>) -> Result<(Rows, Trace)> {
        let (block, conventions) = (self.block, &self.session.decoder.conventions);
        let scale = conventions.residual_scale as f32;
        let normed = self.behind(self.attention_in.as_ref(), x)?;
        let attention = self.attention(&normed, span, past)?;
        let mut middle = x.clone();
        middle.add(self.behind(self.attention_out.as_ref(), &attention.out)?.as_ref(), scale);
        let fed = if conventions.parallel {
            if block.mlp_in.is_some() { self.behind(self.mlp_in.as_ref(), x)? } else { normed }
        } else {
            self.behind(self.mlp_in.as_ref(), &middle)?
        };
        let feed = match &block.experts {
            Some(experts) => {
                let (out, mixed) = mixture_forward(self.session, experts, &fed)?;
                Feed::Mixed(mixed, out)
            }
            None => Feed::Dense(dense_forward(self.session, &block.mlp, &fed)?),
        };
        let mut out = middle.clone();
        out.add(self.behind(self.mlp_out.as_ref(), feed.out())?.as_ref(), scale);
        Ok((out, Trace { attention, middle, feed }))
    }

    /// Gradients of the stream in front of the layer, from those behind it. Takes down the moments of its matrices.
    pub(super) fn back(&self, x: &Rows, span: Span, trace: &Trace, gradients: &Rows) -> Result<Rows> {
        let (block, conventions) = (self.block, &self.session.decoder.conventions);
        let before_mlp = if conventions.parallel { x } else { &trace.middle };
        let of_feed = self.before(self.mlp_out.as_ref(), trace.feed.out(), self.scaled(gradients))?;
        // In a parallel block without a norm of its own the MLP reads what attention reads.
        let shares_norm = conventions.parallel && block.mlp_in.is_none();
        let normed = self.behind(self.attention_in.as_ref(), x)?;
        let fed = if shares_norm { normed.clone() } else { self.behind(self.mlp_in.as_ref(), before_mlp)? };
        let of_fed = match (&trace.feed, &block.experts) {
            (Feed::Mixed(mixed, _), Some(experts)) => mixture_back(self.session, experts, &fed, mixed, &of_feed)?,
            (Feed::Dense(passed), _) => dense_back(self.session, &block.mlp, &fed, passed, &of_feed)?,
            (Feed::Mixed(..), None) => return Err(Error::Bug("a mixture came from nowhere".to_owned())),
        };
        let mut stream = gradients.clone();
        let mut of_normed = None;
        if shares_norm {
            of_normed = Some(of_fed);
        } else {
            stream.add(self.before(self.mlp_in.as_ref(), before_mlp, Cow::Owned(of_fed))?.as_ref(), 1.0);
        }
        let into_attention = self.scaled(if conventions.parallel { gradients } else { &stream });
        let of_attention = self.before(self.attention_out.as_ref(), &trace.attention.out, into_attention)?;
        let mut of_input = self.attention_back(&normed, span, &trace.attention, &of_attention)?;
        if let Some(of_fed) = of_normed {
            of_input.add(&of_fed, 1.0);
        }
        stream.add(self.before(self.attention_in.as_ref(), x, Cow::Owned(of_input))?.as_ref(), 1.0);
        Ok(stream)
    }

    /// The matrices in front of attention: three, or one.
    fn projections(&self) -> Vec<Linear<'a>> {
        let attention = &self.block.attention;
        [attention.query, attention.key, attention.value, attention.query_key_value].into_iter().flatten().collect()
    }

    /// The matrix behind attention.
    fn output(&self) -> Result<Linear<'a>> {
        self.block.attention.output.ok_or_else(|| Error::Bug("attention without an output".to_owned()))
    }

    /// Where queries, keys and values are in a fused row, head by head or one after the other: for each of the three the
    /// columns of its heads, in their order.
    fn fused_columns(&self) -> [Vec<usize>; 3] {
        let Heads { queries, keys, size, .. } = self.heads;
        let counts = [queries, keys, keys];
        if self.session.decoder.conventions.fused_by_head {
            return [0, 1, 2].map(|which| (0..queries).map(|head| (3 * head + which) * size).collect());
        }
        let mut first = 0;
        counts.map(|count| {
            let columns = (0..count).map(|head| first + head * size).collect();
            first += count * size;
            columns
        })
    }

    fn split(&self, fused: &Rows) -> [Rows; 3] {
        let size = self.heads.size;
        self.fused_columns().map(|columns| {
            let mut values = Vec::with_capacity(fused.count() * columns.len() * size);
            for row in 0..fused.count() {
                for &from in &columns {
                    values.extend_from_slice(&fused.row(row)[from..from + size]);
                }
            }
            Rows { width: columns.len() * size, values }
        })
    }

    fn fuse(&self, parts: &[Rows; 3]) -> Rows {
        let (size, count) = (self.heads.size, parts[0].count());
        let mut fused = Rows::zeros(count, parts.iter().map(|part| part.width).sum());
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

    fn attention(&self, x: &Rows, span: Span, past: Option<&mut Past>) -> Result<AttentionTrace> {
        let session = self.session;
        let projections = self.projections();
        let jobs: Vec<_> = projections.iter().map(|&linear| Job::one(linear, x)).collect();
        let mut found = products(session, Direction::Forward, &jobs)?;
        for (linear, rows) in projections.iter().zip(&mut found) {
            session.add_bias(linear, rows)?;
        }
        let projected = match found.len() {
            1 => self.split(&found[0]),
            3 => <[Rows; 3]>::try_from(found).unwrap_or_default(),
            _ => return Err(Error::Bug("attention takes one matrix or three".to_owned())),
        };
        let [query, key] = self.placed(&projected, span)?;
        let mixed = match past {
            None => self.heads.forward(session, &query, &key, &projected[2], span)?,
            Some(past) => {
                past.grow(&key, &projected[2], span);
                self.heads.forward(session, &query, &past.key, &past.value, span)?
            }
        };
        let output = self.output()?;
        let out = session.linear(&output, &mixed)?;
        Ok(AttentionTrace { projected, out })
    }

    /// Queries and keys behind their norms and turns.
    fn placed<'p>(&self, projected: &'p [Rows; 3], span: Span) -> Result<[Cow<'p, Rows>; 2]> {
        let placed = |x: &'p Rows, norm: &Option<Loaded>| -> Result<Cow<'p, Rows>> {
            let normed = self.behind(norm.as_ref(), x)?;
            Ok(match &self.turns {
                Some(turns) => Cow::Owned(turned(self.session.pass, &normed, self.heads.size, turns, span, false)?),
                None => normed,
            })
        };
        Ok([placed(&projected[0], &self.query_norm)?, placed(&projected[1], &self.key_norm)?])
    }

    /// Gradients at what went into attention. Takes down the moments of its matrices.
    fn attention_back(&self, x: &Rows, span: Span, trace: &AttentionTrace, gradients: &Rows) -> Result<Rows> {
        let session = self.session;
        let [query, key] = self.placed(&trace.projected, span)?;
        let value = &trace.projected[2];
        let output = self.output()?;
        let mixed = self.heads.forward(session, &query, &key, value, span)?;
        let of_mixed = session.linear_back(&output, &mixed, gradients)?;
        drop(mixed);
        let of = self.heads.back(session, [&query, &key, value], &of_mixed, span)?;
        let displaced = |gradients: Rows, x: &Rows, norm: &Option<Loaded>| {
            let gradients = match &self.turns {
                Some(turns) => turned(session.pass, &gradients, self.heads.size, turns, span, true)?,
                None => gradients,
            };
            match norm {
                Some(norm) => norm.back(session, x, &gradients),
                None => Ok(gradients),
            }
        };
        let of_query = displaced(of.query, &trace.projected[0], &self.query_norm)?;
        let of_key = displaced(of.key, &trace.projected[1], &self.key_norm)?;
        let parts = [of_query, of_key, of.value];
        let projections = self.projections();
        let parts: Vec<Rows> =
            if projections.len() == 1 { vec![self.fuse(&parts)] } else { parts.into_iter().collect() };
        let told: Vec<_> = projections.iter().copied().zip(&parts).collect();
        session.record(x, &told, &Session::windows(x.count()))?;
        let parts = projections.iter().zip(&parts).map(|(&linear, x)| Part { linear, x: Input::Whole(x) }).collect();
        let mut found = products(session, Direction::Back, &[Job { parts, count: gradients.count() }])?;
        found.pop().ok_or_else(|| Error::Bug("attention gave nothing back".to_owned()))
    }
}

impl Past {
    /// Takes in the keys and values of the positions of `span`.
    fn grow(&mut self, key: &Rows, value: &Rows, span: Span) {
        let join = |past: &Rows, now: &Rows| {
            let mut all = Rows { width: now.width, values: Vec::with_capacity(past.values.len() + now.values.len()) };
            for window in 0..span.windows {
                if span.before > 0 {
                    all.values.extend_from_slice(past.slice(window * span.before, (window + 1) * span.before));
                }
                all.values.extend_from_slice(now.slice(window * span.now, (window + 1) * span.now));
            }
            all
        };
        self.key = join(&self.key, key);
        self.value = join(&self.value, value);
    }
}
