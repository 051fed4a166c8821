//! Files of the `gguf` package are read as that package reads them, and written again with the same bytes.

use std::borrow::Cow;
use std::fs;
use std::path::Path;

use crate::container::gguf::split;
use crate::container::gguf::value::{Value, ValueRef, ValueType};
use crate::container::{
    Container, Gguf, Header, KeyValues, Metadata, Share, StoredTensor, TensorEntry, lay_out, read_bytes,
};
use crate::digest::Digest;
use crate::dtype::Dtype;
use crate::error::Error;
use crate::tests::support;
use proptest::prelude::*;

/// What the `gguf` package read in the file `name` of `data/gguf_files`.
fn listing(name: &str) -> serde_json::Value {
    let text = fs::read_to_string(support::data("gguf_files/listing.json")).unwrap();
    let mut listing: serde_json::Value = serde_json::from_str(&text).unwrap();
    listing[name].take()
}

fn bytes_of(name: &str) -> Vec<u8> {
    fs::read(support::data("gguf_files").join(name)).unwrap()
}

/// `entries` as tensors to be stored.
fn stored(entries: &[TensorEntry]) -> Vec<StoredTensor> {
    let tensor = |TensorEntry { name, dtype, shape, bytes, .. }: &TensorEntry| StoredTensor {
        name: name.clone(),
        dtype: *dtype,
        shape: shape.clone(),
        bytes: *bytes,
        grows: true,
    };
    entries.iter().map(tensor).collect()
}

/// What the package calls a type.
fn package_name(own: ValueType) -> &'static str {
    match own {
        ValueType::U8 => "UINT8",
        ValueType::I8 => "INT8",
        ValueType::U16 => "UINT16",
        ValueType::I16 => "INT16",
        ValueType::U32 => "UINT32",
        ValueType::I32 => "INT32",
        ValueType::F32 => "FLOAT32",
        ValueType::Bool => "BOOL",
        ValueType::Text => "STRING",
        ValueType::Array => "ARRAY",
        ValueType::U64 => "UINT64",
        ValueType::I64 => "INT64",
        ValueType::F64 => "FLOAT64",
    }
}

/// Asserts that `value` is what the package read.
fn assert_is(key: &str, value: ValueRef<'_>, expected: &serde_json::Value) {
    let mut types = vec![package_name(value.value_type())];
    types.extend(value.elements().map(|(elements, _)| package_name(elements)));
    assert_eq!(serde_json::json!(types), expected["types"], "{key}");
    let expected = &expected["value"];
    if let Some(all) = expected.as_array() {
        assert_eq!(value.elements().unwrap().1, all.len() as u64, "{key}");
        assert_eq!((value.unsigned(), value.float(), value.text(), value.boolean()), (None, None, None, None), "{key}");
        let of = |found: Option<Vec<serde_json::Value>>| found.is_some_and(|found| found == *all);
        let json = |numbers: Vec<u64>| numbers.into_iter().map(Into::into).collect();
        let kinds = [
            of(value.unsigned_array().map(json)),
            of(value.floats().map(|all| all.into_iter().map(Into::into).collect())),
            of(value.booleans().map(|all| all.into_iter().map(Into::into).collect())),
            of(value.texts().map(|all| all.into_iter().map(Into::into).collect())),
        ];
        let is_negative = all[0].as_i64().is_some_and(|number| number < 0);
        assert_eq!(kinds.iter().filter(|&&is| is).count(), usize::from(!is_negative), "{key}: {kinds:?}");
        assert!(!is_negative || value.unsigned_array().is_none());
    } else {
        assert!(value.elements().is_none() && value.texts().is_none() && value.floats().is_none(), "{key}");
        assert_eq!(value.text(), expected.as_str(), "{key}");
        assert_eq!(value.boolean(), expected.as_bool(), "{key}");
        assert_eq!(value.unsigned(), expected.as_u64(), "{key}");
        let is_float = matches!(value.value_type(), ValueType::F32 | ValueType::F64);
        assert_eq!(value.float(), expected.as_f64().filter(|_| is_float), "{key}");
    }
}

