//! Invalid safetensors files are refused with the name of the file and the tensor.

use crate::checkpoint::{Checkpoint, Shard};
use crate::error::Error;

use crate::tests::support::{self, file};

/// Opens a file with these bytes.
fn open(bytes: &[u8]) -> Result<Vec<crate::container::TensorEntry>, Error> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("odd.safetensors");
    std::fs::write(&path, bytes).unwrap();
    Shard::open(path, "odd.safetensors".to_owned()).map(|(_, header)| header.entries)
}

/// Asserts that a file is refused with `slug`, for `tensor` if given, and that the message names file and tensor.
fn refused(bytes: &[u8], slug: &str, tensor: Option<&str>) -> String {
    let fault = open(bytes).unwrap_err();
    let message = fault.to_string();
    assert_eq!((fault.slug(), fault.tensor()), (slug, tensor), "{message}");
    assert!(fault.path().unwrap().ends_with("odd.safetensors") && message.contains("odd.safetensors"), "{message}");
    assert!(tensor.is_none_or(|tensor| message.contains(&format!("`{tensor}`"))), "{message}");
    message
}

/// A header with one entry `t`.
fn entry(dtype: &str, shape: &str, offsets: &str) -> String {
    format!("{{\"t\":{{\"dtype\":\"{dtype}\",\"shape\":{shape},\"data_offsets\":{offsets}}}}}")
}

/// A header of two tensors of bytes, at these offsets.
fn two(a: [u64; 2], b: [u64; 2]) -> String {
    let entry = |name: &str, [begin, end]: [u64; 2]| {
        let length = end - begin;
        format!("\"{name}\":{{\"dtype\":\"U8\",\"shape\":[{length}],\"data_offsets\":[{begin},{end}]}}")
    };
    format!("{{{},{}}}", entry("a", a), entry("b", b))
}

#[test]
fn a_file_shorter_than_eight_bytes_is_refused() {
    for length in 0..8 {
        let message = refused(&[0; 8][..length], "file-too-short", None);
        assert!(message.contains(&format!("{length} bytes long")), "{message}");
    }
}

#[test]
fn a_header_longer_than_the_file_is_refused_without_room_being_made_for_it() {
    for claimed in [1, 3, 1 << 40, 1 << 63, u64::MAX - 7, u64::MAX] {
        let bytes = [claimed.to_le_bytes().as_slice(), b""].concat();
        let message = refused(&bytes, "header-length", None);
        assert!(message.contains(&claimed.to_string()) && message.contains("at most 0"), "{message}");
    }
    let one_too_long = [3_u64.to_le_bytes().as_slice(), b"{}"].concat();
    refused(&one_too_long, "header-length", None);
}

#[test]
fn a_header_above_the_format_s_cap_is_refused_however_long_the_file_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    std::fs::write(&path, 100_000_001_u64.to_le_bytes()).unwrap();
    // A sparse file, which does not occupy 200 MB on disk.
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(200_000_000).unwrap();
    let fault = Shard::open(path, "x".to_owned()).unwrap_err();
    assert_eq!(fault.slug(), "header-length");
    assert!(fault.to_string().contains("at most 100000000"), "{fault}");
}

#[test]
fn a_header_that_is_not_a_json_object_is_refused() {
    for header in ["", "{", "[]", "null", "7", "\"x\"", " {}", "{}x", "{\"a\"}", "{\"a\":", "\u{feff}{}", "{'a':1}"] {
        refused(&file(header, b""), "header-syntax", None);
    }
    let not_utf8 = [4_u64.to_le_bytes().as_slice(), b"{\"\xff\""].concat();
    refused(&not_utf8, "header-syntax", None);
}

