//! The covariance of a layer's inputs, in the form that error feedback minimises.
//!
//! With the inputs `x_t` and output gradients `g_t` of a layer, tokens `t` of windows `w`, position 0 apart:
//!
//! ```text
//! H = Σ_{t ≥ 1} x_t x_tᵀ                      F = Σ_w X_wᵀ (G_w G_wᵀ) X_w, position 0 left out
//! R = (1 − α) (tr F / tr H) H + α F           A = R + δ mean(diag R) I + Σ_w ‖g_w0‖² x_w0 x_w0ᵀ
//! ```
//!
//! `F` is the Fisher matrix of a row of weights, summed over the rows. `H` is known from many more tokens, and `F` says
//! which of them matter. The first token of a window is the same in all of them; its inputs are massive, and errors in it
//! do not add up with those of other tokens (`docs/method.md`, "Error feedback").

use std::ops::Range;

use super::Session;
use super::activations::Activations;
use super::visitor::TokenRows;
use crate::error::Result;
use crate::matmul::dense::{matmul_nn, matmul_nt};
use crate::matmul::symmetric::{Compute, SymmetricMatrix};

/// `α`, the share of `F`.
pub(super) const FISHER_SHARE: f32 = 0.3;

/// The Fisher term of an expert counts half at this many tokens with gradients.
const HALF_FISHER: f64 = 256.0;

/// `δ`, the damping.
pub(super) const DAMPING: f32 = 0.1;

/// `α` for `count` rows like these.
pub(super) fn fisher_share(rows: TokenRows<'_>, count: usize) -> f32 {
    match rows {
        TokenRows::All => FISHER_SHARE,
        TokenRows::Routed(_) => {
            let count = count as f64;
            FISHER_SHARE * (count / (count + HALF_FISHER)) as f32
        }
    }
}

/// `H`, not divided by the number of tokens.
#[derive(Clone, Debug)]
pub(super) struct InputSums {
    pub(super) sums: SymmetricMatrix,
    /// Tokens in it.
    pub(super) tokens: usize,
}

/// The part of `A` that gradients give, ready to be added to `H`.
#[derive(Default)]
pub(super) struct FisherTerms {
    /// For each row of the input the row that it is multiplied with.
    products: Vec<f32>,
    /// The rows that belong to the first tokens of windows.
    firsts: Vec<usize>,
    /// `tr F`
    trace: f64,
    /// `Σ_w ‖g_w0‖² ‖x_w0‖²`
    first: f64,
}

impl Session<'_> {
    pub(super) fn compute(&self) -> Compute<'_> {
        Compute { workers: self.pass.workers, progress: self.pass.progress, isa: self.pass.isa }
    }
}

pub(super) fn trace(of: &SymmetricMatrix) -> f64 {
    of.diagonal().iter().map(|&value| f64::from(value)).sum()
}

impl InputSums {
    pub(super) fn zeros(order: usize) -> Self {
        Self { sums: SymmetricMatrix::zeros(order), tokens: 0 }
    }

    /// Adds the rows of `x` that are not first tokens.
    pub(super) fn add(&mut self, session: &Session<'_>, x: &Activations, rows: TokenRows<'_>) -> Result<()> {
        let mut others = Vec::with_capacity(x.values.len());
        for row in (0..x.count()).filter(|&row| !rows.is_first(row)) {
            others.extend_from_slice(x.row(row));
        }
        self.tokens += others.len() / x.width;
        session.count(others.len() * x.width / 2);
        self.sums.add_products(session.compute(), &others, &others)
    }

