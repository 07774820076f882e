//! The token-level scheduler, by examples and against a model of the KV cache's content.

mod admission;
mod ahead;
mod blocks;
mod forks;
mod inter_token;
mod learning;
mod order;
mod preemption;
mod prefix;
mod properties;
mod scoring;
mod simulation;
mod steps;
mod world;
