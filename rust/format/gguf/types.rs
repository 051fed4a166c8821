//! The types of tensors that llama.cpp's backends compute with.

use crate::codec::Scheme;
use crate::dtype::Dtype;

/// Where llama.cpp runs the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Backend {
    /// Anywhere: types that every backend has fast code for.
    #[default]
    Any,
    Cpu,
    Cuda,
    Metal,
}

impl Backend {
    /// All of them, by name.
    pub(super) const NAMES: [&'static str; 4] = ["any", "cpu", "cuda", "metal"];

    pub(super) fn named(name: &str) -> Option<Self> {
        [Self::Any, Self::Cpu, Self::Cuda, Self::Metal].into_iter().find(|backend| backend.name() == name)
    }

    pub(super) fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }

    /// Whether the backend computes with blocks of `dtype` as they are, at the speed of its other types.
    fn has(self, dtype: Dtype) -> bool {
        match self {
            // The types whose blocks are rearranged for products of many tokens.
            Self::Cpu => CPU.contains(&dtype),
            Self::Any => EVERYWHERE.contains(&dtype),
            Self::Metal => EVERYWHERE.contains(&dtype) || CODEBOOKS.contains(&dtype),
            Self::Cuda => EVERYWHERE.contains(&dtype) || CODEBOOKS.contains(&dtype) || dtype == Dtype::NVFP4,
        }
    }

    /// The schemes of the backend, by increasing bytes.
    pub(super) fn schemes(self) -> Vec<Scheme> {
        let all = EVERYWHERE.into_iter().chain(CODEBOOKS).chain([Dtype::NVFP4]);
        let mut types: Vec<Dtype> = all.filter(|dtype| self.has(*dtype)).collect();
        types.sort_by(|one, other| bits(*one).total_cmp(&bits(*other)));
        types.into_iter().filter_map(Scheme::of_blocks).collect()
    }
}

fn bits(dtype: Dtype) -> f64 {
    let (elements, bytes) = dtype.block();
    8.0 * bytes as f64 / elements as f64
}

/// The types that CPUs, CUDA, Metal and Vulkan have code of their own for.
const EVERYWHERE: [Dtype; 13] = [
    Dtype::Q2_K,
    Dtype::Q3_K,
    Dtype::IQ4_XS,
    Dtype::MXFP4,
    Dtype::Q4_K,
    Dtype::Q4_0,
    Dtype::IQ4_NL,
    Dtype::Q4_1,
    Dtype::Q5_K,
    Dtype::Q5_0,
    Dtype::Q5_1,
    Dtype::Q6_K,
    Dtype::Q8_0,
];

/// The types that every backend has code for, but CPUs are slow at: they look vectors up in a codebook.
const CODEBOOKS: [Dtype; 5] = [Dtype::IQ2_XXS, Dtype::IQ2_XS, Dtype::IQ2_S, Dtype::IQ3_XXS, Dtype::IQ3_S];

const CPU: [Dtype; 8] =
    [Dtype::Q2_K, Dtype::MXFP4, Dtype::Q4_K, Dtype::Q4_0, Dtype::IQ4_NL, Dtype::Q5_K, Dtype::Q6_K, Dtype::Q8_0];

/// The number that llama.cpp gives to files of which most weights are of `dtype` (`general.file_type`).
pub(super) fn file_type(dtype: Dtype) -> u32 {
    match dtype {
        Dtype::F32 => 0,
        Dtype::F16 => 1,
        Dtype::Q4_0 => 2,
        Dtype::Q4_1 => 3,
        Dtype::Q8_0 => 7,
        Dtype::Q5_0 => 8,
        Dtype::Q5_1 => 9,
        Dtype::Q2_K => 10,
        Dtype::Q3_K => 12,
        Dtype::Q4_K => 15,
        Dtype::Q5_K => 17,
        Dtype::Q6_K => 18,
        Dtype::IQ2_XXS => 19,
        Dtype::IQ2_XS => 20,
        Dtype::IQ3_XXS => 23,
        Dtype::IQ4_NL => 25,
        Dtype::IQ3_S => 26,
        Dtype::IQ2_S => 28,
        Dtype::IQ4_XS => 30,
        Dtype::BF16 => 32,
        Dtype::MXFP4 => 38,
        Dtype::NVFP4 => 39,
        // "Guessed", for types that no file of one type has.
        _ => 1024,
    }
}
