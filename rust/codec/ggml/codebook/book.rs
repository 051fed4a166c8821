//! Codebooks as tables.

/// The vectors with the same second half.
#[derive(Clone, Copy)]
pub(super) struct Row {
    /// Their first halves, ascending.
    pub firsts: &'static [u8],
    /// The code of the first of them.
    pub from: u16,
}

/// The tables of a codebook.
#[derive(Clone, Copy)]
pub(in crate::codec::ggml) struct Codebook {
    /// By second half.
    pub(super) rows: &'static [Row],
    /// The first half of each vector.
    pub(super) firsts: &'static [u8],
    /// The second half of each vector.
    pub(super) seconds: &'static [u8],
}

impl Codebook {
    /// The code of the vector with these halves.
    pub(super) fn code(&self, first: u8, second: u8) -> u16 {
        let row = self.rows[usize::from(second)];
        row.from + row.firsts.partition_point(|&other| other < first) as u16
    }
}

/// The halves of a codebook of `VECTORS` vectors.
pub(super) struct Halves<const VECTORS: usize> {
    pub firsts: [u8; VECTORS],
    pub seconds: [u8; VECTORS],
}

/// The halves of the vectors of the set `set`, see [`sets`](super::sets), if there are `halves` of them.
pub(super) const fn halves<const VECTORS: usize>(set: &[u16], halves: usize) -> Halves<VECTORS> {
    let mut of = Halves { firsts: [0; VECTORS], seconds: [0; VECTORS] };
    let (mut number, mut code) = (0, 0);
    while number < halves * halves {
        if set[number / 16] >> (number % 16) & 1 == 1 {
            (of.firsts[code], of.seconds[code]) = ((number % halves) as u8, (number / halves) as u8);
            code += 1;
        }
        number += 1;
    }
    assert!(code == VECTORS, "the number of vectors");
    of
}

/// The vectors by their second half.
pub(super) const fn rows<const HALVES: usize, const VECTORS: usize>(of: &'static Halves<VECTORS>) -> [Row; HALVES] {
    let mut rows = [Row { firsts: &[], from: 0 }; HALVES];
    let (mut left, mut second, mut from) = (of.firsts.as_slice(), 0, 0);
    while second < HALVES {
        let mut to = from;
        while to < VECTORS && of.seconds[to] as usize == second {
            to += 1;
        }
        let (firsts, after) = left.split_at(to - from);
        rows[second] = Row { firsts, from: from as u16 };
        (left, from, second) = (after, to, second + 1);
    }
    rows
}