#[test]
fn files_of_the_gguf_package_are_read_as_that_package_reads_them() {
    let mut types = Vec::new();
    for name in ["values.gguf", "split-00001-of-00003.gguf", "split-00002-of-00003.gguf"] {
        let (bytes, listing) = (bytes_of(name), listing(name));
        let header = read_bytes(name, &bytes).unwrap();
        let expected = listing["key_values"].as_object().unwrap();
        assert_eq!(header.key_values.len(), expected.len());
        for ((key, value), (expected_key, expected)) in header.key_values.iter().zip(expected) {
            assert_eq!(key, expected_key);
            assert_is(key, value, expected);
            assert_eq!(header.key_values.get(key), Some(value));
        }
        let expected = listing["tensors"].as_array().unwrap();
        assert_eq!(header.entries.len(), expected.len());
        for (entry, expected) in header.entries.iter().zip(expected) {
            let data = &bytes[entry.offset as usize..][..entry.bytes as usize];
            let found = serde_json::json!({
                "name": entry.name, "dtype": entry.dtype.name(), "shape": entry.shape,
                "offset": entry.offset, "bytes": entry.bytes, "sha256": Digest::of(data),
            });
            assert_eq!(found, *expected);
            types.push(entry.dtype);
        }
        assert_eq!(header.bytes, header.entries[0].offset);
        assert_eq!(header.sha256, Digest::of(&bytes[..header.bytes as usize]));
    }
    types.sort();
    types.dedup();
    assert_eq!(types.len(), 32, "{types:?}");
}

#[test]
fn a_file_of_the_gguf_package_is_written_again_with_the_same_bytes() {
    let bytes = bytes_of("values.gguf");
    let header = read_bytes("values.gguf", &bytes).unwrap();
    let tensors = stored(&header.entries);
    let whole = Share { file: 0, files: 1, tensors: tensors.len() };
    let arranged = Gguf.arrange(
        &Metadata::KeyValues(Cow::Borrowed(&header.key_values)),
        whole,
        &tensors.iter().collect::<Vec<&StoredTensor>>(),
    );
    assert!(arranged.head == bytes[..header.bytes as usize]);
    assert_eq!(arranged.bytes, bytes.len() as u64);
    assert!(arranged.offsets.iter().copied().eq(header.entries.iter().map(|entry| entry.offset)));
}

#[test]
fn a_model_is_split_into_files_with_the_bytes_of_the_gguf_package() {
    let names = [1, 2, 3].map(|at| format!("split-0000{at}-of-00003.gguf"));
    let files: Vec<Vec<u8>> = names.iter().map(|name| bytes_of(name)).collect();
    let headers: Vec<Header> = names.iter().zip(&files).map(|(name, bytes)| read_bytes(name, bytes).unwrap()).collect();
    let modules: Vec<Vec<StoredTensor>> =
        headers.iter().flat_map(|header| stored(&header.entries)).map(|tensor| vec![tensor]).collect();
    assert_eq!(modules.len(), 5);
    // Two tensors of 12 and 16 bytes, two of 20 and 24, and one of 28.
    let layout = lay_out(&Gguf, "split", &modules, 45, &Metadata::KeyValues(Cow::Borrowed(&headers[0].key_values)));
    for (at, file) in layout.files.iter().enumerate() {
        assert_eq!(file.name, names[at]);
        assert_eq!(file.head, files[at][..headers[at].bytes as usize]);
        assert_eq!(file.bytes, files[at].len() as u64);
    }
    let whole = lay_out(&Gguf, "model", &modules, 1 << 20, &Metadata::KeyValues(Cow::Borrowed(&headers[0].key_values)));
    assert_eq!(whole.files[0].name, "model.gguf");
    let mut bytes = whole.files[0].head.clone();
    bytes.resize(whole.files[0].bytes as usize, 0);
    let keys: Vec<String> =
        read_bytes("model.gguf", &bytes).unwrap().key_values.iter().map(|(key, _)| key.to_owned()).collect();
    assert_eq!(keys, ["general.architecture", "llama.block_count", "tokenizer.ggml.tokens"]);
    assert_eq!(Gguf.index(&whole, &modules, 7), None);
}

