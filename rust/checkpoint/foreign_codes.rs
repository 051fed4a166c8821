//! Recognises codes that ramrs does not read, by the names and element types of their tensors.

use std::collections::BTreeSet;

use super::Part;
use crate::dtype::Dtype;

/// Endings of names that only one format has, and that format. The first match counts.
const MARKS: [(&str, &str); 25] = [
    (".SCB", "bitsandbytes, 8-bit integers"),
    (".quant_state.bitsandbytes__nf4", NF4),
    (".quant_state.bitsandbytes__fp4", "bitsandbytes, FP4"),
    (".weight.absmax", NF4),
    (".weight.quant_map", NF4),
    (".weight.nested_absmax", NF4),
    (".weight.nested_quant_map", NF4),
    (".weight_scale_2", "NVFP4, ModelOpt"),
    (".weight_global_scale", "NVFP4, compressed-tensors"),
    (".weight_zero_point", "compressed-tensors, with zero points"),
    (".weight_g_idx", "compressed-tensors, with reordered columns"),
    (".g_idx", "GPTQ"),
    (".qweight", GPTQ),
    (".qzeros", GPTQ),
    (".q_weight", "EXL2"),
    (".q_scale_max", "EXL2"),
    (".trellis", "EXL3"),
    (".W_q", "HQQ"),
    (".weight._data", "Quanto"),
    (".weight_qdata", "torchao"),
    ("._weight_qdata", "torchao"),
    (".codebooks", "AQLM"),
    (".Qidxs", "QuIP#"),
    (".centroids.weight", "VPTQ"),
    (".qweight_type", "GGUF in safetensors"),
];
const NF4: &str = "bitsandbytes, NF4";
const GPTQ: &str = "GPTQ or AWQ";

/// The first part of a format that is not read, and the name of the format.
pub(crate) fn foreign_codes(parts: &[Part]) -> Option<(usize, &'static str)> {
    let marked = |part: &Part| MARKS.iter().find(|(end, _)| part.name.ends_with(end)).map(|(_, format)| *format);
    // The mark that says most: GPTQ has all of AWQ's, and one more.
    let of_marks = parts.iter().enumerate().filter_map(|(at, part)| Some((at, marked(part)?)));
    let rank = |format: &str| MARKS.iter().position(|(_, known)| *known == format);
    let by_mark = of_marks.min_by_key(|(at, format)| (rank(format), *at));
    by_mark.or_else(|| by_dtype(parts))
}

/// The first weight that is stored as integers, and the format that the tensors next to it suggest.
fn by_dtype(parts: &[Part]) -> Option<(usize, &'static str)> {
    let names: BTreeSet<&str> = parts.iter().map(|part| part.name.as_str()).collect();
    let format = |part: &Part| {
        let module = part.name.strip_suffix(".weight").filter(|_| part.shape.len() > 1)?;
        let has = |end: &str| names.contains(format!("{module}{end}").as_str());
        match part.dtype {
            Dtype::U32 if has(".scales") => Some("MLX"),
            Dtype::I8 if has(".weight_scale") => {
                Some("8-bit integers with scales, as compressed-tensors' int-quantized")
            }
            Dtype::U8 if has(".weight_scale") => Some("packed codes with scales, as BitNet's"),
            Dtype::I8 => Some("8-bit integers"),
            Dtype::U8 => Some("bytes of codes"),
            Dtype::I16 | Dtype::U16 | Dtype::I32 | Dtype::U32 => Some("packed codes"),
            _ => None,
        }
    };
    parts.iter().enumerate().find_map(|(at, part)| Some((at, format(part)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(parts: &[(&str, Dtype)]) -> Option<&'static str> {
        let part = |(name, dtype): &(&str, Dtype)| Part {
            name: (*name).to_owned(),
            stored: None,
            dtype: *dtype,
            shape: vec![8, 8],
            shard: 0,
            offset: 0,
            bytes: 0,
        };
        let parts: Vec<Part> = parts.iter().map(part).collect();
        foreign_codes(&parts).map(|(_, format)| format)
    }

    #[test]
    fn each_format_is_named_by_what_only_it_has() {
        assert_eq!(of(&[("a.weight", Dtype::I8), ("a.SCB", Dtype::F32)]), Some("bitsandbytes, 8-bit integers"));
        assert_eq!(of(&[("a.weight", Dtype::U8), ("a.weight.absmax", Dtype::F32)]), Some(NF4));
        assert_eq!(of(&[("a.qweight", Dtype::I32), ("a.qzeros", Dtype::I32)]), Some(GPTQ));
        assert_eq!(of(&[("a.qweight", Dtype::I32), ("a.g_idx", Dtype::I32)]), Some("GPTQ"));
        assert_eq!(of(&[("a.weight", Dtype::U32), ("a.scales", Dtype::BF16)]), Some("MLX"));
        assert!(of(&[("a.weight", Dtype::I8), ("a.weight_scale", Dtype::BF16)]).unwrap().contains("int-quantized"));
        assert_eq!(of(&[("a.weight", Dtype::I8)]), Some("8-bit integers"));
        assert_eq!(of(&[("a.weight", Dtype::BF16), ("a.position_ids", Dtype::I64)]), None);
    }
}
