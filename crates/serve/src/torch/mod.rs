//! LibTorch beyond tch: the only unsafe code of this crate.

#![allow(unsafe_code)]

pub mod shim;
