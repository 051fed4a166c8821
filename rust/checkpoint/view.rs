//! A matrix as a strided view of a tensor.
//!
//! Releases store matrices transposed, stacked, fused, or interleaved. Each of these is a pattern of strides over the
//! elements of one tensor:
//!
//! | stored | rows | offset, row stride, column stride |
//! |---|---|---|
//! | `[rows, cols]` | rows | 0, cols, 1 |
//! | matrix `e` of a stack `[E, rows, cols]` | rows | e·rows·cols, cols, 1 |
//! | the second half of `[2·rows, cols]` | rows | rows·cols, cols, 1 |
//! | the even rows of two interleaved matrices | rows / 2 | 0, 2·cols, 1 |
//! | `[inputs, outputs]` | outputs | 0, 1, outputs |
//!
//! One order is no stride: llama.cpp rotates adjacent rows of queries and keys, so the two halves of each head alternate
//! ([`View::with_adjacent_pairs`]).

use std::ops::Range;

use super::{Checkpoint, Matrix, Tensor};
use crate::dtype::Float;

/// A matrix of `rows` outputs and `cols` inputs. Its element `(i, j)` is element `offset + i · row_stride + j · col_stride`
/// of the tensor, with row `i` of [`stored_row`](Self::stored_row).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct View {
    /// Index of the tensor in its checkpoint.
    pub tensor: usize,
    /// Element of the tensor at row 0, column 0.
    pub offset: u64,
    /// Output channels.
    pub rows: u64,
    /// Input channels.
    pub cols: u64,
    /// Distance between rows, in elements.
    pub row_stride: u64,
    /// Distance between columns, in elements.
    pub col_stride: u64,
    /// Rows in half a head whose two halves alternate; 0 if rows are in order.
    pub half_head: u64,
}

impl View {
    /// Views all of `tensor`, number `index` of its checkpoint, in rows as long as its last dimension.
    #[must_use]
    pub fn whole(index: usize, tensor: &Tensor) -> Self {
        let cols = tensor.shape.last().copied().unwrap_or(1);
        let rows = tensor.elements().checked_div(cols).unwrap_or(0);
        Self { tensor: index, offset: 0, rows, cols, row_stride: cols, col_stride: 1, half_head: 0 }
    }

    /// Selects `count` rows: `first`, `first + step`, ….
    #[must_use]
    pub fn rows(self, first: u64, step: u64, count: u64) -> Self {
        Self { offset: self.offset + first * self.row_stride, rows: count, row_stride: step * self.row_stride, ..self }
    }

    /// Selects matrix `at` of a stack of `count`.
    #[must_use]
    pub fn matrix_of(self, at: u64, count: u64) -> Self {
        let rows = self.rows / count.max(1);
        self.rows(at * rows, 1, rows)
    }

    /// Swaps rows and columns.
    #[must_use]
    pub fn transposed(self) -> Self {
        Self { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }

    /// Orders the rows of each head of `size` so that channels half a head apart become adjacent.
    #[must_use]
    pub fn with_adjacent_pairs(self, size: u64) -> Self {
        Self { half_head: size / 2, ..self }
    }

    /// The number of row `row` among the rows of the tensor that the view selects, in stored order.
    #[must_use]
    pub fn stored_row(&self, row: u64) -> u64 {
        let half = self.half_head;
        if half == 0 {
            return row;
        }
        let (head, within) = (row / (2 * half), row % (2 * half));
        2 * half * head + half * (within % 2) + within / 2
    }

    /// The element of the tensor at `(row, column)`.
    #[must_use]
    pub fn element(&self, row: u64, column: u64) -> u64 {
        self.offset + self.stored_row(row) * self.row_stride + column * self.col_stride
    }

    /// The number of elements.
    #[must_use]
    pub fn elements(&self) -> u64 {
        self.rows * self.cols
    }

    /// Whether its elements are adjacent and row-major in the tensor.
    #[must_use]
    pub fn is_contiguous(&self) -> bool {
        self.col_stride == 1 && (self.row_stride == self.cols || self.rows == 1) && self.half_head == 0
    }

    /// Whether it covers all of `tensor`, in stored order.
    #[must_use]
    pub fn is_whole(&self, tensor: &Tensor) -> bool {
        self.is_contiguous() && self.offset == 0 && self.elements() == tensor.elements()
    }

    /// The shape as a matrix; `None` if it is empty, or of an element type that ramrs does not decode.
    #[must_use]
    pub fn matrix(&self, checkpoint: &Checkpoint) -> Option<Matrix> {
        let float = Float::of(checkpoint.tensors[self.tensor].dtype)?;
        (self.rows > 0 && self.cols > 0).then_some(Matrix { rows: self.rows, cols: self.cols, float })
    }

    /// The elements of row `row`. The column stride must be 1.
    #[must_use]
    pub fn row(&self, row: u64) -> Range<u64> {
        let first = self.element(row, 0);
        first..first + self.cols
    }

    /// The index of element `(row, column)` in the dimensions of `tensor`.
    #[must_use]
    pub fn index(&self, tensor: &Tensor, row: u64, column: u64) -> Vec<u64> {
        unravel(&tensor.shape, self.element(row, column))
    }
}

/// Converts element number `at` of a tensor of that shape to one index per dimension.
#[must_use]
pub(crate) fn unravel(shape: &[u64], mut at: u64) -> Vec<u64> {
    let mut index = Vec::with_capacity(shape.len());
    for &size in shape.iter().rev() {
        index.push(at % size.max(1));
        at /= size.max(1);
    }
    index.reverse();
    index
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::prequantized::Packing;
    use crate::dtype::Dtype;

    fn tensor(shape: &[u64]) -> Tensor {
        let bytes = 2 * shape.iter().product::<u64>();
        let (name, dtype, shape) = ("x".to_owned(), Dtype::BF16, shape.to_vec());
        Tensor { name, dtype, shape, part: 0, bytes, packing: Packing::Plain, unneeded: None }
    }

    fn elements(view: View) -> Vec<Vec<u64>> {
        (0..view.rows).map(|row| (0..view.cols).map(|column| view.element(row, column)).collect()).collect()
    }

    #[test]
    fn halves_of_heads_alternate() {
        let queries = tensor(&[8, 1]);
        let view = View::whole(0, &queries).with_adjacent_pairs(4);
        assert_eq!(elements(view).concat(), [0, 2, 1, 3, 4, 6, 5, 7]);
        assert!(!view.is_contiguous() && !view.is_whole(&queries));
    }

    #[test]
    fn strides_are_as_the_table_says() {
        let stack = tensor(&[2, 4, 3]);
        let whole = View::whole(0, &stack);
        assert!(whole.is_whole(&stack) && (whole.rows, whole.cols) == (8, 3));
        let second = whole.matrix_of(1, 2);
        assert_eq!(elements(second)[0], [12, 13, 14]);
        assert!(second.is_contiguous() && !second.is_whole(&stack));
        assert_eq!(elements(second.rows(1, 2, 2)), [[15, 16, 17], [21, 22, 23]]);
        assert_eq!(elements(second.transposed())[2], [14, 17, 20, 23]);
        assert_eq!(elements(second.transposed().rows(0, 2, 2)), [[12, 15, 18, 21], [14, 17, 20, 23]]);
        assert_eq!(second.transposed().index(&stack, 2, 1), [1, 1, 2]);
        assert_eq!(second.transposed().transposed(), second);
        let scalar = tensor(&[]);
        assert!(View::whole(0, &scalar).is_whole(&scalar));
    }
}
