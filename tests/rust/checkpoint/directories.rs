//! Which files of a checkpoint's directory are read, and which directories are refused.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::checkpoint::Checkpoint;
use crate::checkpoint::directory::{Directory, holds_gguf};
use crate::dtype::Float;
use crate::error::Error;

use crate::tests::support::{self, made, safetensors};

const INDEX: &str = "model.safetensors.index.json";

/// Writes a shard with tensors of these names.
fn shard(path: impl AsRef<Path>, tensors: &[&str]) {
    let tensors: Vec<_> = tensors.iter().map(|name| made(name, Float::BF16, &[1, 2], &[0.5, 2.0])).collect();
    fs::write(path, safetensors(&tensors, "")).unwrap();
}

/// Writes an index of these pairs of tensor and shard.
fn index(dir: &Path, entries: &[(&str, &str)]) {
    let weight_map: std::collections::BTreeMap<_, _> = entries.iter().copied().collect();
    fs::write(dir.join(INDEX), serde_json::json!({ "metadata": {}, "weight_map": weight_map }).to_string()).unwrap();
}

/// A valid checkpoint of two shards `a` and `b`, each with one tensor of the same name.
fn two_shards() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    shard(dir.path().join("a.safetensors"), &["a"]);
    shard(dir.path().join("b.safetensors"), &["b"]);
    index(dir.path(), &[("a", "a.safetensors"), ("b", "b.safetensors")]);
    dir
}

fn fails(path: &Path, slug: &str) -> Error {
    let fault = Checkpoint::open(path).unwrap_err();
    assert_eq!(fault.slug(), slug, "{fault}");
    fault
}

#[test]
fn an_index_and_its_shards_are_one_checkpoint() {
    let dir = two_shards();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(checkpoint.tensors.len(), 2);
    assert!(checkpoint.file_of(checkpoint.tensor("b").unwrap()).ends_with("b.safetensors"));
    assert_eq!(checkpoint.file_bytes(), 2 * fs::metadata(dir.path().join("a.safetensors")).unwrap().len());
}

#[test]
fn an_index_that_names_anything_but_a_plain_file_is_refused() {
    let dir = two_shards();
    let outside = dir.path().parent().unwrap().join("b.safetensors").display().to_string();
    for name in ["../b.safetensors", outside.as_str(), "sub/b.safetensors", "./b.safetensors", "..", ".", "", "a\\b"] {
        index(dir.path(), &[("a", "a.safetensors"), ("b", name)]);
        let fault = fails(dir.path(), "shard-escapes");
        assert!(fault.to_string().contains(&format!("`{name}`")) && fault.path().unwrap().ends_with(INDEX), "{fault}");
    }
}

#[test]
fn an_invalid_index_is_refused() {
    let dir = two_shards();
    for text in ["", "[]", "{}", "{\"weight_map\":{}}", "{\"weight_map\":{\"a\":7}}", "{\"weight_map\":[]}"] {
        fs::write(dir.path().join(INDEX), text).unwrap();
        assert!(fails(dir.path(), "index-syntax").path().unwrap().ends_with(INDEX));
    }
}

#[test]
fn a_shard_that_is_missing_is_named_with_what_it_should_hold() {
    let dir = two_shards();
    fs::remove_file(dir.path().join("b.safetensors")).unwrap();
    let fault = fails(dir.path(), "missing-shard");
    assert!(fault.to_string().contains("`b.safetensors` (1 tensors)"), "{fault}");
    assert!(fault.hint().unwrap().contains("incomplete"));
    symlink("nowhere", dir.path().join("b.safetensors")).unwrap();
    fails(dir.path(), "missing-shard");
}

#[test]
fn an_index_that_lists_what_is_nowhere_is_refused_with_the_tensor() {
    let dir = two_shards();
    index(dir.path(), &[("a", "a.safetensors"), ("b", "b.safetensors"), ("c", "b.safetensors")]);
    let fault = fails(dir.path(), "index-disagrees");
    assert_eq!(fault.tensor(), Some("c"));
    assert!(fault.to_string().contains("no shard holds it"), "{fault}");
}