#[test]
fn the_other_files_of_a_split_model_state_an_alignment_of_their_own() {
    let mut all = KeyValues::default();
    all.set("general.alignment", &Value::U32(128));
    all.set("a", &Value::Bool(true));
    let tensor = |name: &str| {
        vec![StoredTensor { name: name.to_owned(), dtype: Dtype::F32, shape: vec![1], bytes: 4, grows: true }]
    };
    let layout = lay_out(&Gguf, "m", &[tensor("x"), tensor("y")], 4, &Metadata::KeyValues(Cow::Borrowed(&all)));
    let headers: Vec<Header> = (layout.files.iter())
        .map(|file| {
            let mut bytes = file.head.clone();
            bytes.resize(file.bytes as usize, 0);
            read_bytes(&file.name, &bytes).unwrap()
        })
        .collect();
    assert_eq!(headers.iter().map(|header| header.key_values.len()).collect::<Vec<_>>(), [5, 4]);
    assert!(headers.iter().all(|header| header.bytes.is_multiple_of(128)));
}

#[test]
fn edits_keep_the_order_and_the_bytes_of_all_else() {
    let bytes = bytes_of("values.gguf");
    let original = read_bytes("values.gguf", &bytes).unwrap().key_values;
    let mut edited = original.clone();
    edited.set("scalar.uint8", &Value::Text("longer than it was".to_owned()));
    edited.set("array.string", &Value::U32(7));
    edited.remove("array.uint8");
    edited.remove("not there");
    edited.set("new", &Value::Texts(vec!["a".to_owned(), String::new()]));
    let mut expected: Vec<&str> = original.iter().map(|(key, _)| key).filter(|key| *key != "array.uint8").collect();
    expected.push("new");
    assert!(edited.iter().map(|(key, _)| key).eq(expected));
    for (key, value) in edited.iter() {
        match key {
            "scalar.uint8" => assert_eq!(value.text(), Some("longer than it was")),
            "array.string" => assert_eq!(value.unsigned(), Some(7)),
            "new" => assert_eq!(value.texts().unwrap(), ["a", ""]),
            _ => assert_eq!(Some(value), original.get(key), "{key}"),
        }
    }
    let texts = original.get("array.string").and_then(ValueRef::texts).unwrap();
    edited.set("array.string", &Value::Texts(texts.into_iter().map(str::to_owned).collect()));
    assert_eq!(edited.get("array.string"), original.get("array.string"));
}

#[test]
fn every_value_is_stored_as_the_gguf_package_stores_it() {
    let bytes = bytes_of("values.gguf");
    let stored = read_bytes("values.gguf", &bytes).unwrap().key_values;
    let text = "caf\u{e9} \u{2581}".to_owned();
    let mut own = KeyValues::default();
    for (key, value) in [
        ("scalar.uint16", Value::U16(60_000)),
        ("scalar.uint32", Value::U32(4_000_000_000)),
        ("scalar.uint64", Value::U64((1 << 63) + 1)),
        ("scalar.int32", Value::I32(-2_000_000_000)),
        ("scalar.float32", Value::F32(0.156_25)),
        ("scalar.bool", Value::Bool(true)),
        ("scalar.string", Value::Text(text.clone())),
        ("text.empty", Value::Text(String::new())),
        ("array.uint32", Value::U32s(vec![4_000_000_000; 3])),
        ("array.int32", Value::I32s(vec![-2_000_000_000; 3])),
        ("array.float32", Value::F32s(vec![0.156_25; 3])),
        ("array.bool", Value::Bools(vec![true; 3])),
        ("array.string", Value::Texts(vec![text; 3])),
    ] {
        own.set(key, &value);
        assert_eq!(own.get(key), stored.get(key), "{key}");
    }
}

/// Writes the three files of the split model to `dir`.
fn split_model(dir: &Path) -> [std::path::PathBuf; 3] {
    [1, 2, 3].map(|at| {
        let name = format!("split-0000{at}-of-00003.gguf");
        let path = dir.join(&name);
        fs::write(&path, bytes_of(&name)).unwrap();
        path
    })
}

/// Slug, message after the path of the directory, and hint.
fn refusal(fault: &Error, dir: &Path) -> (&'static str, String, Option<String>) {
    let message = fault.to_string().replace(&format!("{}/", dir.display()), "");
    (fault.slug(), message, fault.hint().map(str::to_owned))
}

