//! A small checkpoint on disk, one of whose files a target replaces.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::{env, fs, process};

use ramrs::{AnalysisRequest, ProbeOptions};

/// The checkpoint, without its index.
const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/tiny-llama-bf16");

/// Formats that a checkpoint is inspected for.
const FORMATS: [&str; 2] = ["mlx", "compressed-tensors"];

/// The checkpoint's directory, a temporary one of the process.
#[derive(Clone, Copy, Debug)]
pub struct Folder(&'static Path);

impl Folder {
    /// Copies the checkpoint on the first call.
    ///
    /// # Panics
    /// If it cannot be copied.
    pub fn open() -> Self {
        static COPY: OnceLock<PathBuf> = OnceLock::new();
        Self(COPY.get_or_init(|| {
            let folder = env::temp_dir().join(format!("ramrs-fuzz-{}", process::id()));
            fs::create_dir_all(&folder).unwrap();
            for name in ["config.json", "model.safetensors"] {
                fs::copy(Path::new(SOURCE).join(name), folder.join(name)).unwrap();
            }
            folder
        }))
    }

    /// The path of a file in it.
    #[must_use]
    pub fn path(self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Writes one of its files.
    ///
    /// # Panics
    /// If the file cannot be written.
    pub fn write(self, name: &str, bytes: &[u8]) {
        fs::write(self.path(name), bytes).unwrap();
    }

    /// A request to analyze the checkpoint. A probe is short.
    #[must_use]
    pub fn request(self) -> AnalysisRequest {
        let probe = ProbeOptions { tokens: 1, ..ProbeOptions::default() };
        AnalysisRequest { model: self.0.to_owned(), probe, ..AnalysisRequest::default() }
    }

    /// Inspects the checkpoint for each format, with one file replaced.
    pub fn inspect_with(self, name: &str, bytes: &[u8]) {
        self.write(name, bytes);
        for format in FORMATS {
            let _ = ramrs::inspect(&AnalysisRequest { format: format.to_owned(), ..self.request() });
        }
    }
}