    /// `A` for one matrix, divided by its mean variance without damping; `None` without any signal.
    pub(super) fn with(
        self,
        session: &Session<'_>,
        x: &Activations,
        fisher: FisherTerms,
        share: f32,
    ) -> Result<Option<SymmetricMatrix>> {
        let order = self.sums.order();
        let trace = trace(&self.sums);
        let whole = fisher.trace + fisher.first;
        let is_usable = |value: f64| value > 0.0 && value.is_finite();
        if !is_usable(trace) || !is_usable(fisher.trace) || !is_usable(whole) {
            return Ok(None);
        }
        let unit = order as f64 / whole;
        let mut a = self.sums;
        let of_inputs = ((1.0 - f64::from(share)) * fisher.trace / trace * unit) as f32;
        a.for_each_row(|_, row| row.iter_mut().for_each(|value| *value *= of_inputs));
        let damping = DAMPING * (fisher.trace / whole) as f32;
        let products = fisher.scaled(x.width, share, unit);
        session.count(products.len() * order / 2);
        a.add_products(session.compute(), &x.values, &products)?;
        a.for_each_row(|at, row| row[at] += damping);
        Ok(Some(a))
    }
}

/// The terms of one window.
struct WindowTerms {
    products: Vec<f32>,
    /// What each row contributes to the trace.
    traces: Vec<f64>,
}

impl FisherTerms {
    /// Adds the terms of whole windows: the input `x` and the gradients at the output of one layer. The sums do not depend on
    /// how windows are divided into calls.
    pub(super) fn add(
        &mut self,
        session: &Session<'_>,
        x: &Activations,
        rows: TokenRows<'_>,
        gradients: &Activations,
    ) -> Result<()> {
        let (pass, count) = (session.pass, x.count());
        let windows = rows.windows(count);
        for window in &windows {
            session.count(window.len() * window.len() * (gradients.width + x.width));
        }
        let before = self.products.len() / x.width.max(1);
        self.products.reserve_exact(x.values.len());
        pass.workers.in_order(
            pass.progress,
            &windows,
            || (),
            |(), window| {
                let products = products(session, window, rows.is_first(window.start), count, gradients);
                let products = matmul_nn(pass.isa, &products, x.slice(window.start, window.end), window.len());
                let dot = |(row, found): (usize, &[f32])| -> f64 {
                    x.row(row).iter().zip(found).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum()
                };
                let traces = (window.start..).zip(products.chunks_exact(x.width)).map(dot).collect();
                Ok(WindowTerms { products, traces })
            },
            |window, WindowTerms { products, traces }| {
                self.products.extend(products);
                let mut others = traces.as_slice();
                if rows.is_first(window.start) {
                    self.firsts.push(before + window.start);
                    self.first += traces[0];
                    others = &traces[1..];
                }
                self.trace += others.iter().sum::<f64>();
                Ok(())
            },
        )
    }

    /// The rows that those of `x` are multiplied with, for `α F` and the first tokens' term, times `unit`.
    fn scaled(mut self, width: usize, share: f32, unit: f64) -> Vec<f32> {
        let (others, first) = ((unit * f64::from(share)) as f32, unit as f32);
        let mut firsts = self.firsts.into_iter().peekable();
        for (row, values) in self.products.chunks_exact_mut(width).enumerate() {
            let by = if firsts.next_if_eq(&row).is_some() { first } else { others };
            for value in values {
                *value *= by;
            }
        }
        self.products
    }
}

/// `G_w G_wᵀ` of a window, summed over draws. The first token has no products with the others.
fn products(
    session: &Session<'_>,
    window: &Range<usize>,
    has_first: bool,
    count: usize,
    gradients: &Activations,
) -> Vec<f32> {
    let length = window.len();
    let mut products = vec![0.0; length * length];
    for draw in 0..gradients.count() / count {
        let g = gradients.slice(draw * count + window.start, draw * count + window.end);
        let of_draw = matmul_nt(session.pass.isa, g, g, gradients.width);
        products.iter_mut().zip(of_draw).for_each(|(sum, product)| *sum += product);
    }
    if has_first {
        for at in 1..length {
            products[at] = 0.0;
            products[at * length] = 0.0;
        }
    }
    products
}