#[test]
fn a_split_model_is_read_from_its_first_file() {
    let dir = tempfile::tempdir().unwrap();
    let paths = split_model(dir.path());
    let files = split::open(&paths[0]).unwrap();
    assert!(files.iter().map(|file| &file.path).eq(&paths));
    let names: Vec<&str> =
        files.iter().flat_map(|file| &file.header.entries).map(|entry| entry.name.as_str()).collect();
    assert_eq!(names, [0, 1, 2, 3, 4].map(|at| format!("blk.{at}.attn_norm.weight")));
    // A file that is not split may have any name.
    let alone = dir.path().join("alone.gguf");
    fs::write(&alone, bytes_of("values.gguf")).unwrap();
    assert_eq!(split::open(&alone).unwrap().len(), 1);
    fs::rename(&alone, dir.path().join("alone-00001-of-00001.gguf")).unwrap();
    assert_eq!(split::open(&dir.path().join("alone-00001-of-00001.gguf")).unwrap().len(), 1);
}

#[test]
fn an_incomplete_or_mixed_split_model_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let [first, second, third] = split_model(dir.path());
    let open = |path: &Path| refusal(&split::open(path).unwrap_err(), dir.path());
    let remedy = Some("give the first file, NAME-00001-of-0000N.gguf, with the others next to it".to_owned());

    let message =
        "split-00002-of-00003.gguf: is not a file of this split model: it is file 2 of 3, and the first is needed";
    assert_eq!(open(&second), ("bad-split", message.to_owned(), remedy.clone()));

    let message =
        "other.gguf: is not a file of this split model: it is one of 3 files, and its name does not say which";
    let renamed = dir.path().join("other.gguf");
    fs::copy(&first, &renamed).unwrap();
    assert_eq!(open(&renamed), ("bad-split", message.to_owned(), remedy.clone()));

    let message = "split-00001-of-00002.gguf: is not a file of this split model: its name says that there are 2 files, and \
                   its key-value `split.count` 3";
    let renamed = dir.path().join("split-00001-of-00002.gguf");
    fs::copy(&first, &renamed).unwrap();
    assert_eq!(open(&renamed), ("bad-split", message.to_owned(), remedy.clone()));

    let whole = fs::read(&third).unwrap();
    fs::copy(&second, &third).unwrap();
    let message = "split-00003-of-00003.gguf: is not a file of this split model: it says `split.no` 1 and `split.count` 3, \
                   where `split.no` 2 and `split.count` 3 are expected";
    assert_eq!(open(&first), ("bad-split", message.to_owned(), remedy.clone()));

    // The third file with a tensor of the first.
    let at = whole.windows(6).position(|bytes| bytes == b"blk.4.").unwrap();
    let mut changed = whole.clone();
    changed[at + 4] = b'0';
    fs::write(&third, &changed).unwrap();
    let message = "tensor `blk.0.attn_norm.weight` is in both split-00001-of-00003.gguf and split-00003-of-00003.gguf";
    assert_eq!(open(&first), ("duplicate-tensor", message.to_owned(), None));

    // A number of tensors that is wrong.
    fs::write(&third, &whole).unwrap();
    let mut header = fs::read(&first).unwrap();
    let at = header.windows(19).position(|bytes| bytes == b"split.tensors.count").unwrap();
    header[at + 19 + 4] = 6;
    let kept = fs::read(&first).unwrap();
    fs::write(&first, &header).unwrap();
    let message = "split-00001-of-00003.gguf: is not a file of this split model: `split.tensors.count` is 6, and the files \
                   hold 5";
    assert_eq!(open(&first), ("bad-split", message.to_owned(), remedy));
    header[at + 19 + 4 + 3] = 0x80;
    fs::write(&first, &header).unwrap();
    let message = "split-00001-of-00003.gguf: key-value `split.tensors.count`: is of type i32, or negative, and must be a \
                   count";
    assert_eq!(open(&first), ("bad-key-value", message.to_owned(), None));

    fs::write(&first, &kept).unwrap();
    fs::remove_file(&second).unwrap();
    let message = "split-00001-of-00003.gguf: is one of 3 files, and `split-00002-of-00003.gguf` is missing";
    let hint = Some("fetch all files of the model into one folder, and keep their names".to_owned());
    assert_eq!(open(&first), ("missing-shard", message.to_owned(), hint));
}

