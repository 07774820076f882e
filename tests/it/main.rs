//! The real server over real sockets, and the layout of the repository.

mod client;
mod harness;
mod tidy;
