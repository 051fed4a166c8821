//! Messages refer to options by marks, and every mark is the name of an option.

use std::fs;
use std::path::{Path, PathBuf};

use crate::option::OptionName;
use crate::pipeline::defaults;
use serde_json::Value;

/// The string literals of a source file, approximately: text between quotes on lines without a comment.
fn literals(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap();
    let code = text[..text.find("#[cfg(test)]").unwrap_or(text.len())].lines();
    code.filter(|line| !line.trim_start().starts_with("//")).map(str::to_owned).collect()
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else {
            found.push(path);
        }
    }
}

fn lines() -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("rust"), &mut found);
    found.into_iter().flat_map(|path| literals(&path).into_iter().map(move |line| (path.clone(), line))).collect()
}

#[test]
fn every_mark_in_the_sources_is_an_option() {
    let known: Vec<&str> = OptionName::ALL.iter().map(|option| option.name()).collect();
    let mut marks = 0;
    for (path, line) in lines().iter().filter(|(path, _)| !path.ends_with("option.rs")) {
        for mark in line.split('⟨').skip(1) {
            let (mark, _) = mark.split_once('⟩').unwrap_or_else(|| panic!("{}: {line}", path.display()));
            let name = mark.split('=').next().unwrap();
            assert!(known.contains(&name), "{}: `{name}` is not an option", path.display());
            marks += 1;
        }
    }
    assert!(marks > 10, "{marks} marks were found: the search is broken");
}

/// Texts of documents, which are fixed, and commands of other programs.
const SPELLED: [&str; 7] = [
    "\"--keep\" } else { \"--tensor\" }",
    "--sample-bands 0 measures all rows",
    "mlx_lm.generate --model",
    "sglang.launch_server --model-path",
    "hf download NAME --local-dir DIR",
    "convert_hf_to_gguf.py MODEL --outtype",
    "convert_hf_to_gguf.py --vocab-only --outfile",
];

#[test]
fn the_core_spells_no_option_of_a_front() {
    for (path, line) in lines() {
        let has_flag =
            line.match_indices("--").any(|(at, _)| line[at + 2..].starts_with(|c: char| c.is_ascii_lowercase()));
        let is_known = SPELLED.iter().any(|known| line.contains(known));
        assert!(!has_flag || is_known, "{}: {line}", path.display());
    }
}

#[test]
fn every_option_is_a_field_of_a_request() {
    fn fields(value: &Value, found: &mut Vec<String>) {
        for (name, value) in value.as_object().into_iter().flatten() {
            found.push(name.clone());
            fields(value, found);
        }
    }
    let mut found = Vec::new();
    fields(&serde_json::to_value(defaults()).unwrap(), &mut found);
    for option in OptionName::ALL {
        let field = if *option == OptionName::ProbeTokens { "tokens" } else { option.name() };
        assert!(found.iter().any(|name| name == field), "{option:?}");
    }
}
