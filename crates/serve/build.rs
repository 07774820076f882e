//! Compiles the C++ shim against torch's headers and lets the binary find torch's libraries.

use std::path::PathBuf;

fn main() {
    // torch-sys found torch through the Python first on PATH and hands its library folder on.
    println!("cargo:rerun-if-env-changed=DEP_TCH_LIBTORCH_LIB");
    let Ok(lib) = std::env::var("DEP_TCH_LIBTORCH_LIB").map(PathBuf::from) else {
        panic!("torch-sys does not tell where torch's libraries are");
    };
    let include = lib.with_file_name("include");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
    println!("cargo:rerun-if-changed=src/torch");
    cc::Build::new()
        .cpp(true)
        .std("c++20")
        .warnings(false)
        .flag("-fopenmp")
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        .files(
            [
                "attention",
                "cpu/kernels",
                "gauge",
                "linear",
                "mapped",
                "memory",
                "module",
                "paged",
                "product",
                "shim",
                "team",
            ]
            .map(|unit| format!("src/torch/{unit}.cc")),
        )
        .compile("trustformers_shim");
    println!("cargo:rustc-link-search=native={}", lib.display());
    for library in ["torch_cpu", "c10"] {
        println!("cargo:rustc-link-lib={library}");
    }
    // The one that torch brings: a second would have threads of its own.
    println!("cargo:rustc-link-lib=dylib:+verbatim=libgomp.so.1");
}
