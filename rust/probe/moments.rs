//! The moments of a matrix: the squares of its weights' gradients, summed over rows and over columns.
//!
//! The gradient of a window's log-probability with respect to weight `w_ij` is `Σ_t g_ti x_tj` over the window's tokens,
//! `x` the layer's input and `g` the gradient at its output. Its square, expected, is the diagonal of the Fisher matrix
//! (`docs/method.md`, "The loss"). Its sums over rows and over columns are kept,
//!
//! ```text
//! K_j = Σ_i (Σ_t g_ti x_tj)² = Σ_tu x_tj (g_t · g_u) x_uj          R_i = Σ_tu g_ti (x_t · x_u) g_ui
//! ```
//!
//! which need the products of a window's tokens with each other only: the gradient itself is never formed.

use std::ops::Range;

use super::Session;
use super::activations::Activations;
use super::visitor::{Collected, LayerInput, OutputGradients, Visitor};
use crate::error::Result;
use crate::matmul::dense::{matmul_nn, matmul_nt};

/// Sums over windows and draws for one matrix, not yet divided by the number of tokens.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Moments {
    /// `K_j`, for each input.
    pub inputs: Vec<f64>,
    /// `R_i`, for each output.
    pub outputs: Vec<f64>,
    /// `Σ_t x_tj²`, for each input.
    pub squares: Vec<f64>,
    /// Tokens that the sums are over.
    pub tokens: u64,
}

/// Collects the moments of all matrices.
#[derive(Debug, Default)]
pub(super) struct MomentCollector(pub(super) Collected<Moments>);

impl Visitor for MomentCollector {
    fn gradients(
        &self,
        session: &Session<'_>,
        input: LayerInput<'_, '_>,
        layers: &[OutputGradients<'_, '_>],
    ) -> Result<()> {
        let gradients: Vec<&Activations> = layers.iter().map(|(_, gradients)| *gradients).collect();
        let found = moments(session, input.x, &gradients, &input.rows.windows(input.x.count()))?;
        for ((linear, _), moments) in layers.iter().zip(found) {
            self.0.change(linear, |sums: &mut Moments| sums.add(&moments));
        }
        Ok(())
    }

    fn drain(&self) -> Result<Vec<u8>> {
        self.0.drain()
    }

    fn restore(&self, drained: &[u8]) -> Result<()> {
        self.0.restore(drained)
    }
}

/// Sums of one window.
struct WindowSums {
    inputs: Vec<f32>,
    outputs: Vec<f32>,
}

/// The moments of layers with the common input `x`, from the gradients at their outputs.
///
/// `windows` are ranges of rows of `x`; gradients have as many rows for each draw, draw after draw.
fn moments(
    session: &Session<'_>,
    x: &Activations,
    gradients: &[&Activations],
    windows: &[Range<usize>],
) -> Result<Vec<Moments>> {
    let (pass, count) = (session.pass, x.count());
    let draws = gradients.first().map_or(0, |gradients| gradients.count().checked_div(count).unwrap_or(0));
    for window in windows {
        let outputs: usize = gradients.iter().map(|gradients| 2 * draws * gradients.width).sum();
        session.count(window.len() * window.len() * ((1 + gradients.len()) * x.width + outputs));
    }
    let input_products: Vec<Vec<f32>> = pass.workers.map(
        pass.progress,
        windows,
        || (),
        |(), window| {
            let x = x.slice(window.start, window.end);
            Ok(matmul_nt(pass.isa, x, x, x.len() / window.len()))
        },
    )?;
    let tasks: Vec<(usize, usize)> =
        (0..gradients.len()).flat_map(|of| (0..windows.len()).map(move |window| (of, window))).collect();
    let empty = |gradients: &&Activations| Moments {
        inputs: vec![0.0; x.width],
        outputs: vec![0.0; gradients.width],
        squares: squares(x),
        tokens: count as u64,
    };
    let mut found: Vec<Moments> = gradients.iter().map(empty).collect();
    pass.workers.in_order(
        pass.progress,
        &tasks,
        || (),
        |(), &(of, at)| {
            let (window, gradients) = (&windows[at], gradients[of]);
            let x = x.slice(window.start, window.end);
            let mut outputs = vec![0.0; gradients.width];
            let mut products = vec![0.0; window.len() * window.len()];
            for draw in 0..draws {
                let g = gradients.slice(draw * count + window.start, draw * count + window.end);
                let spread = matmul_nn(pass.isa, &input_products[at], g, window.len());
                add_products(&mut outputs, g, &spread);
                let of_draw = matmul_nt(pass.isa, g, g, gradients.width);
                products.iter_mut().zip(of_draw).for_each(|(sum, product)| *sum += product);
            }
            let mut inputs = vec![0.0; x.len() / window.len()];
            add_products(&mut inputs, x, &matmul_nn(pass.isa, &products, x, window.len()));
            Ok(WindowSums { inputs, outputs })
        },
        |&(of, _), part| {
            let moments = &mut found[of];
            moments.inputs.iter_mut().zip(part.inputs).for_each(|(sum, part)| *sum += f64::from(part.max(0.0)));
            moments.outputs.iter_mut().zip(part.outputs).for_each(|(sum, part)| *sum += f64::from(part.max(0.0)));
            Ok(())
        },
    )?;
    Ok(found)
}

/// Adds the elementwise products of the rows of `a` and `b` to `sums`.
fn add_products(sums: &mut [f32], a: &[f32], b: &[f32]) {
    for (a, b) in a.chunks_exact(sums.len()).zip(b.chunks_exact(sums.len())) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
}

/// Sums of the squares of each column.
pub(super) fn squares(x: &Activations) -> Vec<f64> {
    let mut sums = vec![0.0; x.width];
    for row in x.values.chunks_exact(x.width.max(1)) {
        for (sum, &x) in sums.iter_mut().zip(row) {
            *sum += f64::from(x) * f64::from(x);
        }
    }
    sums
}

impl Moments {
    /// Adds the moments of other tokens.
    pub(super) fn add(&mut self, other: &Self) {
        if self.inputs.is_empty() {
            self.clone_from(other);
            return;
        }
        let sum = |sums: &mut [f64], others: &[f64]| sums.iter_mut().zip(others).for_each(|(sum, other)| *sum += other);
        sum(&mut self.inputs, &other.inputs);
        sum(&mut self.outputs, &other.outputs);
        sum(&mut self.squares, &other.squares);
        self.tokens += other.tokens;
    }

    /// `Σ_ij (Σ_t g_ti x_tj)²`, added up from the sums of its columns.
    #[must_use]
    #[cfg(test)]
    pub(crate) fn total(&self) -> f64 {
        self.inputs.iter().sum()
    }
}
