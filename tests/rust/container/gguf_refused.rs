//! Invalid GGUF files are refused with the name of the file, and of the key or the tensor.

use std::path::Path;

use crate::container::file::Source;
use crate::container::{Container, Gguf, read_bytes};
use crate::error::{Error, Result};

const U8: u32 = 0;
const U32: u32 = 4;
const BOOL: u32 = 7;
const TEXT: u32 = 8;
const ARRAY: u32 = 9;
const U64: u32 = 10;

/// ggml's numbers of types.
const F32: u32 = 0;
const Q4_K: u32 = 12;

/// A text of `bytes` that claims to be `length` bytes long.
fn claimed(length: u64, bytes: &[u8]) -> Vec<u8> {
    [&length.to_le_bytes(), bytes].concat()
}

fn text(text: impl AsRef<[u8]>) -> Vec<u8> {
    claimed(text.as_ref().len() as u64, text.as_ref())
}

fn pair(key: impl AsRef<[u8]>, value_type: u32, value: &[u8]) -> Vec<u8> {
    [&text(key), value_type.to_le_bytes().as_slice(), value].concat()
}

/// An array after the number of its own type.
fn array(elements: u32, count: u64, bytes: &[u8]) -> Vec<u8> {
    [elements.to_le_bytes().as_slice(), &count.to_le_bytes(), bytes].concat()
}

fn tensor(name: impl AsRef<[u8]>, dimensions: &[u64], ggml_type: u32, offset: u64) -> Vec<u8> {
    let dimensions: Vec<u8> = (dimensions.len() as u32)
        .to_le_bytes()
        .into_iter()
        .chain(dimensions.iter().flat_map(|dimension| dimension.to_le_bytes()))
        .collect();
    [&text(name), dimensions.as_slice(), &ggml_type.to_le_bytes(), &offset.to_le_bytes()].concat()
}

/// A head that claims these numbers of tensors and key-values, without padding.
fn head(version: u32, tensors: u64, pairs: u64, rest: &[u8]) -> Vec<u8> {
    [b"GGUF".as_slice(), &version.to_le_bytes(), &tensors.to_le_bytes(), &pairs.to_le_bytes(), rest].concat()
}

/// A file of these key-values and tensors, and `data` bytes of data.
fn file(pairs: &[Vec<u8>], tensors: &[Vec<u8>], data: usize) -> Vec<u8> {
    let mut file = head(3, tensors.len() as u64, pairs.len() as u64, &[pairs.concat(), tensors.concat()].concat());
    file.resize(file.len().next_multiple_of(32) + data, 0);
    file
}

/// A file of one key-value.
fn only_pair(pair: Vec<u8>) -> Vec<u8> {
    file(&[pair], &[], 0)
}

/// A file of one tensor of 16 bytes of data.
fn only_tensor(tensor: Vec<u8>) -> Vec<u8> {
    file(&[], &[tensor], 16)
}

