//! Passes over matrices: the loop over bands ([`fold`]), and the energies of matrices ([`energy`]).

pub(crate) mod energy;
pub(crate) mod fold;

pub(crate) use fold::{BandAt, BandJob, BandSelection};

/// The number of the first `items` whose costs are at most `most` together; the first one is among them whatever it costs.
#[must_use]
pub(crate) fn leading<T>(items: &[T], most: u64, cost: impl Fn(&T) -> u64) -> usize {
    let mut sum = 0;
    let is_beyond = |item: &T| {
        sum += cost(item);
        sum > most
    };
    items.iter().position(is_beyond).map_or(items.len(), |count| count.max(1))
}
