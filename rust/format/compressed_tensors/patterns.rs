//! Patterns of module paths: a few anchored regular expressions instead of a name for each module.
//!
//! The runtimes match `re:` targets from the beginning of a module's path in their own spelling, which may have another
//! beginning than the checkpoint's. A pattern therefore begins with `.*`, and is exact from the layers on:
//! `re:.*layers[.](0|3)[.]self_attn[.](k_proj|q_proj|v_proj)$`.

use std::collections::{BTreeMap, BTreeSet};

/// A module path, divided at the number of its layer. Paths of experts are the same for all experts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    /// The last part before the number of the layer; empty without a layer.
    stack: String,
    /// The pattern of the parts after it, without the last.
    parent: String,
    last: String,
}

/// Any number.
const NUMBER: &str = "[0-9]+";

fn is_number(part: &str) -> bool {
    !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit())
}

/// Divides `path`. A path without a layer keeps only its last part.
fn divide(path: &str) -> (Place, Option<u64>) {
    let parts: Vec<&str> = path.split('.').collect();
    let at = parts.iter().position(|part| is_number(part)).filter(|at| *at > 0);
    let last = (*parts.last().unwrap_or(&"")).to_owned();
    let Some((at, layer)) = at.and_then(|at| Some((at, parts[at].parse().ok()?))) else {
        return (Place { stack: String::new(), parent: String::new(), last }, None);
    };
    let after: Vec<String> = parts[at + 1..]
        .iter()
        .map(|part| if is_number(part) { NUMBER.to_owned() } else { regex::escape(part) })
        .collect();
    let parent = after.split_last().map_or(String::new(), |(_, parent)| parent.join("[.]"));
    let last = after.last().cloned().unwrap_or_default();
    (Place { stack: parts[at - 1].to_owned(), parent, last }, Some(layer))
}

/// `(a|b)`, or the only alternative.
fn either(of: impl IntoIterator<Item = String>) -> String {
    let all: Vec<String> = of.into_iter().collect();
    if let [one] = all.as_slice() { one.clone() } else { format!("({})", all.join("|")) }
}

/// Whether `pattern` is one of routed experts, as opposed to shared ones.
pub(super) fn names_experts(pattern: &str) -> bool {
    pattern.contains("[.]experts[.]")
}

/// All modules of an output.
pub(super) struct Modules {
    /// The layers that have each place.
    layers: BTreeMap<Place, BTreeSet<u64>>,
}

impl Modules {
    pub(super) fn new<'a>(paths: impl Iterator<Item = &'a str>) -> Self {
        let mut layers: BTreeMap<Place, BTreeSet<u64>> = BTreeMap::new();
        for path in paths {
            let (place, layer) = divide(path);
            layers.entry(place).or_default().extend(layer);
        }
        Self { layers }
    }

    /// Patterns that match exactly `paths` among all modules; those of experts come first. The experts of a layer must be all
    /// in `paths` or none.
    pub(super) fn patterns<'a>(&self, paths: impl Iterator<Item = &'a str>) -> Vec<String> {
        let mut wanted: BTreeMap<Place, BTreeSet<u64>> = BTreeMap::new();
        for path in paths {
            let (place, layer) = divide(path);
            wanted.entry(place).or_default().extend(layer);
        }
        // By stack, layers and parent: the last parts.
        let mut merged: BTreeMap<(String, String, String), BTreeSet<String>> = BTreeMap::new();
        for (place, of) in wanted {
            let numbers = if of.is_empty() {
                String::new()
            } else if self.layers.get(&place) == Some(&of) {
                NUMBER.to_owned()
            } else {
                either(of.iter().map(u64::to_string))
            };
            merged.entry((place.stack, numbers, place.parent)).or_default().insert(place.last);
        }
        let pattern = |((stack, numbers, parent), last): ((String, String, String), BTreeSet<String>)| {
            let ends = [numbers, parent, either(last)].into_iter().filter(|part| !part.is_empty());
            let path: Vec<String> = [stack].into_iter().filter(|stack| !stack.is_empty()).chain(ends).collect();
            format!("re:.*{}$", path.join("[.]"))
        };
        let mut patterns: Vec<String> = merged.into_iter().map(pattern).collect();
        patterns.sort_by_key(|pattern| !names_experts(pattern));
        patterns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patterns(all: &[&str], of: &[&str]) -> Vec<String> {
        Modules::new(all.iter().copied()).patterns(of.iter().copied())
    }

    fn layer(number: u64, last: &str) -> String {
        format!("model.layers.{number}.{last}")
    }

    #[test]
    fn layers_and_parts_are_merged() {
        let all: Vec<String> = (0..12)
            .flat_map(|number| {
                ["self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj"].map(|last| layer(number, last))
            })
            .collect();
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        let some =
            ["model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.k_proj", "model.layers.11.mlp.down_proj"];
        let expected = ["re:.*layers[.]1[.]self_attn[.](k_proj|q_proj)$", "re:.*layers[.]11[.]mlp[.]down_proj$"];
        assert_eq!(patterns(&all, &some), expected);
        let expected =
            ["re:.*layers[.][0-9]+[.]mlp[.]down_proj$", "re:.*layers[.][0-9]+[.]self_attn[.](k_proj|q_proj)$"];
        assert_eq!(patterns(&all, &all), expected);
    }

    #[test]
    fn experts_come_first_and_are_not_counted() {
        let experts: Vec<String> = (0..300).map(|expert| layer(0, &format!("mlp.experts.{expert}.up_proj"))).collect();
        let mut all: Vec<&str> = vec!["lm_head", "model.layers.0.mlp.up_proj"];
        all.extend(experts.iter().map(String::as_str));
        let expected = [
            "re:.*layers[.][0-9]+[.]mlp[.]experts[.][0-9]+[.]up_proj$",
            "re:.*lm_head$",
            "re:.*layers[.][0-9]+[.]mlp[.]up_proj$",
        ];
        assert_eq!(patterns(&all, &all), expected);
    }

    #[test]
    fn a_pattern_matches_its_modules_and_no_fused_name() {
        let found =
            patterns(&["model.layers.1.mlp.up_proj", "model.layers.21.mlp.up_proj"], &["model.layers.1.mlp.up_proj"]);
        let pattern = regex::Regex::new(&format!("^(?:{})", found[0].strip_prefix("re:").unwrap())).unwrap();
        assert!(pattern.is_match("model.layers.1.mlp.up_proj"));
        assert!(pattern.is_match("language_model.model.layers.1.mlp.up_proj"));
        for other in ["model.layers.21.mlp.up_proj", "model.layers.1.mlp.gate_up_proj", "model.layers.1.mlp.up_proj.x"]
        {
            assert!(!pattern.is_match(other), "{other}");
        }
    }
}
