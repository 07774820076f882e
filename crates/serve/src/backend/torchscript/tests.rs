//! Modules written by Python, loaded and run.