/// What is wrong, the file, the slug of the error, and the message after the name of the file.
type Case = (Vec<u8>, &'static str, String);

fn case(file: Vec<u8>, slug: &'static str, message: &str) -> Case {
    (file, slug, message.to_owned())
}

/// Faults of what precedes the key-values.
fn starts() -> Vec<Case> {
    let mut cases = vec![
        case(vec![], "file-too-short", "0 bytes long, too short to be a GGUF file"),
        case(head(3, 0, 0, &[])[..23].to_vec(), "file-too-short", "23 bytes long, too short to be a GGUF file"),
        case(
            b"GGML\x03\0\0\0................".to_vec(),
            "other-format",
            r"is not a GGUF file: it starts with `GGML\x03\x00\x00\x00`",
        ),
        case(
            b"version https://git-lfs.github.com/spec/v1".to_vec(),
            "other-format",
            "is not a GGUF file: it starts with `version `",
        ),
        case(
            b"PK\x03\x04....................".to_vec(),
            "other-format",
            r"is not a GGUF file: it starts with `PK\x03\x04....`",
        ),
        case(
            head(3_u32.swap_bytes(), 0, 0, &[]),
            "big-endian",
            "is a big-endian GGUF file; ramrs reads little-endian ones",
        ),
    ];
    for version in [0, 1, 4, u32::MAX] {
        let message = format!("is a GGUF file of version {version}; ramrs reads versions 2 and 3");
        cases.push((head(version, 0, 0, &[]), "header-version", message));
    }
    let cut = |what: &str, needed: u64, left: u64| {
        format!("the header is cut off: {what} needs {needed} bytes, and {left} are left in the file")
    };
    for (count, needed) in [(1, 25), (1 << 40, 25 << 40), (u64::MAX, u64::MAX)] {
        cases.push((head(3, count, 0, &[0; 7]), "header-cut", cut(&format!("a list of {count} tensors"), needed, 7)));
    }
    for (count, needed) in [(1, 14), (u64::MAX / 14 + 1, u64::MAX), (u64::MAX, u64::MAX)] {
        cases.push((
            head(3, 0, count, &[0; 7]),
            "header-cut",
            cut(&format!("a list of {count} key-values"), needed, 7),
        ));
    }
    cases
}

/// Faults of keys and values.
fn pairs() -> Vec<Case> {
    let key = |stored: Vec<u8>| file(&[[stored, U32.to_le_bytes().to_vec(), vec![0; 4]].concat()], &[], 0);
    let cut = |rest: &[u8]| head(3, 0, 1, rest);
    vec![
        case(key(text("")), "header-syntax", "the header is not valid: key 1 is empty"),
        case(
            key(claimed(65_536, b"a")),
            "header-syntax",
            "the header is not valid: key 1 is 65536 bytes long, and at most 65535 are possible",
        ),
        case(
            key(claimed(u64::MAX, b"a")),
            "header-syntax",
            "the header is not valid: key 1 is 18446744073709551615 bytes long, and at most 65535 are possible",
        ),
        case(
            cut(&claimed(60_000, b"abcdef")),
            "header-cut",
            "the header is cut off: key 1 needs 60000 bytes, and 6 are left in the file",
        ),
        case(
            key(text(b"a\xffb")),
            "header-syntax",
            "the header is not valid: key 1 is not a text: invalid utf-8 sequence of 1 bytes from index 1",
        ),
        case(
            file(&[pair("a", U8, &[1]), pair("b", U8, &[1]), pair("a", U32, &[1; 4])], &[], 0),
            "bad-key-value",
            "key-value `a`: is listed twice",
        ),
        case(only_pair(pair("a", 13, &[0; 8])), "bad-key-value", "key-value `a`: its type 13 is unknown"),
        case(only_pair(pair("a", u32::MAX, &[0; 8])), "bad-key-value", "key-value `a`: its type 4294967295 is unknown"),
        case(
            cut(&pair("a", U64, &[0; 7])),
            "header-cut",
            "the header is cut off: key-value `a` needs 8 bytes, and 7 are left in the file",
        ),
        case(
            cut(&pair("a", TEXT, &claimed(9, b"12345678"))),
            "header-cut",
            "the header is cut off: key-value `a` needs 9 bytes, and 8 are left in the file",
        ),
        case(
            cut(&pair("a", TEXT, &claimed(u64::MAX, b""))),
            "header-cut",
            "the header is cut off: key-value `a` needs 18446744073709551615 bytes, and 0 are left in the file",
        ),
        case(only_pair(pair("a", BOOL, &[2])), "bad-key-value", "key-value `a`: a truth value is 2, neither 0 nor 1"),
    ]
}

/// Faults of arrays.
fn arrays() -> Vec<Case> {
    let cut = |rest: &[u8]| head(3, 0, 1, rest);
    let nested = |depth: usize| {
        let inner = array(U8, 1, &[0]);
        (1..depth).fold(inner, |inner, _| array(ARRAY, 1, &inner))
    };
    assert!(read_bytes("odd.gguf", &only_pair(pair("a", ARRAY, &nested(4)))).is_ok());
    vec![
        case(
            only_pair(pair("a", ARRAY, &array(BOOL, 3, &[0, 1, 255]))),
            "bad-key-value",
            "key-value `a`: a truth value is 255, neither 0 nor 1",
        ),
        case(only_pair(pair("a", ARRAY, &array(13, 0, &[]))), "bad-key-value", "key-value `a`: its type 13 is unknown"),
        case(
            cut(&pair("a", ARRAY, &array(U8, u64::MAX, &[]))),
            "header-cut",
            "the header is cut off: key-value `a` needs 18446744073709551615 bytes, and 0 are left in the file",
        ),
        case(
            cut(&pair("a", ARRAY, &array(U64, (1 << 61) + 1, &[0; 8]))),
            "header-cut",
            "the header is cut off: key-value `a` needs 18446744073709551615 bytes, and 8 are left in the file",
        ),
        case(
            cut(&pair("a", ARRAY, &array(U32, 1 << 30, &[0; 8]))),
            "header-cut",
            "the header is cut off: key-value `a` needs 4294967296 bytes, and 8 are left in the file",
        ),
        case(
            cut(&pair("a", ARRAY, &array(TEXT, 1 << 40, &text("b")))),
            "header-cut",
            "the header is cut off: an array of 1099511627776 elements of type text needs 8796093022208 bytes, and 9 are left \
             in the file",
        ),
        case(
            cut(&pair("a", ARRAY, &array(TEXT, 2, &[text("b"), claimed(8, b"1234567")].concat()))),
            "header-cut",
            "the header is cut off: key-value `a` needs 8 bytes, and 7 are left in the file",
        ),
        case(
            cut(&pair("a", ARRAY, &array(ARRAY, u64::MAX, &array(U8, 0, &[])))),
            "header-cut",
            "the header is cut off: an array of 18446744073709551615 elements of type array needs 18446744073709551615 bytes, \
             and 12 are left in the file",
        ),
        case(
            only_pair(pair("a", ARRAY, &nested(5))),
            "bad-key-value",
            "key-value `a`: its arrays are nested more than 4 deep",
        ),
        case(
            only_pair(pair("a", ARRAY, &nested(5000))),
            "bad-key-value",
            "key-value `a`: its arrays are nested more than 4 deep",
        ),
    ]
}

/// Impossible alignments.
fn alignments() -> Vec<Case> {
    let stated = |value_type, value: &[u8]| only_pair(pair("general.alignment", value_type, value));
    let mut cases = vec![
        case(
            stated(U64, &32_u64.to_le_bytes()),
            "bad-key-value",
            "key-value `general.alignment`: is of type u64, and must be u32",
        ),
        case(
            stated(TEXT, &text("32")),
            "bad-key-value",
            "key-value `general.alignment`: is of type text, and must be u32",
        ),
        case(
            stated(ARRAY, &array(U32, 1, &[32, 0, 0, 0])),
            "bad-key-value",
            "key-value `general.alignment`: is of type array, and must be u32",
        ),
    ];
    for alignment in [0, 1, 4, 24, 33, 1 << 21, u32::MAX] {
        let message = format!("key-value `general.alignment`: {alignment} is not a power of two from 8 to 1048576");
        cases.push((stated(U32, &alignment.to_le_bytes()), "bad-key-value", message));
    }
    cases
}

/// Faults of descriptions of tensors.
fn tensors() -> Vec<Case> {
    let cut = |rest: &[u8]| head(3, 1, 0, rest);
    let mut cases = vec![
        case(
            only_tensor(tensor("", &[4], F32, 0)),
            "header-syntax",
            "the header is not valid: the name of tensor 1 is empty",
        ),
        case(
            only_tensor([claimed(65_536, b"t"), vec![0; 32]].concat()),
            "header-syntax",
            "the header is not valid: the name of tensor 1 is 65536 bytes long, and at most 65535 are possible",
        ),
        case(
            cut(&[claimed(1000, b"t"), vec![0; 32]].concat()),
            "header-cut",
            "the header is cut off: the name of tensor 1 needs 1000 bytes, and 33 are left in the file",
        ),
        case(
            only_tensor(tensor(b"\xc3\x28", &[4], F32, 0)),
            "header-syntax",
            "the header is not valid: the name of tensor 1 is not a text: invalid utf-8 sequence of 1 bytes from index 0",
        ),
        case(
            file(&[], &[tensor("t", &[4], F32, 0), tensor("u", &[4], F32, 32), tensor("t", &[4], F32, 64)], 96),
            "duplicate-entry",
            "tensor `t`: listed twice in one header",
        ),
        case(
            only_tensor(tensor("t", &[1, 1, 1, 1, 4], F32, 0)),
            "bad-entry",
            "tensor `t`: not a tensor entry: it has 5 dimensions, and at most 4 are possible",
        ),
        case(
            cut(&[text("t"), u32::MAX.to_le_bytes().to_vec(), vec![1; 32]].concat()),
            "bad-entry",
            "tensor `t`: not a tensor entry: it has 4294967295 dimensions, and at most 4 are possible",
        ),
        case(
            cut(&tensor("t", &[4, 4], F32, 0)[..40]),
            "header-cut",
            "the header is cut off: tensor `t` needs 8 bytes, and 7 are left in the file",
        ),
        case(
            only_tensor(tensor("t", &[4, 0], F32, 0)),
            "bad-entry",
            "tensor `t`: not a tensor entry: one of its dimensions is 0",
        ),
        case(
            only_tensor(tensor("t", &[0], Q4_K, 0)),
            "bad-entry",
            "tensor `t`: not a tensor entry: one of its dimensions is 0",
        ),
        case(
            only_tensor(tensor("t", &[1 << 32, 1 << 32], F32, 0)),
            "entry-size",
            "tensor `t`: shape [4294967296, 4294967296] of F32 has no size in bytes",
        ),
        case(
            only_tensor(tensor("t", &[1 << 62], F32, 0)),
            "entry-size",
            "tensor `t`: shape [4611686018427387904] of F32 has no size in bytes",
        ),
        case(
            only_tensor(tensor("t", &[1 << 16, 1 << 16, 1 << 16, 1 << 16], F32, 0)),
            "entry-size",
            "tensor `t`: shape [65536, 65536, 65536, 65536] of F32 has no size in bytes",
        ),
        case(
            file(&[], &[tensor("t", &[128, 2], Q4_K, 0)], 144),
            "entry-rows",
            "tensor `t`: rows of 128 elements are not whole blocks of Q4_K, which are of 256",
        ),
        case(
            only_tensor(tensor("t", &[], Q4_K, 0)),
            "entry-rows",
            "tensor `t`: rows of 1 elements are not whole blocks of Q4_K, which are of 256",
        ),
    ];
    for dead in [4, 5, 9, 15, 31, 32, 33, 36, 37, 38, 43, u32::MAX] {
        let message = format!("tensor `t`: unknown dtype `type {dead} of ggml`");
        cases.push((only_tensor(tensor("t", &[256], dead, 0)), "unknown-dtype", message));
    }
    cases
}

/// Faults of the places of data.
fn places() -> Vec<Case> {
    let two = |second: u64| [tensor("t", &[12], F32, 0), tensor("u", &[4], F32, second)];
    assert!(read_bytes("odd.gguf", &file(&[], &two(64), 80)).is_ok());
    let whole = file(&[], &two(64), 80);
    vec![
        case(
            only_tensor(tensor("t", &[4], F32, 16)),
            "entry-misaligned",
            "tensor `t`: starts at byte 16 of the data section, which is not a multiple of the alignment, 32",
        ),
        case(
            file(&[pair("general.alignment", U32, &64_u32.to_le_bytes())], &[tensor("t", &[4], F32, 32)], 128),
            "entry-misaligned",
            "tensor `t`: starts at byte 32 of the data section, which is not a multiple of the alignment, 64",
        ),
        case(
            only_tensor(tensor("t", &[4], F32, 32)),
            "entry-beyond-end",
            "tensor `t`: data end at byte 48 of the data section, which is 16 bytes long",
        ),
        case(
            only_tensor(tensor("t", &[4], F32, u64::MAX - 31)),
            "entry-beyond-end",
            "tensor `t`: data end at byte 18446744073709551600 of the data section, which is 16 bytes long",
        ),
        case(
            only_tensor(tensor("t", &[1 << 40], F32, u64::MAX - 31)),
            "entry-beyond-end",
            "tensor `t`: data end at byte 18446744073709551615 of the data section, which is 16 bytes long",
        ),
        case(
            only_tensor(tensor("t", &[5], F32, 0)),
            "entry-beyond-end",
            "tensor `t`: data end at byte 20 of the data section, which is 16 bytes long",
        ),
        case(
            whole[..whole.len() - 1].to_vec(),
            "entry-beyond-end",
            "tensor `u`: data end at byte 80 of the data section, which is 79 bytes long",
        ),
        case(
            head(3, 1, 0, &tensor("t", &[4], F32, 0)),
            "entry-beyond-end",
            "tensor `t`: data end at byte 16 of the data section, which is 0 bytes long",
        ),
        case(file(&[], &two(32), 80), "entry-overlap", "tensor `u`: overlaps `t`"),
        case(file(&[], &two(0), 48), "entry-overlap", "tensor `t`: overlaps `u`"),
        case(
            file(&[], &two(96), 112),
            "entry-gap",
            "tensor `u`: starts 48 bytes after the end of the tensor before it",
        ),
        case(
            file(&[], &[tensor("t", &[4], F32, 32)], 48),
            "entry-gap",
            "tensor `t`: starts 32 bytes after the end of the tensor before it",
        ),
        case(file(&[], &two(64), 97), "trailing-bytes", "17 bytes after the end of the last tensor"),
        case(file(&[], &[], 1), "trailing-bytes", "1 bytes after the end of the last tensor"),
    ]
}

#[test]
fn every_malformed_file_is_refused_with_its_message() {
    let cases: Vec<Case> = [starts(), pairs(), arrays(), alignments(), tensors(), places()].concat();
    assert!(cases.len() >= 80, "{}", cases.len());
    for (bytes, slug, message) in cases {
        let mut refused = None;
        let allocated = allocation_counter::measure(|| refused = Some(read_bytes("odd.gguf", &bytes)));
        let fault = refused.unwrap().expect_err(&message);
        assert_eq!(fault.to_string(), format!("odd.gguf: {message}"));
        assert_eq!((fault.slug(), fault.path()), (slug, Some(Path::new("odd.gguf"))), "{message}");
        let named = message.strip_prefix("tensor `").map(|rest| &rest[..1]);
        assert_eq!(fault.tensor(), named, "{message}");
        assert!(allocated.bytes_max <= 16 * bytes.len() as u64 + 4096, "{message}: {allocated:?}");
    }
}

#[test]
fn what_llama_cpp_reads_is_not_refused() {
    let padding = |file: Vec<u8>, bytes: usize| [file, vec![0; bytes]].concat();
    let two = |second: u64| [tensor("t", &[12], F32, 0), tensor("u", &[4], F32, second)];
    let empty = pair("a", ARRAY, &array(TEXT, 0, &[]));
    // Values are copied, so texts that are not UTF-8 are none of the reader's business.
    let not_utf8 = pair("a", TEXT, &text(b"\xff"));
    let mut second = file(&[], &two(64), 80);
    second[4] = 2;
    for (what, file) in [
        ("nothing at all", head(3, 0, 0, &[])),
        ("key-values alone, without padding", head(3, 0, 1, &empty)),
        ("key-values alone, with padding", only_pair(empty)),
        ("a text that is not UTF-8", only_pair(not_utf8)),
        ("without padding at the end", file(&[], &two(64), 80)),
        ("with padding at the end", file(&[], &two(64), 96)),
        ("with some padding at the end", padding(file(&[], &two(64), 80), 7)),
        ("a scalar", file(&[], &[tensor("t", &[], F32, 0)], 4)),
        ("four dimensions", file(&[], &[tensor("t", &[2, 1, 1, 2], F32, 0)], 16)),
        ("version 2", second),
    ] {
        let read = read_bytes("odd.gguf", &file);
        assert!(read.is_ok(), "{what}: {}", read.unwrap_err());
    }
    let header =
        read_bytes("odd.gguf", &file(&[], &[tensor("b", &[4], F32, 32), tensor("a", &[4, 2], F32, 0)], 64)).unwrap();
    let found: Vec<_> = header.entries.iter().map(|entry| (entry.name.as_str(), entry.shape.clone())).collect();
    assert_eq!(found, [("a", vec![2, 4]), ("b", vec![4])], "entries are in the order of the data");
}

#[test]
fn what_was_damaged_comes_with_a_remedy() {
    let hint = |bytes: &[u8]| read_bytes("odd.gguf", bytes).unwrap_err().hint().unwrap().to_owned();
    assert!(hint(&head(3, 1, 0, &[])).starts_with("the file is truncated or damaged"));
    assert!(hint(&only_tensor(tensor("t", &[5], F32, 0))).starts_with("the file is truncated"));
    assert!(hint(&head(1, 0, 0, &[])).contains("current llama.cpp"));
    assert!(hint(&head(3_u32.swap_bytes(), 0, 0, &[])).contains("gguf-convert-endian"));
}

/// A file of a head, and nothing but zeros after it.
struct Endless(Vec<u8>);

impl Source for Endless {
    fn fill(&self, _path: &Path, buffer: &mut [u8], offset: u64) -> Result<()> {
        for (at, byte) in (offset as usize..).zip(buffer) {
            *byte = self.0.get(at).copied().unwrap_or(0);
        }
        Ok(())
    }
}

#[test]
fn a_head_is_not_read_beyond_the_cap_however_long_the_file_is() {
    let long_text = Endless(head(3, 0, 1, &pair("a", TEXT, &claimed(100_000_000, b""))));
    let many_texts = Endless(head(3, 0, 1, &pair("a", ARRAY, &array(TEXT, 1 << 24, b""))));
    let many_tensors = Endless(head(3, 1 << 40, 0, b""));
    for (source, claimed, limit) in
        [(long_text, 100_000_045, 4096), (many_texts, 134_217_777, 4096), (many_tensors, 24 + (25_u64 << 40), 4096)]
    {
        let mut refused = None;
        let allocated =
            allocation_counter::measure(|| refused = Some(Gguf.read(&source, Path::new("odd.gguf"), 1 << 50)));
        let fault: Error = refused.unwrap().unwrap_err();
        let message = format!("odd.gguf: claims a header of {claimed} bytes, but at most 100000000 are possible here");
        assert_eq!((fault.slug(), fault.to_string()), ("header-length", message));
        assert!(allocated.bytes_max <= (256 << 10) + limit, "{allocated:?}");
    }
}
