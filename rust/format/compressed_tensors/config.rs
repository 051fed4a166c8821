//! The names of stored parts, and `quantization_config` in `config.json`.

use std::collections::BTreeMap;

use regex::Regex;
use serde_json::{Map, Value, json};

use super::patterns::{Modules, names_experts};
use crate::checkpoint::Config;
use crate::codec::float::{fp8::FP8_SCHEME, mxfp4::MXFP4_SCHEME, nvfp4::NVFP4_SCHEME};
use crate::codec::symmetric::{Grouping, Symmetric};
use crate::codec::{Extent, PartSpec, Scheme};
use crate::dtype::Dtype;
use crate::format::readable::without_encodings;
use crate::format::{Described, Module, OutputModel};
use crate::name::outside_part;

/// The format of an output whose groups have several formats.
const MIXED: &str = "mixed-precision";

/// The name of part `kind` of tensor `tensor` in `scheme`.
pub(super) fn part_name(scheme: Scheme, tensor: &str, kind: &str) -> String {
    let module = tensor.strip_suffix(".weight").unwrap_or(tensor);
    match kind {
        // A code fills an element.
        "codes" if scheme == FP8_SCHEME => format!("{module}.weight"),
        "codes" => format!("{module}.weight_packed"),
        "scales" => format!("{module}.weight_scale"),
        other => format!("{module}.weight_{other}"),
    }
}

/// `part` in the element type that the runtimes expect: bytes, where MLX has words.
pub(super) fn stored_as(scheme: Scheme, part: PartSpec) -> PartSpec {
    match part.extent {
        Extent::PerRow(words) if scheme == MXFP4_SCHEME && part.dtype == Dtype::U32 => {
            PartSpec { dtype: Dtype::U8, extent: Extent::PerRow(4 * words), ..part }
        }
        _ => part,
    }
}

/// The source's configuration with the block that describes the output.
pub(super) fn text(source: &Config, output: &OutputModel<'_>) -> String {
    let mut config = without_encodings(source);
    if let Some(block) = block(output) {
        config.insert("quantization_config".to_owned(), block);
    }
    let sorted: BTreeMap<String, Value> = config.into_iter().collect();
    format!("{:#}\n", Value::Object(sorted.into_iter().collect()))
}

/// The `format` and the `weights` of a group.
fn weights(scheme: Scheme) -> Option<(&'static str, Value)> {
    let (format, kind, bits, strategy, group_size) = match Symmetric::of(scheme) {
        Some(Symmetric { bits, grouping: Grouping::Channel }) => ("pack-quantized", "int", bits, "channel", None),
        Some(Symmetric { bits, grouping: Grouping::Group(size) }) => {
            ("pack-quantized", "int", bits, "group", Some(size))
        }
        None if scheme == FP8_SCHEME => ("float-quantized", "float", 8, "channel", None),
        None if scheme == MXFP4_SCHEME => ("mxfp4-pack-quantized", "float", 4, "group", Some(32)),
        None if scheme == NVFP4_SCHEME => ("nvfp4-pack-quantized", "float", 4, "tensor_group", Some(16)),
        None => return None,
    };
    let mut weights = json!({
        "num_bits": bits, "type": kind, "symmetric": true, "strategy": strategy, "group_size": group_size,
        "dynamic": false,
    });
    let scale_dtype = match scheme {
        MXFP4_SCHEME => Some("torch.uint8"),
        NVFP4_SCHEME => Some("torch.float8_e4m3fn"),
        _ => None,
    };
    if let Some(dtype) = scale_dtype {
        weights["scale_dtype"] = json!(dtype);
        weights["zp_dtype"] = json!(dtype);
    }
    Some((format, weights))
}

/// The keys of a group's `weights` that determine the scheme. Other writers add keys on how the codes were found.
const KEYS: [&str; 6] = ["num_bits", "type", "symmetric", "strategy", "group_size", "dynamic"];

/// The scheme of `group`.
fn scheme_of(group: &Value, schemes: &[Scheme]) -> Option<Scheme> {
    let given = group.get("weights")?;
    let equal = |weights: &Value, key: &str| given.get(key).unwrap_or(&Value::Null) == &weights[key];
    let is =
        |scheme: &&Scheme| weights(**scheme).is_some_and(|(_, weights)| KEYS.iter().all(|key| equal(&weights, key)));
    schemes.iter().find(is).copied()
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
    let mut groups: Vec<((&str, Value), Vec<String>)> = schemes.iter().filter_map(of_group).collect();
    let first = groups[0].0.0;
    let format = if groups.iter().all(|((format, _), _)| *format == first) { first } else { MIXED };
    // transformers takes the first group with the word "experts" for the routed ones, be it in the name of shared experts.
    groups.sort_by_key(|(_, targets)| !names_experts(&targets[0]));
    let group = |(at, ((format, weights), targets)): (usize, ((&str, Value), Vec<String>))| {
        let group = json!({
            "targets": targets, "weights": weights, "input_activations": null, "output_activations": null,
            "format": format,
        });
        (format!("group_{at}"), group)
    };
    let groups: Map<String, Value> = groups.into_iter().enumerate().map(group).collect();
    Some(json!({
        "quant_method": "compressed-tensors",
        "format": format,
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
pub(super) fn described<'c>(config: &'c Config, schemes: &[Scheme]) -> Described<'c> {
    let block = config.get("quantization_config");
    let compiled = |targets: Option<&Value>| -> Vec<Regex> {
        let targets = targets.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
        let pattern = |target: &str| match target.strip_prefix("re:") {
            // The name of a class, which all layers of matrices have.
            None if target == "Linear" => Regex::new("").ok(),
            Some(pattern) => Regex::new(&format!("^(?:{pattern})")).ok(),
            None => Regex::new(&format!("^{}$", regex::escape(target))).ok(),
        };
        targets.filter_map(pattern).collect()
    };
    let ignored = compiled(block.and_then(|block| block.get("ignore")));
    let groups = block.and_then(|block| block.get("config_groups")).and_then(Value::as_object);
    let group = |group: &Value| Some((compiled(group.get("targets")), scheme_of(group, schemes)?));
    let groups: Vec<(Vec<Regex>, Scheme)> = groups.into_iter().flat_map(Map::values).filter_map(group).collect();
    Box::new(move |path| {
        let matches = |patterns: &[Regex]| patterns.iter().any(|pattern| pattern.is_match(path));
        if matches(&ignored) {
            return Some(Scheme::KEPT);
        }
        groups.iter().find(|(targets, _)| matches(targets)).map(|(_, scheme)| *scheme)
    })
}