#[test]
fn an_index_that_is_wrong_about_places_is_noted() {
    let dir = two_shards();
    shard(dir.path().join("b.safetensors"), &["b", "extra"]);
    index(dir.path(), &[("a", "a.safetensors"), ("b", "b.safetensors")]);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(checkpoint.tensors.len(), 3);
    assert!(checkpoint.notes[0].contains("`extra` in `b.safetensors` is not listed"), "{:?}", checkpoint.notes);

    let dir = two_shards();
    index(dir.path(), &[("a", "b.safetensors"), ("b", "a.safetensors")]);
    let notes = Checkpoint::open(dir.path()).unwrap().notes;
    assert!(notes[0].contains("wrong about 2 tensors"), "{notes:?}");
}

#[test]
fn a_tensor_in_two_shards_is_refused_with_both() {
    let dir = two_shards();
    shard(dir.path().join("b.safetensors"), &["a", "b"]);
    let fault = fails(dir.path(), "duplicate-tensor");
    assert_eq!(fault.tensor(), Some("a"));
    let message = fault.to_string();
    assert!(message.contains("a.safetensors") && message.contains("b.safetensors"), "{message}");
}

#[test]
fn a_link_out_of_the_directory_is_refused_whatever_the_file() {
    let outside = tempfile::tempdir().unwrap();
    shard(outside.path().join("b.safetensors"), &["b"]);
    fs::write(outside.path().join("x"), "{}").unwrap();
    for (name, target) in [("b.safetensors", "b.safetensors"), ("config.json", "x"), ("tokenizer.json", "x")] {
        let dir = two_shards();
        let _ = fs::remove_file(dir.path().join(name));
        symlink(outside.path().join(target), dir.path().join(name)).unwrap();
        let fault = fails(dir.path(), "link-escapes");
        assert!(fault.path().unwrap().ends_with(name) && fault.to_string().contains(target), "{fault}");
    }
    let dir = two_shards();
    fs::rename(dir.path().join(INDEX), outside.path().join(INDEX)).unwrap();
    symlink(outside.path().join(INDEX), dir.path().join(INDEX)).unwrap();
    fails(dir.path(), "link-escapes");
}

#[test]
fn a_link_within_the_directory_is_followed() {
    let dir = two_shards();
    fs::create_dir(dir.path().join("data")).unwrap();
    fs::rename(dir.path().join("b.safetensors"), dir.path().join("data/b")).unwrap();
    symlink("data/b", dir.path().join("b.safetensors")).unwrap();
    assert_eq!(Checkpoint::open(dir.path()).unwrap().tensors.len(), 2);
}

#[test]
fn a_snapshot_in_the_hugging_face_cache_may_link_to_its_blobs_and_nowhere_else() {
    let cache = tempfile::tempdir().unwrap();
    let repository = cache.path().join("models--x--y");
    let snapshot = repository.join("snapshots/0123abc");
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(repository.join("blobs")).unwrap();
    shard(repository.join("blobs/5a5a"), &["a"]);
    symlink("../../blobs/5a5a", snapshot.join("model.safetensors")).unwrap();
    let checkpoint = Checkpoint::open(&snapshot).unwrap();
    assert_eq!(checkpoint.shards[0].name, "model.safetensors");
    // The path of the file gives the same checkpoint.
    assert_eq!(Checkpoint::open(&snapshot.join("model.safetensors")).unwrap().tensors, checkpoint.tensors);

    fs::rename(repository.join("blobs/5a5a"), repository.join("5a5a")).unwrap();
    fs::remove_file(snapshot.join("model.safetensors")).unwrap();
    symlink("../../5a5a", snapshot.join("model.safetensors")).unwrap();
    fails(&snapshot, "link-escapes");

    // A directory with another name has no blobs.
    let other = repository.join("elsewhere/0123abc");
    fs::create_dir_all(&other).unwrap();
    fs::rename(repository.join("5a5a"), repository.join("blobs/5a5a")).unwrap();
    symlink("../../blobs/5a5a", other.join("model.safetensors")).unwrap();
    fails(&other, "link-escapes");
}

#[test]
fn a_directory_without_safetensors_says_what_it_found_instead() {
    let dir = tempfile::tempdir().unwrap();
    fails(dir.path(), "no-checkpoint");
    fs::write(dir.path().join("model.gguf"), "GGUF").unwrap();
    fails(dir.path(), "file-too-short");
    fs::write(dir.path().join("another.gguf"), "GGUF").unwrap();
    assert!(fails(dir.path(), "no-checkpoint").to_string().contains("2 GGUF models"));
    fs::write(dir.path().join("pytorch_model.bin"), "PK").unwrap();
    let fault = fails(dir.path(), "pickle");
    assert!(fault.to_string().contains("pytorch_model.bin") && fault.hint().unwrap().contains("convert"), "{fault}");
}