#[test]
fn a_header_nested_without_end_is_refused() {
    let deep = format!("{{\"t\":{}", "[".repeat(100_000));
    assert!(open(&file(&deep, b"")).is_err());
    let deep = format!("{{\"t\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(open(&file(&deep, b"")).is_err());
}

#[test]
fn metadata_that_are_not_texts_are_refused() {
    for metadata in ["7", "[]", "null", "{\"a\":7}", "{\"a\":null}", "{\"a\":{\"b\":\"c\"}}"] {
        refused(&file(&format!("{{\"__metadata__\":{metadata}}}"), b""), "header-syntax", None);
    }
}

#[test]
fn a_name_listed_twice_is_refused() {
    let same = "\"t\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}";
    refused(&file(&format!("{{{same},{same}}}"), b"x"), "duplicate-entry", Some("t"));
    // The same name with an escape sequence.
    let escaped = same.replace("\"t\"", "\"\\u0074\"");
    refused(&file(&format!("{{{same},{escaped}}}"), b"x"), "duplicate-entry", Some("t"));
}

#[test]
fn an_unknown_dtype_is_refused_by_name() {
    for dtype in ["", "f32", "F128", "Q4_0", "BF16 "] {
        let message = refused(&file(&entry(dtype, "[0]", "[0,0]"), b""), "unknown-dtype", Some("t"));
        assert!(message.contains(&format!("`{dtype}`")), "{message}");
    }
}

#[test]
fn an_invalid_entry_is_refused_by_name() {
    for entry in [
        "7",
        "null",
        "[]",
        "{}",
        "{\"dtype\":\"U8\",\"shape\":[1]}",
        "{\"dtype\":\"U8\",\"shape\":[-1],\"data_offsets\":[0,1]}",
        "{\"dtype\":\"U8\",\"shape\":[1.5],\"data_offsets\":[0,1]}",
        "{\"dtype\":\"U8\",\"shape\":[1e0],\"data_offsets\":[0,1]}",
        "{\"dtype\":\"U8\",\"shape\":[18446744073709551616],\"data_offsets\":[0,1]}",
        "{\"dtype\":\"U8\",\"shape\":1,\"data_offsets\":[0,1]}",
        "{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0]}",
        "{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1,2]}",
        "{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[-1,0]}",
        "{\"dtype\":8,\"shape\":[1],\"data_offsets\":[0,1]}",
        "{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1],\"strides\":[1]}",
    ] {
        refused(&file(&format!("{{\"t\":{entry}}}"), b"x"), "bad-entry", Some("t"));
    }
}

#[test]
fn a_shape_that_has_no_size_is_refused() {
    for (dtype, shape) in [
        ("U8", "[4294967296,4294967296]"),
        ("U8", "[18446744073709551615,2]"),
        ("U8", "[4294967296,4294967296,0]"),
        ("F64", "[4611686018427387904]"),
        ("F4", "[3]"),
        ("F6_E2M3", "[2]"),
    ] {
        refused(&file(&entry(dtype, shape, "[0,1]"), b"x"), "entry-size", Some("t"));
    }
}

#[test]
fn offsets_that_do_not_fit_dtype_and_shape_are_refused() {
    for (dtype, shape, span) in [("F32", "[2,3]", 23), ("F32", "[2,3]", 25), ("BF16", "[]", 4), ("U8", "[0]", 1)] {
        let header = entry(dtype, shape, &format!("[0,{span}]"));
        let message = refused(&file(&header, &[0; 64][..span]), "entry-length", Some("t"));
        assert!(message.contains(&format!("span {span} bytes")) && message.contains(dtype), "{message}");
    }
}

#[test]
fn offsets_that_run_backwards_are_refused() {
    refused(&file(&entry("U8", "[1]", "[1,0]"), b"x"), "entry-backwards", Some("t"));
    refused(&file(&entry("U8", "[1]", "[18446744073709551615,0]"), b"x"), "entry-backwards", Some("t"));
}

#[test]
fn data_beyond_the_end_of_the_file_are_refused() {
    let message = refused(&file(&entry("U8", "[2]", "[0,2]"), b"x"), "entry-beyond-end", Some("t"));
    assert!(message.contains("which is 1 bytes long"), "{message}");
    let far = entry("U8", "[1]", "[18446744073709551614,18446744073709551615]");
    refused(&file(&far, b"x"), "entry-beyond-end", Some("t"));
}

#[test]
fn data_that_overlap_are_refused() {
    let message = refused(&file(&two([0, 3], [2, 4]), b"1234"), "entry-overlap", Some("b"));
    assert!(message.contains("`a`"), "{message}");
    refused(&file(&two([0, 4], [0, 4]), b"1234"), "entry-overlap", Some("b"));
    // An empty tensor lies within another one.
    refused(&file(&two([0, 4], [2, 2]), b"1234"), "entry-overlap", Some("b"));
}

#[test]
fn bytes_that_belong_to_no_tensor_are_refused() {
    let message = refused(&file(&two([0, 1], [3, 4]), b"1234"), "entry-gap", Some("b"));
    assert!(message.contains("2 bytes after"), "{message}");
    refused(&file(&entry("U8", "[1]", "[1,2]"), b"12"), "entry-gap", Some("t"));
    let message = refused(&file(&two([0, 1], [1, 2]), b"1234"), "trailing-bytes", None);
    assert!(message.contains("2 bytes after the end"), "{message}");
    refused(&file("{}", b"1"), "trailing-bytes", None);
}

#[test]
fn pickles_and_other_formats_are_named() {
    let pickle = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.";
    assert!(refused(pickle, "pickle", None).contains("runs code"));
    refused(b"PK\x03\x04\x00\x00\x08\x08\x00\x00\x00\x00", "pickle", None);
    assert!(refused(b"GGUF\x03\0\0\0\0\0\0\0\0\0\0\0", "other-format", None).contains("GGUF"));
    assert!(refused(b"\x89HDF\r\n\x1a\n\0\0\0\0", "other-format", None).contains("HDF5"));
    assert!(refused(b"version https://git-lfs.github.com/spec/v1\n", "other-format", None).contains("Git LFS"));
}

#[test]
fn a_header_whose_length_begins_like_a_pickle_is_read() {
    // 0x0280, 0x0380, 0x0480 and 0x0580 bytes: on disk 80 02, 80 03…, the first bytes of a pickle file.
    for length in [0x280, 0x380, 0x480, 0x580_usize] {
        let header = entry("U8", "[1]", "[0,1]");
        let padded = format!("{header}{}", " ".repeat(length - header.len()));
        assert_eq!(open(&file(&padded, b"x")).unwrap().len(), 1, "a header of {length} bytes");
    }
}

#[test]
fn tensors_come_in_the_order_of_their_data_whatever_the_order_of_the_header() {
    let entries = open(&file(&two([2, 4], [0, 2]), b"1234")).unwrap();
    assert_eq!(entries.iter().map(|entry| entry.name.as_str()).collect::<Vec<_>>(), ["b", "a"]);
    assert_eq!(entries[1].offset - entries[0].offset, 2);
}

#[test]
fn an_empty_list_scalars_and_empty_tensors_are_read() {
    assert!(open(&file("{}", b"")).unwrap().is_empty());
    assert!(open(&file("{\"__metadata__\":{\"a\":\"b\"}}   ", b"")).unwrap().is_empty());
    let scalar = open(&file(&entry("F32", "[]", "[0,4]"), b"1234")).unwrap();
    assert_eq!((scalar[0].shape.len(), scalar[0].bytes), (0, 4));
    let empty = open(&file(&entry("F32", "[3,0]", "[0,0]"), b"")).unwrap();
    assert_eq!((empty[0].shape.as_slice(), empty[0].bytes), ([3, 0].as_slice(), 0));
    // An empty tensor may lie between two others.
    assert_eq!(open(&file(&two([0, 2], [2, 2]), b"12")).unwrap().len(), 2);
}

#[test]
fn files_of_the_reference_writer_are_read_as_by_the_reference_reader() {
    use safetensors::tensor::{Dtype, TensorView};
    let data: Vec<u8> = (0..=255).collect();
    let view = |dtype, shape: &[usize], range: std::ops::Range<usize>| {
        TensorView::new(dtype, shape.to_vec(), &data[range]).unwrap()
    };
    let tensors = [
        ("a", view(Dtype::F32, &[2, 3], 0..24)),
        ("b.\"quoted\"", view(Dtype::BF16, &[5], 24..34)),
        ("c/\u{e9}", view(Dtype::U8, &[], 7..8)),
        ("d", view(Dtype::I64, &[0, 4], 0..0)),
    ];
    let metadata = [("format".to_owned(), "pt".to_owned())].into_iter().collect();
    let bytes = safetensors::serialize(tensors, Some(metadata)).unwrap();
    let reference = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let entries = open(&bytes).unwrap();
    assert_eq!(entries.len(), reference.len());
    for entry in entries {
        let tensor = reference.tensor(&entry.name).unwrap();
        assert_eq!(entry.dtype.name(), tensor.dtype().to_string());
        assert!(entry.shape.iter().copied().eq(tensor.shape().iter().map(|&n| n as u64)));
        assert_eq!(&bytes[entry.offset as usize..][..entry.bytes as usize], tensor.data(), "{}", entry.name);
    }
}

#[test]
fn no_byte_of_a_header_changed_or_cut_off_makes_it_panic() {
    let whole = std::fs::read(support::data("mx_quantize_3d.safetensors")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    for at in 0..header {
        let mut changed = whole.clone();
        changed[at] ^= 1 << (at % 7);
        std::fs::write(&path, &changed).unwrap();
        // Most changes make the file invalid, some do not. None may cause a panic.
        let _ = Checkpoint::open(dir.path());
        std::fs::write(&path, &whole[..at]).unwrap();
        assert!(Checkpoint::open(dir.path()).is_err(), "cut at {at}");
    }
}
