//! Compiles the GPU kernels of feature `cuda`: each `kernels/NAME.cu` to `OUT_DIR/NAME.fatbin`. With and without the feature, it
//! writes down for Rust what the sources declare: which kernels start early, the tile tables, and constants.
//!
//! `NVCC` names the compiler, else `$CUDA_HOME/bin/nvcc`, else `nvcc` on the PATH. `EASEL_CUDA_ARCHS` (such as `90` or
//! `80,90`) limits the architectures for a quick build.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread;

const KERNELS: [&str; 8] =
    ["attention", "layer_norm", "norm", "place", "pointwise", "product", "product_plain", "steps"];
/// Those for Hopper alone, whose instructions no other architecture has.
const HOPPER_KERNELS: [&str; 4] = ["attention_hopper", "geglu_hopper", "panel_hopper", "product_hopper"];
/// Turing, A100, A10G, Ada (L4, L40S), Hopper, and Blackwell's two: B200, and the cards.
const ARCHITECTURES: &str = "75,80,86,89,90,100,120";
const NO_COMPILER: &str = "the feature cuda needs nvcc of CUDA 13: set NVCC or CUDA_HOME";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=kernels");
    for name in ["NVCC", "CUDA_HOME", "EASEL_CUDA_ARCHS"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    let Some(out) = env::var_os("OUT_DIR").map(PathBuf::from) else { panic!("OUT_DIR is not set") };
    declare(&out);
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        println!("cargo:rustc-env=EASEL_CUDA_ARCHS_BUILT=none");
        write(&out, "images.rs", "&[]");
        write(&out, "hopper_images.rs", "&[]");
        return;
    }
    let compiler = compiler();
    let (common, architectures) = (common(&compiler), architectures());
    println!("cargo:rustc-env=EASEL_CUDA_ARCHS_BUILT={architectures}");
    let architectures = code(&architectures);
    let hopper = vec!["-gencode=arch=compute_90a,code=sm_90a".to_string()];
    thread::scope(|scope| {
        let all = KERNELS.iter().map(|name| (name, &architectures));
        for (name, architectures) in all.chain(HOPPER_KERNELS.iter().map(|name| (name, &hopper))) {
            let (compiler, out, options) = (&compiler, &out, [common.as_slice(), architectures].concat());
            scope.spawn(move || compile(compiler, &options, name, out));
        }
    });
    for (file, kernels) in [("images.rs", &KERNELS[..]), ("hopper_images.rs", &HOPPER_KERNELS)] {
        let images =
            kernels.iter().map(|name| format!("include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{name}.fatbin\"))"));
        write(&out, file, &format!("&[{}]", images.collect::<Vec<_>>().join(", ")));
    }
}

/// Writes what Rust needs to know of the kernels, as Rust.
fn declare(out: &Path) {
    let folder = fs::read_dir("kernels").unwrap_or_else(|error| panic!("kernels: {error}"));
    let mut paths: Vec<PathBuf> =
        folder.map(|entry| entry.unwrap_or_else(|error| panic!("kernels: {error}")).path()).collect();
    paths.sort();
    let read = |path: &PathBuf| fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let sources = paths.iter().map(read).collect::<Vec<_>>().join("\n");
    let early = ["EXPORT_EARLY", "STARTS_EARLY"].into_iter().flat_map(|declaration| rows(&sources, declaration));
    let early = early.map(|row| format!("\"{}\"", row[0]));
    write(out, "early_kernels.rs", &format!("&[{}]", early.collect::<Vec<_>>().join(", ")));
    // The ending of the name is a text, the other columns are numbers; what only CUDA needs comes last.
    for (declaration, columns, file) in [
        ("ATTENTION_TILE", 5, "attention_tiles.rs"),
        ("CAUSAL_TILE", 5, "causal_tiles.rs"),
        ("ATTENTION_HOPPER_TILE", 7, "attention_hopper_tiles.rs"),
        ("GEGLU_TILE", 3, "geglu_tiles.rs"),
        ("PRODUCT_TILE", 7, "product_tiles.rs"),
        ("PRODUCT_ANY_TILE", 7, "product_any_tiles.rs"),
        ("PRODUCT_HOPPER_TILE", 7, "product_hopper_tiles.rs"),
        ("SOFTMAX_TILE", 7, "softmax_tiles.rs"),
        ("SOFTMAX_HOPPER_TILE", 7, "softmax_hopper_tiles.rs"),
    ] {
        let rows = rows(&sources, declaration).into_iter().map(|row| {
            let numbers = row[1..columns].iter().map(|number| format!(", {number}")).collect::<String>();
            format!("(\"{}\"{numbers})", row[0])
        });
        write(out, file, &format!("&[{}]", rows.collect::<Vec<_>>().join(", ")));
    }
    let constants = rows(&sources, "RUST_CONSTANT").into_iter();
    let constants = constants.map(|row| format!("pub(crate) const {}: usize = {};\n", row[0], row[1]));
    write(out, "kernel_constants.rs", &constants.collect::<String>());
}

/// The arguments of a macro, wherever a line begins with it, as far as the first bracket closes on that line.
fn rows<'a>(sources: &'a str, declaration: &str) -> Vec<Vec<&'a str>> {
    let arguments =
        sources.lines().filter_map(|line| line.strip_prefix(declaration)?.strip_prefix('(')?.split(')').next());
    let rows: Vec<Vec<_>> = arguments.map(|text| text.split(',').map(str::trim).collect()).collect();
    assert!(!rows.is_empty(), "no kernel declares {declaration}");
    rows
}

fn write(out: &Path, name: &str, text: &str) {
    fs::write(out.join(name), text).unwrap_or_else(|error| panic!("{name}: {error}"));
}
/// The nvcc to run.
fn compiler() -> PathBuf {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("NVCC").or_else(|| set("CUDA_HOME").map(|home| home.join("bin").join("nvcc"))).unwrap_or_else(|| "nvcc".into())
}

/// Options common to all files.
fn common(compiler: &Path) -> Vec<String> {
    let mut options: Vec<String> = ["-fatbin", "-O3", "-std=c++17"].map(String::from).into();
    let help = run(Command::new(compiler).arg("--help"));
    if String::from_utf8_lossy(&help.stdout).contains("--compress-mode") {
        options.push("--compress-mode=size".into());
    }
    options
}

/// The architectures to build for, by commas.
fn architectures() -> String {
    let chosen = env::var("EASEL_CUDA_ARCHS").ok().filter(|list| !list.trim().is_empty());
    let chosen = chosen.as_deref().unwrap_or(ARCHITECTURES);
    chosen.split([',', ' ']).map(str::trim).filter(|name| !name.is_empty()).collect::<Vec<_>>().join(",")
}

/// Machine code for each architecture, and PTX of the last for newer ones.
fn code(architectures: &str) -> Vec<String> {
    let machine = architectures.split(',').map(|name| format!("-gencode=arch=compute_{name},code=sm_{name}"));
    let last = architectures.split(',').next_back();
    machine.chain(last.map(|name| format!("-gencode=arch=compute_{name},code=compute_{name}"))).collect()
}

/// Compiles one file.
fn compile(compiler: &Path, options: &[String], name: &str, out: &Path) {
    let source = format!("kernels/{name}.cu");
    let target = out.join(format!("{name}.fatbin"));
    let output = run(Command::new(compiler).args(options).arg(&source).arg("-o").arg(&target));
    if !output.status.success() {
        let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        panic!("nvcc failed on {source} ({}):\n{stdout}{stderr}", output.status);
    }
}

/// Runs the compiler to its end.
fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{NO_COMPILER} ({}: {error})", command.get_program().display()))
}
