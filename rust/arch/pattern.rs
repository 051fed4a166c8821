//! Patterns of tensor names: `*` at the start matches any beginning, `#` matches a number.

/// The parts of a name that match the wildcards of a pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PatternMatch<'n> {
    /// The match of `*`; empty if the pattern has no `*`.
    pub beginning: &'n str,
    /// The match of `#`, if the pattern has one.
    pub number: Option<usize>,
}

/// Matches all of `name` against `pattern`.
#[must_use]
pub(crate) fn matches<'n>(pattern: &str, name: &'n str) -> Option<PatternMatch<'n>> {
    let (rest, is_open) = pattern.strip_prefix('*').map_or((pattern, false), |rest| (rest, true));
    let (before, number) = match rest.split_once('#') {
        None => (name.strip_suffix(rest)?, None),
        Some((head, tail)) => {
            let name = name.strip_suffix(tail)?;
            let digits = name.len() - name.trim_end_matches(|c: char| c.is_ascii_digit()).len();
            let (name, number) = name.split_at(name.len() - digits);
            (name.strip_suffix(head)?, Some(number.parse().ok()?))
        }
    };
    (is_open || before.is_empty()).then_some(PatternMatch { beginning: before, number })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beginning_and_a_number_are_open() {
        let fit = |pattern, name| matches(pattern, name).map(|found| (found.beginning.to_owned(), found.number));
        let expert = "model.layers.3.mlp.experts.12.up_proj.weight";
        assert_eq!(fit("*.mlp.experts.#.up_proj.weight", expert), Some(("model.layers.3".to_owned(), Some(12))));
        assert_eq!(fit("*.mlp.experts.#.down_proj.weight", expert), None);
        assert_eq!(fit("*.experts.#.up_proj.weight", "a.experts.x.up_proj.weight"), None);
        assert_eq!(fit("model.norm.weight", "model.norm.weight"), Some((String::new(), None)));
        assert_eq!(fit("model.norm.weight", "mtp.model.norm.weight"), None);
        assert_eq!(fit("*lm_head.weight", "lm_head.weight"), Some((String::new(), None)));
    }
}