fn modules() -> impl Strategy<Value = Vec<Vec<StoredTensor>>> {
    let dtypes = [Dtype::F32, Dtype::BF16, Dtype::I8, Dtype::Q8_0, Dtype::Q4_K, Dtype::NVFP4];
    let tensor = (prop::sample::select(dtypes.to_vec()), prop::collection::vec(1..4_u64, 0..4), 1..4_u64);
    prop::collection::vec(prop::collection::vec(tensor, 1..4), 1..9).prop_map(|modules| {
        let stored = |(module, tensors): (usize, Vec<(Dtype, Vec<u64>, u64)>)| {
            let stored = |(at, (dtype, mut shape, blocks)): (usize, (Dtype, Vec<u64>, u64))| {
                shape.push(blocks * dtype.block().0);
                let bytes = dtype.bytes(shape.iter().product()).unwrap();
                StoredTensor { name: format!("m{module}.\u{e9} \"{at}\""), dtype, shape, bytes, grows: true }
            };
            tensors.into_iter().enumerate().map(stored).collect()
        };
        modules.into_iter().enumerate().map(stored).collect()
    })
}

proptest! {
    #![proptest_config(support::config(100))]

    #[test]
    fn what_is_laid_out_is_read_as_it_was_planned(
        modules in modules(), shard_bytes in 1..4000_u64, alignment in prop::sample::select(vec![8_u32, 32, 256]),
    ) {
        let mut key_values = KeyValues::of_texts(&[("general.architecture", "llama"), ("empty", "")]);
        key_values.set("general.alignment", &Value::U32(alignment));
        let layout = lay_out(&Gguf, "model", &modules, shard_bytes, &Metadata::KeyValues(Cow::Borrowed(&key_values)));
        let dir = tempfile::tempdir().unwrap();
        for file in &layout.files {
            let mut bytes = file.head.clone();
            bytes.resize(file.bytes as usize, 0);
            fs::write(dir.path().join(&file.name), bytes).unwrap();
        }
        let files = split::open(&dir.path().join(&layout.files[0].name)).unwrap();
        let read: Vec<(usize, &TensorEntry)> =
            files.iter().enumerate().flat_map(|(at, file)| file.header.entries.iter().map(move |entry| (at, entry))).collect();
        prop_assert_eq!(read.len(), modules.iter().flatten().count());
        for ((tensor, place), (file, entry)) in layout.placed(&modules).zip(read) {
            prop_assert_eq!((place.file, place.offset), (file, entry.offset));
            prop_assert_eq!(&stored(std::slice::from_ref(entry))[0], tensor);
        }
        for (file, planned) in files.iter().zip(&layout.files) {
            prop_assert_eq!(file.header.bytes, planned.head.len() as u64);
            prop_assert!(planned.bytes.is_multiple_of(8) && file.header.bytes.is_multiple_of(u64::from(alignment)));
        }
    }
}

#[test]
fn an_output_of_texts_alone_is_possible_in_both_containers() {
    let texts = [("general.architecture", "llama"), ("b", "\u{e9}")];
    let whole = Share { file: 0, files: 1, tensors: 0 };
    let arranged = Gguf.arrange(&Metadata::Texts(&texts), whole, &[]);
    let header = read_bytes("a.gguf", &arranged.head).unwrap();
    assert!(header.key_values.iter().map(|(key, value)| (key, value.text().unwrap())).eq(texts));
    assert!(header.entries.is_empty() && header.bytes == arranged.head.len() as u64);
    // What is no text has no place in the other container.
    let mut key_values = header.key_values;
    key_values.set("number", &Value::U32(7));
    let arranged = crate::container::Safetensors.arrange(&Metadata::KeyValues(Cow::Borrowed(&key_values)), whole, &[]);
    let header = read_bytes("a.safetensors", &arranged.head).unwrap();
    assert!(header.metadata.iter().map(|(key, text)| (key.as_str(), text.as_str())).eq([texts[1], texts[0]]));
    assert!(matches!(read_bytes("a.txt", &arranged.head), Err(Error::Request(_))));
}
