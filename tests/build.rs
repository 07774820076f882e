//! Lets the test binary find torch's libraries.

fn main() {
    // torch-sys found torch through the Python first on PATH and hands its library folder on.
    println!("cargo:rerun-if-env-changed=DEP_TCH_LIBTORCH_LIB");
    if let Ok(lib) = std::env::var("DEP_TCH_LIBTORCH_LIB") {
        println!("cargo:rustc-link-arg-tests=-Wl,-rpath,{lib}");
    }
}
