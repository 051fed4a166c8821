//! The names of stored parts, and `quantization_config` in `config.json`.

use std::collections::BTreeMap;

use regex::Regex;
use serde_json::{Map, Value, json};

use super::patterns::Modules;
use crate::checkpoint::Config;
use crate::codec::Scheme;
use crate::codec::symmetric::{Grouping, Symmetric};
use crate::format::{Module, OutputModel};
use crate::name::outside_part;

/// Configuration keys that describe how the source's weights are stored.
const ENCODINGS: [&str; 3] = ["quantization", "quantization_config", "compression_config"];

/// The name of the form of packed integers.
const PACK_QUANTIZED: &str = "pack-quantized";

/// The name of part `kind` of tensor `tensor`.
pub(super) fn part_name(tensor: &str, kind: &str) -> String {
    let module = tensor.strip_suffix(".weight").unwrap_or(tensor);
    let suffix = match kind {
        "codes" => "packed",
        "scales" => "scale",
        other => other,
    };
    format!("{module}.weight_{suffix}")
}

/// The source's configuration with the block that describes the output.
pub(super) fn text(source: &Config, output: &OutputModel<'_>) -> String {
    let mut config = source.clone();
    for key in ENCODINGS {
        config.remove(key);
        if let Some(Value::Object(text)) = config.get_mut("text_config") {
            text.remove(key);
        }
    }
    if let Some(block) = block(output) {
        config.insert("quantization_config".to_owned(), block);
    }
    let sorted: BTreeMap<String, Value> = config.into_iter().collect();
    format!("{:#}\n", Value::Object(sorted.into_iter().collect()))
}

/// The `weights` of a group.
fn weights(scheme: Scheme) -> Option<Value> {
    let Symmetric { bits, grouping } = Symmetric::of(scheme)?;
    let (strategy, size) = match grouping {
        Grouping::Channel => ("channel", None),
        Grouping::Group(size) => ("group", Some(size)),
    };
    Some(json!({
        "num_bits": bits, "type": "int", "symmetric": true, "strategy": strategy, "group_size": size, "dynamic": false,
    }))
}

/// The scheme of a group with these `weights`.
fn scheme_of(weights: &Value) -> Option<Scheme> {
    let text = |key: &str| weights.get(key).and_then(Value::as_str);
    let bits = weights.get("num_bits")?.as_u64()?;
    let grouping = match text("strategy")? {
        "channel" => "channel".to_owned(),
        "group" => format!("g{}", weights.get("group_size")?.as_u64()?),
        _ => return None,
    };
    format!("{}{bits}{grouping}", text("type")?).parse().ok()
}

/// The block `quantization_config`; `None` if nothing is quantized.
fn block(output: &OutputModel<'_>) -> Option<Value> {
    let mut schemes: BTreeMap<Scheme, Vec<&Module>> = BTreeMap::new();
    let mut ignored: Vec<&str> = output.unquantizable.iter().map(String::as_str).collect();
    for module in output.modules {
        match module.stored_in() {
            Some(scheme) => schemes.entry(scheme).or_default().push(module),
            None => ignored.push(&module.path),
        }
    }
    if schemes.is_empty() {
        return None;
    }
    let all = output.modules.iter().map(|module| module.path.as_str());
    let modules = Modules::new(all.chain(output.unquantizable.iter().map(String::as_str)));
    let of_group = |(scheme, of): (&Scheme, &Vec<&Module>)| {
        Some((weights(*scheme)?, modules.patterns(of.iter().map(|module| module.path.as_str()))))
    };
    let mut groups: Vec<(Value, Vec<String>)> = schemes.iter().filter_map(of_group).collect();
    // transformers takes the first group that names experts for all of them.
    groups.sort_by_key(|(_, targets)| !targets[0].contains("experts[.]"));
    let group = |(at, (weights, targets)): (usize, (Value, Vec<String>))| {
        let group = json!({
            "targets": targets, "weights": weights, "input_activations": null, "output_activations": null,
            "format": PACK_QUANTIZED,
        });
        (format!("group_{at}"), group)
    };
    let groups: Map<String, Value> = groups.into_iter().enumerate().map(group).collect();
    Some(json!({
        "quant_method": "compressed-tensors",
        "format": PACK_QUANTIZED,
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": ignore(&modules, &ignored),
        "kv_cache_scheme": null,
        "global_compression_ratio": null,
    }))
}

/// Patterns of the modules that are not quantized.
fn ignore(modules: &Modules, ignored: &[&str]) -> Vec<String> {
    let (mut parts, mut within) = (Vec::new(), Vec::new());
    for path in ignored {
        // Runtimes spell modules outside of the language model in their own way: the whole part is named.
        match outside_part(path) {
            Some(part) if !parts.contains(&part) => parts.push(part),
            Some(_) => {}
            None => within.push(*path),
        }
    }
    let mut patterns = modules.patterns(within.into_iter());
    patterns.extend(parts.into_iter().map(|part| format!("re:.*{part}.*")));
    patterns
}

/// Reads the block that [`block`] writes.
pub(super) fn described<'c>(config: &'c Config) -> Box<dyn Fn(&str) -> Option<Scheme> + 'c> {
    let block = config.get("quantization_config");
    let compiled = |targets: Option<&Value>| -> Vec<Regex> {
        let targets = targets.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
        let pattern = |target: &str| match target.strip_prefix("re:") {
            Some(pattern) => Regex::new(&format!("^(?:{pattern})")).ok(),
            None => Regex::new(&format!("^{}$", regex::escape(target))).ok(),
        };
        targets.filter_map(pattern).collect()
    };
    let ignored = compiled(block.and_then(|block| block.get("ignore")));
    let groups = block.and_then(|block| block.get("config_groups")).and_then(Value::as_object);
    let group = |group: &Value| Some((compiled(group.get("targets")), scheme_of(group.get("weights")?)?));
    let groups: Vec<(Vec<Regex>, Scheme)> = groups.into_iter().flat_map(Map::values).filter_map(group).collect();
    Box::new(move |path| {
        let matches = |patterns: &[Regex]| patterns.iter().any(|pattern| pattern.is_match(path));
        if matches(&ignored) {
            return Some(Scheme::KEPT);
        }
        groups.iter().find(|(targets, _)| matches(targets)).map(|(_, scheme)| *scheme)
    })
}
