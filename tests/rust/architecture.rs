//! A module uses only modules above it in the table of `lib.rs`, and only `py` uses Python.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("rust")
}

/// All Rust files under `dir`, each with its module.
fn files(dir: &Path, found: &mut Vec<(String, PathBuf)>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let relative = path.strip_prefix(root()).unwrap();
            let module = Path::new(relative.components().next().unwrap().as_os_str()).file_stem().unwrap();
            found.push((module.to_str().unwrap().to_owned(), path));
        }
    }
}

/// The rank of each module in the table of `lib.rs`. A module may use modules of a smaller rank.
fn ranks() -> BTreeMap<String, usize> {
    let text = fs::read_to_string(root().join("lib.rs")).unwrap();
    let mut ranks = BTreeMap::new();
    for line in text.lines() {
        let Some(row) = line.strip_prefix("//! | ") else { continue };
        let mut cells = row.split('|').map(str::trim);
        let (Some(Ok(_)), Some(modules)) = (cells.next().map(str::parse::<u8>), cells.next()) else { continue };
        for module in modules.split('`').skip(1).step_by(2) {
            ranks.insert(module.trim_start_matches("mod@").to_owned(), ranks.len());
        }
    }
    ranks
}

/// The text of a file without comments and unit tests, which may use any module.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    // A registry line for tests does not count as a use. A module of unit tests ends the file.
    let text = text.replace("#[cfg(test)]\n    &crate::tests", "").replace("#[cfg(test)]\n    crate::tests", "");
    let is_module = |&(at, _): &(usize, &str)| {
        let after = text[at..].lines().find(|line| !line.starts_with("#["));
        after.is_some_and(|line| line.starts_with("mod "))
    };
    let tested = text.match_indices("#[cfg(test)]").find(is_module).map_or(text.len(), |(at, _)| at);
    let without = |line: &str| line.split("//").next().unwrap_or("").to_owned();
    text[..tested].lines().map(without).collect::<Vec<_>>().join("\n")
}

/// The modules at the start of the `crate::…` paths of `code`.
fn uses(code: &str) -> BTreeSet<String> {
    let name =
        |text: &str| -> String { text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect() };
    let mut found = BTreeSet::new();
    for after in code.split("crate::").skip(1) {
        match after.strip_prefix('{') {
            Some(list) => {
                let (mut depth, mut item) = (0, String::new());
                for c in list.chars() {
                    depth += i32::from(c == '{') - i32::from(c == '}');
                    if depth < 0 {
                        break;
                    }
                    if c == ',' && depth == 0 {
                        found.insert(name(&std::mem::take(&mut item)));
                    } else {
                        item.push(c);
                    }
                }
                found.insert(name(&item));
            }
            None => {
                found.insert(name(after));
            }
        }
    }
    found.remove("");
    found
}

#[test]
fn every_module_uses_only_modules_above_it_in_the_table() {
    let ranks = ranks();
    let mut found = Vec::new();
    files(&root(), &mut found);
    assert!(found.len() > 30, "{} files", found.len());
    let mut edges = 0;
    for (module, path) in found {
        if module == "lib" {
            continue;
        }
        let rank = ranks.get(&module).unwrap_or_else(|| panic!("`{module}` is not in the table of lib.rs"));
        for used in uses(&code(&path)).into_iter().filter(|used| *used != module) {
            let lower = ranks.get(&used).unwrap_or_else(|| panic!("{}: `{used}` is no module", path.display()));
            assert!(lower < rank, "{}: `{module}` uses `{used}`, which is not above it", path.display());
            edges += 1;
        }
    }
    assert!(edges > 80, "only {edges} uses were seen: does the test still read the code?");
}

#[test]
fn no_two_types_visible_to_other_modules_share_a_name() {
    let mut found = Vec::new();
    files(&root(), &mut found);
    let mut seen: BTreeMap<String, PathBuf> = BTreeMap::new();
    for (_, path) in found {
        for line in code(&path).lines().filter(|line| line.starts_with("pub")) {
            // Skips `pub` or `pub(…)`.
            let item =
                line.strip_prefix("pub(").and_then(|rest| rest.split_once(')')).map_or(&line[3..], |(_, rest)| rest);
            let mut words = item.split_whitespace();
            if !words.next().is_some_and(|word| ["struct", "enum", "trait", "type", "union"].contains(&word)) {
                continue;
            }
            let name: String =
                words.next().unwrap_or("").chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            if let Some(other) = seen.insert(name.clone(), path.clone()) {
                panic!("`{name}` is a type of {} and of {}", other.display(), path.display());
            }
        }
    }
    assert!(seen.len() > 100, "only {} types were seen", seen.len());
}

#[test]
fn the_table_lists_exactly_the_modules_there_are() {
    let mut found = Vec::new();
    files(&root(), &mut found);
    let modules: BTreeSet<String> = found.into_iter().map(|(module, _)| module).filter(|name| name != "lib").collect();
    assert_eq!(ranks().into_keys().collect::<BTreeSet<_>>(), modules);
}

#[test]
fn only_the_door_names_pyo3() {
    let mut found = Vec::new();
    files(&root(), &mut found);
    let names: Vec<_> = found.iter().filter(|(_, path)| code(path).contains("pyo3")).collect();
    assert!(!names.is_empty() && names.iter().all(|(module, _)| module == "py"), "{names:?}");
}

#[test]
fn unsafe_code_is_in_simd_only_and_each_block_has_a_reason() {
    let mut found = Vec::new();
    files(&root(), &mut found);
    for (module, path) in found {
        let code = code(&path);
        let blocks = code.matches("unsafe {").count();
        assert!(blocks == 0 || module == "simd", "{}", path.display());
        let reasons = fs::read_to_string(&path).unwrap().matches("// SAFETY:").count();
        assert_eq!(blocks, reasons, "{}", path.display());
    }
}

/// The conditions that make the vector types of an ISA sound: see `rust/simd/dispatch.rs`.
#[test]
fn only_dispatch_gives_out_the_vectors_of_an_instruction_set() {
    let simd = root().join("simd");
    let modules = code(&simd.join("mod.rs"));
    for module in ["avx2", "avx512", "neon", "portable"] {
        assert!(modules.contains(&format!("\nmod {module};")), "`simd::{module}` is not private");
    }
    let mut found = Vec::new();
    files(&root(), &mut found);
    for (_, path) in found {
        let inside = ["dispatch.rs", "avx2", "avx512.rs", "neon"].iter().any(|own| path.starts_with(simd.join(own)));
        let code = code(&path);
        let named = ["Avx2", "Avx512", "Neon"].into_iter().find(|name| code.contains(name));
        assert!(inside || named.is_none(), "{} names `{}`", path.display(), named.unwrap_or_default());
    }
}

#[test]
fn the_reader_of_paths_sees_lists_and_paths_within_code() {
    let code = "use crate::a::{b, c};\nuse crate::{d, e::{f, g}, h};\nlet x = crate::i::j(); // crate::k::l";
    let without = code.lines().map(|line| line.split("//").next().unwrap()).collect::<String>();
    assert_eq!(uses(&without).into_iter().collect::<String>(), "adehi");
}
