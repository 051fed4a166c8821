//! What the probe measures of a matrix: how large the squares of its weights' gradients are, row by row and column by
//! column.
//!
//! The gradient of a window's log-probability with respect to weight `w_ij` is `Σ_t g_ti x_tj` over the window's tokens,
//! `x` the layer's input and `g` the gradient at its output. Its square, expected, is the diagonal of the Fisher matrix
//! (`docs/method.md`, "The loss"); what is kept are its sums over rows and over columns,
//!
//! ```text
//! K_j = Σ_i (Σ_t g_ti x_tj)² = Σ_tu x_tj (g_t · g_u) x_uj          R_i = Σ_tu g_ti (x_t · x_u) g_ui
//! ```
//!
//! so the products of a window's tokens with each other are all that is needed, and the gradient itself is never formed.

use std::ops::Range;

use super::Session;
use super::matmul::dense::{by_columns, by_rows};
use super::rows::Rows;
use crate::error::Result;

/// Sums over windows and draws of one matrix, not yet divided by how many tokens they are of.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Moments {
    /// `K_j`, for each input.
    pub inputs: Vec<f64>,
    /// `R_i`, for each output.
    pub outputs: Vec<f64>,
    /// `Σ_t x_tj²`, for each input.
    pub squares: Vec<f64>,
    /// Tokens that went through.
    pub tokens: u64,
}

/// Sums of one window.
struct Part {
    inputs: Vec<f32>,
    outputs: Vec<f32>,
}

/// The moments of layers that all have the inputs `x`, from the gradients at their outputs.
///
/// `windows` cuts the rows of `x`; gradients are draw after draw of as many rows.
pub(super) fn moments(
    session: &Session<'_>,
    x: &Rows,
    gradients: &[&Rows],
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
            Ok(by_rows(pass.isa, x, x, gradients_width(x, window)))
        },
    )?;
    let tasks: Vec<(usize, usize)> =
        (0..gradients.len()).flat_map(|of| (0..windows.len()).map(move |window| (of, window))).collect();
    let empty = |gradients: &&Rows| Moments {
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
                let spread = by_columns(pass.isa, &input_products[at], g, window.len());
                add_products(&mut outputs, g, &spread);
                let of_draw = by_rows(pass.isa, g, g, gradients.width);
                products.iter_mut().zip(of_draw).for_each(|(sum, product)| *sum += product);
            }
            let mut inputs = vec![0.0; x.len() / window.len()];
            add_products(&mut inputs, x, &by_columns(pass.isa, &products, x, window.len()));
            Ok(Part { inputs, outputs })
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

/// Length of a row of `x`, which is that of a window.
fn gradients_width(x: &[f32], window: &Range<usize>) -> usize {
    x.len() / window.len()
}

/// Adds the products of `a` and `b`, row by row, column by column.
fn add_products(sums: &mut [f32], a: &[f32], b: &[f32]) {
    for (a, b) in a.chunks_exact(sums.len()).zip(b.chunks_exact(sums.len())) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
}

/// Sums of the squares of each column.
pub(super) fn squares(x: &Rows) -> Vec<f64> {
    let mut sums = vec![0.0; x.width];
    for row in x.values.chunks_exact(x.width.max(1)) {
        for (sum, &x) in sums.iter_mut().zip(row) {
            *sum += f64::from(x) * f64::from(x);
        }
    }
    sums
}

impl Moments {
    /// Takes in those of other tokens.
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

    /// `Σ_ij (Σ_t g_ti x_tj)²`, by its columns.
    #[must_use]
    pub fn total(&self) -> f64 {
        self.inputs.iter().sum()
    }
}
