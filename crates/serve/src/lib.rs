//! The server.

pub mod backend;
pub mod cli;
pub mod config;
pub mod tensor;
pub mod torch;
