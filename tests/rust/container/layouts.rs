//! Layouts: the reference reader finds every tensor at its planned offset, without gaps.

use crate::band::Matrix;
use crate::checkpoint::Checkpoint;
use crate::codec::affine::pack;
use crate::codec::affine::{Affine, BITS};
use crate::container::{Container, Metadata, STEM, Safetensors, StoredTensor, lay_out};
use crate::dtype::{Dtype, Float};
use crate::simd::Isa;
use proptest::prelude::*;

use crate::tests::support;

fn modules() -> impl Strategy<Value = Vec<Vec<StoredTensor>>> {
    let dtypes = [Dtype::U8, Dtype::BF16, Dtype::F16, Dtype::F32, Dtype::U32, Dtype::I64];
    let tensor = (prop::sample::select(dtypes.to_vec()), prop::collection::vec(0..6_u64, 0..4));
    prop::collection::vec(prop::collection::vec(tensor, 1..4), 1..9).prop_map(|modules| {
        let stored = |(module, tensors): (usize, Vec<(Dtype, Vec<u64>)>)| {
            let stored = |(at, (dtype, shape)): (usize, (Dtype, Vec<u64>))| {
                let bytes = dtype.bytes(shape.iter().product()).unwrap();
                StoredTensor { name: format!("m{module}.\u{e9} \"{at}\""), dtype, shape, bytes, grows: true }
            };
            tensors.into_iter().enumerate().map(stored).collect()
        };
        modules.into_iter().enumerate().map(stored).collect()
    })
}

proptest! {
    #![proptest_config(support::config(150))]

    #[test]
    fn files_have_the_planned_length_and_are_contiguous_and_readable(modules in modules(), shard_bytes in 1..400_u64) {
        let layout = lay_out(&Safetensors, STEM, &modules, shard_bytes, &Metadata::Texts(&[("format", "mlx")]));
        let (stored, locations): (Vec<&StoredTensor>, Vec<_>) = layout.placed(&modules).unzip();
        let dir = tempfile::tempdir().unwrap();
        for (file, planned) in layout.files.iter().enumerate() {
            let mut bytes = vec![0; planned.bytes as usize];
            bytes[..planned.head.len()].copy_from_slice(&planned.head);
            prop_assert!(planned.head.len().is_multiple_of(8));
            let mut reached = planned.head.len() as u64;
            let mut here: Vec<usize> = (0..stored.len()).filter(|&at| locations[at].file == file).collect();
            here.sort_by_key(|&at| (locations[at].offset, stored[at].bytes, at));
            for &at in &here {
                prop_assert_eq!(locations[at].offset, reached);
                prop_assert!(reached.is_multiple_of(stored[at].dtype.bits() / 8));
                bytes[reached as usize..][..stored[at].bytes as usize].fill(at as u8);
                reached += stored[at].bytes;
            }
            prop_assert_eq!(reached, planned.bytes);
            let reference = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            prop_assert_eq!(reference.len(), here.len());
            for &at in &here {
                let tensor = reference.tensor(&stored[at].name).unwrap();
                prop_assert_eq!(tensor.data(), vec![at as u8; stored[at].bytes as usize]);
                prop_assert_eq!(tensor.dtype().to_string(), stored[at].dtype.name());
            }
            let modules_here = modules.iter().filter(|module| here.iter().any(|&at| *stored[at] == module[0]));
            prop_assert!(planned.bytes - planned.head.len() as u64 <= shard_bytes || modules_here.count() == 1);
            std::fs::write(dir.path().join(&planned.name), &bytes).unwrap();
        }
        let (name, text) = Safetensors.index(&layout, &modules, 1).unwrap();
        std::fs::write(dir.path().join(name), text).unwrap();
        prop_assert_eq!(Checkpoint::open(dir.path()).unwrap().tensors.len(), stored.len());
        prop_assert_eq!(lay_out(&Safetensors, STEM, &modules, shard_bytes, &Metadata::Texts(&[("format", "mlx")])), layout);
    }

    #[test]
    fn packed_rows_have_the_length_of_the_scheme_and_survive_a_round_trip(
        bits in prop::sample::select(BITS.as_slice()), eights in 0..40_usize, seed: u64,
    ) {
        let mut numbers = support::Numbers(seed);
        let limit = 1 << bits;
        let codes: Vec<u8> = (0..8 * eights).map(|_| numbers.below(limit) as u8).collect();
        let (mut packed, mut back) = (Vec::new(), Vec::new());
        pack::pack(Isa::detect(), bits, &codes, &mut packed);
        pack::unpack(bits, &packed, &mut back);
        prop_assert_eq!(&back, &codes);
        // Definition of the format: bit n of the stream is bit n mod 8 of byte n / 8.
        for n in 0..8 * packed.len() {
            let (code, bit) = (back[n / usize::from(bits)], n % usize::from(bits));
            prop_assert_eq!(packed[n / 8] >> (n % 8) & 1, code >> bit & 1);
        }
    }
}

#[test]
fn the_bytes_of_a_scheme_are_those_of_its_parts() {
    for scheme in Affine::all() {
        for float in [Float::F32, Float::F16, Float::BF16] {
            let (rows, cols) = (3_u64, 384_u64);
            let mut row = Vec::new();
            pack::pack(Isa::detect(), scheme.bits(), &vec![0; cols as usize], &mut row);
            let grids = 2 * (cols as usize / scheme.group_size()) * float.bytes();
            let stored = scheme.scheme().stored_bytes(Matrix { rows, cols, float });
            assert_eq!(stored, rows * (row.len() + grids) as u64, "{}", scheme.scheme());
        }
    }
}
