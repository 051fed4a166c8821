//! What the crate promises, held against oracles: golden files, naive loops, brute force, hostile input.
//!
//! One test binary, so that the crate is linked once. Each module is about one promise; [`support`] makes their input.

#[cfg(test)]
mod allocation;
#[cfg(test)]
mod architecture;
#[cfg(test)]
mod cross_arch;
#[cfg(test)]
mod directories;
#[cfg(test)]
mod documents;
#[cfg(test)]
mod encoding;
#[cfg(test)]
mod headers;
#[cfg(test)]
mod measuring;
#[cfg(test)]
mod options;
#[cfg(test)]
mod probing;
#[cfg(test)]
mod propagation;
#[cfg(test)]
mod sensitivity;
#[cfg(test)]
mod support;
#[cfg(test)]
mod writing;