#[test]
fn without_an_index_the_shards_must_be_unmistakable() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    shard(at("weights.safetensors"), &["a"]);
    assert_eq!(Checkpoint::open(dir.path()).unwrap().tensors.len(), 1, "the only one there is");
    shard(at("adapter.safetensors"), &["b"]);
    fails(dir.path(), "no-checkpoint");
    shard(at("model-00001-of-00002.safetensors"), &["c"]);
    let fault = fails(dir.path(), "no-checkpoint");
    assert!(fault.hint().unwrap().contains("incomplete"), "{fault}");
    shard(at("model-00002-of-00002.safetensors"), &["d"]);
    let names = |checkpoint: &Checkpoint| checkpoint.tensors.iter().map(|t| t.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&Checkpoint::open(dir.path()).unwrap()), ["c", "d"]);
    shard(at("model.safetensors"), &["e"]);
    assert_eq!(names(&Checkpoint::open(dir.path()).unwrap()), ["e"]);
}

#[test]
fn a_single_file_is_a_checkpoint_unless_it_is_a_shard_of_several() {
    let dir = two_shards();
    fails(&dir.path().join("a.safetensors"), "no-checkpoint");
    fs::remove_file(dir.path().join(INDEX)).unwrap();
    assert_eq!(Checkpoint::open(&dir.path().join("a.safetensors")).unwrap().tensors.len(), 1);
    shard(dir.path().join("model-00001-of-00002.safetensors"), &["c"]);
    fails(&dir.path().join("model-00001-of-00002.safetensors"), "no-checkpoint");
    fs::write(dir.path().join("x.bin"), "").unwrap();
    fails(&dir.path().join("x.bin"), "no-checkpoint");
}

#[test]
fn a_repository_name_is_refused_with_a_hint_that_nothing_is_downloaded() {
    assert!(fails(Path::new("someone/some-model"), "no-checkpoint").hint().unwrap().contains("never downloads"));
    assert!(!fails(Path::new("/no/such/place"), "no-checkpoint").hint().unwrap().contains("never downloads"));
}

#[test]
fn a_configuration_that_is_not_an_object_is_refused() {
    let dir = two_shards();
    for text in ["", "[]", "{", "null"] {
        fs::write(dir.path().join("config.json"), text).unwrap();
        assert!(fails(dir.path(), "config-syntax").path().unwrap().ends_with("config.json"));
    }
    fs::write(dir.path().join("config.json"), "{\"text_config\":{\"a\":3},\"b\":null}").unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!((checkpoint.config_size("a"), checkpoint.config_value("b")), (Some(3), None));
}

#[test]
fn other_files_are_listed_and_hidden_ones_are_not() {
    let dir = two_shards();
    fs::create_dir_all(dir.path().join("sub/.cache")).unwrap();
    for name in ["tokenizer.json", "sub/x.txt", ".gitattributes", "sub/.cache/y"] {
        fs::write(dir.path().join(name), "").unwrap();
    }
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(checkpoint.other_files, [Path::new("sub/x.txt"), Path::new("tokenizer.json")]);
}

#[test]
fn headers_that_were_read_to_find_gguf_files_are_not_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let names = [1, 2, 3].map(|at| format!("split-0000{at}-of-00003.gguf"));
    for name in &names {
        fs::copy(support::data("gguf_files").join(name), dir.path().join(name)).unwrap();
    }
    assert!(holds_gguf(dir.path()) && holds_gguf(&dir.path().join(&names[0])));
    let found = Directory::open(dir.path()).unwrap();
    assert!(found.shards.iter().map(|(name, _)| name).eq(&names));
    let opened = Checkpoint::open(dir.path()).unwrap();
    let lengths = opened.shards.iter().map(|shard| (shard.bytes, shard.header_sha256.clone()));
    assert!(found.headers.iter().map(|(bytes, header)| (*bytes, header.sha256.clone())).eq(lengths));
    fs::write(dir.path().join("model.safetensors"), b"\x02\0\0\0\0\0\0\0{}").unwrap();
    assert!(!holds_gguf(dir.path()));
    assert!(Directory::open(dir.path()).unwrap().headers.is_empty());
}
